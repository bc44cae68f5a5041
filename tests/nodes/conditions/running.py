"""Run inside a node: for each condition a small container under plain runc, our finding, and CRIU's own verdict.

`python3 running.py OUT NAME[+]...` writes one JSON file for each name into OUT. Nothing of grit-runtime takes part in
the first checkpoint: what is shown is what CRIU does when nobody helps. For a NAME with a plus behind it there is a
second one, with the options that `look.needs` asks for.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pty
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
WORK = "/tmp/conditions"
BASE = os.environ.get("BASE", "/")  # no overlay: CRIU finds no file of a process that runs from an overlay in another
CAPABILITIES = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN",
    "CAP_SYS_PTRACE", "CAP_SYSLOG", "CAP_BPF", "CAP_PERFMON", "CAP_SETUID", "CAP_SETGID", "CAP_LEASE", "CAP_IPC_LOCK",
]  # fmt: skip
DEVICES = [
    {"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11},
    {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229},
    {"path": "/dev/loop0", "type": "b", "major": 7, "minor": 0},
    {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200},
]
FORK = "import os, time\nif os.fork() == 0:\n    time.sleep(3600)"
QUIET: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
HOST = {"sysv-host": "ipc", "host-network": "network", "unix-datagram-host-network": "network"}  # shared namespaces


def spec(name: str, folder: str) -> dict[str, Any]:
    """A plain container, whose program holds what `name` says."""
    kinds = [kind for kind in ("pid", "ipc", "uts", "mount", "network", "cgroup") if kind != HOST.get(name)]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "args": ["/usr/bin/python3", "-I", "-S", "/holding.py", name],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "terminal": name == "terminal",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["newinstance", "ptmxmode=0666"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
            {"destination": "/outside", "type": "bind", "source": f"{folder}/outside", "options": ["rbind", "rw"]},
            {"destination": "/holding.py", "type": "bind", "source": f"{HERE}/holding.py", "options": ["bind", "ro"]},
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in kinds],
            "devices": DEVICES,
            "resources": {"devices": [{"allow": True, "access": "rwm"}]},
            "maskedPaths": ["/proc/keys", "/proc/acpi"],
            "readonlyPaths": ["/proc/sys/kernel"],
        },
    }  # fmt: skip


@contextlib.contextmanager
def bundle(name: str) -> Iterator[str]:
    """A bundle whose rootfs is an overlay of the folder BASE, gone afterwards."""
    folder = f"{WORK}/{name}"
    for part in ("upper", "work", "rootfs", "outside", "images"):
        os.makedirs(f"{folder}/{part}")
    base = "/" if name == "overlay-stacked" else BASE
    layers = f"lowerdir={base},upperdir={folder}/upper,workdir={folder}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, f"{folder}/rootfs"], check=True)
    try:
        with open(f"{folder}/config.json", "w") as file:
            json.dump(spec(name, folder), file)
        yield folder
    finally:
        subprocess.run(["umount", "-l", f"{folder}/rootfs"], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def sent(name: str) -> int:
    """The descriptor that a container is sent for received-*."""
    if name == "received-pidfd":
        return os.pidfd_open(os.getpid())
    if name == "received-device":
        return os.open("/dev/null", os.O_RDWR)
    if name == "received-deleted":
        with tempfile.NamedTemporaryFile(dir="/tmp") as file:
            return os.dup(file.fileno())
    return os.open("/etc/passwd", os.O_RDONLY)


def peers(name: str, folder: str) -> list[Any]:
    """Sockets of this process that the container connects to: one accepts, one doesn't, one sends a descriptor."""
    held: list[Any] = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)]
    held[0].bind(f"{folder}/outside/datagram")

    def accept(server: socket.socket, send: int) -> None:
        with contextlib.suppress(OSError):
            held.append(server.accept()[0])
            if send >= 0:
                socket.send_fds(held[-1], [b"x"], [send])

    for path in ("stream", "deaf", "sender"):
        server = socket.socket(socket.AF_UNIX)
        server.bind(f"{folder}/outside/{path}")
        server.listen()
        held.append(server)
        if path != "deaf":
            threading.Thread(target=accept, args=(server, sent(name) if path == "sender" else -1), daemon=True).start()
    return held


def stdio(name: str, folder: str) -> dict[str, Any]:
    """What runc and with it the container gets as its stdin and stdout, and where we read what it says."""
    if name == "stdio-file":
        log = open(f"{folder}/log", "wb")
        return {"stdin": subprocess.PIPE, "stdout": log, "stderr": log, "read": open(f"{folder}/log", "rb")}
    if name == "terminal-inherited":
        master, slave = pty.openpty()
        return {"stdin": slave, "stdout": slave, "stderr": slave, "read": os.fdopen(master, "rb", 0)}
    reader, writer = os.pipe2(os.O_CLOEXEC)
    stdin = subprocess.DEVNULL if name == "stdin-null" else subprocess.PIPE
    return {"stdin": stdin, "stdout": writer, "stderr": writer, "read": os.fdopen(reader, "rb", 0)}


def started(name: str, folder: str, id: str, held: list[Any]) -> str:
    """Start the container and wait until it holds what it should; what it says instead."""
    ends = stdio(name, folder)
    reader = ends.pop("read")
    held.append(reader)
    command = ["runc", "run", "--detach", "--bundle", folder, "--pid-file", f"{folder}/pid"]
    if name == "terminal":
        console = socket.socket(socket.AF_UNIX)
        console.bind(f"{folder}/console")
        console.listen()
        command += ["--console-socket", f"{folder}/console"]
    run = subprocess.Popen([*command, id], **ends)
    if name == "terminal":
        reader = os.fdopen(socket.recv_fds(console.accept()[0], 100, 1)[1][0], "rb", 0)
        held.append(reader)
    run.wait(60)
    end, said, client = time.monotonic() + 60, b"", None
    while b"ready" not in said and time.monotonic() < end:
        part = b""
        if select.select([reader], [], [], 1)[0]:
            part = os.read(reader.fileno(), 1 << 16)
            if not part and (name != "stdio-file" or run.returncode):
                break
        said += part
        if b"listening\n" in said and client is None:
            client = socket.socket(socket.AF_UNIX)
            client.connect(f"{folder}/outside/inner")
            held.append(client)
    return "" if b"ready" in said else said.decode(errors="replace") or f"runc: exit {run.returncode}"


def until(ready: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.01)


def names(id: str) -> bytes:
    """The command names in the container."""
    return subprocess.run(["runc", "ps", id], stdout=subprocess.PIPE, timeout=60, check=True).stdout


def children(pid: int) -> str:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read()


def meddle(name: str, id: str, pid: int) -> list[subprocess.Popen[bytes]]:
    """What somebody outside does to the running container."""
    enter = ["nsenter", "--target", str(pid), "--mount", "--pid", "--uts", "--net", "--ipc", "--cgroup", "--"]
    if name == "exec-session":
        child = subprocess.Popen(["runc", "exec", id, "sleep", "3600"], **QUIET)
        until(lambda: b"sleep" in names(id))
        return [child]
    if name == "exec-detached":
        subprocess.run(["runc", "exec", "--detach", id, "sleep", "3600"], check=True, timeout=60, **QUIET)
        until(lambda: b"sleep" in names(id))
    elif name == "exec-daemon":
        subprocess.run(["runc", "exec", "--detach", id, "python3", "-c", FORK], check=True, timeout=60, **QUIET)
        until(lambda: children(pid))
    elif name == "nsenter":
        subprocess.run([*enter, "python3", "-c", FORK], check=True, timeout=60, **QUIET)
    elif name == "session-outside":
        from grit_runtime import cgroup

        inner = "import os\nfor n in (0, 1, 2):\n    os.close(n)\nos.pipe(), os.pipe()\n" + FORK
        join = f"echo 0 >'{cgroup.of(pid).path}/cgroup.procs'; exec \"$@\""
        command = ["sh", "-c", join, "sh", *enter, "python3", "-c", inner]
        subprocess.run(command, timeout=60, check=True, **QUIET)
    elif name == "bind-behind":
        subprocess.run(["nsenter", "-m", "-t", str(pid), "mount", "--bind", "/etc", "/root"], check=True, timeout=60)
        tree = ctypes.CDLL(None, use_errno=True).syscall(428, -100, WORK.encode(), 1 | 0o2000000)  # open_tree(CLONE)
        code = ("import ctypes, os, sys; l = ctypes.CDLL(None); fd = int(sys.argv[1]);"
                "l.setns(os.open(f'/proc/{sys.argv[2]}/ns/mnt', 0), 0x20000);"
                "sys.exit(l.syscall(429, fd, b'', -100, b'/var/lib', 4) and 1)")  # fmt: skip
        subprocess.run(["python3", "-c", code, str(tree), str(pid)], check=True, pass_fds=[tree], timeout=60)
        os.close(tree)
    elif name == "tmpfs-behind":
        subprocess.run([*enter[:3], "--mount", "mount", "-t", "tmpfs", "tmpfs", "/root"], check=True, timeout=60)
    elif name == "sysv-shared":
        attach = ("import ctypes, time; l = ctypes.CDLL(None); l.shmat.restype = ctypes.c_void_p;"
                  "l.shmat(0, None, 0); print(1, flush=True); time.sleep(3600)")  # fmt: skip
        child = subprocess.Popen(["nsenter", "-i", "-t", str(pid), "python3", "-c", attach], stdout=subprocess.PIPE)
        assert child.stdout and child.stdout.readline()
        return [child]
    elif name == "traced":
        trace = "import ctypes, sys, time; print(ctypes.CDLL(None).ptrace(0x4206, int(sys.argv[1]), 0, 0), flush=True)"
        child = subprocess.Popen(["python3", "-c", trace + "; time.sleep(3600)", str(pid)], stdout=subprocess.PIPE)
        assert child.stdout and child.stdout.readline() == b"0\n"
        return [child]
    return []


def look(pid: int, config: dict[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    """What `gritctl check` says, and what our look asks for: options of runc, lines of CRIU's configuration."""
    from grit_runtime import cgroup, mounts
    from grit_runtime import look as looking
    from grit_runtime.ctl import check
    from grit_runtime.look.containers import Container

    started = time.monotonic()
    report = check.report(Container("condition", "/run/runc", pid, "", (), config), ghost_limit=1 << 20)
    seconds = time.monotonic() - started
    needs = looking.needs(looking.look(cgroup.processes(cgroup.of(pid)), spec=config, init=pid), config)
    words = [("--tcp-established", needs.tcp_established), ("--ext-unix-sk", needs.ext_unix_sk),
             ("--file-locks", needs.file_locks), ("--shell-job", needs.shell_job), ("--link-remap", needs.link_remap),
             ("--tcp-skip-in-flight", needs.skip_in_flight)]  # fmt: skip
    lines = [f"ghost-limit {needs.ghost_limit}"]
    lines += ["enable-external-masters"] if needs.masters else []
    lines += [f"external file[{mount:x}:{inode:x}]" for mount, inode, _ in needs.external_files]
    table = mounts.read(pid)
    found = mounts.dump_externals(table, config, None, lambda path: mounts.inside(f"/proc/{pid}/root", path))
    lines += [f"external mnt[{key}]:{value}" for key, value in found]
    rows = [row._asdict() for row in report.rows]
    return {"rows": rows, "seconds": seconds}, [word for word, wanted in words if wanted], lines


def checkpoint(id: str, folder: str, switches: list[str], lines: list[str]) -> dict[str, Any]:
    """`runc checkpoint`, and the log of CRIU."""
    for part in os.listdir(f"{folder}/images"):
        os.unlink(f"{folder}/images/{part}")
    with open(f"{folder}/criu.conf", "w") as file:
        file.write("\n".join([*lines, ""]))
    environment = {**os.environ, "CRIU_CONFIG_FILE": f"{folder}/criu.conf"} if lines else dict(os.environ)
    images = ["--image-path", f"{folder}/images", "--work-path", f"{folder}/images"]
    try:
        ended = subprocess.run(["runc", "checkpoint", *images, *switches, id], env=environment, timeout=20, check=False,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"code": -1, "log": "", "said": "timeout", "diagnosis": None}
    log, diagnosis = "", None
    if os.path.exists(f"{folder}/images/dump.log"):
        from grit_runtime.criu import log as logs

        with open(f"{folder}/images/dump.log", errors="replace") as file:
            log = file.read()
        known = logs.cause(logs.read(f"{folder}/images/dump.log"))
        diagnosis = known and {"reason": known.reason, "text": logs.explain(known).message}
    said = ended.stdout.decode(errors="replace")[-2000:]
    return {"code": ended.returncode, "log": log, "said": said, "diagnosis": diagnosis}


def one(name: str, out: str, helped: bool) -> None:
    """One condition, from the bundle to the file in `out`."""
    result: dict[str, Any] = {"name": name, "error": ""}
    id = f"condition-{name}"
    with bundle(name) as folder:
        held = peers(name, folder)
        meddlers: list[subprocess.Popen[bytes]] = []
        try:
            result["error"] = started(name, folder, id, held)
            if not result["error"]:
                with open(f"{folder}/pid") as file:
                    pid = int(file.read())
                meddlers = meddle(name, id, pid)
                result["check"], switches, lines = look(pid, spec(name, folder))
                result["plain"] = checkpoint(id, folder, [], [])
                if helped and result["plain"]["code"]:
                    result["helped"] = {**checkpoint(id, folder, switches, lines), "options": switches + lines}
        except Exception as error:
            result["error"] = repr(error)
        finally:
            for meddler in meddlers:
                meddler.kill()
                meddler.wait()
            subprocess.run(["runc", "delete", "--force", id], timeout=60, check=False, **QUIET)
            with open(f"{out}/{name}.json", "w") as file:
                json.dump(result, file)


if __name__ == "__main__":
    os.makedirs(sys.argv[1], exist_ok=True)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda name: one(name.rstrip("+"), sys.argv[1], name.endswith("+")), sys.argv[2:]))
