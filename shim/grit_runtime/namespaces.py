"""Doing a thing in another namespace of the kernel's: in a child of ours, so that we never leave our own."""

from __future__ import annotations

import os
from collections.abc import Callable

CLONE_NEWNET = 0x40000000


def enter(path: str, action: Callable[[], bytes], kind: int = 0) -> bytes:
    """Run `action` in the namespace that `path` names, of any kind or of `kind` (CLONE_NEW*); what it returns.

    OSError where it can't be entered, or the action's own.
    """
    namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            set_namespace(namespace, kind)
            os.write(write, b"+" + action())
            code = 0
        except OSError as error:
            os.write(write, f"-{error}".encode())
        finally:
            os._exit(code)
    os.close(write)
    os.close(namespace)
    with os.fdopen(read, "rb") as file:
        said = file.read()
    os.waitpid(child, 0)
    if not said.startswith(b"+"):
        raise OSError(f"in the namespace {path}: {said[1:].decode(errors='replace')}")
    return said[1:]


def set_namespace(fd: int, kind: int) -> None:
    """setns(2) for this thread; `kind` 0 takes any kind (os.setns came with Python 3.12)."""
    if hasattr(os, "setns"):
        os.setns(fd, kind)
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, kind) < 0:
        raise OSError(ctypes.get_errno(), "setns")
