"""The network of a container that is being restored: its loopback up, and addresses of the old node lent to it.

CRIU binds every socket to the address it had. Where the live network namespace doesn't have that address any more, it
is lent to `lo` until CRIU is done; then the established connections that used it are ended (SOCK_DESTROY, so that the
program sees ECONNABORTED on those alone) and the address is taken away.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Sequence

from grit_runtime import namespaces

# linux/sockios.h, linux/if.h
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
# linux/rtnetlink.h, linux/netlink.h
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_CREATE, NLM_F_EXCL = 1, 4, 0x300, 0x400, 0x200
NLMSG_ERROR, NLMSG_DONE = 2, 3
IFA_ADDRESS, IFA_LOCAL, IFA_F_NODAD = 1, 2, 2
# linux/sock_diag.h, linux/inet_diag.h
SOCK_DIAG_BY_FAMILY, SOCK_DESTROY = 20, 21
NETLINK_ROUTE, NETLINK_SOCK_DIAG = 0, 4
TCP_LISTEN = 10


def inside(pid: int, action: Callable[[], bytes]) -> bytes:
    """Run `action` in the network namespace of process `pid`; what it returns, or OSError."""
    return namespaces.enter(f"/proc/{pid}/ns/net", action, namespaces.CLONE_NEWNET)


def loopback_up(pid: int) -> None:
    """Raise `lo`: runc does that on `create` and not on `restore`, and CRIU reconnects sockets through it."""

    def action() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            name = struct.pack("16sH14x", b"lo", 0)
            flags = struct.unpack_from("16sH", fcntl.ioctl(sock, SIOCGIFFLAGS, name))[1]
            if not flags & IFF_UP:
                fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))
        return b""

    inside(pid, action)


def missing(pid: int, wanted: Sequence[str]) -> list[str]:
    """Those of the `wanted` addresses (text, both families) that the namespace of `pid` doesn't have."""

    def action() -> bytes:
        return "\n".join(addresses()).encode()

    plain = [address for address in wanted if not _everywhere(address)]
    if not plain:
        return []
    have = set(inside(pid, action).decode().split())
    return [address for address in dict.fromkeys(plain) if address not in have]


def lend(pid: int, wanted: Sequence[str]) -> None:
    """Add the addresses to `lo`. Its undo is `take_back`."""
    inside(pid, lambda: _change(wanted, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL))


def take_back(pid: int, wanted: Sequence[str]) -> None:
    """End the connections that use the lent addresses and remove these from `lo`."""

    def action() -> bytes:
        destroy(wanted)
        return _change(wanted, RTM_DELADDR, 0)

    inside(pid, action)


def addresses() -> list[str]:
    """All addresses of this network namespace, as text."""
    found = []
    for kind, body in _ask(NETLINK_ROUTE, RTM_GETADDR, NLM_F_DUMP, struct.pack("BBBBI", 0, 0, 0, 0, 0)):
        if kind == RTM_NEWADDR:
            values = _attributes(body[8:])
            raw = values.get(IFA_LOCAL) or values.get(IFA_ADDRESS)
            if raw:
                found.append(str(ipaddress.ip_address(raw)))
    return found


def destroy(local: Sequence[str]) -> int:
    """End every TCP connection of this namespace with one of these local addresses; listening sockets stay."""
    ended = 0
    for family in (socket.AF_INET, socket.AF_INET6):
        wanted = {a.packed for a in map(ipaddress.ip_address, local) if (a.version == 4) == (family == socket.AF_INET)}
        if not wanted:
            continue
        # struct inet_diag_req_v2: family, protocol, ext, pad, states, id (48 bytes)
        request = struct.pack("BBBBI", family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF & ~(1 << TCP_LISTEN)) + bytes(48)
        for _, body in _ask(NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, request):
            # struct inet_diag_msg: family, state, timer, retrans, then the id: ports (4), source (16), ...
            source = body[8:24][: 4 if family == socket.AF_INET else 16]
            if source in wanted:
                order = struct.pack("BBBBI", family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + body[4:52]
                try:
                    _ask(NETLINK_SOCK_DIAG, SOCK_DESTROY, NLM_F_ACK, order)
                    ended += 1
                except FileNotFoundError:
                    pass  # the other end of it was ours too, and this one went with that
    return ended


def _everywhere(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return parsed.is_loopback or parsed.is_unspecified or parsed.is_multicast


def _change(wanted: Sequence[str], kind: int, flags: int) -> bytes:
    index = socket.if_nametoindex("lo")
    for text in wanted:
        address = ipaddress.ip_address(text)
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        body = struct.pack("BBBBI", family, address.max_prefixlen, IFA_F_NODAD, 0, index)
        for attribute in (IFA_LOCAL, IFA_ADDRESS):
            body += struct.pack("HH", 4 + len(address.packed), attribute) + address.packed
        try:
            _ask(NETLINK_ROUTE, kind, NLM_F_ACK | flags, body)
        except OSError as error:
            if error.errno not in (17, 99):  # EEXIST: lent already; EADDRNOTAVAIL: taken back already
                raise
    return b""


def _ask(protocol: int, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
    """One netlink request; its answers as (type, body without the header)."""
    found: list[tuple[int, bytes]] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as sock:
        sock.settimeout(10)
        sock.send(struct.pack("IHHII", 16 + len(body), kind, NLM_F_REQUEST | flags, 1, 0) + body)
        while True:
            data = sock.recv(1 << 18)
            while data:
                length, answer = struct.unpack_from("IH", data)
                if answer == NLMSG_ERROR:
                    code = -struct.unpack_from("i", data, 16)[0]
                    if code:
                        raise OSError(code, os.strerror(code), "netlink")
                    return found
                if answer == NLMSG_DONE:
                    return found
                found.append((answer, data[16:length]))
                data = data[(length + 3) & ~3 :]


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("HH", data)
        if length < 4:
            break
        found[kind] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found
