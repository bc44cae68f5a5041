"""Parts of the workload: sockets and pipes."""

from __future__ import annotations

import os
import socket


class Tcp:
    """A listening socket, and an established connection of which both ends are here; some bytes lie unread in it."""

    def __init__(self, parts: dict[str, object]) -> None:
        address = os.environ.get("GRIT_ADDRESS") or "127.0.0.1"
        self.listener = socket.create_server((address, 0))
        self.one = socket.create_connection(self.listener.getsockname())
        self.other = self.listener.accept()[0]
        for end in (self.one, self.other, self.listener):
            end.settimeout(10)
        self.number = 0
        self.one.sendall(b"unread 0")

    def check(self) -> dict[str, object]:
        try:
            pending = self.other.recv(100) == b"unread %d" % self.number
            self.other.sendall(b"back")
            alive = pending and self.one.recv(100) == b"back"
            self.number += 1
            self.one.sendall(b"unread %d" % self.number)
            said = ""
        except OSError as error:
            alive, said = False, f"{type(error).__name__}: {error}"
        return {"tcp_alive": alive, "tcp_says": said, "tcp_listening": self.listens()}

    def listens(self) -> bool:
        try:
            with socket.create_connection(self.listener.getsockname(), timeout=10) as new:
                end = self.listener.accept()[0]
                with end:
                    new.sendall(b"hello")
                    return end.recv(100) == b"hello"
        except OSError:
            return False


class Pair:
    """A Unix socket pair with a datagram unread in it."""

    def __init__(self, parts: dict[str, object]) -> None:
        self.one, self.other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.number = 0
        self.one.settimeout(10)
        self.other.settimeout(10)
        self.one.send(b"unread 0")

    def check(self) -> dict[str, object]:
        alive = self.other.recv(100) == b"unread %d" % self.number
        self.other.send(b"back")
        alive = alive and self.one.recv(100) == b"back"
        self.number += 1
        self.one.send(b"unread %d" % self.number)
        return {"socketpair_alive": alive}


class Pipe:
    """A pipe with bytes in it."""

    def __init__(self, parts: dict[str, object]) -> None:
        self.reader, self.writer = os.pipe()
        self.data = os.urandom(3000)
        os.write(self.writer, self.data)

    def check(self) -> dict[str, object]:
        os.set_blocking(self.reader, False)
        equal = os.read(self.reader, 8192) == self.data
        os.set_blocking(self.reader, True)
        os.write(self.writer, self.data)
        return {"pipe_data_equal": equal}


SOCKETS = {"tcp": Tcp, "pair": Pair, "pipe": Pipe}
