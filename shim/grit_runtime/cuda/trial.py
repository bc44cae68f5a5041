"""A container of our own with known GPU memory (probe.py), driven through an OCI runtime: for `gritctl gpu-test`, the
tests on a GPU and bench/.

Its rootfs is an overlay over this node's own file system, so it needs no image: what runs here runs there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from grit_runtime.checks import refuse

from . import probe

FOLDER = "gpu-test"  # in the container: its program and the talk with it
CAPABILITIES = (
    "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID "
    "SYS_CHROOT"
).split()
MASKED = ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
          "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"]  # fmt: skip
READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]

Made = TypeVar("Made", bound="Trial")


class Done(NamedTuple):
    """One call of the runtime."""

    words: tuple[str, ...]
    code: int
    output: str
    seconds: float


def spec(
    rootfs: str, name: str, arguments: Sequence[str], environment: Mapping[str, str], limit: int
) -> dict[str, Any]:
    """The config.json of a plain container; `limit` in bytes, 0 for none. Pure."""

    def mount(at: str, kind: str, *options: str) -> dict[str, Any]:
        return {"destination": at, "type": kind, "source": kind, "options": list(options)}

    capabilities = [f"CAP_{capability}" for capability in CAPABILITIES]
    resources: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if limit:
        resources["memory"] = {"limit": limit, "swap": limit}
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(arguments),
            "env": [f"{key}={value}" for key, value in environment.items()],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "noNewPrivileges": True,
        },
        "root": {"path": rootfs},
        "hostname": "gpu-test",
        "mounts": [
            mount("/proc", "proc"),
            mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
            mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777"),
            mount("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
            mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
            mount("/run", "tmpfs", "nosuid", "nodev", "mode=755"),
        ],
        "linux": {
            "cgroupsPath": f"/{name}",
            "resources": resources,
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    }


class Trial:
    """One container. Every bundle it makes lies in a tmpfs at `folder`: an overlay's upper layer can't lie in the file
    system below it. `close` removes all of it.

    `program`: probe.py's arguments after its folder. `python`: what runs it in the container. `lower`: the file system
    that the container sees, this node's own; it can't be an overlay itself, for CRIU finds no files there. `edit`: a
    last change to the spec.
    """

    def __init__(
        self,
        folder: str,
        name: str,
        program: Sequence[str],
        *,
        runtime: Sequence[str] = ("grit-runtime",),
        python: str = "python3",
        environment: Mapping[str, str] | None = None,
        lower: str = "/",
        edit: Callable[[dict[str, Any]], dict[str, Any]] = lambda made: made,
        mounts: Sequence[Mapping[str, Any]] = (),
        limit: int = 0,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.folder, self.name, self.runtime, self.say = Path(folder), name, list(runtime), say
        self.lower, self.edit = lower, edit
        self.python, self.program, self.limit, self.mounts = python, list(program), limit, list(mounts)
        self.environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "NVIDIA_VISIBLE_DEVICES": "all",
            "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
            **(environment or {}),
        }
        self.bundles: list[Path] = []
        self.calls: list[Done] = []
        self.mounted: list[Path] = []
        self.folder.mkdir(parents=True, mode=0o700)
        try:
            self._mount(self.folder, "-t", "tmpfs", "-o", "mode=700", "tmpfs")
        except BaseException:
            self.folder.rmdir()
            raise

    def __enter__(self: Made) -> Made:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def bundle(self) -> Path:
        """A fresh bundle as a container manager makes it: a new upper layer, a spec that nobody has edited."""
        place = self.folder / f"bundle{len(self.bundles)}"
        for part in ("upper", "work", "rootfs"):
            (place / part).mkdir(parents=True)
        options = f"lowerdir={self.lower},upperdir={place}/upper,workdir={place}/work"
        self._mount(place / "rootfs", "-t", "overlay", "-o", options, "overlay")
        words = " ".join(f"'{word}'" for word in (self.python, f"/{FOLDER}/probe.py", f"/{FOLDER}", *self.program))
        arguments = ["/bin/sh", "-c", f"exec {words} </dev/null >/{FOLDER}/output 2>&1"]
        made = spec(str(place / "rootfs"), self.name, arguments, self.environment, self.limit)
        made["mounts"] += self.mounts
        (place / "config.json").write_text(json.dumps(self.edit(made)))
        self.bundles.append(place)
        return place

    def call(self, *words: str, check: bool = True, timeout: float = 600) -> Done:
        """Call the runtime. Refuses `gpu-test-failed` with its last line, unless `check` is False."""
        begin = time.monotonic()
        log = self.folder / "output"
        with open(log, "wb") as output:
            # not a pipe: the container's own processes would hold it open
            done = subprocess.run(
                [*self.runtime, *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=output,
                timeout=timeout, check=False,
            )  # fmt: skip
        text = log.read_text(errors="replace").strip()
        self.calls.append(Done(words, done.returncode, text, time.monotonic() - begin))
        if check and done.returncode:
            last = (text.splitlines() or [f"exit code {done.returncode}"])[-1]
            raise refuse("gpu-test-failed", step=next(word for word in words if not word.startswith("-")), error=last)
        return self.calls[-1]

    def start(self, timeout: float = 300) -> None:
        """Create and start it; returns when all its processes have filled their GPU memory."""
        place = self.bundle()
        self.talk.mkdir(exist_ok=True)
        shutil.copy(probe.__file__, self.talk / "probe.py")
        self.call("create", "--bundle", str(place), self.name)
        self.call("start", self.name)
        for number in range(self.processes):
            self._await("the program's start", (self.talk / f"status.{number}").exists, timeout)

    @property
    def processes(self) -> int:
        words = self.program
        return int(words[words.index("--processes") + 1]) if "--processes" in words else 1

    @property
    def talk(self) -> Path:
        """The folder of the talk with the program, in the bundle that it runs from."""
        return self.bundles[-1] / "rootfs" / FOLDER

    def status(self, number: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.talk / f"status.{number}").read_text())
        return found

    def ask(self, number: int = 0, timeout: float = 300) -> dict[str, Any]:
        """What a process answers now, with the hash of its GPU memory made anew."""
        return self._answer(number, self._put(number), timeout)

    def hashes(self) -> list[str]:
        """Of all processes, made at the same time."""
        words = [self._put(number) for number in range(self.processes)]
        return [str(self._answer(number, word, 300)["hash"]) for number, word in enumerate(words)]

    def _put(self, number: int) -> str:
        """Ask a process; the word that its answer will bear."""
        word = str(time.monotonic_ns())
        (self.talk / "new").write_text(word)
        (self.talk / "new").rename(self.talk / f"ask.{number}")
        return word

    def _answer(self, number: int, word: str, timeout: float) -> dict[str, Any]:
        answer = self.talk / f"answer.{number}"
        self._await("an answer", lambda: answer.exists() and json.loads(answer.read_text())["word"] == word, timeout)
        found: dict[str, Any] = json.loads(answer.read_text())
        return found

    def alive(self) -> bool:
        return self.state().get("status") in ("running", "paused")

    def state(self) -> dict[str, Any]:
        """The runtime's `state`; {} when it knows no such container."""
        done = subprocess.run(
            [*self.runtime, "state", self.name], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
            check=False,
        )  # fmt: skip
        return dict(json.loads(done.stdout)) if done.returncode == 0 else {}

    def checkpoint(self, images: str, *options: str, check: bool = True) -> Done:
        words = ("--image-path", images, "--work-path", self.work(), *options, self.name)
        return self.call("checkpoint", *words, check=check)

    def restore(self, images: str, *options: str, check: bool = True) -> Done:
        """Restore into a fresh bundle, on a new upper layer."""
        place = self.bundle()
        words = ("--bundle", str(place), "--image-path", images, "--work-path", self.work(), *options, self.name)
        return self.call("restore", "--detach", *words, check=check)

    def work(self) -> str:
        """A new folder for CRIU's logs."""
        place = self.folder / f"work{len(self.calls)}"
        place.mkdir(exist_ok=True)
        return str(place)

    def delete(self) -> None:
        self.call("delete", "--force", self.name, check=False)

    def output(self) -> str:
        """The end of what the program wrote."""
        place = self.talk / "output"
        return place.read_text(errors="replace")[-2000:] if place.exists() else ""

    def close(self) -> None:
        """Nothing of it is left afterwards."""
        if self.state():
            self.delete()
        for place in reversed(self.mounted):
            subprocess.run(["umount", "-l", str(place)], stdin=subprocess.DEVNULL, timeout=60, check=False)
        self.mounted.clear()
        self.folder.rmdir()

    def _mount(self, place: Path, *words: str) -> None:
        done = subprocess.run(["mount", *words, str(place)], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise refuse("gpu-test-failed", step="mount", error=done.stderr.strip())
        self.mounted.append(place)

    def _await(self, what: str, there: Callable[[], bool], timeout: float) -> None:
        end = time.monotonic() + timeout
        while True:
            try:
                if there():
                    return
            except (OSError, ValueError):
                pass
            if not self.alive():
                raise refuse("gpu-test-failed", step=what, error=self.output().strip() or "the container ended")
            if time.monotonic() > end:
                raise refuse("gpu-test-failed", step=what, error=f"not within {timeout:.0f} s")
            time.sleep(0.05)


def has_torch(python: str) -> bool:
    """Can this Python import PyTorch? Only looked for, not loaded."""
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    done = subprocess.run([python, "-c", code], capture_output=True, timeout=60, stdin=subprocess.DEVNULL, check=False)
    return done.returncode == 0


def find_python() -> str:
    """The first python3 of PATH, by its real folder: a virtual environment's stays one."""
    return shutil.which("python3") or "/usr/bin/python3"


def folder(name: str) -> str:
    """Where a trial keeps its bundles."""
    return f"/run/grit-runtime/gpu-test/{name}-{os.getpid()}"
