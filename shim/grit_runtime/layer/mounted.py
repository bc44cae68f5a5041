"""Which directories an overlay mount is made of, read from its line in mountinfo.

The line's format is proc_pid_mountinfo(5); the options are what the kernel's fs/overlayfs prints. A value has two
kinds of escapes: octal ones (`\\040`) that every value gets on its way out, and overlay's own (`\\:`) that whoever
mounted it had to write in a list of lower directories.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from grit_runtime.checks import refuse


class Overlay(NamedTuple):
    """`upper` is as the kernel tells it and may be relative (see `resolve`); `xattr` is the prefix of overlay's marks.

    `lowers`, the topmost first, may be relative too: containerd and podman shorten a long list by changing directory
    before they mount. Nothing here reads them.
    """

    upper: str
    lowers: tuple[str, ...] = ()
    work: str = ""
    xattr: str = "trusted.overlay."


def unescape(text: str) -> str:
    """The kernel's octal escapes undone, once."""
    first, *rest = text.split("\\")
    out = [first]
    for part in rest:
        digits = part[:3]
        octal = len(digits) == 3 and all(c in "01234567" for c in digits)
        out.append(chr(int(digits, 8) & 0xFF) + part[3:] if octal else "\\" + part)
    return "".join(out)


def split_lowers(text: str) -> tuple[str, ...]:
    """The value of lowerdir, a list with `:` between (`::` before data-only layers) and `\\` before a literal one."""
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


def overlay(line: str) -> Overlay | None:
    """The overlay that this line of mountinfo shows whole and writable, or None: another type, no upper directory,
    or a folder somewhere inside of an overlay, which is then an ordinary bind."""
    fields = line.rstrip("\n").split(" ")
    try:
        tail = fields[fields.index("-", 6) + 1 :]
        kind, options, root = tail[0], tail[2], fields[3]
    except (ValueError, IndexError):
        return None
    if kind != "overlay" or root != "/":
        return None
    upper = work = ""
    lowers: list[str] = []
    prefix = "trusted.overlay."
    for option in options.split(","):
        key, _, raw = option.partition("=")
        value = unescape(raw)
        if key == "upperdir":
            upper = value
        elif key == "workdir":
            work = value
        elif key == "lowerdir":
            lowers += split_lowers(value)
        elif key in ("lowerdir+", "datadir+"):
            lowers.append(value)
        elif key == "userxattr":
            prefix = "user.overlay."
    return Overlay(upper, tuple(lowers), work, prefix) if upper else None


def of_mountpoint(mountinfo: str, mountpoint: str) -> Overlay | None:
    """The overlay mounted at `mountpoint` in the text of a mountinfo file: the last one listed lies on top."""
    found = None
    for line in mountinfo.split("\n"):
        fields = line.split(" ", 5)
        if len(fields) > 5 and unescape(fields[4]) == mountpoint:
            found = overlay(line)
    return found


def of_process(pid: int) -> Overlay | None:
    """The overlay that is the root of process `pid`; None when its root filesystem is something else."""
    return of_mountpoint(_read(f"/proc/{pid}/mountinfo"), "/")


def of_rootfs(rootfs: str) -> Overlay | None:
    """The overlay mounted at this path in our own mount namespace, such as `<bundle>/rootfs`."""
    return of_mountpoint(_read("/proc/self/mountinfo"), os.path.realpath(rootfs))


def resolve(found: Overlay, near: str = "") -> Overlay:
    """`found` with the absolute path of an upper directory that exists. A relative one is looked for from each folder
    above `near`, the path where the overlay is mounted on the node: podman mounts from its storage folder."""
    work = found.work
    for upper in dict.fromkeys((found.upper, found.upper.replace("\\:", ":").replace("\\\\", "\\"))):
        if os.path.isabs(upper):
            if os.path.isdir(upper):
                return found._replace(upper=upper)
            continue
        base = os.path.dirname(os.path.abspath(near)) if near else "/"
        while base != "/":
            if os.path.isdir(os.path.join(base, upper)) and os.path.isdir(os.path.join(base, work)):
                return found._replace(upper=os.path.join(base, upper), work=os.path.join(base, work))
            base = os.path.dirname(base)
    raise refuse("layer-upper-unknown", upper=found.upper)


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()
