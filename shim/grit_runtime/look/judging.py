"""What stands in the way of a checkpoint, what is taken care of, and what a person should know: pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from grit_runtime.checks import Refusal, refuse
from grit_runtime.look import sockets
from grit_runtime.look.facts import Device, Look, Process, Special

if TYPE_CHECKING:
    from grit_runtime.settings import Settings

REFUSED, HANDLED, WARNING = "refused", "handled", "warning"

# Links of anonymous descriptors that CRIU 4.2 can't dump -> reason. The names are the kernel's (anon_inode_getfd).
UNSUPPORTED = {
    "anon_inode:[io_uring]": "io-uring",
    "anon_inode:[perf_event]": "perf-event",
    "anon_inode:[userfaultfd]": "userfaultfd",
    "anon_inode:bpf-prog": "bpf-program",
    "anon_inode:bpf_link": "bpf-program",
    "anon_inode:bpf-link": "bpf-program",
    "anon_inode:bpf-map": "bpf-map",
    "/secretmem": "secret-memory",
}
# Those that it dumps, or that we take care of: no finding, or one of their own.
SUPPORTED = ("anon_inode:inotify", "anon_inode:[fanotify]", "anon_inode:[pidfd]")
WATCHES = {"anon_inode:inotify": "inotify", "anon_inode:[fanotify]": "fanotify"}
# Protocols of sockets that CRIU dumps (criu/sockets.c, dump_socket).
PROTOCOLS = frozenset(
    {"TCP", "TCPv6", "UDP", "UDPv6", "UDP-Lite", "UDPLITE", "UDPLITEv6", "UDPLite", "UNIX", "UNIX-STREAM", "NETLINK",
     "PACKET", "RAW", "RAWv6", "PING", "PINGv6", ""}
)  # fmt: skip
# Device files that CRIU dumps as such (criu/files.c, dump_chrdev): all of null, zero, random, kmsg and their kind;
# (major, minor) of tty, console, ptmx and tun; the terminals.
MEMORY = 1
DEVICES = frozenset({(5, 0), (5, 1), (5, 2), (10, 200)})
PTS = range(136, 144)
GPU = ("/dev/nvidia", "/dev/nvidia-uvm", "/dev/nvidiactl", "/dev/nvidia-caps/")
NESTED = {
    "pid": "nested-pid-namespace",
    "user": "user-namespace",
    "ipc": "nested-namespace",
    "uts": "nested-namespace",
    "cgroup": "nested-namespace",
    "net": "nested-namespace",
    "time_for_children": "nested-namespace",
}

# About processes that don't descend from the container's first one; whatever else these hold, CRIU never sees it.
OUTSIDE_TREE = ("exec-session", "process-stray")


class Finding(NamedTuple):
    """One thing found. `process` is 0 where it is about the container as a whole; `facts` fill the reason's text."""

    reason: str
    process: int
    object: str
    action: str
    facts: dict[str, Any]

    def refusal(self) -> Refusal:
        """The reason's row, filled: as an exception, or for its `message` and `remedy`."""
        return refuse(self.reason, process=self.process, object=self.object, **self.facts)

    @property
    def text(self) -> str:
        """What was found, in one line."""
        return self.refusal().message


def findings(look: Look, *, ghost_limit: int | None = None) -> list[Finding]:
    """All findings, refusals first. `ghost_limit`: bytes that a deleted file may have, None for no limit."""
    found = [
        *_processes(look),
        *_special(look),
        *_sockets(look),
        *_devices(look),
        *_files(look, ghost_limit),
        *_shared(look),
        *_mapped(look),
        *_whole(look),
    ]
    tree = _tree(look)
    once: dict[tuple[str, int, str], Finding] = {}
    for finding in found:
        if finding.process in tree or finding.process == 0 or finding.reason in OUTSIDE_TREE:
            once.setdefault(finding[:3], finding)
    order = (REFUSED, WARNING, HANDLED)
    return sorted(once.values(), key=lambda finding: order.index(finding.action))


def refuse_what_fails(look: Look, settings: Settings) -> None:
    """Raise the first refusal among the findings."""
    for finding in findings(look, ghost_limit=settings.checkpoint.ghost_limit):
        if finding.action == REFUSED:
            raise finding.refusal()


def _find(reason: str, action: str, process: int = 0, object: str = "", **facts: Any) -> Finding:
    return Finding(reason, process, object, action, facts)


def _processes(look: Look) -> Iterator[Finding]:
    init = look.process(look.init)
    tree = _tree(look)
    pids = {process.pid for process in look.processes}
    for process in look.processes:
        if process.stopped and look.freezer == 1:
            yield _find("task-stopped", REFUSED, process.pid, process.name)
        if process.tracer and process.tracer not in pids:
            yield _find("traced", REFUSED, process.pid, process.name, tracer=process.tracer)
        if init is not None and process.state not in "ZX":
            for kind, reason in NESTED.items():
                mine, its = process.namespaces.get(kind), init.namespaces.get(kind)
                if mine and its and mine != its:
                    yield _find(reason, REFUSED, process.pid, process.name, kind=kind)
        if process.pid not in tree:
            yield _find("exec-session", WARNING, process.pid, process.name)


def _tree(look: Look) -> set[int]:
    """The init process and all that descend from it: what CRIU walks."""
    children: dict[int, list[int]] = {}
    for process in look.processes:
        children.setdefault(process.parent, []).append(process.pid)
    tree, todo = set(), [look.init]
    while todo:
        pid = todo.pop()
        if pid not in tree:
            tree.add(pid)
            todo += children.get(pid, ())
    return tree


def _special(look: Look) -> Iterator[Finding]:
    pids = {process.pid for process in look.processes}
    for entry in look.special:
        pid, object = entry.place[0], f"descriptor {entry.place[1]}"
        if entry.kind in WATCHES:
            yield _find(WATCHES[entry.kind], HANDLED, pid, object)
        elif entry.kind == "anon_inode:[pidfd]":
            if entry.detail == "thread":
                yield _find("pidfd-thread", REFUSED, pid, object)
            elif entry.target > 0 and entry.target not in pids:
                yield _find("pidfd", REFUSED, pid, object, target=entry.target)
        elif entry.kind in UNSUPPORTED:
            yield _find(UNSUPPORTED[entry.kind], REFUSED, pid, object)
        elif entry.kind.startswith("anon_inode:"):
            yield _find("descriptor-unsupported", REFUSED, pid, object, kind=entry.kind[11:])
        else:
            yield from _namespace_fd(look, entry)


def _namespace_fd(look: Look, entry: Special) -> Iterator[Finding]:
    """A descriptor of a namespace ("net:[4026531840]"): CRIU knows those that the processes are in."""
    known = {link for process in look.processes for link in process.namespaces.values()}
    if entry.kind.endswith("]") and ":[" in entry.kind and entry.kind not in known:
        yield _find("namespace-outside", REFUSED, entry.place[0], f"descriptor {entry.place[1]}", kind=entry.kind)


def _sockets(look: Look) -> Iterator[Finding]:
    for socket in look.sockets:
        pid, object = socket.place[0], f"descriptor {socket.place[1]}"
        facts = {"protocol": socket.protocol, "local": socket.local, "peer": socket.peer}
        if socket.protocol.startswith("MPTCP"):
            yield _find("mptcp", REFUSED, pid, object)
        elif socket.protocol not in PROTOCOLS:
            yield _find("socket-unsupported", REFUSED, pid, object, **facts)
        elif sockets.connected(socket):
            yield _find("tcp-established", HANDLED, pid, object, **facts)
        elif socket.waiting and socket.protocol.startswith("TCP"):
            yield _find("in-flight-connection", WARNING, pid, object, count=socket.waiting, **facts)
        elif socket.waiting and socket.protocol == "NETLINK":
            yield _find("netlink-unread", REFUSED, pid, object)
        elif socket.named:
            yield _find("unix-datagram-outside", HANDLED, pid, object, name=socket.named)
        elif socket.outside:
            yield _find("unix-peer-outside", REFUSED, pid, object, name=socket.local or "unnamed")


def _devices(look: Look) -> Iterator[Finding]:
    for device in look.devices:
        if device.path.startswith("/dev/nvidia") or device.kind == "chr" and _dumped(device):
            continue
        facts = {"path": device.path, "major": device.major, "minor": device.minor}
        yield _find("device-foreign", REFUSED, device.place[0], f"descriptor {device.place[1]}", **facts)


def _dumped(device: Device) -> bool:
    return device.major == MEMORY or (device.major, device.minor) in DEVICES or device.major in PTS


def _files(look: Look, ghost_limit: int | None) -> Iterator[Finding]:
    for file in look.files:
        pid, object = file.place[0], file.path
        if file.names:
            yield _find("link-remap", HANDLED, pid, object)
        elif ghost_limit is not None and file.size > ghost_limit:
            yield _find("ghost-too-large", REFUSED, pid, object, size=_size(file.size), limit=_size(ghost_limit))
        else:
            yield _find("ghost-file", HANDLED, pid, object, size=_size(file.size))
    for outside in look.outside:
        pid, fd = outside.place
        if outside.kind == "queue":
            yield _find("message-queue", REFUSED, pid, f"descriptor {fd}", path=outside.path)
        elif outside.path.startswith(("/dev/pts/", "/dev/tty", "/dev/console")):
            yield _find("terminal-outside", REFUSED, pid, f"descriptor {fd}")
        elif outside.kind == "file" and fd in (0, 1, 2):
            yield _find("stdio-file", HANDLED, pid, f"descriptor {fd}", path=outside.path)
        else:
            yield _find("file-outside", REFUSED, pid, f"descriptor {fd}", path=outside.path)
    for (pid, fd), path in look.covered:
        yield _find("file-covered", REFUSED, pid, f"descriptor {fd}", path=path)
    for lock in look.locks:
        yield _find("file-lock", HANDLED, lock.pid, lock.path, kind=lock.kind)


def _size(size: int) -> str:
    """Bytes for people: MiB where they are many."""
    return f"{size / (1 << 20):.1f} MiB" if size >= 1 << 20 else f"{size} bytes"


def _shared(look: Look) -> Iterator[Finding]:
    for segment in look.shared:
        if "ipc" in look.host_namespaces:
            yield _find("sysv-host", REFUSED, segment.pid, f"segment {segment.id}")
        elif segment.attached > segment.ours:
            others = segment.attached - segment.ours
            yield _find("sysv-shared", REFUSED, segment.pid, f"segment {segment.id}", count=others)


def _mapped(look: Look) -> Iterator[Finding]:
    for pid, path in look.mapped:
        if path.startswith("/dev/") and not path.startswith(("/dev/nvidia", "/dev/zero")):
            yield _find("device-mapped", REFUSED, pid, path)
        elif path == "anon_inode:[io_uring]":
            yield _find("io-uring", REFUSED, pid, "mapping")
        elif path == "anon_inode:[perf_event]":
            yield _find("perf-event", REFUSED, pid, "mapping")
        elif path == "[uprobes]":
            yield _find("uprobe", REFUSED, pid, "mapping")


def _whole(look: Look) -> Iterator[Finding]:
    for point in look.mounts_behind:
        yield _find("mount-behind-spec", HANDLED, 0, point)
    if look.stacked:
        yield _find("overlay-stacked", REFUSED, 0, look.stacked)
    init = look.process(look.init)
    if init is not None:
        yield from _sessions(look, init)
    if "net" in look.host_namespaces:
        yield _find("host-network", WARNING, 0, "network")


def _sessions(look: Look, init: Process) -> Iterator[Finding]:
    tree = _tree(look)
    for process in look.processes:
        if process.pid in tree and process.session == 0 and process.depth == init.depth and init.session != 0:
            yield _find("session-outside", REFUSED, process.pid, process.name)
    for pid, name in look.strays:
        yield _find("process-stray", REFUSED, pid, name)
