"""grit-runtime create: pass on, or bring back what the annotation `grit.dev/checkpoint` names."""

from __future__ import annotations

import os

from grit_runtime import chain, live, policy
from grit_runtime import spec as specs
from grit_runtime.argv import Call
from grit_runtime.settings import Settings


def run(call: Call, settings: Settings) -> int:
    """Only calls whose spec mentions us, or CRIU's configuration, come here; the entry passes all others on."""
    runtime = chain.next_runtime(settings)
    bundle = os.path.abspath(call.option("--bundle") or ".")
    spec = specs.read(bundle)
    if specs.is_sandbox(spec):
        chain.execute(runtime, call.rebuilt())
    wish = policy.wish(spec, settings)
    if wish is None or policy.used(spec, wish):
        specs.write(bundle, live.with_criu_config(spec))
        chain.execute(runtime, call.rebuilt())
    from grit_runtime import locate
    from grit_runtime.commands.restore import bring_back

    policy.mark_tried(spec, wish)  # so that the kubelet's next try, a restart to it, restores too
    with locate.find(wish.path, specs.container_name(spec), settings.restore) as source:
        code = bring_back(call, settings, runtime, source, held=True, allow=wish.allow)
    policy.mark_used(spec, wish)
    return code
