"""docs/json.md has exactly the fields that each command prints with --json."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from grit_runtime import journal, manifest, records
from grit_runtime.criu.images import Timer
from grit_runtime.ctl import check, doctor, gpu_test, recover
from grit_runtime.ctl.main import COMMANDS, main
from grit_runtime.ctl.table import show_json
from grit_runtime.look import containers
from grit_runtime.look.containers import Container

from tests.unit import criu_images
from tests.unit.test_ctl_doctor import GOOD

DOC = Path(__file__).parents[2] / "docs" / "json.md"
SAMPLES: dict[str, Callable[[Path, pytest.MonkeyPatch], str]] = {}


def documented() -> dict[str, set[str]]:
    """Command -> its fields."""
    found: dict[str, set[str]] = {}
    for part in DOC.read_text().split("\n## ")[1:]:
        name, _, rest = part.partition("\n")
        found[name] = set(re.findall(r"^\| `([a-z_.\[\]]+)` \|", rest, re.MULTILINE))
    return found


def fields(value: Any, known: set[str], path: str = "") -> Iterator[str]:
    """The paths in a value, no deeper than what is `known`."""
    if path in known and not any(name.startswith((f"{path}.", f"{path}[]")) for name in known):
        yield path
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from fields(inner, known, f"{path}.{name}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from fields(inner, known, f"{path}[]")
    else:
        yield path


def sample(function: Callable[[Path, pytest.MonkeyPatch], str]) -> Callable[[Path, pytest.MonkeyPatch], str]:
    SAMPLES[function.__name__.replace("_", "-")] = function
    return function


def run(*words: object) -> str:
    return CliRunner().invoke(main, [*map(str, words), "--json"]).stdout


def images(tmp_path: Path) -> str:
    """CRIU's images with a manifest, one of them cut, and a log."""
    folder = criu_images.copy("4.2.1", tmp_path)
    os.truncate(f"{folder}/pages-1.img", 4096)
    Path(folder, "dump.log").write_text("(0.1) Error (criu/net.c:1): netlink: The socket has data to read\n")
    node = {**manifest.node(), "criu": "4.2.1", "runtime": "runc"}
    parts: dict[str, Any] = {"container": {}, "files": {}, "mounts": [], "watches": {}, "fingerprints": {}, "gpu": {}}
    manifest.write(folder, {"created": 1.0, "node": node, **parts})
    return folder


@sample
def inspect(tmp_path: Path, patch: pytest.MonkeyPatch) -> str:
    folder = images(tmp_path)
    patch.setattr("grit_runtime.criu.images.timers", lambda _: [Timer(1, 1, 0, 5, 0)])  # the program had none
    return run("inspect", folder)


@sample
def verify(tmp_path: Path, patch: pytest.MonkeyPatch) -> str:
    return run("verify", images(tmp_path))


@sample
def diagnose(tmp_path: Path, patch: pytest.MonkeyPatch) -> str:
    return run("diagnose", images(tmp_path))


@sample
def doctor_(tmp_path: Path, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(doctor, "gather", lambda: GOOD)
    return run("doctor")


@sample
def check_(tmp_path: Path, patch: pytest.MonkeyPatch) -> str:
    row = check.Row("refused", "traced", 7, "python3", "text", "remedy")
    one = check.Report(Container("id", "/run/runc", 7, "", ("name",), {}), 1, 2, 3, 4, [row])
    patch.setattr(containers, "find", lambda *_: [one.container])
    patch.setattr(check, "report", lambda *_: one)
    return run("check", "id")


@sample
def gpu_test_(tmp_path: Path, patch: pytest.MonkeyPatch) -> str:
    verdict = gpu_test.Verdict("torch", ["a"], ["a"], [gpu_test.Phase("hash", 1.0, 2)])
    said: list[str] = []
    patch.setattr("click.echo", said.append)
    show_json("gpu-test", gpu_test.to_json(verdict, 1, 1))
    return said[0]


@sample
def logs(tmp_path: Path, patch: pytest.MonkeyPatch) -> str:
    (tmp_path / "restore.log").write_text("")
    settings: Any = SimpleNamespace(logs=SimpleNamespace(keep=5, max_size=1 << 20))
    listing = records.listing
    records.keep("c", "restore", {"result": "ok"}, [str(tmp_path / "restore.log")], settings, str(tmp_path))
    patch.setattr(records, "listing", lambda container="": listing(container, str(tmp_path)))
    return run("logs")


@sample
def recover_(tmp_path: Path, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(journal, "RUN", str(tmp_path))
    patch.setattr(recover, "SETTLE", 0)
    patch.setattr("grit_runtime.cuda.hugepages.owed", lambda: "")
    book = journal.Journal(str(tmp_path / "op" / "dump-c1-1"))
    book.add("remove", path=str(tmp_path / "none"))
    book.close()
    (tmp_path / "op" / "broken").mkdir()
    (tmp_path / "op" / "broken" / "journal").write_text("{nonsense\n")
    return run("recover", "--dry-run")


def test_every_command_with_json_is_documented() -> None:
    with_json = {name for name in COMMANDS if "--json" in CliRunner().invoke(main, [name, "--help"]).output}
    assert with_json == documented().keys() == {name.strip("-") for name in SAMPLES}


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_the_fields_are_those_that_are_documented(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed, _ = json.JSONDecoder().raw_decode(SAMPLES[name](tmp_path, monkeypatch))
    command = name.strip("-")
    assert (printed.pop("kind"), printed.pop("version")) == (command, 1)
    known = documented()[command]
    assert set(fields(printed, known)) == known
