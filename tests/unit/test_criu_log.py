"""CRIU's logs: the known failures, each by a line that CRIU or another tool writes, and what is made of a whole log."""

from __future__ import annotations

from pathlib import Path

import pytest
from grit_runtime import checks
from grit_runtime.checks import Refusal
from grit_runtime.criu import log

from tests.unit import criu_images

ROWS = [
    tuple(line.split("\t", 1))
    for line in (criu_images.DATA / "criu-lines.txt").read_text().splitlines()
    if not line.startswith("#")
]

UNREAD = """\
(00.000013) Version: 4.2.1 (gitid 0)
(00.000015) Running on vm Linux 6.18.44 #1 SMP x86_64
(00.037955) Dumping processes (pid: 33 comm: python3)
(00.037965) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.037974) Running pre-dump scripts
(00.039131) Running network-lock scripts
(00.045000) Dumping task (pid: 46 comm: trainer)
(00.045100) 46 fdinfo 9: pos:                0 flags:           100002/0
"""
ENDED = """\
(00.055298) Running network-unlock scripts
(00.057100) Error (compel/src/lib/infect.c:417): Unable to detach from 46: No such process
(00.057195) Error (criu/cr-dump.c:1975): Dumping FAILED.
"""


def write(tmp_path: Path, line: str = "", start: str = UNREAD, end: str = ENDED) -> Path:
    path = tmp_path / "dump.log"
    path.write_text(start + (f"(00.046000) {line}\n" if line else "") + end)
    return path


@pytest.mark.parametrize(("reason", "line"), ROWS, ids=[f"{n} {row[0]}" for n, row in enumerate(ROWS)])
def test_a_line_is_recognised_in_a_log(reason: str, line: str, tmp_path: Path) -> None:
    path = write(tmp_path, line) if "Error (" in line or "Warn " in line else write(tmp_path, start=f"{line}\n")
    told = log.refusal(path)
    assert told is not None
    assert told.reason == reason
    assert "{" not in told.message + told.remedy
    assert len(told.message) > 20 and len(told.remedy) > 8


def test_every_known_failure_has_a_line_and_a_row_in_the_table() -> None:
    known = {reason for _, reason in log.SYMPTOMS}
    assert known - {row[0] for row in ROWS} == set()
    assert known - checks.table().keys() == set()
    assert len(known) >= 65


def test_what_the_log_says_of_the_process_goes_into_the_message(tmp_path: Path) -> None:
    line = "Error (criu/files-ext.c:94): Can't dump file 9 of that type [600] (anon anon_inode:[perf_event])"
    path = write(tmp_path, line)
    told = log.refusal(path)
    assert told is not None and "46 (trainer)" in told.message and "fd 9" in told.message
    seen = log.read(path)
    assert (seen.kind, seen.version, seen.stage, seen.finished) == ("dump", "4.2.1", "network-lock", False)
    assert [line.number for line in seen.errors] == [9]


def test_a_descriptor_is_not_blamed_for_what_comes_after_it(tmp_path: Path) -> None:
    start = f"{UNREAD}(00.0459) ----------------------------------------\n"
    seen = log.read(write(tmp_path, "Error (criu/cr-dump.c:389): Can't get rlimit 0: Operation not permitted", start))
    assert [(line.process, line.object) for line in seen.errors] == [("46 (trainer)", "")]


def test_a_task_that_can_not_be_stopped_is_the_cause_and_not_the_timeout_after_it(tmp_path: Path) -> None:
    again = "".join(f"({n}.0) Error (criu/seize.c:335): zombie 46 (comm x) found while seizing\n" for n in range(99))
    end = "(10.0) Error (criu/cr-dump.c:1655): Timeout reached. Try to interrupt: 0\n" + ENDED
    seen = log.read(write(tmp_path, start=UNREAD + again, end=end))
    assert [cause.reason for cause in log.causes(seen)] == ["task-traced"]
    alone = log.read(write(tmp_path, start=UNREAD, end=end))
    assert [cause.reason for cause in log.causes(alone)] == ["criu-timeout"]


def test_a_namespace_is_not_blamed_on_the_task_before_it(tmp_path: Path) -> None:
    after = "(1.0) Dumping pstree (pid: 33)\n(1.1) Dump NET namespace info 15 via 458\n"
    told = log.refusal(write(tmp_path, "Error (criu/net.c:1): net: Unable to dump more than one netns", UNREAD + after))
    assert told is not None and "process 458 (see the log) is in a namespace of its own" in told.message


def test_an_unknown_failure_gives_its_first_errors(tmp_path: Path) -> None:
    path = write(tmp_path, "Error (criu/new.c:7): new: The moon is in the wrong phase")
    assert log.refusal(path) is None
    assert log.summary(path) == "new: The moon is in the wrong phase"


def test_harmless_errors_are_no_failure(tmp_path: Path) -> None:
    path = write(tmp_path, start=UNREAD, end="(00.07) Writing stats\n(00.08) Dumping finished successfully\n")
    assert log.read(path).finished
    assert log.summary(path) == ""
    assert log.refusal(path) is None


def test_hostile_logs(tmp_path: Path) -> None:
    path = tmp_path / "dump.log"
    shouting = b"\xff\x00\x1b[2J" * 100_000 + b"\n(1.0) Error (criu/x.c:1): \x1b]0;owned\x07\n"
    path.write_bytes(shouting + b"(1.0) Error (a:1): b\n" * 5000)
    assert len(log.read(path).lines) <= log.KEEP
    link = tmp_path / "link.log"
    link.symlink_to("/etc/passwd")
    for other in (link, tmp_path, tmp_path / "none"):
        with pytest.raises(Refusal) as caught:
            log.read(other)
        assert caught.value.reason == "log-unreadable"
