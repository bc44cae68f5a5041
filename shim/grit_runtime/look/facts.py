"""What one look at a container finds: plain values, without any judgement of them."""

from __future__ import annotations

from typing import NamedTuple

Place = tuple[int, int]  # a descriptor: (pid as the host counts, number)
NO_FD = -1  # a mapping or a folder that no descriptor stands for

# enum in linux/tcp_states.h
ESTABLISHED, TCP_LISTEN = 1, 10
CONNECTED = frozenset({1, 2, 4, 5, 8, 9, 11})  # ESTABLISHED, SYN_SENT, FIN_WAIT1/2, CLOSE_WAIT, LAST_ACK, CLOSING


class Process(NamedTuple):
    """One process. `inner`: its number in its own PID namespace; `session` there, 0 when its leader is outside.

    `namespaces`: kind -> link as /proc/PID/ns has it. `memory`: bytes of anonymous and shared memory it holds. `depth`:
    how many PID namespaces it is in, the host's counted. `stopped`: by a signal, as SIGSTOP does.
    """

    pid: int
    inner: int
    parent: int
    session: int
    state: str
    terminal: int
    tracer: int
    seccomp: int
    threads: int
    memory: int
    label: str
    name: str
    depth: int
    namespaces: dict[str, str]
    stopped: bool


class File(NamedTuple):
    """A deleted file that is open or mapped. `size`: bytes it occupies; `names`: its link count, 0 when it has none."""

    place: Place
    path: str
    size: int
    names: int
    device: int
    inode: int


class Socket(NamedTuple):
    """A socket. `protocol` is the kernel's name for it (system.sockprotoname); `local`, `peer` are for people.

    `waiting`: connections that a listening one has not accepted; bytes that a netlink one has not read. `outside`: the
    other end is no process of ours, `named` is that end's path if it is a datagram socket that can be found again.
    """

    place: Place
    inode: int
    protocol: str
    state: int
    local: str
    peer: str
    waiting: int
    outside: bool
    named: str


class Device(NamedTuple):
    """An open device file; `kind` is "chr" or "blk"."""

    place: Place
    path: str
    kind: str
    major: int
    minor: int


class Outside(NamedTuple):
    """An open file on a mount that isn't the container's: mount id and inode as CRIU names it; `kind` is "file",
    "queue" (a POSIX message queue) or "other"."""

    place: Place
    path: str
    mount: int
    inode: int
    kind: str


class Lock(NamedTuple):
    """A lock as /proc/locks has it: FLOCK, POSIX, OFDLCK or LEASE."""

    kind: str
    pid: int
    path: str


class Special(NamedTuple):
    """An anonymous descriptor of interest: `kind` is its link's name, `target` what fdinfo says it refers to."""

    place: Place
    kind: str
    target: int
    detail: str


class Shared(NamedTuple):
    """A System V shared memory segment that is mapped; `attached` and `ours` count its attachments, -1 unknown."""

    pid: int
    id: int
    size: int
    attached: int
    ours: int


class Look(NamedTuple):
    """Everything. `links`: each descriptor's link. `init`: the container's first process, as the host counts.

    `covered`: open files on a mount that another one covers. `mapped`: (pid, path) of devices, rings and uprobes in
    memory. `host_namespaces`: kinds that the container shares with the host. `mounts_behind`: mountpoints of foreign
    mounts that are in no spec; `masters`: of mounts that get their propagation from outside.
    `strays`: (pid, name) of children of the first process that are not among those looked at. `freezer`: 1 where a
    hierarchy of cgroup version 1 freezes the container, else 2. `stacked`: a lower layer of the rootfs that itself lies
    on an overlay, or "".
    """

    init: int
    processes: list[Process]
    links: dict[Place, str]
    files: list[File]
    sockets: list[Socket]
    devices: list[Device]
    outside: list[Outside]
    covered: list[tuple[Place, str]]
    locks: list[Lock]
    special: list[Special]
    shared: list[Shared]
    mapped: list[tuple[int, str]]
    host_namespaces: frozenset[str]
    mounts_behind: list[str]
    masters: list[str]
    strays: list[tuple[int, str]]
    freezer: int
    stacked: str

    def process(self, pid: int) -> Process | None:
        """The process with this number, if it was seen."""
        return next((process for process in self.processes if process.pid == pid), None)
