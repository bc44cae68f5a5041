"""grit-runtime run: as the next runtime does it, unless the spec names a checkpoint."""

from __future__ import annotations

import os

from grit_runtime import chain, live, policy
from grit_runtime import spec as specs
from grit_runtime.argv import Call
from grit_runtime.settings import Settings


def run(call: Call, settings: Settings) -> int:
    """Create, which restores, and start; in the foreground unless --detach says otherwise."""
    bundle = os.path.abspath(call.option("--bundle") or ".")
    spec = specs.read(bundle)
    if specs.is_sandbox(spec) or policy.wish(spec, settings) is None:
        specs.write(bundle, live.with_criu_config(spec))
        chain.execute(chain.next_runtime(settings), call.rebuilt())
    from grit_runtime.commands import attached

    return attached.run(call, settings)
