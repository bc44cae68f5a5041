"""Which image files a pod sees otherwise."""

import os
from pathlib import Path

from grit_runtime import view

NAMES = ["core-1.img", "ipcns-shm-9.img", "ipcns-sem-9.img", "ipcns-msg-9.img", "ipcns-var-9.img"]


def test_an_own_ipc_namespace_gets_its_objects_back(tmp_path: Path) -> None:
    assert view.plan(str(tmp_path), NAMES, None, own_ipc=True) == view.Edits({}, [])


def test_the_pods_ipc_namespace_is_left_alone(tmp_path: Path) -> None:
    edits = view.plan(str(tmp_path), NAMES, None, own_ipc=False)
    assert sorted(edits.hidden) == ["ipcns-msg-9.img", "ipcns-sem-9.img", "ipcns-shm-9.img"]


def test_nothing_to_change_means_no_mount(tmp_path: Path) -> None:
    class NoJournal:
        folder = os.devnull

    assert view.make(NoJournal(), str(tmp_path), view.Edits({}, [])) == str(tmp_path)  # type: ignore[arg-type]
