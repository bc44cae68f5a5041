"""`gritctl check` is true: for each condition a real process that has it, our finding, and what CRIU does when nobody
helps; CRIU's log is diagnosed, and where we say that it is taken care of, it is. See conditions/."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.nodes.conditions.table import ROWS, STOPPED, Row
from tests.testbed import Node, Testbed

HERE = Path(__file__).parent / "conditions"
# cgroup version 1 and runc 1.1 see most things in the same way; these are the ones that could differ
OLD = ["clean", "stopped", "flock", "tcp-established", "exec-detached", "nsenter", "bind-behind", "stdio-file"]

# the workload's image without containerd: its one layer
UNPACK = "tar -xOf /srv/workload.tar layer.tar | tar -xC /tmp/check/base"

Verdicts = dict[str, dict[str, Any]]


def judge(node: Node, names: list[str]) -> Verdicts:
    """Make these conditions in a node, all in one go, three at a time."""
    node.path("/tmp/check/base").mkdir(parents=True, exist_ok=True)
    for name in ("holding.py", "running.py"):
        shutil.copy(HERE / name, node.path("/tmp/check") / name)
    node.run(["sh", "-ec", UNPACK], timeout=60)
    words = [f"{name}+" if name in ROWS and ROWS[name].helped else name for name in names]
    node.run(["python3", "-B", "/tmp/check/running.py", "/tmp/check/out", *words], timeout=280,
             env={"BASE": "/tmp/check/base"})  # fmt: skip
    return {name: json.loads((node.path("/tmp/check/out") / f"{name}.json").read_text()) for name in names}


@pytest.fixture(scope="module")
def verdicts(testbed: Testbed) -> Verdicts:
    return judge(testbed.b, [*ROWS, "stopped"])


@pytest.fixture(scope="module")
def old_verdicts(testbed: Testbed) -> Verdicts:
    return judge(testbed.a, OLD)


def compare(row: Row, found: dict[str, Any]) -> None:
    assert found["error"] == ""
    said = [(finding["reason"], finding["action"]) for finding in found["check"]["rows"]]
    if row.finding:
        assert (row.finding, row.action) in said
        finding = found["check"]["rows"][said.index((row.finding, row.action))]
        assert finding["object"] and finding["text"] and finding["remedy"]
        refused = {reason for reason, action in said if action == "refused"}
        assert refused <= {row.finding, "terminal-outside"}
    else:
        assert said == []
    plain = found["plain"]
    assert bool(plain["code"]) == bool(row.error), plain["said"]
    if row.error:
        assert re.search(row.error, plain["log"]), plain["log"][-3000:]
        reason = plain["diagnosis"]["reason"] if plain["diagnosis"] else ""
        assert reason == row.diagnosis
    if row.helped:
        assert found["helped"]["code"] == 0, (found["helped"]["options"], found["helped"]["log"][-3000:])


@pytest.mark.parametrize("name", ROWS)
def test_condition(name: str, verdicts: Verdicts) -> None:
    compare(ROWS[name], verdicts[name])


@pytest.mark.parametrize("name", [name for name in OLD if name != "stopped"])
def test_condition_on_the_older_node(name: str, old_verdicts: Verdicts) -> None:
    compare(ROWS[name], old_verdicts[name])


def test_stopped_task_is_refused_only_where_criu_waits_for_it(verdicts: Verdicts, old_verdicts: Verdicts) -> None:
    assert verdicts["stopped"]["check"]["rows"] == [] and verdicts["stopped"]["plain"]["code"] == 0
    old = old_verdicts["stopped"]
    assert [row["reason"] for row in old["check"]["rows"]] == [STOPPED.finding]
    assert old["plain"]["said"] == "timeout"


def test_thirty_rows_fail_without_us() -> None:
    assert sum(bool(row.finding and row.error and row.diagnosis) for row in ROWS.values()) >= 30


def test_200_processes_and_20000_files_in_two_seconds(verdicts: Verdicts) -> None:
    assert verdicts["many"]["check"]["seconds"] < 2


def test_command_line(node: Node) -> None:
    """A container of containerd by its id, as text and JSON: it holds what we take care of, and it lives on."""
    container = node.start("checked")
    try:
        said = node.run(["gritctl", "check", "checked", "--json"], check=False)
        told = json.loads(said.stdout)
        assert (said.returncode, told["ready"]) == (0, True), said.stdout
        rows = told["containers"][0]["findings"]
        assert {row["action"] for row in rows} <= {"handled", "warning"}
        assert {"inotify", "fanotify", "tcp-established", "file-lock", "ghost-file"} <= {row["reason"] for row in rows}
        text = node.run(["gritctl", "check", "checked"]).stdout
        assert "Ready for a checkpoint." in text and "\x1b" not in text
        assert max(map(len, text.splitlines())) <= 80
        pid = told["containers"][0]["pid"]
        assert node.run(["gritctl", "check", "--pid", str(pid)]).stdout == text
        assert container.ask("check")["bad"] == []
    finally:
        container.delete()
    gone = node.run(["gritctl", "check", "checked"], check=False)
    assert gone.returncode == 2 and "container-not-found" in gone.stderr
