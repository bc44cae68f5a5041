"""grit-runtime checkpoint: freeze a container into files, whatever it holds."""

from __future__ import annotations

from grit_runtime import chain, container, journal
from grit_runtime.argv import Call
from grit_runtime.aside import Aside
from grit_runtime.settings import Settings


def run(call: Call, settings: Settings) -> int:
    """The story of a checkpoint. After a failure at any step the container runs on exactly as it was."""
    runtime = chain.next_runtime(settings)
    if not call.id or call.flag("--help") or call.flag("--pre-dump"):
        # A pre-dump writes memory pages alone and lets the container run: there is nothing for us to take away.
        chain.execute(runtime, call.rebuilt())
    name = "checkpoint-" + container.key(call.root or "", call.id)
    with container.locked(call.root or "", call.id) as lock:
        # Answered while we load the modules that follow; the guardian is forked before there are many and threads.
        asked = chain.state_question(runtime, call)
        with journal.operation(name, lock) as undo:
            return _recorded(call, settings, runtime, undo, asked, Aside(_locks))


def _recorded(
    call: Call, settings: Settings, runtime: str, undo: journal.Journal, asked: chain.Question, locks: Aside[str]
) -> int:
    from grit_runtime.dump import Dump
    from grit_runtime.recording import recording

    with recording("dump", call.id, settings) as record:
        dump = Dump(call, settings, runtime, undo, record)
        with record.phase("look"):
            dump.look(asked, locks)
            dump.open_images()
        try:
            with record.phase("suspend"):
                dump.suspend_gpu()
            with record.phase("frozen"):
                dump.freeze()
                dump.detach()
                with record.phase("criu"):
                    dump.criu()
                dump.let_go()
            with record.phase("manifest"):
                dump.write_manifest()
        except BaseException:
            dump.discard()
            raise
    return 0


def _locks() -> str:
    """/proc/locks, for which the kernel has all CPUs wait for each other."""
    with open("/proc/locks", encoding="ascii", errors="replace") as file:
        return file.read()
