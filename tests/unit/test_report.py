"""Errors as runc says them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from grit_runtime import report
from grit_runtime.argv import parse

NASTY = 'no "mount" for C:\\x\nsecond line\x1b[31m'


def test_json_line() -> None:
    line = report.line(NASTY, "json", 0.0)
    assert line.endswith(b"}\n") and line.count(b"\n") == 1
    assert json.loads(line) == {"level": "error", "msg": NASTY, "time": "1970-01-01T00:00:00Z"}


def test_text_line() -> None:
    assert report.line('a "b" \\\n\x1b', "text", 0.0) == (
        b'time="1970-01-01T00:00:00Z" level=error msg="a \\"b\\" \\\\\\n\\u001b"\n'
    )


def test_appended_to_the_log_and_said_on_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.json"
    log.write_text("{}\n")
    report.error(parse(["--log", str(log), "--log-format", "json", "create", "x"]), "grit-runtime: r: m")
    first, last = log.read_text().splitlines()
    assert (first, json.loads(last)["msg"]) == ("{}", "grit-runtime: r: m")
    assert capfd.readouterr().err == "grit-runtime: r: m\n"


def test_without_a_log_stderr_has_the_format_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    report.error(parse(["--log-format=json", "create", "x"]), "m")
    assert json.loads(capfd.readouterr().err)["msg"] == "m"
    report.error(parse(["create", "x"]), "m")
    assert capfd.readouterr().err == "m\n"


def test_a_log_that_cannot_be_written_does_not_hide_the_error(capfd: pytest.CaptureFixture[str]) -> None:
    report.error(parse(["--log", "/proc/nowhere/log", "create", "x"]), "m")
    assert capfd.readouterr().err == "m\n"


def test_traceback_is_kept(tmp_path: Path) -> None:
    try:
        raise ValueError("here")
    except ValueError as error:
        path = report.traceback_file(error, str(tmp_path / "logs"))
    text = Path(path).read_text()
    assert re.search(r"test_report\.py.*\n.*raise ValueError", text) and text.rstrip().endswith("ValueError: here")
    assert Path(path).stat().st_mode & 0o777 == 0o600
    assert report.traceback_file(ValueError(), "/proc/nowhere") == "none"


def test_what_the_next_runtime_said_last(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(report.line("old", "text", 0))
    start = report.size(str(log))
    assert report.last(str(log), start) == "" and report.last(None, report.size(None)) == ""
    for kind in ("text", "json"):
        with open(log, "ab") as file:
            file.write(report.line('criu failed: "x"\nlog file: /y', kind, 0))
        assert report.last(str(log), start) == 'criu failed: "x" log file: /y'
    with open(log, "a") as file:
        file.write("2026-01-01T00:00:00Z: error\n")  # crun
    assert report.last(str(log), start) == "2026-01-01T00:00:00Z: error"
    os.mkfifo(tmp_path / "fifo")
    assert report.last(str(tmp_path / "fifo"), 0) == ""
