"""Which directories the container's root overlay is made of, and whether its /dev/shm is its own.

Both are read from mountinfo (proc_pid_mountinfo(5)); an overlay's options are what the kernel's fs/overlayfs prints. A
value has two kinds of escapes: octal ones (`\\040`), which every value gets on its way out, and overlay's own (`\\:`),
which whoever mounted it had to write in a list of lower directories.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from grit_runtime.checks import refuse

if TYPE_CHECKING:
    from grit_runtime.mounts import Mount


class Overlay(NamedTuple):
    """`upper` and `work` are as the kernel tells them and may be relative (see `place`); `dev` is "major:minor" of the
    mount, `xattr` the prefix of overlay's marks, `indexed` whether it keeps hard links whole (see `aliases`).

    `lowers`, the topmost first, may be relative too: containerd and podman shorten a long list by changing directory
    before they mount. Nothing here reads them.
    """

    upper: str
    lowers: tuple[str, ...] = ()
    work: str = ""
    dev: str = ""
    xattr: str = "trusted.overlay."
    indexed: bool = False


def overlay(mounts: Iterable[Mount], point: str = "/") -> Overlay | None:
    """The overlay mounted at `point`; of several mounts there the last lies on top.

    None when there is no rw layer to carry: another file system, no upper directory, or a folder somewhere inside of
    an overlay, which is an ordinary bind.
    """
    top = None
    for mount in mounts:
        if mount.point == point:
            top = mount
    if top is None or top.fstype != "overlay" or top.root != "/":
        return None
    upper = work = ""
    lowers: list[str] = []
    prefix = "trusted.overlay."
    for option in top.super_options:
        key, _, raw = option.partition("=")
        value = octal(raw)
        if key == "upperdir":
            upper = value
        elif key == "workdir":
            work = value
        elif key == "lowerdir":
            lowers += split_lowers(value)
        elif key in ("lowerdir+", "datadir+"):  # as mount(8) gives them by the new system calls: one a layer
            lowers.append(value)
        elif key == "userxattr":
            prefix = "user.overlay."
    return Overlay(upper, tuple(lowers), work, top.dev, prefix, "index=on" in top.super_options) if upper else None


def shm_of(mounts: Iterable[Mount], node: Iterable[Mount] | None = None) -> Mount | None:
    """The mount at /dev/shm when CRIU won't dump it: a tmpfs that this node has mounted somewhere too (`node`: its
    mounts), such as the sandbox's, or an emptyDir in memory. One that exists in the container alone is its own, and the
    node's own (hostIPC) is everybody's: what others have there is not the container's to take along."""
    top = None
    for mount in mounts:
        if mount.point == "/dev/shm":
            top = mount
    if top is None or top.fstype != "tmpfs":
        return None
    points = {mount.point for mount in (_ours() if node is None else node) if mount.dev == top.dev}
    return top if points and "/dev/shm" not in points else None


def place(found: Overlay, node: Iterable[Mount] | None = None) -> tuple[Overlay, str]:
    """`found` with an upper directory that exists, absolute; and where on this node the overlay is mounted, or "".

    A relative one is looked for from each folder above that mount: podman mounts from its storage folder.
    """
    seen = ""
    for mount in _ours() if node is None else node:
        if mount.dev == found.dev and mount.root == "/" and mount.fstype == "overlay":
            seen = mount.point
    # Older kernels print the value as it was given, with overlay's escapes, newer ones without.
    for upper in dict.fromkeys((found.upper, _plain(found.upper))):
        base = os.path.dirname(seen) if seen else "/"
        while True:
            path = os.path.join(base, upper)
            if os.path.isdir(path) and (os.path.isabs(upper) or os.path.isdir(os.path.join(base, found.work))):
                return found._replace(upper=path, work=os.path.join(base, found.work)), seen
            if base == "/" or os.path.isabs(upper):
                break
            base = os.path.dirname(base)
    raise refuse("layer-upper-unknown", upper=found.upper)


def octal(text: str) -> str:
    """The kernel's octal escapes undone, once; a backslash before anything else stays."""
    first, *rest = text.split("\\")
    out = [first]
    for part in rest:
        digits = part[:3]
        known = len(digits) == 3 and all(c in "01234567" for c in digits)
        out.append(chr(int(digits, 8) & 0xFF) + part[3:] if known else "\\" + part)
    return "".join(out)


def split_lowers(text: str) -> tuple[str, ...]:
    """The value of lowerdir: a list with `:` between (`::` before data-only layers) and `\\` before a literal one."""
    out, item, escaped = [], "", False
    for c in text:
        if escaped or c not in "\\:":
            item, escaped = item + c, False
        elif c == "\\":
            escaped = True
        else:
            out.append(item)
            item = ""
    return tuple(part for part in [*out, item] if part)


def _plain(text: str) -> str:
    """A single value without overlay's escapes."""
    return "\\".join(part.replace("\\", "") for part in text.split("\\\\"))


def _ours() -> Iterable[Mount]:
    from grit_runtime.mounts import read

    return read("self")
