"""The lock on a container, and its markers."""

import os
import threading
import time
from pathlib import Path

import pytest
from grit_runtime import container
from grit_runtime.checks import Refusal


@pytest.fixture(autouse=True)
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(container, "RUN", str(tmp_path))
    return tmp_path


def test_one_operation_at_a_time_and_no_lock_stays(run_folder: Path) -> None:
    with container.locked("/run/x", "one"):
        with pytest.raises(Refusal) as caught, container.locked("/run/x", "one"):
            pass
        assert caught.value.reason == "container-busy"
        with container.locked("/run/y", "one"), container.locked("/run/x", "two"):
            pass
    with pytest.raises(ValueError, match="boom"), container.locked("/run/x", "one"):
        raise ValueError("boom")
    assert os.listdir(run_folder / "lock") == []


def test_waiting_for_a_lock_has_an_end() -> None:
    container.wait_unlocked("", "free", timeout=0.0)
    with container.locked("", "busy"):
        begin = time.monotonic()
        container.wait_unlocked("", "busy", timeout=0.1)
        assert time.monotonic() - begin >= 0.1


def test_a_wait_goes_on_as_soon_as_the_lock_is_free() -> None:
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with container.locked("", "one"):
            held.set()
            free.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(20)
    waiting = threading.Thread(target=container.wait_unlocked, args=("", "one", 20.0))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    free.set()
    waiting.join(10)
    assert not waiting.is_alive()
    thread.join(10)


def test_markers_are_kept_by_root_and_id() -> None:
    container.hold("/run/a/b", "one", {"pid": 7})
    assert container.held("/run/a/b", "one") == {"pid": 7}
    assert container.held("/run/a/c", "one") is None
    assert os.path.basename(container.held_path("/run/a/b", "one")) == "_run_a_b@one"
    assert os.path.basename(container.held_path("", "one")) == "_run_runc@one"
    container.release("/run/a/b", "one")
    container.release("/run/a/b", "one")
    assert container.held("/run/a/b", "one") is None


def test_a_dumped_container_is_remembered_once() -> None:
    assert not container.was_dumped("", "one")
    container.mark_dumped("", "one")
    assert container.was_dumped("", "one")
    assert not container.was_dumped("", "one")
