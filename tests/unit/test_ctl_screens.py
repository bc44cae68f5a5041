"""Tables, trees, the group of commands, logs and recover, as a person or a script sees them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from grit_runtime import journal, process, records
from grit_runtime.ctl import logs, recover, table
from grit_runtime.ctl.main import main

SHIM = Path(__file__).parents[2] / "shim"


def test_tables_fit_and_hostile_text_can_not_drive_the_terminal() -> None:
    hostile = ("e\x1b[2J", "", "\u202e漢字漢字\n\udc80")
    rows: list[tuple[table.Text, ...]] = [("a", table.mark("bad"), "x" * 100 + " word" * 30), hostile, ("b", "ok", "")]
    lines = table.table(rows, ("name", "state", "what"), columns=60, colour=False)
    text = "".join(lines)
    assert all(table.cells(line) <= 60 and line.isprintable() for line in lines)
    assert lines[0].startswith("name    ") and "e\\x1b[2J" in text and "\\u202e漢字漢字\\n\\udc80" in text
    assert text.count("x") == 101 and text.count("word") == 30, "nothing is cut off"
    assert "\x1b[31mbad\x1b[0m" in "".join(table.table(rows, columns=60, colour=True))
    narrow = table.table([("1", "22"), ("333", "4")], right=[0], columns=60, colour=False)
    assert narrow == ["  1  22", "333  4"]
    path = table.table([("/etc/containers/containers.conf.d/grit-runtime.conf",)], columns=40, colour=False)
    assert path == ["/etc/containers/containers.conf.d/", "grit-runtime.conf"]
    branches = [table.Branch("a " * 60, [table.Branch("b")]), table.Branch("c")]
    tree = table.tree(table.Branch("top", branches), columns=40)
    assert all(table.cells(line) <= 40 for line in tree) and tree[-1].endswith("c")
    assert [table.size(n) for n in (0, 1023, 1024, 12 << 20)] == ["0 B", "1023 B", "1.0 KiB", "12 MiB"]


def test_colour_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert table.colourful()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not table.colourful()
    monkeypatch.setenv("NO_COLOR", "")
    monkeypatch.setenv("TERM", "dumb")
    assert not table.colourful()


def test_help_imports_no_command_and_every_command_has_its_own() -> None:
    code = "import sys; from grit_runtime.ctl.main import main; main(['--help'], standalone_mode=False);"
    code += "print(sorted(m for m in sys.modules if m.startswith('grit_runtime.ctl.')))"
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=SHIM, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "['grit_runtime.ctl.main', 'grit_runtime.ctl.table']"
    for name in main.list_commands(None):  # type: ignore[arg-type]
        helped = CliRunner().invoke(main, [name, "--help"], prog_name="gritctl")
        assert helped.exit_code == 0 and f"Usage: gritctl {name} " in helped.output, helped.output
    assert CliRunner().invoke(main, ["nonsense"]).exit_code == 2


def test_the_installed_command_starts_and_refuses_on_one_line(tmp_path: Path) -> None:
    argv = [sys.executable, "-I", str(SHIM / "gritctl"), "logs", "no\nsuch\x1b[2J"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("gritctl: logs-unknown: ")
    assert done.stderr.count("\n") == 1 and "\x1b" not in done.stderr


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two operations of a container and one of another, the newest last."""
    listing = records.listing
    monkeypatch.setattr(records, "listing", lambda container="": listing(container, str(tmp_path)))
    log = tmp_path / "restore.log"
    log.write_bytes(b"(00.1) fine\n(00.2) Error (criu/mount.c:1): No mapping\n(00.3) \x1b]0;title\x07\xff\tend\n")
    settings: Any = SimpleNamespace(logs=SimpleNamespace(keep=5, max_size=1 << 20))
    record = {"result": "ok", "reason": "", "seconds": 1.25, "phases": {"criu": 1.0}, "bytes": {"images": 2048}}
    bad = {**record, "result": "refused", "reason": "driver-mismatch", "notes": ["one", "two"]}
    todo = [("abc1", "dump", record), ("abc1", "restore", bad), ("abc12", "dump", {})]
    return [str(records.keep(c, o, r, [str(log)], settings, str(tmp_path))) for c, o, r in todo]


def test_logs(kept: list[str]) -> None:
    def run(*args: str) -> str:
        result = CliRunner().invoke(main, ["logs", *args], prog_name="gritctl")
        assert result.exit_code == 0, result.output
        return result.output

    assert [line.split()[2:5] for line in run().splitlines()[1:]] == [
        ["abc12", "dump", "?"],
        ["abc1", "restore", "refused"],
        ["abc1", "dump", "ok"],
    ]
    shown = run("abc1")
    assert "driver-mismatch" in shown and "images 2.0 KiB" in shown and "one; two" in shown
    assert "(00.2) Error (criu/mount.c:1): No mapping" in shown and "\\x1b]0;title\\x07\\udcff    end" in shown
    assert run("abc1", "-n", "2", "--path").strip() == kept[0]
    assert run("abc", "--path").strip() == kept[2], "the beginning of an id does"
    told = json.loads(run("abc1", "--json"))
    assert [o["record"]["result"] for o in told["operations"]] == ["refused", "ok"] and told["kind"] == "logs"
    assert CliRunner().invoke(main, ["logs", "abc1", "-n", "3"]).exit_code == 1
    assert logs.when("nonsense") == "nonsense"
    assert logs.short("0123456789abcdef" * 4) == "0123456789ab" and logs.short("0123456789abcdef") == "0123456789abcdef"


def test_recover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "RUN", str(tmp_path))
    monkeypatch.setattr(recover, "SETTLE", 0)
    owed = [""]
    monkeypatch.setattr("grit_runtime.cuda.hugepages.owed", lambda: owed[0])
    monkeypatch.setattr("grit_runtime.cuda.hugepages.sweep", lambda: owed.insert(0, ""))
    assert "Nothing to recover" in CliRunner().invoke(main, ["recover"]).output
    left = tmp_path / "scratch"
    left.mkdir()
    book = journal.Journal(str(tmp_path / "op" / "dump-c1-1"))
    book.add("remove", path=str(left))
    book.close()
    dry = CliRunner().invoke(main, ["recover", "--dry-run"])
    assert dry.exit_code == 0 and "dump-c1-1" in dry.output and "to undo" in dry.output and left.exists()
    done = CliRunner().invoke(main, ["recover"])
    assert done.exit_code == 0 and "undone" in done.output and not left.exists() and not Path(book.folder).exists()
    owed.insert(0, "madvise")
    assert "huge-pages" in CliRunner().invoke(main, ["recover", "--dry-run"]).output and owed[0] == "madvise"
    assert "huge-pages" in CliRunner().invoke(main, ["recover"]).output and owed[0] == ""
    # a marker of a container that is gone goes; one of a process that lives, or that is being written, stays
    (tmp_path / "held").mkdir()
    pid = os.getpid()
    for name, started in (("gone", "0"), ("here", process.started(pid))):
        (tmp_path / "held" / name).write_text(json.dumps({"pid": pid, "started": started}))
    (tmp_path / "held" / "new").write_text("{")
    assert CliRunner().invoke(main, ["recover"]).exit_code == 0
    assert sorted(os.listdir(tmp_path / "held")) == ["here", "new"]
    (tmp_path / "op" / "broken-2").mkdir()
    (tmp_path / "op" / "broken-2" / "journal").write_text("{nonsense\n")
    failed = CliRunner().invoke(main, ["recover"])
    assert failed.exit_code == 1 and "recover-failed" in failed.output and "can't be read" in failed.output
