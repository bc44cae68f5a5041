"""The steps of a restore. commands/restore.py tells them in order; each has its undo in the journal."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import Any

from grit_runtime import (
    cgroup,
    chain,
    container,
    files,
    gates,
    gpu,
    hostile,
    layer,
    live,
    locate,
    manifest,
    mounts,
    network,
    nvidia,
    pids,
    process,
    report,
    stages,
    sysv,
    view,
    watches,
)
from grit_runtime import spec as specs
from grit_runtime.argv import Call
from grit_runtime.beneath import open_in_root
from grit_runtime.checks import Refusal, refuse
from grit_runtime.criu import complete, config, features, inventory, log, mountpoints, openfiles, tasks
from grit_runtime.journal import Journal
from grit_runtime.recording import Recording
from grit_runtime.settings import Settings


class Restore:
    """A container that is being restored from `source`. `held`: nothing of it may run before `start`."""

    def __init__(
        self, call: Call, settings: Settings, runtime: str, source: locate.Checkpoint, journal: Journal,
        record: Recording, *, held: bool, allow: Collection[str],
    ) -> None:  # fmt: skip
        self.call, self.settings, self.runtime = call, settings, runtime
        self.source, self.journal, self.record, self.held = source, journal, record, held
        self.bundle = os.path.abspath(call.option("--bundle") or ".")
        self.spec = specs.read(self.bundle)
        self.allow = allow
        self.lent: list[str] = []
        self.returned = False
        self.group: cgroup.Group | None = None

    def compare(self) -> None:
        """Read the manifest and the images; refuse what this node can't restore, before anything is changed."""
        if chain.exists(self.runtime, self.call):
            raise refuse("container-exists", id=self.call.id)
        self.flavour = chain.flavour(self.runtime)
        self.manifest = manifest.read(self.source.images)
        ours = {**manifest.node(), "criu": features.version(), "runtime": self.flavour.name}
        self._pass(gates.node(self.manifest["node"], ours))
        for name, what in manifest.differences(self.source.images, self.manifest["files"], content=False):
            if name not in (layer.NAME, layer.SHM_NAME):  # these may stand beside the images
                raise refuse("image-changed", name=name, path=self.source.images, what=what)
        complete.complete(self.source.images)
        apart = live.without_nodes_namespaces(self.spec)
        held = hostile.refusals(tasks.tasks(self.source.images), inventory.namespaces(self.source.images), apart)
        self._pass(held)
        self.watches = watches.from_json(self.manifest["watches"])
        self._find_pids_free()
        if self.manifest["container"].get("terminal") and not self.call.option("--console-socket"):
            raise refuse("terminal-needs-console", id=self.call.id)

    def _pass(self, refusals: Iterable[Refusal]) -> None:
        """Raise the first refusal that the pod may not pass by; put on record those that it does."""
        for passed in gates.first(refusals, self.allow):
            self.record.note(f"allowed by annotation: {passed.reason}: {passed.message}")

    def _find_pids_free(self) -> None:
        known = live.namespaces(self.spec)
        if not known.own("pid"):  # a pod's, or the node's
            wanted = pids.needed(inventory.processes(self.source.images))
            clash = pids.first_clash(wanted, pids.taken(known.paths.get("pid") or "/proc/self/ns/pid"))
            if clash is not None:
                raise refuse("pid-in-use", pid=clash)

    def make_spec(self) -> None:
        """The live spec as it must be for these images: injected, sources real, the image's mounts found in it."""
        spec = self.spec
        self.image_mounts = mountpoints.mounts(self.source.images)
        needed = [mount.key for mount in self.image_mounts if mount.key]
        if nvidia.wanted(self.settings, self.runtime) and lacks(spec, needed):
            spec = nvidia.inject(self.settings, self.runtime, spec, self.journal.folder)
        spec = nvidia.real_sources(spec)
        self.rootfs = os.path.join(self.bundle, (spec.get("root") or {}).get("path") or "rootfs")
        self.plan = mounts.restore_plan(
            self.image_mounts, spec, self.manifest["mounts"], self.settings.restore.optional_mounts,
            resolve=lambda path: mounts.inside(self.rootfs, path), allow=self.allow,
        )  # fmt: skip
        self._pass(self.plan.refusals + self.plan.passed)
        added = [*self.plan.add, *(_placeholder(p.key, p.kind) for p in self.plan.placeholders)]
        spec = live.with_criu_config({**spec, "mounts": [*(spec.get("mounts") or []), *added]})
        self.gpu = gpu.plan_restore(self.settings.cuda, self.manifest["gpu"], spec, self.allow)
        self._pass(self.gpu.passed)
        self.spec = self.gpu.raised(spec)
        self.gpu.make_room(self.journal)
        with open(f"{self.bundle}/config.json") as file:
            self.journal.add("rewrite", path=f"{self.bundle}/config.json", text=file.read())
        specs.write(self.bundle, self.spec)

    def fill_rootfs(self) -> None:
        """Apply the rw layer and /dev/shm, make the mountpoints of what hooks had mounted, and compare the files."""
        if self.source.layer:
            layer.apply_once(self.source.layer, self.rootfs)
        shm = specs.bind_source(self.spec, "/dev/shm")
        if self.source.shm and shm:
            if self.call.subcommand == "restore" and os.path.dirname(shm.rstrip("/")) == self.bundle:
                layer.empty(shm)  # the container's own: podman fills it with what was there after the dump
            placed = layer.apply_shm(self.source.shm, shm)
            self.journal.add("remove-shm", folder=shm, made=list(placed.made))
        for path, kind in self.plan.scratch:
            _make_point(self.rootfs, path, kind)
        for mount in self.image_mounts:
            # CRIU follows symlinks on the way to a mountpoint, and the layer may hold any.
            if mounts.inside(self.rootfs, mount.mountpoint) != mount.mountpoint:
                raise refuse("mount-through-symlink", path=mount.mountpoint)
        theirs = self.manifest["fingerprints"]
        self._pass(gates.files(theirs, self._fingerprints(list(theirs))))

    def _fingerprints(self, paths: list[str]) -> dict[str, str | None]:
        """Fingerprints here: of a bind's source where the path lies in one, else of the file in the rootfs."""
        root = os.open(self.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        found: dict[str, str | None] = {}
        try:
            for path in paths:
                if isinstance(path, str) and path.startswith("/"):
                    source = _bind_of(self.spec, path)
                    found[path] = _fingerprint(root, path, source)
        finally:
            os.close(root)
        return found

    def see_images(self) -> None:
        """The images as this pod may see them."""
        edits = view.plan(self.source.images, os.listdir(self.source.images), live.hostname(self.spec),
                          without=self._sysv_left_out(), outside=self._stdio())  # fmt: skip
        self.images = view.make(self.journal, self.source.images, edits)

    def _stdio(self) -> dict[str, int | None]:
        """Files of the host that were the container's stdio: it goes on with ours, where they stand."""
        return {config.external_file(int(mount), int(inode))[1]: files.position(fd)
                for mount, inode, fd in self.manifest.get("external_files", []) if fd in (0, 1, 2)}  # fmt: skip

    def _sysv_left_out(self) -> list[str]:
        """The kinds of System V objects that stay away; those that come into a pod's namespace go if this fails."""
        known, there = live.namespaces(self.spec), sysv.in_image(self.source.images)
        if known.own("ipc") or not there:
            return []
        path = known.paths.get("ipc")
        if not path:
            return there  # the node's: nothing of a container belongs there
        before = sysv.objects(path)
        out = sysv.left_out(there, sysv.mapped(self.source.images), before)
        if set(there) - set(out):
            self.journal.add("remove-sysv", path=path, inode=os.stat(path).st_ino, before=before)
        return out

    def criu(self) -> None:
        """Have the next runtime restore it; what must be done before its tasks run is done at CRIU's stages."""
        work = self.call.option("--work-path") or self.journal.folder + "/work"
        os.makedirs(work, mode=0o700, exist_ok=True)
        path = self.journal.folder + "/criu.conf"
        with open(path, "w") as file:
            file.write(config.text(self._options()))
        self.journal.add(
            "end-restore", runtime=self.runtime, options=list(self.call.options), id=self.call.id, root=self.rootfs,
            groups=[_group(self.spec, self.call.id)], stages=self.journal.folder + "/stages",
        )  # fmt: skip
        # Its stderr is the container's: what it says must come through its log.
        own = not self.call.log and "--debug" not in self.call.options
        said = self.journal.folder + "/runtime.log" if own else self.call.log
        start = report.size(said)
        ended = stages.run(
            [self.runtime, *(["--log", said] if own and said else []), *self._words(work)],
            self.journal,
            {"setup-namespaces": self._network, "post-restore": self._devices, "pre-resume": self._settle},
            environment={**os.environ, "CRIU_CONFIG_FILE": path},
            keep_stderr=False,
            timeout=self.settings.checkpoint.timeout,
        )
        logs = [p for p in (f"{work}/restore.log", f"{self.images}/restore.log") if os.path.exists(p)]
        self.record.logs += logs[:1]
        if ended.error:
            raise ended.error
        if ended.code != 0:
            cause = (log.summary(logs[0]) if logs else "") or report.last(said, start) or f"exit code {ended.code}"
            raise self.record.failed("restore-failed", id=self.call.id, error=cause, log=work)
        self.pid = chain.ask_state(self.runtime, self.call).pid
        self.group = cgroup.of(self.pid)
        if self.flavour.name == "crun":
            cgroup.join(process.tree(self.pid), self.pid)  # crun moves the first one alone; the others are in ours

    def _options(self) -> config.Options:
        options: list[tuple[str, str | None]] = [
            ("action-script", stages.SCRIPT),
            ("network-lock", features.network_lock(self.settings.checkpoint.network_lock)),
        ]
        options += [config.external_mount(key, value) for key, value in self.plan.externals]
        for mount, inode, fd in self.manifest.get("external_files", []):
            if fd in (0, 1, 2):
                options.append(config.inherit_file(fd, int(mount), int(inode)))
        if self.held and self.flavour.name == "crun":
            # crun moves the tasks into their cgroup when CRIU is done, so there is nothing to freeze before.
            options.append(("leave-stopped", None))
        if self.gpu.processes:
            options.append(("libdir", stages.no_plugins(self.journal)))
        return config.Options(tuple(options))

    def _words(self, work: str) -> list[str]:
        call = self.call
        add = ["--tcp-established", "--file-locks", "--ext-unix-sk"]
        if self.flavour.name == "crun" or self.flavour.version >= (1, 2):
            add += ["--manage-cgroups-mode=ignore"]
        if self.flavour.name == "runc":
            add += ["--no-subreaper"]
        remove = {"--tcp-established", "--file-locks", "--ext-unix-sk", "--manage-cgroups-mode", "--no-subreaper",
                  "--detach", "--preserve-fds", "--no-new-keyring"}
        if call.subcommand != "restore" and self.flavour.name == "crun":
            remove.add("--no-pivot")
        return call.rebuilt(
            subcommand="restore", add=["--detach", *add], remove=remove,
            replace={"--image-path": self.images, "--work-path": work, "--bundle": self.bundle},
        )  # fmt: skip

    def _network(self, pid: int) -> None:
        """The network namespace is there and empty: lo up, and the old addresses lent to it until CRIU is done."""
        known = live.namespaces(self.spec)
        if "network" not in known.paths or not pid:
            return
        network.loopback_up(pid)
        lent = network.missing(pid, openfiles.addresses(self.source.images))
        if lent and not self.lent:
            self.lent = lent
            self.journal.add("unlend", pid=pid, start=process.started(pid), addresses=lent)
            network.lend(pid, lent)

    def _devices(self, pid: int) -> None:
        """The rootfs is there, the tasks stand still: this node's device files, and what was on the GPU and isn't in
        CRIU's images."""
        for path in live.devices(pid, self.spec):
            self.record.note(f"{path}: device file made anew with this node's numbers")
        if self.gpu.processes and not self.returned:
            with self.record.phase("return"):
                self.gpu.return_memory(self.source.images, process.tree(pid))
            self.returned = True

    def _settle(self, pid: int) -> None:
        """The last moment before the tasks run: stop them if they may not yet; watches and timers are put back."""
        group, ours, pids = cgroup.of(pid), cgroup.of(os.getpid()), process.tree(pid)
        # crun moves the tasks into their group when CRIU is done; until then they are in ours.
        if self.held and group != ours:
            # runc has CRIU in the container's group, so that the tasks are born there: it must not freeze itself.
            cgroup.move(set(cgroup.processes(group)) - set(pids), ours)
            self.journal.add("thaw", path=group.path, version=group.version)
            cgroup.freeze(group)
        for problem in [*watches.reattach(self.watches, pids), *watches.rearm(self.watches, pids)]:
            self.record.note(str(problem))

    def settle_network(self) -> None:
        """CRIU is done with the lent addresses: their connections end, and they go."""
        for step, undo in list(self.journal.open.items()):
            if undo == "unlend":
                self.journal.undo(step)

    def resume_gpu(self) -> None:
        """Give the GPU its memory back; a held container's own threads must run for it, so `start` does it."""
        if not self.held:
            self.gpu.resume(cgroup.processes(self._known_group()))

    def hold(self) -> None:
        """Mark the container as waiting for its `start`."""
        group = self._known_group()
        if not cgroup.frozen(group):
            self.journal.add("thaw", path=group.path, version=group.version)
            cgroup.freeze(group)
        container.hold(self.call.root or "", self.call.id, {
            "pid": self.pid, "started": process.started(self.pid), "path": group.path, "version": group.version,
            "stopped": self.flavour.name == "crun", "gpu": self.gpu.to_json(),
        })  # fmt: skip

    def stay(self) -> None:
        """It worked: nothing of it is undone any more."""
        for step, undo in list(self.journal.open.items()):
            if undo in ("end-restore", "rewrite", "thaw", "remove-shm", "remove-sysv", "lower-limit"):
                self.journal.forget(step)

    def _known_group(self) -> cgroup.Group:
        if self.group is None:
            raise RuntimeError("the container has not been restored yet")
        return self.group


def lacks(spec: dict[str, Any], keys: list[str]) -> bool:
    """Whether the image needs a mount that the spec has not: a fresh bundle, to which nothing was added yet."""
    linux = spec.get("linux") or {}
    known = {mount.get("destination") for mount in spec.get("mounts") or []}
    known |= {device.get("path") for device in linux.get("devices") or []} | set(linux.get("maskedPaths") or [])
    return any(key not in known and key != "/dev/null" for key in keys)


def _placeholder(key: str, kind: str) -> dict[str, Any]:
    """A mount that has nothing behind it, and nothing that containers could share by writing to it."""
    source = mounts.EMPTY if kind == "dir" else mounts.NULL
    return {"destination": key, "type": "bind", "source": source, "options": ["bind", "ro", "nosuid", "noexec"]}


def _bind_of(spec: dict[str, Any], path: str) -> str | None:
    """Where `path` lies on this node if it is in a bind mount of the spec; the longest destination wins."""
    best = ""
    source = ""
    for mount in spec.get("mounts") or []:
        point = str(mount.get("destination", "")).rstrip("/")
        if specs.is_bind(mount) and (path == point or path.startswith(point + "/")) and len(point) > len(best):
            best, source = point, str(mount["source"])
    return source + path[len(best) :] if best else None


def _fingerprint(root: int, path: str, source: str | None) -> str | None:
    """Of `source`, a path of this node from the live spec, or of `path` as the container will see it."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = open_in_root(root, path, flags) if source is None else os.open(source, flags)
    except OSError:
        return None
    try:
        return files.fingerprint(fd)
    finally:
        os.close(fd)


def _make_point(rootfs: str, path: str, kind: str) -> None:
    """A mountpoint beneath the rootfs, made as a process in there would: symlinks can't lead out."""
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        at = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        done = ""
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        for number, part in enumerate(parts):
            done += "/" + part
            last = number == len(parts) - 1
            try:
                if last and kind != "dir":
                    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=at))
                else:
                    os.mkdir(part, 0o755, dir_fd=at)
            except FileExistsError:
                pass
            os.close(at)
            at = open_in_root(root, done, os.O_PATH)
        os.close(at)
    finally:
        os.close(root)


def _group(spec: dict[str, Any], id: str) -> str:
    """The container's cgroup below each hierarchy, as runc names it from linux.cgroupsPath (cgroupfs and systemd)."""
    path = str((spec.get("linux") or {}).get("cgroupsPath") or "")
    if path.count(":") == 2:
        slice, prefix, name = path.split(":")
        slice = slice or "system.slice"
        parts = slice.removesuffix(".slice").split("-")
        above = "".join(f"/{'-'.join(parts[: n + 1])}.slice" for n in range(len(parts)))
        return f"{above}/{prefix}-{name}.scope"
    return "/" + (path or id).strip("/")
