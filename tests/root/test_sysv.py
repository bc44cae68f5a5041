"""System V objects that a failed restore has made in an IPC namespace go again."""

import ctypes
import os

from grit_runtime import sysv, undo


def test_the_undo_removes_what_is_new() -> None:
    here = "/proc/self/ns/ipc"
    libc = ctypes.CDLL(None)
    old = libc.shmget(0, 4096, 0o1600)
    before = sysv.objects(here)
    new = {"shm": libc.shmget(0, 4096, 0o1600), "sem": libc.semget(0, 1, 0o1600), "msg": libc.msgget(0, 0o1600)}
    try:
        assert old in before["shm"] and min(new.values()) >= 0
        others = sysv.objects(here)
        known = {kind: [one for one in others[kind] if one != new[kind]] for kind in sysv.KINDS}
        undo.remove_sysv(here, os.stat(here).st_ino + 1, known)
        assert all(new[kind] in sysv.objects(here)[kind] for kind in sysv.KINDS), "another namespace by now"
        undo.remove_sysv(here, os.stat(here).st_ino, known)
        left = sysv.objects(here)
        assert old in left["shm"] and not any(new[kind] in left[kind] for kind in sysv.KINDS)
    finally:
        sysv.remove(here, {"shm": [old, new["shm"]], "sem": [new["sem"]], "msg": [new["msg"]]})
