#!/usr/bin/python3 -IS
"""A STAND-IN for nvidia-container-runtime, for test nodes without a GPU. It shares no code with NVIDIA's.

It has the real one's contract: only for the subcommand `create` it edits the bundle's config.json; its configuration is
the file in NVIDIA_CTK_CONFIG_FILE_PATH; it executes the first of `runtimes` that exists, with the same arguments. What
it injects is in /etc/nvidia-container-runtime/standin.json. In mode "legacy" it only adds a prestart hook, which makes
the mounts behind the spec's back.
"""

import os
import sys

CONFIG = "/etc/nvidia-container-runtime/config.toml"
FACTS = "/etc/nvidia-container-runtime/standin.json"


def main() -> None:
    runtimes, mode = settings(os.environ.get("NVIDIA_CTK_CONFIG_FILE_PATH") or CONFIG)
    bundle = bundle_to_create(sys.argv[1:])
    if bundle is not None:
        edit(os.path.join(bundle, "config.json"), mode)
    for runtime in runtimes:
        for folder in [""] if "/" in runtime else os.environ.get("PATH", "/usr/sbin:/usr/bin").split(":"):
            program = os.path.join(folder, runtime)
            if os.access(program, os.X_OK):
                os.execv(program, [program, *sys.argv[1:]])
    sys.exit(f"nvidia-container-runtime (stand-in): none of these runtimes is there: {runtimes}")


def settings(path: str) -> tuple[list[str], str]:
    """`runtimes` and `mode` of the section [nvidia-container-runtime]; by hand, as tomllib would take 4 ms a call."""
    try:
        with open(path) as file:
            text = file.read()
    except FileNotFoundError:
        text = ""
    section = text.partition("[nvidia-container-runtime]\n")[2].partition("\n[")[0]
    section = "\n" + "\n".join(line for line in section.split("\n") if not line.lstrip().startswith("#"))
    listed = section.partition("\nruntimes")[2].partition("[")[2].partition("]")[0]
    mode = section.partition("\nmode")[2].partition("\n")[0].strip(" =\"'")
    return [word.strip(" \n\t\"'") for word in listed.split(",") if word.strip()] or ["runc", "crun"], mode or "auto"


def bundle_to_create(words: list[str]) -> "str | None":
    """The bundle if this is a `create` call (the word may also be a value of --bundle), else None."""
    bundle, creates, before = ".", False, ""
    for word in words:
        if before in ("--bundle", "-bundle", "-b", "--b"):
            bundle = word
        elif word.startswith(("--bundle=", "-b=")):
            bundle = word.partition("=")[2]
        elif word == "create":
            creates = True
        before = word
    return bundle if creates else None


def edit(path: str, mode: str) -> None:
    import json

    with open(path) as file:
        spec = json.load(file)
    environment = spec.get("process", {}).get("env") or []
    wanted = [entry.partition("=")[2] for entry in environment if entry.startswith("NVIDIA_VISIBLE_DEVICES=")]
    injects = bool(wanted) and wanted[-1] not in ("", "void", "none")
    if not without_cpu(spec) and not injects:
        return
    if injects and mode == "legacy":
        hook = {"path": "/usr/bin/nvidia-container-runtime-hook", "args": ["nvidia-container-runtime-hook", "prestart"]}
        spec.setdefault("hooks", {}).setdefault("prestart", []).append(hook)
    elif injects:
        with open(FACTS) as file:
            inject(spec, json.load(file))
    with open(path, "w") as file:
        json.dump(spec, file)


def without_cpu(spec: dict) -> bool:  # type: ignore[type-arg]
    """Nothing that NVIDIA's does: CRI gives each sandbox cpu shares, and a unified node has no controller for them
    where its host keeps that one in version 1. True if they were there and are left out."""
    try:
        with open("/sys/fs/cgroup/cgroup.controllers") as file:
            lacking = "cpu" not in file.read().split()
    except FileNotFoundError:
        return False
    return lacking and ((spec.get("linux") or {}).get("resources") or {}).pop("cpu", None) is not None


def inject(spec: dict, facts: dict) -> None:  # type: ignore[type-arg]
    """As the real one's just-in-time CDI mode does: mounts, devices with their rules, environment, hooks."""
    process = spec["process"]
    kept = [entry for entry in process["env"] if not entry.startswith("NVIDIA_VISIBLE_DEVICES=")]
    # so that nothing further down the chain injects a second time
    process["env"] = [*kept, "NVIDIA_VISIBLE_DEVICES=void", *(f"{key}={value}" for key, value in facts["env"].items())]
    options = ["ro", "nosuid", "nodev", "rbind", "rprivate"]
    for name, target in facts["binds"].items():
        source = os.path.join(facts["driver"], name)
        spec["mounts"].append({"destination": target, "type": "bind", "source": source, "options": options})
    linux = spec.setdefault("linux", {})
    rules = linux.setdefault("resources", {}).setdefault("devices", [])
    for name, major, minor in facts["devices"]:
        linux.setdefault("devices", []).append(
            {"path": f"/dev/{name}", "type": "c", "major": major, "minor": minor, "fileMode": 438, "uid": 0, "gid": 0}
        )
        rules.append({"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"})
    hooks = spec.setdefault("hooks", {}).setdefault("createContainer", [])
    for words in (
        ["create-symlinks", "libcuda.so.1::/usr/lib/x86_64-linux-gnu/libcuda.so"],
        ["create-symlinks", "libnvidia-ml.so.570.86.10::/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"],
        ["update-ldcache", "/usr/lib/x86_64-linux-gnu"],
        ["disable-device-node-modification"],
    ):
        hooks.append({"path": "/usr/bin/nvidia-cdi-hook", "args": ["nvidia-cdi-hook", *words]})


if __name__ == "__main__":
    main()
