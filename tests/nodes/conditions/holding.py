"""Programs that hold one thing each, run as the only process of a container: `python3 holding.py NAME`.

Each function below takes hold of something and returns it, so that it stays open; then `ready` is written to stdout and
the program sleeps until it is killed. Only what Python itself has is used: system calls go through ctypes.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import socket
import struct
import sys
import time
from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)
HOLD: dict[str, Callable[[], object]] = {}


def hold(function: Callable[[], object]) -> Callable[[], object]:
    HOLD[function.__name__.replace("_", "-")] = function
    return function


def syscall(number: int, *arguments: object) -> int:
    result: int = libc.syscall(number, *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), f"system call {number}")
    return result


def ready() -> None:
    os.write(1, b"ready\n")
    while True:
        time.sleep(3600)


@hold
def plain() -> object:
    """Nothing at all, for what somebody outside does to the container."""
    return None


@hold
def clean() -> object:
    """What programs have and CRIU carries without help."""
    import select
    import threading

    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
    if os.fork() == 0:
        while True:
            time.sleep(3600)
    epoll = select.epoll()
    pair = socket.socketpair()
    epoll.register(pair[0])
    event = syscall(290, 0, 0)  # eventfd2
    memory = os.memfd_create("plain")
    os.truncate(memory, 1 << 20)
    listener = socket.create_server(("127.0.0.1", 0))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    shared = mmap.mmap(-1, 1 << 20)
    os.mkfifo("/tmp/fifo")
    held: list[object] = [epoll, pair, event, memory, listener, udp, shared, os.pipe(), os.openpty()]
    held += [os.open("/etc", os.O_PATH), os.open("/tmp/fifo", os.O_RDWR), os.open("/proc/self/mem", os.O_RDWR)]
    held += [os.open(path, os.O_RDONLY) for path in ("/etc/passwd", "/dev/null", "/dev/urandom", "/dev/kmsg")]
    return held, signalfd(), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)


@hold
def many() -> object:
    """200 processes with 100 open files each."""
    os.mkdir("/tmp/many")
    number = next((child for child in range(1, 200) if os.fork() == 0), 0)
    held = [os.open(f"/tmp/many/{number}-{file}", os.O_CREAT | os.O_RDWR) for file in range(100)]
    if number:
        open(f"/tmp/many/done-{number}", "w").close()
        time.sleep(3600)
    while sum(name.startswith("done") for name in os.listdir("/tmp/many")) < 199:
        time.sleep(0.05)
    return held


@hold
def io_uring() -> object:
    return syscall(425, 4, ctypes.create_string_buffer(120))


@hold
def io_uring_mapped() -> object:
    ring = syscall(425, 4, ctypes.create_string_buffer(120))
    view = mmap.mmap(ring, 4096, mmap.MAP_SHARED, mmap.PROT_READ)
    os.close(ring)
    return view


@hold
def userfaultfd() -> object:
    return syscall(323, 0o2000000 | 1)


@hold
def perf_event() -> object:
    attr = struct.pack("IIQ", 1, 128, 1) + bytes(112)  # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_TASK_CLOCK
    return syscall(298, attr, 0, -1, -1, 0)


def signalfd() -> int:
    return syscall(289, -1, struct.pack("Q", 1 << 9), 8, 0)


def bpf(command: int, attr: bytes) -> int:
    return syscall(321, command, attr.ljust(128, b"\0"), 128)


@hold
def bpf_map() -> object:
    return bpf(0, struct.pack("IIIII", 2, 4, 4, 8, 0))


@hold
def bpf_program() -> object:
    code = ctypes.create_string_buffer(struct.pack("BBhi", 0xB7, 0, 0, 0) + struct.pack("BBhi", 0x95, 0, 0, 0))
    licence = ctypes.create_string_buffer(b"GPL")
    # type SOCKET_FILTER, two instructions: r0 = 0; exit
    return bpf(5, struct.pack("IIQQ", 1, 2, ctypes.addressof(code), ctypes.addressof(licence))), code


@hold
def secret_memory() -> object:
    fd = syscall(447, 0)
    os.ftruncate(fd, 4096)
    return fd


@hold
def secret_memory_mapped() -> object:
    fd = syscall(447, 0)
    os.ftruncate(fd, 4096)
    view = mmap.mmap(fd, 4096)
    os.close(fd)
    return view


@hold
def pidfd_self() -> object:
    return os.pidfd_open(os.getpid())


@hold
def pidfd_thread() -> object:
    return syscall(434, os.getpid(), os.O_EXCL)


@hold
def pidfd_dead() -> object:
    child = os.fork()
    if child == 0:
        os._exit(0)
    fd = os.pidfd_open(child)
    os.waitpid(child, 0)
    return fd


@hold
def zombie() -> object:
    child = os.fork()
    if child == 0:
        os._exit(3)
    while open(f"/proc/{child}/stat").read().split()[2] != "Z":
        time.sleep(0.01)
    return child


@hold
def landlock() -> object:
    return syscall(444, struct.pack("Q", 1), 8, 0)


@hold
def mount_fd() -> object:
    return syscall(430, b"tmpfs", 1)  # fsopen


@hold
def mqueue() -> object:
    fd = libc.mq_open(b"/queue", os.O_CREAT | os.O_RDWR, 0o600, None)
    assert fd >= 0
    return fd


@hold
def seccomp_filter() -> object:
    libc.prctl(38, 1, 0, 0, 0)
    code = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
    program = struct.pack("H6xQ", 1, ctypes.addressof(code))
    syscall(317, 1, 0, program)
    return code


@hold
def seccomp_notify() -> object:
    libc.prctl(38, 1, 0, 0, 0)
    code = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
    program = struct.pack("H6xQ", 1, ctypes.addressof(code))
    return syscall(317, 1, 8, program), code  # SECCOMP_FILTER_FLAG_NEW_LISTENER


# sockets


@hold
def tcp_established() -> object:
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    return listener, client, listener.accept()


@hold
def tcp_established_v6() -> object:
    listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    client = socket.create_connection(listener.getsockname()[:2])
    return listener, client, listener.accept()


@hold
def tcp_in_flight() -> object:
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, socket.create_connection(listener.getsockname())


@hold
def mptcp() -> object:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


@hold
def raw_socket() -> object:
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)


@hold
def packet_socket() -> object:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sock.bind(("lo", 0))
    return sock


@hold
def ping_socket() -> object:
    with open("/proc/sys/net/ipv4/ping_group_range", "w") as file:
        file.write("0 0")
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)


@hold
def netlink_data() -> object:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    sock.bind((0, 0))
    sock.send(struct.pack("IHHII", 17 + 3, 18, 0x301, 1, 0) + b"\0" * 4)  # RTM_GETLINK dump, unread
    return sock


@hold
def vsock_socket() -> object:
    return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)


@hold
def udp_corked() -> object:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(("127.0.0.1", 9))
    sock.setsockopt(17, 1, 1)
    sock.send(b"x")
    return sock


@hold
def unix_stream_outside() -> object:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect("/outside/stream")
    return sock


@hold
def unix_stream_waiting() -> object:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect("/outside/deaf")
    return sock


@hold
def unix_datagram_outside() -> object:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.connect("/outside/datagram")
    return sock


HOLD["unix-datagram-host-network"] = unix_datagram_outside


def received() -> int:
    """A descriptor that a process outside has sent; the connection is closed afterwards."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("/outside/sender")
        return socket.recv_fds(sock, 1, 1)[1][0]


HOLD.update({f"received-{what}": received for what in ("file", "pidfd", "device", "deleted")})


@hold
def unix_accepted_outside() -> object:
    server = socket.socket(socket.AF_UNIX)
    server.bind("/outside/inner")
    server.listen()
    os.write(1, b"listening\n")
    return server, server.accept()


@hold
def unix_in_flight() -> object:
    server = socket.socket(socket.AF_UNIX)
    server.bind("/tmp/inner")
    server.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect("/tmp/inner")
    return server, client


@hold
def unix_peer_closed() -> object:
    left, right = socket.socketpair()
    right.close()
    return left


@hold
def unix_descriptor_in_flight() -> object:
    left, right = socket.socketpair()
    socket.send_fds(left, [b"x"], [0])
    return left, right


# files


@hold
def ghost_file() -> object:
    file = open("/tmp/ghost", "w+b")
    file.write(os.urandom(8 << 20))
    file.flush()
    os.unlink("/tmp/ghost")
    return file


@hold
def ghost_shm() -> object:
    with open("/dev/shm/segment", "w+b") as file:
        file.write(os.urandom(8 << 20))
        file.flush()
        view = mmap.mmap(file.fileno(), 8 << 20)
    os.unlink("/dev/shm/segment")
    return view


@hold
def link_remap() -> object:
    with open("/tmp/one", "w") as file:
        file.write("x")
    os.link("/tmp/one", "/tmp/two")
    file = open("/tmp/one")
    os.unlink("/tmp/one")
    return file


@hold
def lower_unlinked() -> object:
    file = open("/etc/group")
    os.unlink("/etc/group")
    return file


@hold
def folder_deleted() -> object:
    os.mkdir("/tmp/folder")
    os.chdir("/tmp/folder")
    os.rmdir("/tmp/folder")
    return None


@hold
def flock() -> object:
    file = open("/tmp/locked", "w")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


@hold
def posix_lock() -> object:
    file = open("/tmp/locked", "w")
    fcntl.lockf(file, fcntl.LOCK_EX)
    return file


@hold
def ofd_lock() -> object:
    file = open("/tmp/locked", "w")
    fcntl.fcntl(file, 37, struct.pack("hhqqi4x", 1, 0, 0, 0, 0))  # F_OFD_SETLK, F_WRLCK
    return file


@hold
def lease() -> object:
    open("/dev/shm/leased", "w").close()
    file = open("/dev/shm/leased")
    fcntl.fcntl(file, 1024, 0)  # F_SETLEASE, F_RDLCK
    return file


@hold
def inotify_overlay() -> object:
    fd = libc.inotify_init1(0)
    assert libc.inotify_add_watch(fd, b"/tmp", 0x100) > 0
    return fd


@hold
def inotify_tmpfs() -> object:
    fd = libc.inotify_init1(0)
    assert libc.inotify_add_watch(fd, b"/dev/shm", 0x100) > 0
    return fd


@hold
def fanotify_overlay() -> object:
    fd = libc.fanotify_init(0x200, 0)
    assert fd >= 0
    assert libc.fanotify_mark(fd, 1, ctypes.c_uint64(0x100), -100, b"/tmp") == 0
    return fd


@hold
def device_fuse() -> object:
    return os.open("/dev/fuse", os.O_RDWR)


@hold
def device_loop() -> object:
    return os.open("/dev/loop0", os.O_RDONLY)


@hold
def tun() -> object:
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH14x", b"tun0", 0x1001))
    return fd


@hold
def overmounted() -> object:
    os.mkdir("/tmp/under")
    libc.mount(b"tmpfs", b"/tmp/under", b"tmpfs", 0, None)
    file = open("/tmp/under/file", "w")
    assert libc.mount(b"tmpfs", b"/tmp/under", b"tmpfs", 0, None) == 0
    return file


@hold
def proc_file() -> object:
    child = os.fork()
    if child == 0:
        time.sleep(3600)
    file = open(f"/proc/{child}/status")
    os.kill(child, 9)
    os.waitpid(child, 0)
    return file


# processes and namespaces


def inside(flags: int, *, fork: bool = False) -> object:
    child = os.fork()
    if child == 0:
        if libc.unshare(flags) < 0:
            os.write(1, os.strerror(ctypes.get_errno()).encode() + b"\n")
            os._exit(1)
        if fork and os.fork() != 0:
            time.sleep(3600)
        ready()
    os.waitpid(child, 0)
    return None


@hold
def nested_pid_namespace() -> object:
    return inside(0x20000000, fork=True)


@hold
def user_namespace() -> object:
    return inside(0x10000000)


@hold
def uts_namespace() -> object:
    return inside(0x04000000)


@hold
def ipc_namespace() -> object:
    return inside(0x08000000)


@hold
def cgroup_namespace() -> object:
    return inside(0x02000000)


@hold
def time_namespace() -> object:
    return inside(0x80, fork=True)


@hold
def mount_namespace() -> object:
    return inside(0x00020000)


@hold
def net_namespace() -> object:
    return inside(0x40000000)


@hold
def namespace_fd_own() -> object:
    return os.open("/proc/self/ns/net", os.O_RDONLY)


@hold
def namespace_fd_outside() -> object:
    child = os.fork()
    if child == 0:
        libc.unshare(0x40000000)
        os.write(1, b"")
        time.sleep(3600)
    while os.readlink(f"/proc/{child}/ns/net") == os.readlink("/proc/self/ns/net"):
        time.sleep(0.01)
    fd = os.open(f"/proc/{child}/ns/net", os.O_RDONLY)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return fd


@hold
def sysv() -> object:
    id = libc.shmget(0, 1 << 20, 0o1600)
    libc.shmat.restype = ctypes.c_void_p
    return libc.shmat(id, None, 0)


@hold
def aio() -> object:
    context = ctypes.c_ulong(0)
    assert libc.syscall(206, 8, ctypes.byref(context)) == 0
    return context


@hold
def stopped() -> object:
    child = os.fork()
    if child == 0:
        time.sleep(3600)
    os.kill(child, 19)
    os.waitpid(child, 2)
    return child


# what somebody outside does to a container that holds nothing
OUTSIDE = (
    "traced", "exec-session", "exec-detached", "exec-daemon", "session-outside", "nsenter", "bind-behind",
    "tmpfs-behind", "overlay-stacked", "stdio-file", "stdin-null", "terminal", "terminal-inherited", "host-network",
)  # fmt: skip
HOLD.update(dict.fromkeys(OUTSIDE, plain))
HOLD.update({"sysv-host": sysv, "sysv-shared": sysv})


if __name__ == "__main__":
    held = HOLD[sys.argv[1]]()
    ready()
