"""The next runtime runs, CRIU's action script asks: both are played by small scripts, with the real criu-action."""

import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from grit_runtime import journal, stages
from grit_runtime.checks import Refusal, refuse

ACTION = Path(__file__).parents[2] / "hooks" / "criu-action"


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[journal.Journal]:
    monkeypatch.setattr(journal, "RUN", str(tmp_path / "run"))
    with journal.operation("test") as opened:
        yield opened


def run(steps: journal.Journal, script: str, handlers: dict[str, stages.Handler], timeout: float = 30) -> stages.Ended:
    argv = ["/bin/sh", "-c", script]
    return stages.run(argv, steps, handlers, environment=os.environ, keep_stderr=True, timeout=timeout)


def stage(name: str, pid: int = 7) -> str:
    return f"CRTOOLS_SCRIPT_ACTION={name} CRTOOLS_INIT_PID={pid} {shlex.quote(str(ACTION))}"


def test_a_handler_runs_at_its_stage_and_others_pass(steps: journal.Journal) -> None:
    seen: list[int] = []
    ended = run(steps, f"{stage('pre-dump')} && {stage('post-dump', 9)} && {stage('post-dump', 9)}",
                {"post-dump": seen.append})  # fmt: skip
    assert (ended.code, ended.error, seen) == (0, None, [9, 9])
    assert list(ended.stages) == ["post-dump"]


def test_a_failing_handler_fails_its_stage_where_criu_lets_it(steps: journal.Journal) -> None:
    def fails(_pid: int) -> None:
        raise refuse("manifest-missing", path="x")

    ended = run(steps, f"{stage('post-restore')} || exit 3", {"post-restore": fails})
    assert ended.code == 3
    assert isinstance(ended.error, Refusal)
    ended = run(steps, f"{stage('pre-resume')} || exit 3", {"pre-resume": fails})
    assert ended.code == 0
    assert isinstance(ended.error, Refusal)


def test_what_the_runtime_says_is_kept(steps: journal.Journal, capfd: pytest.CaptureFixture[str]) -> None:
    ended = run(steps, "echo first >&2; echo last >&2; exit 5", {})
    assert (ended.code, ended.stderr) == (5, "first\nlast\n")
    assert capfd.readouterr().err == ""


def test_a_child_that_keeps_stderr_open_does_not_keep_us(steps: journal.Journal) -> None:
    start = time.monotonic()
    assert run(steps, "sleep 60 & exit 0", {}).code == 0
    assert time.monotonic() - start < 30


def test_past_the_time_limit_nothing_of_it_runs_on(steps: journal.Journal, tmp_path: Path) -> None:
    with pytest.raises(Refusal) as caught:
        run(steps, f"echo $$ >{tmp_path}/pid; setsid sleep 61 & echo $! >{tmp_path}/child; wait", {}, timeout=0.5)
    assert caught.value.reason == "runtime-timeout"
    child = int((tmp_path / "child").read_text())
    assert not os.path.exists(f"/proc/{child}") or "Z" in Path(f"/proc/{child}/stat").read_text().rpartition(")")[2][:3]


def test_without_a_waiting_process_the_script_has_nothing_to_do() -> None:
    import subprocess

    done = subprocess.run([ACTION], env={"CRTOOLS_SCRIPT_ACTION": "pre-dump"}, timeout=10, check=False)
    assert done.returncode == 0
