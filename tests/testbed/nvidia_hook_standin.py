#!/usr/bin/python3 -IS
"""A STAND-IN for nvidia-cdi-hook and nvidia-container-runtime-hook (see nvidia_standin.py); which one, says argv[0].

The OCI runtime gives the container's state as JSON on stdin. createContainer hooks run in the container's mount
namespace before pivot_root, prestart hooks in the runtime's.
"""

import ctypes
import json
import os
import sys
import uuid

MS_NODEV, MS_NOSUID, MS_RDONLY, MS_BIND, MS_REMOUNT = 4, 2, 1, 4096, 32
FACTS = "/etc/nvidia-container-runtime/standin.json"
libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    state = json.load(sys.stdin)
    with open(os.path.join(state["bundle"], "config.json")) as file:
        root = os.path.join(state["bundle"], json.load(file)["root"]["path"])
    if os.path.basename(sys.argv[0]) == "nvidia-container-runtime-hook":
        prestart(state["pid"], root)
    elif sys.argv[1] == "create-symlinks":
        for pair in sys.argv[2:]:
            target, link = pair.split("::")
            os.makedirs(os.path.dirname(root + link), exist_ok=True)
            if not os.path.lexists(root + link):
                os.symlink(target, root + link)
    elif sys.argv[1] == "update-ldcache":
        os.makedirs(f"{root}/etc/ld.so.conf.d", exist_ok=True)
        with open(f"{root}/etc/ld.so.conf.d/00-nvcr-standin.conf", "w") as file:
            file.write("\n".join(sys.argv[2:]) + "\n")
    elif sys.argv[1] == "disable-device-node-modification":
        hide_params(root)


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    if libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()):
        raise OSError(ctypes.get_errno(), f"mount {source} on {target}")


def hide_params(root: str) -> None:
    """The real one binds a changed copy over /proc/driver/nvidia/params, from a tmpfs that stays mounted; without the
    driver there is no such file, so another one of /proc is taken."""
    scratch = f"{root}/run/nvidia-ctk-hook{uuid.uuid4()}"
    os.makedirs(scratch)
    mount("tmpfs", scratch, "tmpfs", 0, "size=4096,mode=0700")
    with open(f"{scratch}/nvct-params", "w") as file:
        file.write("ModifyDeviceFiles: 0\n")
    mount(f"{scratch}/nvct-params", f"{root}/proc/misc", "", MS_BIND)
    mount("", f"{root}/proc/misc", "", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NODEV | MS_NOSUID)


def prestart(pid: int, root: str) -> None:
    """The legacy mode: binds and devices made in the container's mount namespace, in no spec."""
    with open(FACTS) as file:
        facts = json.load(file)
    with open(f"/proc/{pid}/ns/mnt") as namespace:
        if libc.setns(namespace.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns")
    for name, target in facts["binds"].items():
        os.makedirs(os.path.dirname(root + target), exist_ok=True)
        open(root + target, "w").close()
        mount(os.path.realpath(os.path.join(facts["driver"], name)), root + target, "", MS_BIND)
    for name, major, minor in facts["devices"]:
        os.mknod(f"{root}/dev/{name}", 0o20666, os.makedev(major, minor))


if __name__ == "__main__":
    main()
