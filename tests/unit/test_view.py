"""Which image files a pod sees otherwise."""

import os
from pathlib import Path

from grit_runtime import view

NAMES = ["core-1.img", "ipcns-shm-9.img", "ipcns-sem-9.img", "ipcns-msg-9.img", "ipcns-var-9.img"]


def test_only_the_kinds_that_are_named_are_hidden(tmp_path: Path) -> None:
    assert view.plan(str(tmp_path), NAMES, None, without=[]) == view.Edits({}, [])
    edits = view.plan(str(tmp_path), NAMES, None, without=["shm", "msg"])
    assert sorted(edits.hidden) == ["ipcns-msg-9.img", "ipcns-shm-9.img"]


def test_nothing_to_change_means_no_mount(tmp_path: Path) -> None:
    class NoJournal:
        folder = os.devnull

    assert view.make(NoJournal(), str(tmp_path), view.Edits({}, [])) == str(tmp_path)  # type: ignore[arg-type]
