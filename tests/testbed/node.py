"""A running node: entered by its namespaces, its files reached through /proc/PID/root."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from . import driver, groups, settings
from .places import HERE
from .recipe import RECIPES, Recipe

if TYPE_CHECKING:
    from .container import Container
    from .runs import Run

Result = TypeVar("Result")


def until(what: str, ready: Callable[[], Result | None], timeout: float = 60) -> Result:
    """Waits until `ready` gives something true, and gives it. TimeoutError says `what` did not come."""
    end = time.monotonic() + timeout
    while True:
        found = ready()
        if found:
            return found
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {timeout:.0f} s")
        time.sleep(0.02)


class Node:
    """One of the two nodes. `pid` is its first process, as this machine sees it."""

    def __init__(self, recipe: Recipe, run: Run, tree: Path, images: Path) -> None:
        self.recipe, self.name, self.run_folder = recipe, recipe.name, run.folder / recipe.name
        self.group = run.group(recipe.name)
        self._tree, self._images = tree, images
        self._children: list[subprocess.Popen[bytes]] = []
        self._first: subprocess.Popen[bytes] | None = None
        self.pid = 0

    # bringing it up: enter() for all nodes first, then prepare(), so that they start at the same time

    def enter(self) -> None:
        """Starts the node's first process; `wait` waits for it."""
        self.run_folder.mkdir()
        (self.run_folder / "root").mkdir()
        (self.run_folder / "tree").symlink_to(self._tree)
        (self.run_folder / "images").symlink_to(self._images)
        (self.run_folder / "devices").write_text(settings.devices(self.recipe))
        options = [hierarchy.options for hierarchy in groups.here() if hierarchy.options]
        (self.run_folder / "hierarchies").write_text("\n".join([*(options or ["freezer", "devices"]), ""]))
        entries = groups.make(self.group)
        reader, writer = os.pipe()
        # dup2 to 3 in the shell: the script reports there that the node is ready
        join = "".join(f"echo 0 >'{entry}'; " for entry in entries)
        self._first = subprocess.Popen(
            ["bash", "-ec", f'{join}exec 3>&{writer} {writer}>&-; exec "$@"', "-",
             "unshare", "--mount", "--pid", "--fork", "--net", "--uts", "--ipc", "--cgroup",
             "--propagation", "private", str(HERE / "enter"), self.name, self.recipe.cgroups, _kind(self.run_folder)],
            cwd=self.run_folder, stdin=subprocess.DEVNULL, stdout=open(self.run_folder / "enter.log", "w"),
            stderr=subprocess.STDOUT, pass_fds=[writer], start_new_session=True,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
        )  # fmt: skip
        os.close(writer)
        self._ready = reader
        self._entries = entries

    def wait(self, timeout: float = 60) -> None:
        """Waits until the first process has made the file system. RuntimeError shows its output."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._ready, selectors.EVENT_READ)
            said = os.read(self._ready, 100) if selector.select(timeout) else b""
        os.close(self._ready)
        if said != b"ready\n":
            raise RuntimeError(f"{self.name} does not come up: {(self.run_folder / 'enter.log').read_text()}")
        assert self._first
        parent = self._first.pid
        self.pid = int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0])
        self._entries = groups.inner(self._entries)
        (self.run_folder / "pid").write_text(str(self.pid))

    def prepare(self) -> None:
        """Writes the node's settings and starts containerd."""
        recipe = self.recipe
        self.write("/etc/hostname", recipe.name + "\n")
        self.write("/etc/hosts", settings.hosts(RECIPES))
        self.write("/etc/resolv.conf", "nameserver 127.0.0.1\n")
        self.write("/etc/containerd/config.toml", settings.containerd(recipe))
        self.write("/etc/cni/net.d/10-pods.conflist", settings.cni(recipe))
        self.write("/etc/containers/containers.conf", settings.PODMAN)
        driver.lay(self)
        self.start_containerd()

    # what tests use

    def path(self, path: str) -> Path:
        """The place on this machine of a file of the node."""
        return Path(f"/proc/{self.pid}/root/{path.lstrip('/')}")

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        place = self.path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_symlink():
            place.unlink()
        place.write_text(text)
        place.chmod(mode)

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line on this machine that runs `argv` in the node, in its cgroup too."""
        join = "".join(f"echo 0 >'{entry}'; " for entry in self._entries)
        return [
            "sh", "-ec", f'{join}exec "$@"', "-",
            "nsenter", "--target", str(self.pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup",
            "--root", "--wd", "--", *argv,
        ]  # fmt: skip

    def popen(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **more: object
    ) -> subprocess.Popen[bytes]:
        """A process in the node that goes on. It is ended with the node at the latest."""
        given: dict[str, object] = {"stdin": subprocess.DEVNULL, "start_new_session": True, **more}
        child: subprocess.Popen[bytes] = subprocess.Popen(self.command(argv), env=_environment(env), **given)  # type: ignore[call-overload]
        self._children.append(child)
        return child

    def run(
        self,
        argv: Sequence[str],
        check: bool = True,
        timeout: float = 60,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs `argv` in the node's namespaces and gives its output as text.

        The output goes through files, so a process that `argv` leaves behind with its stdout is not waited for. With
        `check` a code other than 0 is a CalledProcessError whose text shows the output; TimeoutExpired ends it.
        """
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as given:
            given.write((input or "").encode())
            given.seek(0)
            child = self.popen(argv, env=env, stdin=given, stdout=out, stderr=err)
            try:
                code = child.wait(timeout)
            except BaseException:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                raise
            finally:
                self._children.remove(child)
                out.seek(0)
                err.seek(0)
                texts = out.read().decode(errors="replace"), err.read().decode(errors="replace")
        if check and code:
            raise CommandFailed(self.name, list(argv), code, *texts)
        return subprocess.CompletedProcess(list(argv), code, *texts)

    def ctr(self, *args: str, check: bool = True, timeout: float = 60) -> str:
        """`ctr ARGS` in containerd's namespace "default"; its stdout."""
        return self.run(["ctr", *args], check=check, timeout=timeout).stdout

    def start_containerd(self) -> None:
        log = open(self.run_folder / "containerd.log", "a")
        self._containerd = self.popen(["containerd"], stdout=log, stderr=log)
        log.close()

    def wait_containerd(self, timeout: float = 60) -> None:
        def answers() -> bool:
            if self._containerd.poll() is not None:
                raise RuntimeError(f"{self.name}: containerd ended: {self.containerd_log()[-3000:]}")
            return self.path("/run/containerd/containerd.sock").exists() and not self.run(
                ["ctr", "--connect-timeout", "5s", "version"], check=False
            ).returncode

        until(f"{self.name}: containerd", answers, timeout)

    def restart_containerd(self) -> None:
        """Ends containerd, and only it, and starts it again, as an admin does; the shims live on."""
        for pid in self.run(["pidof", "containerd"]).stdout.split():
            self.run(["kill", pid])
        self._containerd.wait(60)
        self.start_containerd()
        self.wait_containerd()

    def containerd_log(self) -> str:
        return (self.run_folder / "containerd.log").read_text(errors="replace")

    def install(self, deb: Path) -> None:
        """Installs a .deb with apt, as an admin does; what it depends on is in the tree."""
        shutil.copy(deb, self.path("/tmp") / deb.name)
        self.run(["apt-get", "-q", "-y", "install", f"/tmp/{deb.name}"], timeout=180,
                 env={"DEBIAN_FRONTEND": "noninteractive"})  # fmt: skip

    def start(
        self,
        name: str,
        *,
        image: str = "workload",
        runtime: str = "grit",
        annotations: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        args: Sequence[str] = (),
        options: Sequence[str] = (),
        wait: bool = True,
    ) -> Container:
        """Starts a container under containerd with `ctr run -d`; see container.start."""
        from .container import start

        return start(self, name, image, runtime, annotations or {}, env or {}, args, options, wait)

    def push(self, source: str, other: Node, target: str) -> None:
        """Copies the folder `source` of this node to `target` (which is made) on the other, as rsync -a would."""
        place = other.path(target)
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", f"{self.path(source)}/.", str(place)], check=True, timeout=300)

    def reap(self) -> None:
        """Waits for this process's children in a node that has been ended."""
        for child in [*filter(None, [self._first]), *self._children]:
            child.wait(30)
        self._children.clear()

    def leaks(self) -> list[str]:
        """What containers left in this node: cgroups with a container's name, mounts, shims, CRIU and our processes."""
        from .container import leaks

        return leaks(self)


def attach(tag: str, name: str) -> Node:
    """A node of a run that another process owns."""
    from .places import PREFIX, RUNS

    recipe = next(recipe for recipe in RECIPES if recipe.name == name)
    node = Node.__new__(Node)
    node.recipe, node.name, node.run_folder = recipe, name, RUNS / tag / name
    node.group = f"{PREFIX}{tag}-{name}"
    node.pid = int((node.run_folder / "pid").read_text())
    node._entries = groups.inner([str(h.mount / node.group / "cgroup.procs") for h in groups.here()])
    node._children = []
    return node


class CommandFailed(subprocess.CalledProcessError):
    """As CalledProcessError, but its text shows what the command said."""

    def __init__(self, node: str, argv: list[str], code: int, out: str, err: str) -> None:
        super().__init__(code, argv, out, err)
        self.node = node

    def __str__(self) -> str:
        words = " ".join(self.cmd)
        return f"on {self.node}: {words}: exit code {self.returncode}\n{self.output[-4000:]}{self.stderr[-4000:]}"


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    """A clean environment: nothing of the caller's reaches the node."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", **(more or {})}


def _kind(folder: Path) -> str:
    """Whether an overlay's upper layer can lie in `folder`: "disk", else "memory" (it is itself on an overlay, say)."""
    place = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True, timeout=30)
    return "disk" if place.stdout.strip() in ("ext2/ext3", "ext4", "xfs", "btrfs", "tmpfs") else "memory"
