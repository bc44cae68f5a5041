"""Which System V objects come back into a pod."""

from pathlib import Path

import pytest
from grit_runtime import sysv


@pytest.mark.parametrize(
    ("mapped", "live", "out"),
    [
        (True, {}, []),
        (False, {}, ["shm"]),
        (True, {"shm": [5]}, []),  # another container's; CRIU says so if they clash
        (True, {"sem": [0]}, ["sem"]),
        (False, {"sem": [0], "msg": [1]}, ["shm", "sem", "msg"]),
    ],
)
def test_what_another_container_has_brought_stays_away(mapped: bool, live: sysv.Objects, out: list[str]) -> None:
    assert sysv.left_out(["shm", "sem", "msg"], mapped, live) == out
    assert sysv.left_out([], mapped, live) == []


def test_files_without_an_object_count_as_none(tmp_path: Path) -> None:
    for name, size in (
        ("ipcns-shm-9.img", 8),
        ("ipcns-sem-9.img", 40),
        ("ipcns-msg-9.img", 8),
        ("ipcns-var-9.img", 90),
    ):
        (tmp_path / name).write_bytes(bytes(size))
    assert sysv.in_image(str(tmp_path)) == ["sem"]
