"""The table of conditions: what we say before, what CRIU says when nobody helps, and how its log is diagnosed."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """`finding`: our reason, "" for none. `error`: a regular expression for a line of CRIU's log, "" where it succeeds.
    `diagnosis`: the reason that is read from that log. `helped`: with the options
    that we give it succeeds."""

    finding: str
    action: str
    error: str
    diagnosis: str
    helped: bool = False


def refused(finding: str, error: str, diagnosis: str | None = None) -> Row:
    return Row(finding, "refused", error, finding if diagnosis is None else diagnosis)


def handled(finding: str, error: str, diagnosis: str) -> Row:
    return Row(finding, "handled", error, diagnosis, helped=True)


def well(finding: str = "", action: str = "") -> Row:
    """CRIU dumps it without help."""
    return Row(finding, action, "", "")


UNSUPPORTED = r"Can't dump file \d+ of that type \[600\] \(anon "
NESTED = r"Can't dump nested {} namespace for \d+"
OUTSIDE = r"Can't lookup mount=\d+ for fd=\d+ path={}"

ROWS = {
    # descriptors
    "io-uring": refused("io-uring", r"send_fds failed \(-22\)"),
    "io-uring-mapped": refused("io-uring", r"Unknown shit 600 \(anon_inode:\[io_uring\]\)"),
    "userfaultfd": refused("userfaultfd", UNSUPPORTED + r"anon_inode:\[userfaultfd\]"),
    "perf-event": refused("perf-event", UNSUPPORTED + r"anon_inode:\[perf_event\]"),
    "bpf-map": refused("bpf-map", UNSUPPORTED + "anon_inode:bpf-map", "descriptor-unsupported"),
    "bpf-program": refused("bpf-program", UNSUPPORTED + "anon_inode:bpf-prog"),
    "secret-memory": refused("secret-memory", OUTSIDE.format("/secretmem"), "file-outside"),
    "secret-memory-mapped": refused("secret-memory", r"Unknown shit 100600 \(/secretmem", "descriptor-unsupported"),
    "landlock": refused("descriptor-unsupported", UNSUPPORTED + r"anon_inode:\[landlock-ruleset\]"),
    "mount-fd": refused("descriptor-unsupported", UNSUPPORTED + r"anon_inode:\[fscontext\]"),
    "seccomp-notify": refused("descriptor-unsupported", UNSUPPORTED + "anon_inode:seccomp notify"),
    "mqueue": refused("message-queue", OUTSIDE.format("/queue"), "file-outside"),
    "pidfd-self": well(),
    "pidfd-dead": well(),
    "pidfd-thread": refused("pidfd-thread", "PIDFD_THREAD flag is currently not supported"),
    "received-pidfd": refused("pidfd", r"pidfd pid \d+ is not a part of process tree"),
    "inotify-overlay": Row("inotify", "handled", "Can't dump that handle", "watch-handle"),
    "inotify-tmpfs": well("inotify", "handled"),
    "fanotify-overlay": Row("fanotify", "handled", "Can't dump that handle", "watch-handle"),
    # sockets
    "tcp-established": handled("tcp-established", "Connected TCP socket, consider using", "tcp-connected"),
    "tcp-established-v6": handled("tcp-established", "Connected TCP socket, consider using", "tcp-connected"),
    "tcp-in-flight": Row("in-flight-connection", "warning", r"In-flight connection \(l\)", "tcp-in-flight", True),
    "mptcp": refused("mptcp", "Unsupported proto 262 for socket"),
    "raw-socket": well(),
    "packet-socket": well(),
    "ping-socket": well(),
    "netlink-data": refused("netlink-unread", "netlink: The socket has data to read"),
    "vsock-socket": refused("socket-unsupported", r"Unknown socket collected \(family 40\)"),
    "unix-stream-outside": refused("unix-peer-outside", "External socket is used", "unix-socket-outside"),
    "unix-stream-waiting": refused("unix-peer-outside", r"Dangling connection \d+"),
    "unix-accepted-outside": refused("unix-peer-outside", r"Unix socket \d+ not found"),
    "unix-datagram-outside": refused("unix-peer-outside", r"Unix socket \d+ without peer \d+"),
    "unix-datagram-host-network": handled("unix-datagram-outside", "External socket is used", "unix-socket-outside"),
    "unix-in-flight": well(),
    "unix-peer-closed": well(),
    "unix-descriptor-in-flight": well(),
    # files
    "ghost-file": Row("ghost-too-large", "refused", r"Can't dump ghost file /tmp/ghost of", "ghost-too-large", True),
    "ghost-shm": Row("ghost-too-large", "refused", "Can't dump ghost file /dev/shm/segment", "ghost-too-large", True),
    "folder-deleted": well("ghost-file", "handled"),
    "link-remap": handled("link-remap", "Can't create link remap for /tmp/one", "link-remap-off"),
    "lower-unlinked": handled("link-remap", "Can't create link remap for /etc/group", "link-remap-off"),
    "flock": handled("file-lock", "Some file locks are hold by dumping tasks", "file-locks-held"),
    "posix-lock": handled("file-lock", "Some file locks are hold by dumping tasks", "file-locks-held"),
    "ofd-lock": handled("file-lock", "Some file locks are hold by dumping tasks", "file-locks-held"),
    "lease": handled("file-lock", "Some file locks are hold by dumping tasks", "file-locks-held"),
    "device-fuse": refused("device-foreign", r"Can't dump file \d+ of that type \[20666\] \(chr 10:229\)"),
    "device-loop": refused("device-foreign", r"of that type \[60\d+\] \(unknown /dev/", "descriptor-unsupported"),
    "tun": well(),
    "overmounted": refused("file-covered", "Open files on overmounted mounts are not supported"),
    "received-file": refused("file-outside", OUTSIDE.format("/etc/passwd")),
    "received-device": refused("file-outside", OUTSIDE.format("/dev/null")),
    "received-deleted": refused("file-outside", OUTSIDE.format("/tmp/")),
    "stdio-file": handled("stdio-file", OUTSIDE.format("/tmp/conditions/stdio-file/log"), "file-outside"),
    "stdin-null": well(),
    "proc-file": well(),
    # processes and namespaces
    "nested-pid-namespace": refused("nested-pid-namespace", NESTED.format("pid"), "nested-namespace"),
    "user-namespace": refused("user-namespace", NESTED.format("user"), "nested-namespace"),
    "uts-namespace": refused("nested-namespace", NESTED.format("uts")),
    "ipc-namespace": refused("nested-namespace", NESTED.format("ipc")),
    "cgroup-namespace": refused("nested-namespace", NESTED.format("cgroup")),
    "time-namespace": refused("nested-namespace", NESTED.format("time_for_children")),
    "net-namespace": refused("nested-namespace", "Unable to dump more than one netns"),
    "mount-namespace": well(),
    "namespace-fd-own": well(),
    "namespace-fd-outside": refused("namespace-outside", r"No NS ID with kid \d+"),
    "sysv": well(),
    "sysv-host": refused("sysv-host", "doesn't live in IPC ns"),
    "sysv-shared": Row("sysv-shared", "refused", "", ""),  # CRIU takes it, and the two part ways unseen
    "traced": refused("traced", r"zombie \d+ \(comm python3\) found while seizing", "task-traced"),
    "zombie": well(),
    "aio": well(),
    "seccomp-filter": well(),
    "exec-session": well("exec-session", "warning"),
    "exec-detached": well("exec-session", "warning"),
    "exec-daemon": refused("file-outside", OUTSIDE.format("/dev/null")),
    "session-outside": refused("session-outside", "is outside of its pid namespace"),
    "nsenter": refused("process-stray", "Unseizable non-zombie"),
    "terminal": well(),
    "terminal-inherited": refused("terminal-outside", OUTSIDE.format("/dev/pts/"), "file-outside"),
    # the container as a whole
    "clean": well(),
    "many": well(),
    "bind-behind": handled("mount-behind-spec", "doesn't have a proper root mount", "mount-foreign"),
    "tmpfs-behind": well(),
    "overlay-stacked": refused("overlay-stacked", r"Can't lookup mount=\d+ for fd=-3 path=/usr", "file-outside"),
    "host-network": well("host-network", "warning"),
}
STOPPED = Row("task-stopped", "refused", "", "")  # under cgroup version 1 CRIU waits forever; under 2 it dumps it
