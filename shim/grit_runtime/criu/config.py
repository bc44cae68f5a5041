"""CRIU's configuration file, which carries what the runtime's own options can't say.

Format (criu.8, criu/config.c, and measured with 4.1.1 and 4.2.1): one option a line, without leading dashes,
`name value`; options whose value is optional take it only after `=`; `#` cuts a line, quoted or not; spaces are not
safe in quotes either. A name that CRIU doesn't know ends it with errno 56 before it opens a log: so they are checked.
CRIU reads this file as root and runs what `action-script` names: nothing of it may be taken from a pod.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from grit_runtime.checks import refuse


class Options(NamedTuple):
    """(name, value) in the order of the file; the value of a switch is None."""

    lines: tuple[tuple[str, str | None], ...]


# Options of CRIU 4.1 and 4.2 that make sense for one dump or one restore under a runtime.
SWITCHES = frozenset({
    "allow-uprobes", "enable-external-masters", "enable-external-sharing", "evasive-devices", "ext-unix-sk",
    "file-locks", "force-irmap", "ghost-fiemap", "leave-stopped", "link-remap", "mntns-compat-mode", "shell-job",
    "skip-file-rwx-check", "skip-in-flight", "tcp-close", "tcp-established", "weak-sysctls",
})  # fmt: skip
VALUES = frozenset({
    "action-script", "cgroup-root", "enable-fs", "external", "file-validation", "ghost-limit", "inherit-fd",
    "irmap-scan-path", "libdir", "log-file", "lsm-mount-context", "lsm-profile", "network-lock", "skip-mnt", "timeout",
})  # fmt: skip
AFTER_EQUALS = frozenset({"cpu-cap", "manage-cgroups", "verbosity"})
UNSAFE = "#\"'\\"


def external_mount(key: str, value: str) -> tuple[str, str]:
    """A mount from outside. At dump: its mountpoint, and the key to keep. At restore: the key, and the source here."""
    if "]" in key:
        raise refuse("criu-option", option="external", value=key, what="CRIU reads a key up to its first ]")
    return "external", f"mnt[{key}]:{value}"


def external_file(mount: int, inode: int) -> tuple[str, str]:
    """A file that lives on no mount of the container, to be left out at dump (CRIU wants hexadecimal)."""
    return "external", f"file[{mount:x}:{inode:x}]"


def inherit_file(descriptor: int, mount: int, inode: int) -> tuple[str, str]:
    """At restore: take the file dumped as external_file(mount, inode) from our own descriptor."""
    return "inherit-fd", f"fd[{descriptor}]:file[{mount:x}:{inode:x}]"


def text(options: Options) -> str:
    """The file's text. Refuses `criu-option`: a name that isn't CRIU's, a value that its parser would change."""
    return "".join(_line(name, value) for name, value in options.lines)


def write(path: str | os.PathLike[str], options: Options) -> None:
    """Write the file whole, by rename, readable for root alone."""
    temporary, content = f"{os.fspath(path)}.new", text(options)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(content)
    os.replace(temporary, path)


def _line(name: str, value: str | None) -> str:
    if name in SWITCHES:
        if value:
            raise refuse("criu-option", option=name, value=value, what="it takes no value")
        return f"{name}\n"
    if name not in VALUES | AFTER_EQUALS:
        raise refuse("criu-option", option=name, value=value, what="CRIU doesn't know it, or we don't let it be set")
    if not value:
        raise refuse("criu-option", option=name, value=value, what="it needs a value")
    if not all(map(_safe, value)):
        raise refuse("criu-option", option=name, value=value, what="no spaces, #, quotes or backslashes can be there")
    return f"{name}={value}\n" if name in AFTER_EQUALS else f"{name} {value}\n"


def _safe(character: str) -> bool:
    if "\udc80" <= character <= "\udcff":
        return True  # a byte that is no UTF-8, as os.fsdecode gives it: fine in a path
    return character.isprintable() and not character.isspace() and character not in UNSAFE
