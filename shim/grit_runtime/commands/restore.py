"""grit-runtime restore: bring a container back from files, on this node or another."""

from __future__ import annotations

from collections.abc import Collection

from grit_runtime import chain, container, journal, locate
from grit_runtime.argv import Call
from grit_runtime.recording import recording
from grit_runtime.restore import Restore
from grit_runtime.settings import Settings


def run(call: Call, settings: Settings) -> int:
    """Restore what --image-path names: the caller is root and may name any folder."""
    runtime = chain.next_runtime(settings)
    if not call.id or call.flag("--help"):
        chain.execute(runtime, call.rebuilt())
    if not call.flag("--detach"):
        from grit_runtime.commands import attached

        return attached.restore(call, settings)
    with locate.folder(call.option("--image-path") or "checkpoint") as source:
        return bring_back(call, settings, runtime, source, held=False)


def bring_back(
    call: Call,
    settings: Settings,
    runtime: str,
    source: locate.Checkpoint,
    *,
    held: bool,
    allow: Collection[str] = (),
) -> int:
    """The story of a restore. If any step fails, nothing of the container is left, and CRIU's log is kept.

    `held`: nothing of the container runs before `start`. `allow`: reasons for a refusal that are passed by.
    """
    name = "restore-" + container.key(call.root or "", call.id)
    with (
        container.locked(call.root or "", call.id) as lock,
        journal.operation(name, lock) as undo,
        recording("restore", call.id, settings) as record,
    ):
        restore = Restore(call, settings, runtime, source, undo, record, held=held, allow=allow)
        with record.phase("compare"):
            restore.compare()
            restore.make_spec()
        with record.phase("rootfs"):
            restore.fill_rootfs()
            restore.see_images()
        with record.phase("criu"):
            restore.criu()
        restore.settle_network()
        with record.phase("resume"):
            restore.resume_gpu()
        if held:
            restore.hold()
        restore.stay()
    return 0
