"""What the installed CRIU is and can do: asked once a boot, kept in /run/grit-runtime."""

from __future__ import annotations

import os
from typing import NamedTuple

from grit_runtime.checks import refuse

KEPT = "/run/grit-runtime/criu"
MINIMUM = (4, 0)
SECONDS = 30  # a `criu check` takes 0.1 s


class Criu(NamedTuple):
    """`path` empty: none is installed. `version`: (4, 2, 1), () when unknown. `check`: empty when `criu check` passed.

    `iptables` and `nftables` say whether CRIU can lock the network that way: the tools are there, or it says so itself.
    """

    path: str
    version: tuple[int, ...]
    check: str
    iptables: bool
    nftables: bool

    @property
    def network_lock(self) -> str:
        """The first method that works here. Programs of iptables are CRIU's default, and take 50 ms for what nftables
        does in 1: the container stands still meanwhile. An image says which was used, and a restore does the same."""
        return "nftables" if self.nftables else "iptables" if self.iptables else "skip"


def features(kept: str = KEPT) -> Criu:
    """The CRIU of this node. What is kept counts while the program and the tools are the same files."""
    path = _which("criu")
    stamp = _stamp(path)
    known = _read(kept, stamp)
    if known is None:
        known = ask(path) if path else Criu("", (), "criu is not installed", False, False)
        if known.version and not known.check:  # what is wrong may be put right: ask again next time
            _write(kept, stamp, known)
    return known


def require(kept: str = KEPT) -> Criu:
    """As features, but refuses `criu-missing` and `criu-too-old`."""
    found = features(kept)
    if not found.path:
        raise refuse("criu-missing")
    if found.version and found.version < MINIMUM:
        raise refuse("criu-too-old", version=as_text(found.version))
    return found


def version() -> str:
    """The version of this node's CRIU as text, like 4.2.1; `unknown` when it doesn't say."""
    return as_text(require().version)


def network_lock(wanted: str) -> str:
    """The configured way of locking the network; for `auto` the first one that works on this node."""
    return features().network_lock if wanted == "auto" else wanted


def ask(path: str) -> Criu:
    """Run `criu --version` and `criu check`, and look for what the network lock needs."""
    checked = _output(path, "check")
    failed = "; ".join(line for line in checked.splitlines() if "Error" in line or "Warn" in line)
    return Criu(
        path=path,
        version=parse_version(_output(path, "--version")),
        check="" if "Looks good" in checked else failed or "criu check said nothing",
        iptables=bool(_which("iptables-restore")),
        nftables="is supported" in _output(path, "check", "--feature", "network_lock_nftables"),
    )


def parse_version(output: str) -> tuple[int, ...]:
    """`Version: 4.2.1` -> (4, 2, 1); a development version's further words are left out."""
    for line in output.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "Version":
            numbers = value.strip().split("-")[0].split(".")
            return tuple(int(number) for number in numbers if number.isdecimal())
    return ()


def as_text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version)) or "unknown"


def search_path() -> str:
    """The runtime's PATH, with the system folders that containerd's may lack."""
    return os.pathsep.join(filter(None, (os.environ.get("PATH"), "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")))


def _which(program: str) -> str:
    """The program's path, empty if it isn't there. shutil.which would cost a checkpoint 6 ms of imports."""
    for folder in search_path().split(os.pathsep):
        path = os.path.join(folder, program)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return ""


def _output(path: str, *arguments: str) -> str:
    import subprocess

    try:
        run = subprocess.run(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.decode("utf-8", "replace")


def _stamp(path: str) -> str:
    """Changes with the program, the tools, and the boot (the file lives in /run)."""
    tools = [path, _which("iptables-restore")]
    return " ".join(_identity(tool) for tool in tools)


def _identity(path: str) -> str:
    try:
        found = os.stat(path)
    except OSError:
        return "-"
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


def _read(kept: str, stamp: str) -> Criu | None:
    try:
        with open(kept, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().split("\n")
    except OSError:
        return None
    if len(lines) < 6 or lines[0] != stamp:
        return None
    number = tuple(map(int, filter(None, lines[2].split("."))))
    return Criu(lines[1], number, lines[3], lines[4] == "1", lines[5] == "1")


def _write(kept: str, stamp: str, criu: Criu) -> None:
    """What can't be kept is asked again next time."""
    number = ".".join(map(str, criu.version))
    check = criu.check.replace("\n", "; ")
    lines = (stamp, criu.path, number, check, str(int(criu.iptables)), str(int(criu.nftables)), "")
    temporary = f"{kept}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(kept), mode=0o700, exist_ok=True)
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write("\n".join(lines))
        os.replace(temporary, kept)
    except OSError:
        pass
