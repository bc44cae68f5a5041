"""The injection: what nvidia-container-runtime adds to a spec on `create`, had again for `restore`.

It edits `config.json` for the subcommand `create` only. So it is called with `create` on a copy of the bundle, and with
a private copy of its own configuration (NVIDIA_CTK_CONFIG_FILE_PATH) in which `runtimes` names a program that does
nothing: the edit is made, and no container is.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from grit_runtime import spec as specs
from grit_runtime.checks import refuse
from grit_runtime.settings import Settings

NOOP = "/usr/libexec/grit-runtime/noop-runtime"


def wanted(settings: Settings, runtime: str) -> bool:
    """Whether the next runtime is one that injects: by its name, unless the configuration decides."""
    if settings.nvidia.inject in ("always", "never"):
        return settings.nvidia.inject == "always"
    return os.path.basename(runtime).startswith("nvidia-container-runtime")


def inject(settings: Settings, runtime: str, spec: dict[str, Any], folder: str) -> dict[str, Any]:
    """The spec as the next runtime would have edited it on `create`; `folder` is an empty one of ours to work in.

    Refuses `injection-failed` with the runtime's own last line.
    """
    bundle = folder + "/injection"
    os.makedirs(bundle, mode=0o700, exist_ok=True)
    with open(bundle + "/config.json", "w") as copy:
        json.dump(spec, copy)
    config = folder + "/nvidia.toml"
    with open(config, "w") as file:
        file.write(private_config(_text(settings.nvidia.config)))
    done = subprocess.run(
        [runtime, "create", "--bundle", bundle, "grit-injection"],
        env={**os.environ, "NVIDIA_CTK_CONFIG_FILE_PATH": config},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        lines = done.stdout.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise refuse("injection-failed", runtime=runtime, error=lines[-1])
    return specs.read(bundle)


def private_config(text: str) -> str:
    """The toolkit's configuration with the no-op as its only low-level runtime; all else as the admin wrote it."""
    import tomlkit

    config = tomlkit.parse(text)
    section = config.setdefault("nvidia-container-runtime", tomlkit.table())
    section["runtimes"] = [NOOP]
    return tomlkit.dumps(config)


def real_sources(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec with every bind's source resolved: CRIU can't make a mount private whose source was a symlink."""
    mounts = []
    for mount in spec.get("mounts", []):
        if specs.is_bind(mount) and mount.get("source"):
            mount = {**mount, "source": os.path.realpath(mount["source"])}
        mounts.append(mount)
    return {**spec, "mounts": mounts}


def _text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return ""
