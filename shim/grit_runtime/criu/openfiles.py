"""What the processes of an image had open. Source: CRIU's images/fdinfo.proto and the messages that it names."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from typing import NamedTuple

from grit_runtime.criu import imagefile
from grit_runtime.criu.imagefile import Path, entries
from grit_runtime.criu.protobuf import BITS, Message

# enum fd_types -> (name, field of file_entry that holds the rest)
KINDS = {
    1: ("file", 3), 2: ("pipe", 18), 3: ("fifo", 17), 4: ("inet", 4), 5: ("unix", 16), 6: ("eventfd", 8),
    7: ("epoll", 9), 8: ("inotify", 13), 9: ("signalfd", 10), 10: ("packet", 6), 11: ("terminal", 19),
    12: ("fanotify", 14), 13: ("netlink", 7), 14: ("namespace", 5), 15: ("tun", 11), 16: ("external", 15),
    17: ("timerfd", 12), 18: ("memfd", 20), 19: ("bpf-map", 21), 20: ("pidfd", 22),
}  # fmt: skip
TCP_STATES = {
    1: "established", 2: "syn-sent", 3: "syn-recv", 4: "fin-wait-1", 5: "fin-wait-2", 6: "time-wait", 7: "close",
    8: "close-wait", 9: "last-ack", 10: "listen", 11: "closing",
}  # fmt: skip
PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6", 136: "udplite", 262: "mptcp"}
INET, INET6 = 2, 10  # AF_*
LINKED, GHOST, PROCFS = 0, 1, 2  # enum remap_type


class OpenFile(NamedTuple):
    """One open file description. `name` is a path for files, the socket's name for Unix sockets (@ for abstract ones).

    Paths start with `/`, the container's root. `mount` is the mount's id, -1 for none; `size` in bytes.
    """

    id: int
    kind: str
    name: str
    mount: int
    size: int
    external: bool
    message: Message


class Socket(NamedTuple):
    """An inet socket: addresses as text, port 0 where there is none; `namespace`: the network namespace's number."""

    id: int
    inode: int
    protocol: str
    state: str
    address: str
    port: int
    peer: str
    peer_port: int
    interface: str
    namespace: int


class Remap(NamedTuple):
    """A file that had no name any more. `kind`: `ghost` (its bytes are in the image), `linked` (CRIU linked it anew as
    link_remap.N in the container's rootfs), `procfs` (an ended process's file). `size` in bytes, ghosts only."""

    name: str
    kind: str
    size: int


class Descriptor(NamedTuple):
    pid: int
    number: int
    kind: str
    file: int


def open_files(folder: Path) -> list[OpenFile]:
    """All open files of the image."""
    return [_open_file(entry) for entry in entries(os.path.join(folder, "files.img"))]


def regular_names(folder: Path) -> dict[int, str]:
    """id -> name, for regular files: what mappings and executables refer to."""
    return {file.id: file.name for file in open_files(folder) if file.kind == "file"}


def sockets(folder: Path) -> list[Socket]:
    """The inet sockets, listening and connected."""
    return [_socket(file.message) for file in open_files(folder) if file.kind == "inet" and file.message.fields]


def addresses(folder: Path) -> list[str]:
    """The local addresses that inet sockets are bound to, each once; those that stand for all addresses too."""
    return list(dict.fromkeys(socket.address.removeprefix("::ffff:") for socket in sockets(folder) if socket.address))


def remaps(folder: Path) -> list[Remap]:
    """Files without a name. remap-fpath.img is there only if there are any."""
    if not imagefile.exists(folder, "remap-fpath.img"):
        return []
    known = regular_names(folder)
    result = []
    for entry in entries(os.path.join(folder, "remap-fpath.img")):
        kind = {LINKED: "linked", GHOST: "ghost", PROCFS: "procfs"}.get(entry.integer(3), "unknown")
        size = ghost_size(folder, entry.integer(2)) if kind == "ghost" else 0
        result.append(Remap(known.get(entry.integer(1), ""), kind, size))
    return result


def ghost_name(number: int) -> str:
    return f"ghost-file-{number:x}.img"


def stream_name(inode: int) -> str:
    return f"tcp-stream-{inode:x}.img"


def ghost_size(folder: Path, number: int) -> int:
    """Bytes of a ghost file: what its entry says, or what follows the entry."""
    path = os.path.join(folder, ghost_name(number))
    entry = imagefile.first(path)
    return entry.integer(10) or max(0, os.lstat(path).st_size - 12 - len(entry.encode()))


def descriptors(folder: Path, pid: int, files_id: int) -> list[Descriptor]:
    """The file descriptors of a process; `files_id` is field 2 of its ids."""
    path = os.path.join(folder, f"fdinfo-{files_id}.img")
    return [
        Descriptor(pid, entry.integer(4), KINDS.get(entry.integer(3), ("unknown", 0))[0], entry.integer(1))
        for entry in entries(path)
    ]


def watches(folder: Path) -> int:
    """How many inotify watches and fanotify marks the image holds."""
    number = {"inotify": 5, "fanotify": 6}
    found = (file for file in open_files(folder) if file.kind in number)
    return sum(len(file.message.messages(number[file.kind])) for file in found)


def at_home(data: bytes, places: Mapping[str, int | None]) -> bytes:
    """The bytes of files.img with external files taken as they are on this node: `places` has their names in the image
    and the position to go on at, None for a pipe or a terminal, which has none.

    CRIU opens what it inherits anew, compares size and mode with the dumped ones, and seeks (criu/files-reg.c).
    """
    return imagefile.rewritten(data, "files.img", lambda entry: _at_home(entry, places))


def _at_home(entry: Message, places: Mapping[str, int | None]) -> Message:
    file = _open_file(entry)
    if file.kind != "file" or not file.external:
        return entry  # of other kinds field 6 is something else
    name = file.message.text(6)
    if name not in places:
        return entry
    place = places[name]
    message = file.message.replaced(3, BITS if place is None else place).replaced(8, None).replaced(10, None)
    return entry.replaced(KINDS[1][1], message.encode())


def _open_file(entry: Message) -> OpenFile:
    kind, number = KINDS.get(entry.integer(1), ("unknown", 0))
    message = (entry.message(number) if number else None) or Message([], entry.where)
    name, mount, size, external = "", -1, 0, kind == "external"
    if kind == "file":
        name, mount, size = "/" + message.text(6).lstrip("/"), message.zigzag(7, -1), message.integer(8)
        external = bool(message.integer(9))
    elif kind == "unix":
        raw = message.raw(11).rstrip(b"\0") if not message.raw(11).startswith(b"\0") else b"@" + message.raw(11)[1:]
        name, mount = raw.decode("utf-8", "surrogateescape"), message.zigzag(17, -1)
        external = bool(message.integer(6) & 1)  # USK_EXTERN
    return OpenFile(entry.integer(2), kind, name, mount, size, external, message)


def _socket(message: Message) -> Socket:
    family, protocol = message.integer(3), message.integer(5)
    name = PROTOCOLS.get(protocol, str(protocol))
    state = TCP_STATES.get(message.integer(6), "unknown") if name in ("tcp", "mptcp") else ""
    if not name.startswith(("tcp", "mptcp")) and message.integer(8):
        state = "connected"
    return Socket(
        id=message.integer(1),
        inode=message.integer(2),
        protocol=name,
        state=state,
        address=_address(family, message.integers(11)),
        port=message.integer(7),
        peer=_address(family, message.integers(12)),
        peer_port=message.integer(8),
        interface=message.text(17),
        namespace=message.integer(18),
    )


def _address(family: int, words: list[int]) -> str:
    """CRIU stores the address's bytes as they lie in memory, as 32-bit words of the dumping machine (little-endian)."""
    import socket

    raw = b"".join(struct.pack("<I", word & 0xFFFFFFFF) for word in words)
    if family == INET and len(raw) >= 4:
        return socket.inet_ntop(socket.AF_INET, raw[:4])
    if family == INET6 and len(raw) >= 16:
        return socket.inet_ntop(socket.AF_INET6, raw[:16])
    return ""
