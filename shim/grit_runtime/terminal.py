"""The terminal of a container in the foreground: its pty's master comes over the console socket, and we copy.

The protocol is runc's (docs/terminals.md): a SOCK_STREAM socket over which one descriptor comes with its name.
"""

from __future__ import annotations

import array
import fcntl
import os
import select
import signal
import socket
import struct
import termios
import threading
import tty
from types import FrameType


class Terminal:
    """Listens at `path` for a pty; `serve` connects it with our own terminal until `close`."""

    def __init__(self, folder: str) -> None:
        self.path = folder + "/console.sock"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(self.path)
        self._socket.listen(1)
        self._before = termios.tcgetattr(0)
        self._stop = os.pipe()
        self._master = -1
        self._thread = threading.Thread(target=self._copy, daemon=True)

    def serve(self) -> None:
        """Take the pty, make our terminal raw, and copy in a thread until the pty has no other side any more."""
        self._socket.settimeout(10)
        connection, _ = self._socket.accept()
        with connection:
            fds = array.array("i")
            _, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(fds.itemsize))
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds.frombytes(data[: fds.itemsize])
        self._master = fds[0]
        self._resize()
        signal.signal(signal.SIGWINCH, self._resize)
        _raw(0)
        _as_written(self._master)
        self._thread.start()

    def close(self) -> None:
        """Copy what is left, and give our terminal back as it was."""
        os.write(self._stop[1], b"x")
        if self._thread.ident:  # it was served
            self._thread.join(5)
        termios.tcsetattr(0, termios.TCSADRAIN, self._before)
        self._socket.close()

    def _resize(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        size = fcntl.ioctl(0, termios.TIOCGWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def _copy(self) -> None:
        inputs = [0, self._master, self._stop[0]]
        while True:
            ready = select.select(inputs, [], [])[0]
            if self._master in ready and not _move(self._master, 1):
                return
            if 0 in ready and not _move(0, self._master):
                inputs.remove(0)
            if self._stop[0] in ready and self._master not in ready:
                return


def _raw(terminal: int) -> None:
    """Every key goes through; what comes is shown with a carriage return at each line's end, as under runc."""
    tty.setraw(terminal, termios.TCSANOW)
    mode = termios.tcgetattr(terminal)
    mode[1] |= termios.OPOST | termios.ONLCR
    termios.tcsetattr(terminal, termios.TCSANOW, mode)


def _as_written(master: int) -> None:
    """No carriage returns from the container's side, where runc doesn't let them be made either."""
    mode = termios.tcgetattr(master)
    mode[1] &= ~termios.ONLCR
    termios.tcsetattr(master, termios.TCSANOW, mode)


def _move(source: int, target: int) -> bool:
    try:
        data = os.read(source, 65536)
    except OSError:  # EIO: the last process on the pty's other side is gone
        return False
    if data:
        os.write(target, data)
    return bool(data)
