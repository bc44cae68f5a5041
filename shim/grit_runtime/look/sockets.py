"""The sockets of a container: which protocol, which state, and whether the other end is a process of ours."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from grit_runtime.look.facts import CONNECTED, ESTABLISHED, TCP_LISTEN, Place, Socket

T = TypeVar("T")

CLONE_NEWIPC, CLONE_NEWNET = 0x08000000, 0x40000000  # linux/sched.h
# linux/netlink.h, linux/sock_diag.h, linux/unix_diag.h
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, NLMSG_ERROR, NLMSG_DONE = 4, 20, 0x301, 2, 3
AF_UNIX, AF_NETLINK, SOCK_RAW_CLOEXEC = 1, 16, 3 | 0o2000000
UDIAG_SHOW = 0x01 | 0x04 | 0x08  # NAME, PEER, ICONS
UNIX_DIAG_NAME, UNIX_DIAG_PEER, UNIX_DIAG_ICONS, UNIX_DIAG_SHUTDOWN = 0, 2, 3, 6
SHUT_BOTH = 3
SOCK_DGRAM = 2
# system.sockprotoname -> the table of /proc/PID/net that lists the protocol's sockets
TABLES = {"TCP": "tcp", "TCPv6": "tcp6", "UNIX": "unix", "UNIX-STREAM": "unix", "NETLINK": "netlink"}


class Inet(NamedTuple):
    """A line of /proc/net/tcp or tcp6. `waiting`: for a listening socket, connections not accepted yet."""

    state: int
    local: str
    peer: str
    waiting: int


class Unix(NamedTuple):
    """A Unix socket by unix_diag: `peer` is the other end's inode, 0 when there is none or nobody has accepted yet.

    `clients`: the other ends of connections that a listening socket has not accepted. `ended`: its other end is closed.
    """

    kind: int
    state: int
    name: str
    peer: int
    clients: tuple[int, ...]
    ended: bool


def protocol(pid: int, fd: int) -> str:
    """The kernel's name for a socket's protocol: TCP, TCPv6, MPTCP, UNIX, NETLINK, PACKET, RAW, ... ("" unknown)."""
    try:
        return os.getxattr(f"/proc/{pid}/fd/{fd}", "system.sockprotoname").rstrip(b"\0").decode()
    except OSError:
        return ""


def address(field: str) -> str:
    """An address of /proc/net/tcp{,6} for people; both are hexadecimal in the machine's byte order, by words."""
    host, _, port = field.partition(":")
    words = [bytes.fromhex(host[i : i + 8])[::-1] for i in range(0, len(host), 8)]
    raw = b"".join(words)
    if len(raw) == 4:
        return ".".join(map(str, raw)) + f":{int(port, 16)}"
    if raw.startswith(b"\0" * 10 + b"\xff\xff"):
        return ".".join(map(str, raw[12:])) + f":{int(port, 16)}"
    groups = [raw[i : i + 2].hex().lstrip("0") or "0" for i in range(0, 16, 2)]
    return "[" + (":".join(groups) if any(raw) else "::") + f"]:{int(port, 16)}"


def inet(text: str, wanted: Mapping[int, object]) -> dict[int, Inet]:
    """The wanted inodes' lines of a /proc/net/tcp or tcp6 by inode."""
    found = {}
    for line in text.splitlines()[1:]:
        fields = line.split()
        inode = int(fields[9])
        if inode in wanted:
            state, queued = int(fields[3], 16), int(fields[4].partition(":")[2], 16)
            found[inode] = Inet(state, address(fields[1]), address(fields[2]), queued if state == TCP_LISTEN else 0)
    return found


def unix(messages: Iterable[bytes]) -> dict[int, Unix]:
    """The Unix sockets in the answers to a unix_diag dump (struct unix_diag_msg and its attributes) by inode."""
    import struct

    found = {}
    for body in messages:
        _, kind, state, inode = struct.unpack_from("BBBxI", body)
        name, peer, ended, at = "", 0, False, 16
        clients: tuple[int, ...] = ()
        while at + 4 <= len(body):
            length, attribute = struct.unpack_from("HH", body, at)
            if length < 4:
                break
            value = body[at + 4 : at + length]
            if attribute == UNIX_DIAG_NAME:
                name = value.decode(errors="surrogateescape")
                name = "@" + name[1:] if name.startswith("\0") else name.rstrip("\0")
            elif attribute == UNIX_DIAG_PEER:
                peer = struct.unpack("I", value)[0]
            elif attribute == UNIX_DIAG_ICONS:
                clients = struct.unpack(f"{len(value) // 4}I", value)
            elif attribute == UNIX_DIAG_SHUTDOWN:
                ended = value[:1] == bytes([SHUT_BOTH])
            at += (length + 3) & ~3
        found[inode] = Unix(kind, state, name, peer, clients, ended)
    return found


def ask_unix() -> list[bytes]:
    """Dump all Unix sockets of this network namespace: a list of struct unix_diag_msg with attributes."""
    import _socket
    import struct

    sock = _socket.socket(AF_NETLINK, SOCK_RAW_CLOEXEC, NETLINK_SOCK_DIAG)
    try:
        sock.settimeout(10)
        # struct unix_diag_req: family, protocol, pad, states, inode, show, cookie
        request = struct.pack("BBHIIIII", AF_UNIX, 0, 0, 0xFFFFFFFF, 0, UDIAG_SHOW, 0, 0)
        header = struct.pack("IHHII", 16 + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, 1, 0)
        sock.send(header + request)
        found: list[bytes] = []
        while True:
            data = sock.recv(1 << 18)
            while data:
                length, kind = struct.unpack_from("IH", data)
                if kind == NLMSG_DONE:
                    return found
                if kind == NLMSG_ERROR:
                    code = -struct.unpack_from("i", data, 16)[0]
                    raise OSError(code, os.strerror(code), "unix_diag")
                found.append(data[16:length])
                data = data[(length + 3) & ~3 :]
    finally:
        sock.close()


def within(pid: int, kind: str, flag: int, action: Callable[[], T]) -> T:
    """`action` with this thread in a namespace ("net", "ipc") of process `pid`, and back. OSError where that fails."""
    here, there = f"/proc/thread-self/ns/{kind}", f"/proc/{pid}/ns/{kind}"
    if os.readlink(here) == os.readlink(there):
        return action()
    home = os.open(here, os.O_RDONLY | os.O_CLOEXEC)
    try:
        away = os.open(there, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(away, flag)
        finally:
            os.close(away)
        try:
            return action()
        finally:
            _setns(home, flag)
    finally:
        os.close(home)


def _setns(fd: int, flag: int) -> None:
    if hasattr(os, "setns"):  # Python 3.12
        os.setns(fd, flag)
        return
    import ctypes

    if ctypes.CDLL(None, use_errno=True).setns(fd, flag) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "setns")


def netlink(text: str) -> dict[int, int]:
    """/proc/net/netlink: inode -> bytes that wait to be read. Columns: sk Eth Pid Groups Rmem Wmem Dump ... Inode."""
    rows = [line.split() for line in text.splitlines()[1:]]
    return {int(row[-1]): int(row[4]) for row in rows}


class Tables(NamedTuple):
    """What the kernel says of the sockets of one network namespace, by inode."""

    inet: dict[int, Inet]
    unix: dict[int, Unix]
    netlink: dict[int, int]


def look(holders: Mapping[int, Place], namespaces: Mapping[int, str], pids: Sequence[int]) -> list[Socket]:
    """All sockets. `holders`: inode -> one descriptor of it; `namespaces`: pid -> its network namespace.

    The tables are read once for each namespace, and only those that list a protocol that somebody has.
    """
    groups: dict[str, dict[int, str]] = {}
    for inode, (pid, fd) in holders.items():
        groups.setdefault(namespaces.get(pid, ""), {})[inode] = protocol(pid, fd)
    read: dict[str, Tables] = {}
    for namespace, members in groups.items():
        inside = next((pid for pid in pids if namespaces.get(pid) == namespace), 0)
        read[namespace] = _tables(inside, members)
    everywhere = {inode: entry for tables in read.values() for inode, entry in tables.unix.items()}
    waiting = {client for inode in holders if inode in everywhere for client in everywhere[inode].clients}
    found = []
    for namespace, members in groups.items():
        for inode, name in members.items():
            if name.startswith("UNIX"):
                found.append(_unix(holders, inode, name, everywhere, waiting))
            else:
                found.append(_other(holders[inode], inode, name, read[namespace]))
    return found


def _tables(pid: int, members: Mapping[int, str]) -> Tables:
    tables = Tables({}, {}, {})
    for table in {TABLES[name] for name in members.values() if name in TABLES}:
        try:
            if table == "unix":
                tables.unix.update(unix(within(pid, "net", CLONE_NEWNET, ask_unix)))
                continue
            with open(f"/proc/{pid}/net/{table}") as file:
                if table == "netlink":
                    tables.netlink.update(netlink(file.read()))
                else:
                    tables.inet.update(inet(file.read(), members))
        except OSError:  # the process has ended
            continue
    return tables


def _unix(
    holders: Mapping[int, Place], inode: int, name: str, table: Mapping[int, Unix], waiting: Collection[int]
) -> Socket:
    """Where the other end is, as CRIU would find it: among the sockets of our network namespaces that we hold, or as
    a connection that one of our listening sockets has yet to accept. An accepted socket is in its client's namespace,
    so one that is in no table of ours was connected to from outside."""
    entry = table.get(inode)
    if entry is None:
        return Socket(holders[inode], inode, name, 0, "", "", 0, True, "")
    if entry.peer:
        outside = entry.peer not in holders
    else:
        stream = entry.state == ESTABLISHED and entry.kind != SOCK_DGRAM
        outside = stream and not entry.ended and inode not in waiting
    named = ""
    if outside and entry.kind == SOCK_DGRAM and entry.peer in table:
        named = table[entry.peer].name
    count = len(entry.clients)
    return Socket(holders[inode], inode, name, entry.state, entry.name, str(entry.peer), count, outside, named)


def _other(place: Place, inode: int, name: str, tables: Tables) -> Socket:
    tcp = tables.inet.get(inode)
    if tcp is not None:
        return Socket(place, inode, name, tcp.state, tcp.local, tcp.peer, tcp.waiting, False, "")
    return Socket(place, inode, name, 0, "", "", tables.netlink.get(inode, 0), False, "")


def connected(socket: Socket) -> bool:
    """Whether CRIU takes a socket for an established TCP connection (criu/sk-inet.c, can_dump_inet_sk)."""
    return socket.protocol in ("TCP", "TCPv6") and socket.state in CONNECTED
