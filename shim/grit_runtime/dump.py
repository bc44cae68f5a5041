"""The steps of a checkpoint. commands/checkpoint.py tells them in order; each has its undo in the journal."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from grit_runtime import cgroup, chain, container, layer, look, manifest, mounts, process, report, stages, watches
from grit_runtime import spec as specs
from grit_runtime.argv import Call
from grit_runtime.checks import refuse
from grit_runtime.criu import config, features
from grit_runtime.journal import RUN, Journal
from grit_runtime.recording import Recording
from grit_runtime.settings import Settings

if TYPE_CHECKING:
    from grit_runtime.aside import Aside
    from grit_runtime.gpu import Suspension
    from grit_runtime.watches import Record

# Options that runc has since a version; crun has none of them, and takes ours from CRIU's configuration.
SWITCHES = {"--link-remap": (1, 3), "--tcp-skip-in-flight": (1, 3)}

FINGERPRINTS = RUN + "/fingerprints"


class Dump:
    """A container that is being dumped. What the steps find out stands in attributes."""

    def __init__(self, call: Call, settings: Settings, runtime: str, journal: Journal, record: Recording) -> None:
        self.call, self.settings, self.runtime = call, settings, runtime
        self.journal, self.record = journal, record
        self.images = os.path.abspath(call.option("--image-path") or "checkpoint")
        # Without the option runc puts its log into the image folder, crun into the current one.
        self.work = os.path.abspath(call.option("--work-path") or self.images)
        self.leave_running = call.flag("--leave-running")
        self.sums: manifest.Sums | None = None
        self.suspension: Suspension | None = None
        self.gpu_sums: dict[str, list[str]] = {}
        self.aside: Aside[None] | None = None

    def look(self, asked: chain.Question, locks: Aside[str]) -> None:
        """Find out what the container is made of and what CRIU must be told; refuse what can't work. What takes its
        time was begun before: `asked` for the state, and the text of /proc/locks."""
        self.state = chain.ask_state(self.runtime, self.call, asked)
        self.version = chain.flavour_question(self.runtime)
        if self.state.status not in ("running", "paused"):
            raise refuse("container-not-running", id=self.state.id, status=self.state.status)
        self.spec = specs.read(self.state.bundle)
        self.group = cgroup.of(self.state.pid)
        self.pids = cgroup.processes(self.group)
        self._refuse_what_lacks_memory()
        self.paused = cgroup.frozen(self.group)
        self.mountinfo = mounts.read(self.state.pid)
        self.host_mounts = mounts.read("self")
        self._look_at_processes(locks.wait())
        self.watches: Record = watches.resolve(watches.from_links(self.seen.links, self.pids), self.state.pid)
        self.overlay = layer.overlay(self.mountinfo) if self.settings.checkpoint.rw_layer else None
        self.shm = layer.shm_of(self.mountinfo, self.host_mounts) if self.settings.checkpoint.shm else None
        self._look_at_gpu()

    def _refuse_what_lacks_memory(self) -> None:
        """An operation that could not give GPU memory back has left its journal, and the only copy, somewhere."""
        from grit_runtime import journal

        for folder in journal.pending():
            for _, undo, args in journal.open_steps(folder):
                rows = args.get("jobs", []) if undo == "return-gpu-memory" else []
                if any(row["pid"] in self.pids or os.path.dirname(row["path"]) == self.images for row in rows):
                    raise refuse("gpu-memory-owed", id=self.state.id, path=rows[0]["path"])

    def _look_at_processes(self, locks: str | None = None) -> None:
        self.seen = look.look(self.pids, spec=self.spec, init=self.state.pid, locks=locks)
        look.refuse_what_fails(self.seen, self.settings)
        self.needs = look.needs(self.seen, self.spec)

    def _look_at_gpu(self) -> None:
        from grit_runtime.cuda import holders

        if holders.candidates(self.pids, self.seen.links):
            from grit_runtime import gpu

            self.suspension = gpu.plan(self.settings.cuda, self.pids, self.seen.links, self.spec)

    def _fingerprints(self) -> dict[str, str]:
        from grit_runtime import files

        root = os.open(f"/proc/{self.state.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return files.fingerprints(root, files.mapped(self.pids), FINGERPRINTS)
        finally:
            os.close(root)

    def open_images(self) -> None:
        """Make the image folder, or find out now that it can't be."""
        try:
            os.makedirs(self.images, mode=0o700, exist_ok=True)
            os.makedirs(self.work, mode=0o700, exist_ok=True)
            probe = f"{self.images}/{manifest.NAME}.new"
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            os.unlink(probe)
        except OSError as error:
            raise refuse("images-unwritable", path=self.images, error=error.strerror) from None
        if os.path.lexists(f"{self.images}/{manifest.NAME}"):
            os.unlink(f"{self.images}/{manifest.NAME}")  # until this dump is done, the folder is no checkpoint
        self._clear()  # what an earlier dump left here would be taken for a part of this one
        for name in os.listdir(self.images):
            if manifest.is_gpu_memory(name):
                os.unlink(f"{self.images}/{name}")
        self.unfinished = self.journal.add("discard", folder=self.images)

    def suspend_gpu(self) -> None:
        """Move the GPU's memory into the processes; CUDA can't do that in a paused container, so it is thawed."""
        self.on_gpu = self.thawed = False
        if self.suspension is None or not self.suspension.holders:
            return
        if self.paused:
            self.journal.add("freeze", path=self.group.path, version=self.group.version)
            cgroup.thaw(self.group)
            self.thawed = True
        self.suspension.suspend(self.journal, self.images, self.group)
        self.on_gpu = bool(self.suspension.known)
        self.record.content["bytes"]["gpu"] = self.suspension.taken

    def freeze(self) -> None:
        """Stop every task, unless the caller has: from here to the end of CRIU's work the container stands still. What
        was on GPUs is saved on the way, past CRIU."""
        if not self.paused or self.thawed:
            self.journal.add("thaw", path=self.group.path, version=self.group.version)
            if self.on_gpu:
                self._save_gpu_memory()
            cgroup.freeze(self.group, give_up=False)  # the journal thaws it, when the GPU's memory is back
        else:
            # CRIU thaws it while it holds the tasks itself; where CRIU is killed it would stay so.
            self.journal.add("freeze", path=self.group.path, version=self.group.version)
        now = cgroup.processes(self.group)
        if now != self.pids or not self.paused or self.thawed:
            self.pids = now
            self._look_at_processes()
        self.watches = watches.settle(self.watches, self.seen.links, self.state.pid)
        if self.on_gpu:
            from grit_runtime import gpu

            gpu.prove_absent(self.pids)

    def _save_gpu_memory(self) -> None:
        """Its processes stand still while what was on the GPU is saved, and go from there into the freezer."""
        assert self.suspension is not None
        frozen, problem = False, ""
        try:
            with self.record.phase("save"):
                self.gpu_sums = self.suspension.save_memory()
            cgroup.begin_to_freeze(self.group)
            frozen = True
        finally:
            problem = self.suspension.let_go(frozen=frozen)
        if problem:
            self.record.note(f"CRIU carries the GPU memory: {problem}")

    def _take_down(self) -> None:
        """What the manifest needs and can't be seen when the tasks are gone. Load what is called after CRIU."""
        from importlib import import_module

        self.fingerprints = self._fingerprints()
        self.node = {**manifest.node(), "criu": features.version(), "runtime": self.flavour.name}
        for module in ("undo", "records", "layer.saving"):
            import_module(f"grit_runtime.{module}")
        self.described = mounts.describe(
            self.mountinfo, self.spec, self.host_mounts, self._inside,
            is_dir=lambda path: os.path.isdir(f"/proc/{self.state.pid}/root{path}"), runtime=self.flavour.name,
        )  # fmt: skip

    def _inside(self, path: str) -> str:
        return mounts.inside(f"/proc/{self.state.pid}/root", path)

    def detach(self) -> None:
        """Take the file watches away that CRIU can't dump."""
        if watches.empty(self.watches):
            return
        self.journal.add("reattach", record=watches.to_json(self.watches), path=self.group.path,
                         version=self.group.version)  # fmt: skip
        self.watches = watches.detach(self.watches)

    def criu(self) -> None:
        """Have the next runtime dump the container; CRIU gets what `look` found in a configuration of its own."""
        self.flavour = chain.flavour(self.runtime, self.version)
        # CRIU freezes the group again before it lets go of the tasks (freezer_restore_state in its seize.c). So where
        # they live on, and none of its link_remap files is in the layer, that can be saved afterwards: each of the
        # four stages would start a shell.
        self.in_criu = not self.leave_running or self.needs.link_remap or self.flavour.name != "runc"
        path = self.journal.folder + "/criu.conf"
        externals = mounts.dump_externals(self.mountinfo, self.spec, self.host_mounts, self._inside)
        with open(path, "w") as file:
            file.write(config.text(self._options(externals)))
        began = process.started(self.state.pid)
        locked = self.journal.add("unlock-network", pid=self.state.pid, start=began,
                                  path=self.group.path, version=self.group.version)  # fmt: skip
        start = report.size(self.call.log)
        ended = stages.run(
            [self.runtime, *self.call.rebuilt(add=self._switches())],
            self.journal,
            {"post-dump": self._save_layer} if self.in_criu else {},
            environment={**os.environ, "CRIU_CONFIG_FILE": path},
            keep_stderr=True,
            timeout=self.settings.checkpoint.timeout,
            meanwhile=self._meanwhile,
        )
        found = [p for p in (f"{self.work}/dump.log", f"{self.images}/dump.log") if os.path.exists(p)]
        self.record.logs += found[:1]
        if ended.error:
            raise ended.error
        if ended.code != 0:
            from grit_runtime.criu import log

            words = [report.message(line) for line in ended.stderr.strip().splitlines()[-1:]]
            said = (words or [report.last(self.call.log, start) or f"exit code {ended.code}"])[0]
            # containerd shows the first line of stderr alone, so what the runtime said goes into the record.
            self.record.content["runtime_said"] = ended.stderr
            if self.leave_running or process.runs(self.state.pid, began) or not (found and log.read(found[0]).finished):
                cause = log.summary(found[0]) if found else ""
                raise self.record.failed("dump-failed", id=self.state.id, error=cause or said, log=self.work)
            # The images are whole, and all that is left of it: `crun run` in the foreground, for one, clears up at the
            # same time as crun's checkpoint, which fails when it finds nothing more to do.
            self.record.note(f"the container is checkpointed and gone; then the next runtime failed: {said}")
        self.journal.forget(locked)
        if not self.in_criu:
            if not cgroup.frozen(self.group):
                raise refuse("dump-failed", id=self.state.id, error="the tasks ran on before their rw layer was saved",
                             log=self.work)  # fmt: skip
            cgroup.freeze(self.group)  # until every one has stopped
            self._save_layer(0)
        os.write(2, ended.stderr.encode())

    def _meanwhile(self) -> None:
        """The runtime starts CRIU, which has its own work to do for a while: so do we, beside it."""
        from grit_runtime.aside import Aside

        self.aside = Aside(self._take_down)
        self.sums = manifest.Sums(self.images)

    def _options(self, externals: list[tuple[str, str]]) -> config.Options:
        needs = self.needs
        options: list[tuple[str, str | None]] = [
            ("ghost-limit", str(self.settings.checkpoint.ghost_limit)),
            ("link-remap", None),
            ("network-lock", features.network_lock(self.settings.checkpoint.network_lock)),
        ]
        options += [config.external_mount(key, value) for key, value in externals]
        options += [config.external_file(mount, inode) for mount, inode, _ in needs.external_files]
        if needs.masters:
            options.append(("enable-external-masters", None))
        if needs.skip_in_flight and not self._has_switch("--tcp-skip-in-flight"):
            options.append(("skip-in-flight", None))
        if self.in_criu:
            options.append(("action-script", stages.SCRIPT))
        if self.on_gpu:
            options.append(("libdir", stages.no_plugins(self.journal)))
        return config.Options(tuple(options))

    def _switches(self) -> list[str]:
        """Options of the next runtime, which would otherwise tell CRIU their defaults over our configuration file."""
        call, needs = self.call, self.needs
        words = [("--tcp-established", needs.tcp_established), ("--ext-unix-sk", needs.ext_unix_sk),
                 ("--file-locks", needs.file_locks), ("--shell-job", needs.shell_job)]  # fmt: skip
        found = [word for word, needed in words if needed and not call.flag(word)]
        always = [("--link-remap", True), ("--tcp-skip-in-flight", needs.skip_in_flight)]
        found += [word for word, needed in always if needed and self._has_switch(word) and not call.flag(word)]
        if self.flavour >= ("runc", (1, 2)) and not call.option("--manage-cgroups-mode"):
            found += ["--manage-cgroups-mode", "ignore"]
        return found

    def _has_switch(self, word: str) -> bool:
        """Whether the next runtime has this newer option; one that has it says no to CRIU unless it is given."""
        return word in SWITCHES and self.flavour.name == "runc" and self.flavour.version >= SWITCHES[word]

    def _save_layer(self, _pid: int) -> None:
        """CRIU is done and the tasks stand still; only now are all its link_remap files in the rw layer."""
        root = f"/proc/{self.state.pid}/root"
        assert self.aside is not None
        self.aside.wait()
        with self.record.phase("layer"):
            if self.overlay:
                saved = layer.save(self.overlay, root, f"{self.images}/{layer.NAME}")
                self.record.content["bytes"]["layer"] = saved.bytes
            if self.shm:
                layer.save_shm(root, f"{self.images}/{layer.SHM_NAME}")

    def write_manifest(self) -> None:
        """Say what this checkpoint is: the last step, so that images without it are none."""
        assert self.sums is not None
        if self.on_gpu and self.suspension:
            from grit_runtime import gpu

            gpu.prove_in_images(self.images, self.suspension.taken)
        names = [n for n in os.listdir(self.images) if os.path.isfile(f"{self.images}/{n}") and n not in ("dump.log",)]
        sums = self.sums.finish(names, self.gpu_sums)
        sizes = self.record.content["bytes"]
        sizes["images"] = sum(facts["size"] for facts in sums.values())
        if self.gpu_sums:
            sizes["beside"] = sum(sums[name]["size"] for name in self.gpu_sums)
        manifest.write(self.images, {
            "created": self.record.content["started"],
            "node": self.node,
            "container": {
                "id": self.state.id, "name": specs.container_name(self.spec),
                "hostname": str(self.spec.get("hostname", "")), "annotations": self.spec.get("annotations", {}),
                "layer": bool(self.overlay), "shm": bool(self.shm),
                "terminal": bool(self.spec.get("process", {}).get("terminal")),
            },
            "files": sums,
            "mounts": self.described,
            "external_files": [[mount, inode, fd] for mount, inode, fd in self.needs.external_files],
            "watches": watches.to_json(self.watches),
            "fingerprints": self.fingerprints,
            "gpu": self.suspension.description if self.suspension else {},
        })  # fmt: skip
        self._move_layer()
        self.journal.forget(self.unfinished)

    def _move_layer(self) -> None:
        """Where the folder is laid out as GRIT's (CONTAINER/checkpoint), the layer stands beside the images."""
        home, last = os.path.split(self.images)
        if last == "checkpoint" and os.path.basename(home) in (self.state.id, specs.container_name(self.spec)):
            for name in (layer.NAME, layer.SHM_NAME):
                if os.path.exists(f"{self.images}/{name}"):
                    os.replace(f"{self.images}/{name}", f"{home}/{name}")

    def let_go(self) -> None:
        """Put everything back at once if the container lives on; if it is gone there is nothing to put back."""
        if not self.leave_running and self.flavour.name == "crun":
            container.mark_dumped(self.call.root or "", self.call.id)
        ours = ("thaw", "freeze", "reattach", "return-gpu-memory", "resume-gpu", "lower-limit", "huge-pages")
        for step, undo in sorted(self.journal.open.items(), reverse=True):
            if undo in ours and (self.leave_running or undo == "huge-pages"):
                self.journal.undo(step)
            elif undo in ours:
                self.journal.forget(step)

    def discard(self) -> None:
        """After a failed dump: what CRIU wrote is no checkpoint and may be as large as the container's memory. What the
        container is still to get back goes last, with the undo `discard`."""
        if self.sums:
            self.sums.stop()
        self._clear()

    def _clear(self) -> None:
        for name in os.listdir(self.images) if os.path.isdir(self.images) else []:
            if manifest.of_a_dump(name):
                os.unlink(f"{self.images}/{name}")
