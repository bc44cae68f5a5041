"""Loopback and lent addresses, in a network namespace of the test's own."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest
from grit_runtime import network

OLD = ["10.99.1.2", "fd99::2"]


@pytest.fixture
def namespace() -> Iterator[int]:
    child = subprocess.Popen(["unshare", "--net", "sleep", "120"])
    mine = os.stat("/proc/self/ns/net").st_ino
    while os.stat(f"/proc/{child.pid}/ns/net").st_ino == mine:
        assert child.poll() is None
    yield child.pid
    child.send_signal(signal.SIGKILL)
    child.wait(10)


def test_loopback_comes_up_and_twice_is_fine(namespace: int) -> None:
    def connects() -> bytes:
        with socket.socket() as server, socket.socket() as client:
            server.bind(("127.0.0.1", 0))
            server.listen()
            client.connect(server.getsockname())
            return b"yes"

    with pytest.raises(OSError, match="unreachable"):
        network.inside(namespace, connects)
    network.loopback_up(namespace)
    network.loopback_up(namespace)
    assert network.inside(namespace, connects) == b"yes"


def test_only_addresses_that_are_not_there_are_missing(namespace: int) -> None:
    network.loopback_up(namespace)
    wanted = ["127.0.0.1", "0.0.0.0", "::", "::1", *OLD, OLD[0]]
    assert network.missing(namespace, wanted) == OLD
    network.lend(namespace, OLD)
    network.lend(namespace, OLD)
    assert network.missing(namespace, wanted) == []
    network.take_back(namespace, OLD)
    network.take_back(namespace, OLD)
    assert network.missing(namespace, wanted) == OLD


def test_taking_back_ends_the_connections_of_the_lent_address_alone(namespace: int) -> None:
    network.loopback_up(namespace)
    network.lend(namespace, OLD)

    def action() -> bytes:
        pairs = {}
        for address in ("127.0.0.1", OLD[0], OLD[1]):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            server = socket.socket(family)
            server.bind((address, 0))
            server.listen()
            client = socket.socket(family)
            client.connect(server.getsockname())
            pairs[address] = (client, server.accept()[0], server)
        network.destroy(OLD)
        said = []
        for client, other, server in pairs.values():
            try:
                client.send(b"x")
                other.settimeout(5)
                said.append(other.recv(1).decode())
            except OSError as error:
                said.append(type(error).__name__)
            server.getsockname()
        return " ".join(said).encode()

    said = network.inside(namespace, action).decode().split()
    assert said[0] == "x"
    # The first end is aborted; the other one of the pair may learn of it by the reset that the first one sends.
    assert set(said[1:]) <= {"ConnectionAbortedError", "ConnectionResetError"}


def test_an_error_inside_is_an_error_here(namespace: int) -> None:
    def action() -> bytes:
        raise OSError("told so")

    with pytest.raises(OSError, match=f"/proc/{namespace}/ns/net: told so"):
        network.inside(namespace, action)
