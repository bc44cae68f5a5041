"""The undo log and its guardian."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from grit_runtime import journal


@pytest.fixture(autouse=True)
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(journal, "RUN", str(tmp_path / "run"))
    yield tmp_path


def operations(folder: Path) -> list[str]:
    return os.listdir(folder / "run" / "op")


def wait_until_gone(path: Path) -> None:
    end = time.monotonic() + 20
    while path.exists():
        assert time.monotonic() < end, f"{path} is still there"
        time.sleep(0.01)


def test_steps_are_undone_in_reverse_when_the_block_fails(run_folder: Path) -> None:
    file = run_folder / "config.json"
    file.write_text("second edit")
    with pytest.raises(ValueError, match="boom"), journal.operation("x") as steps:
        steps.add("rewrite", path=str(file), text="as it was")
        steps.add("rewrite", path=str(file), text="first edit")
        raise ValueError("boom")
    assert file.read_text() == "as it was"
    assert operations(run_folder) == []


def test_a_forgotten_step_stays_and_an_open_one_is_undone_at_a_good_end(run_folder: Path) -> None:
    kept, lent = run_folder / "kept", run_folder / "lent"
    with journal.operation("x") as steps:
        for path in (kept, lent):
            step = steps.add("remove", path=str(path))
            path.write_text("")
            if path == kept:
                steps.forget(step)
    assert kept.exists()
    assert not lent.exists()


def test_the_guardian_undoes_when_the_process_is_killed(run_folder: Path) -> None:
    file = run_folder / "made"
    child = os.fork()
    if child == 0:
        with journal.operation("x") as steps:
            steps.add("remove", path=str(file))
            file.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    wait_until_gone(file)
    end = time.monotonic() + 20
    while operations(run_folder):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_one_failed_undo_does_not_keep_the_others_from_running(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run_folder / "made"
    file.write_text("")
    with journal.operation("x") as steps:
        steps.add("remove", path=str(file))
        steps.add("freeze", path="/", version=3)
    assert not file.exists()
    assert "undo: freeze" in capsys.readouterr().err
    left = [os.path.basename(path) for path in journal.pending()]
    # The guardian tries once more after us, and fails too: what is left is for `gritctl recover`.
    assert left == operations(run_folder)
    assert len(left) == 1


def test_what_was_being_written_when_the_machine_died_is_no_step(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text('{"step": 1, "undo": "remove", "args": {"path": "/x"}}\n{"step": 2, "un')
    assert journal.open_steps(str(tmp_path)) == [(1, "remove", {"path": "/x"})]


def test_an_unknown_undo_is_a_mistake_at_once(run_folder: Path) -> None:
    with pytest.raises(KeyError), journal.operation("x") as steps:
        steps.add("delete-everything")


def test_every_undo_exists() -> None:
    from grit_runtime import undo

    for target in journal.UNDO.values():
        module, _, function = target.partition(":")
        assert module == "undo"
        assert callable(getattr(undo, function))
