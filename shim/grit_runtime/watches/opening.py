"""Open what a record's path names, inside of the container and nowhere else."""

from __future__ import annotations

import os
import re

from grit_runtime.beneath import open_in_root

from .searching import INSIDE

# The kubelet's atomic writer (pkg/volume/util/atomic_writer.go): a volume's files lie in a folder named after the time
# it was written, and "..data" points there. On another node, the time is another.
_DATED = re.compile(r"/\.\.\d{4}_\d\d_\d\d_[^/]*")


class Root:
    """The roots of a container's processes, opened when first needed. `hosts`: in-container pid to host pid."""

    def __init__(self, hosts: dict[int, int], init: int) -> None:
        self.hosts = hosts
        self.init = init if init in hosts else min(hosts, default=0)
        self._open: dict[int, int] = {}

    def close(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def _of(self, pid: int) -> int:
        pid = pid or self.init
        if pid not in self.hosts:
            raise FileNotFoundError(f"no process {pid} in the container")
        if pid not in self._open:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            self._open[pid] = os.open(f"/proc/{self.hosts[pid]}/root", flags)
        return self._open[pid]

    def open(self, path: str, root: int) -> int:
        """An O_PATH descriptor. FileNotFoundError and the like when it isn't there, also when a link is in the way."""
        if path.startswith("FD:"):
            pid, _, fd = path[3:].partition(":")
            host = self.hosts.get(int(pid))
            if host is None:
                raise FileNotFoundError(f"no process {pid} in the container")
            return os.open(f"/proc/{host}/fd/{int(fd)}", os.O_PATH | os.O_CLOEXEC)
        if not path.startswith("/"):
            raise FileNotFoundError("it has no path")
        top = self._of(root)
        try:
            return open_in_root(top, path, os.O_PATH | os.O_NOFOLLOW, INSIDE)
        except FileNotFoundError:
            newest = _DATED.sub("/..data", path)
            if newest == path:
                raise
            return open_in_root(top, newest, os.O_PATH | os.O_NOFOLLOW)


def via(fd: int) -> str:
    """A path that leads to exactly what the descriptor of ours refers to."""
    return f"/proc/self/fd/{fd}"
