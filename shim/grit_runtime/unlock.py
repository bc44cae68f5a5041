"""Undoes what a CRIU that was killed in the middle of a dump left in the container's network: its lock, and TCP sockets
in repair mode. A CRIU that gives up by itself has done so; this finds nothing then, and may run twice.

Source: criu/net.c (the rules of iptables, the tables of nftables), soccr/soccr.c; linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterable

from grit_runtime import network
from grit_runtime.watches import syscalls

RULES = "*filter\n:CRIU - [0:0]\n-D INPUT -j CRIU\n-D OUTPUT -j CRIU\n-X CRIU\nCOMMIT\n"
TABLE = b"CRIU-"
# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
NETLINK_NETFILTER, NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLMSG_ERROR, NLMSG_DONE = 12, 1, 4, 0x300, 2, 3
NFPROTO_UNSPEC, NFPROTO_INET, NFNL_SUBSYS_NFTABLES, BATCH_BEGIN, BATCH_END = 0, 1, 10, 0x10, 0x11
GETTABLE, DELTABLE, NFTA_TABLE_NAME = 1, 2, 1
TCP_REPAIR = 19  # linux/tcp.h


def all_of(init: int, pids: Iterable[int]) -> None:
    """Unlock the network namespace of process `init`, and end the repair mode of the sockets of `pids`."""
    network.inside(init, _namespace)
    for pid in pids:
        for fd in _sockets(pid):
            _end_repair(pid, fd)


def _namespace() -> bytes:
    for program in ("iptables-restore", "ip6tables-restore"):
        if shutil.which(program):
            # As a whole or not at all: where there is no such rule nothing is changed.
            subprocess.run([program, "-w", "--noflush"], input=RULES.encode(), stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL, timeout=30, check=False)  # fmt: skip
    for family, name in tables():
        if name.startswith(TABLE):
            delete(family, name)
    return b""


def tables() -> list[tuple[int, bytes]]:
    """(family, name) of all tables of nftables in this network namespace."""
    found: list[tuple[int, bytes]] = []
    with _socket() as sock:
        sock.send(_message(NFNL_SUBSYS_NFTABLES << 8 | GETTABLE, NLM_F_DUMP, NFPROTO_UNSPEC, 0, b"", 1))
        while True:
            data = sock.recv(1 << 18)
            while len(data) >= 16:
                length, kind = struct.unpack_from("IH", data)
                if kind in (NLMSG_DONE, NLMSG_ERROR):
                    return found
                found.append((data[16], _attribute(data[20:length], NFTA_TABLE_NAME)))
                data = data[(length + 3) & ~3 :]


def delete(family: int, name: bytes) -> None:
    """Remove a table with all that is in it."""
    value = name + b"\0"
    attribute = struct.pack("HH", 4 + len(value), NFTA_TABLE_NAME) + value + bytes(-len(value) % 4)
    with _socket() as sock:
        sock.send(
            _message(BATCH_BEGIN, 0, NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES, b"", 1)
            + _message(NFNL_SUBSYS_NFTABLES << 8 | DELTABLE, NLM_F_ACK, family, 0, attribute, 2)
            + _message(BATCH_END, 0, NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES, b"", 3)
        )
        code = -struct.unpack_from("i", sock.recv(1 << 16), 16)[0]
        if code:
            raise OSError(code, os.strerror(code), f"nftables' table {name.decode(errors='replace')}")


def _socket() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    sock.settimeout(10)
    return sock


def _message(kind: int, flags: int, family: int, resource: int, body: bytes, number: int) -> bytes:
    """struct nlmsghdr, struct nfgenmsg (its resource number in network order), attributes."""
    return struct.pack("IHHIIBB", 20 + len(body), kind, NLM_F_REQUEST | flags, number, 0, family, 0) + (
        struct.pack(">H", resource) + body
    )


def _attribute(data: bytes, wanted: int) -> bytes:
    while len(data) >= 4:
        length, kind = struct.unpack_from("HH", data)
        if length < 4:
            break
        if kind == wanted:
            return data[4:length].rstrip(b"\0")
        data = data[(length + 3) & ~3 :]
    return b""


def _sockets(pid: int) -> list[int]:
    found = []
    folder = f"/proc/{pid}/fd"
    try:
        for name in os.listdir(folder):
            if os.readlink(f"{folder}/{name}").startswith("socket:"):
                found.append(int(name))
    except OSError:
        pass  # it has gone
    return found


def _end_repair(pid: int, fd: int) -> None:
    try:
        own = syscalls.pidfd_getfd(pid, fd)
    except OSError:
        return
    with socket.socket(fileno=own) as sock:
        if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.proto == socket.IPPROTO_TCP:
            try:
                if sock.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR):
                    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
            except OSError:
                pass  # closed meanwhile
