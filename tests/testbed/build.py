"""Builds the nodes' trees with mmdebstrap, in parallel, into a cache: `TREES/NAME-HASH`."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from .places import NODES, TREES, digest
from .recipe import RECIPES, TESTING, Recipe

#: python3-pynvml (contrib) depends on the driver's libnvidia-ml, which a node has from NVIDIA's installer: a stand-in
STANDIN = """Package: libnvidia-ml-standin
Version: 1
Architecture: all
Provides: libnvidia-ml.so.1, libnvidia-ml1
Maintainer: grit-runtime tests <root@localhost>
Description: stands in for the driver's libnvidia-ml in a test node
"""


def say(text: str) -> None:
    print(f"testbed: {text}", file=sys.stderr, flush=True)


def mirror() -> str:
    """The Debian mirror that this machine uses itself; else GRIT_DEBIAN_MIRROR, else Debian's own name."""
    given = os.environ.get("GRIT_DEBIAN_MIRROR")
    if given:
        return given
    asked = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"],
        capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    return choose_mirror(asked.stdout.split())


def choose_mirror(uris: list[str]) -> str:
    """The first archive of Debian proper among apt's URIs (not -security, not a third party's)."""
    for uri in uris:
        if re.fullmatch(r"https?://\S+/debian/?", uri):
            return uri.rstrip("/")
    return "http://deb.debian.org/debian"


def acquire_settings() -> str:
    """This machine's way to reach the archive (proxies), for apt in the tree. Testing's Release is at times expired."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, timeout=60, check=False).stdout
    lines = [line for line in dump.splitlines() if re.match(r"Acquire::https?::Proxy\b", line)]
    return "\n".join([*lines, 'Acquire::Check-Valid-Until "false";', 'Acquire::Retries "3";', ""])


def tree_of(recipe: Recipe) -> Path:
    text = script(recipe, Path("tree"), "mirror") + STANDIN
    return TREES / f"{recipe.name}-{digest(text)}"


def script(recipe: Recipe, part: Path, mirror: str) -> str:
    """The shell script that makes the tree. It runs in its own mount and pid namespace: killed, it leaves no mount."""
    # [trusted=yes]: a test node that is thrown away, of a suite whose keys this machine may be too old to have
    sources = [f"deb [trusted=yes] {mirror} {recipe.suite} main contrib"]
    pin = ""
    if recipe.later:
        sources.append(f"deb [trusted=yes] {mirror} {TESTING} main")
        pin = f"Package: *\\nPin: release n={TESTING}\\nPin-Priority: 100\\n"
    return f"""set -eu
# the place has a plain name, no space in it, and a mount without nodev or noexec
mount --bind . /mnt
mount -o remount,bind,dev,exec,suid /mnt
cd /mnt
cat >{part}.setup <<'END'
#!/bin/sh -e
mkdir -p "$1/etc/apt/preferences.d" "$1/usr/sbin"
printf '{pin}' >"$1/etc/apt/preferences.d/testing"
printf '#!/bin/sh\\nexit 101\\n' >"$1/usr/sbin/policy-rc.d"
chmod +x "$1/usr/sbin/policy-rc.d"
END
cat >{part}.customize <<'END'
#!/bin/sh -e
mkdir -p "$1/tmp/standin/DEBIAN"
cp standin.control "$1/tmp/standin/DEBIAN/control"
dpkg-deb --root-owner-group -Zgzip --build "$1/tmp/standin" "$1/tmp/standin.deb"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
apt() {{ chroot "$1" apt-get -q -y --no-install-recommends -t "$2" install $3; }}
apt "$1" {recipe.suite} "/tmp/standin.deb python3-pynvml"
[ -z "{' '.join(recipe.later)}" ] || apt "$1" {TESTING} "{' '.join(recipe.later)}"
rm -rf "$1"/tmp/* "$1"/var/lib/apt/lists/* "$1"/usr/share/doc "$1"/usr/share/man "$1"/usr/share/locale
END
chmod +x {part}.setup {part}.customize
mmdebstrap --mode=root --format=directory --variant=minbase --include={",".join(recipe.packages)} \\
    --aptopt=/mnt/apt.conf --setup-hook=/mnt/{part}.setup --customize-hook=/mnt/{part}.customize \\
    {recipe.suite} /mnt/{part} {" ".join(f"'{source}'" for source in sources)}
rm {part}.setup {part}.customize
"""


TRIES = 3


def build(recipes: tuple[Recipe, ...] = RECIPES, limit: float = 900) -> dict[str, Path]:
    """The trees, by node; those that are missing are built now, at the same time. RuntimeError if one fails."""
    TREES.mkdir(parents=True, exist_ok=True)
    with open(NODES / "build.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in reversed(range(TRIES)):
            wanted = [recipe for recipe in recipes if not tree_of(recipe).exists()]
            if not wanted:
                break
            try:
                _build(wanted, limit)
                _forget_others({tree_of(recipe) for recipe in RECIPES})
            except RuntimeError as error:
                if not left:
                    raise
                say(f"{error}\nonce more, for a mirror can be out of step or out of reach for a moment")
    return {recipe.name: tree_of(recipe) for recipe in recipes}


def _forget_others(kept: set[Path]) -> None:
    """Removes the trees of earlier recipes, unless a run lives: it may stand on one."""
    from . import runs

    if not any(runs.alive(tag) for tag in runs.tags()):
        for path in TREES.iterdir():
            if path.is_dir() and path not in kept:
                shutil.rmtree(path, ignore_errors=True)


def _build(wanted: list[Recipe], limit: float) -> None:
    uri, began = mirror(), time.monotonic()
    (NODES / "apt.conf").write_text(acquire_settings())
    (NODES / "standin.control").write_text(STANDIN)
    jobs = []
    for recipe in wanted:
        part = Path(f"{tree_of(recipe)}.part")
        shutil.rmtree(part, ignore_errors=True)
        log = open(TREES / f"{recipe.name}.log", "w+")
        say(f"building {recipe.name} (Debian {recipe.suite}) ...")
        job = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "sh", "-c",
             script(recipe, part.relative_to(NODES), uri)],
            cwd=NODES, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            # what dpkg writes need not survive a crash here; without syncing it takes half the time
            env={**os.environ, "DPKG_FORCE": "unsafe-io", "TMPDIR": "/tmp"},
        )  # fmt: skip
        jobs.append((recipe, part, log, job))
    try:
        for recipe, part, log, job in jobs:
            code = job.wait(timeout=max(1.0, began + limit - time.monotonic()))
            if code:
                log.seek(0)
                tail = "".join(log.readlines()[-40:])
                raise RuntimeError(f"building {recipe.name} failed ({code}); the end of {log.name}:\n{tail}")
            part.rename(tree_of(recipe))
            say(f"{recipe.name} built after {time.monotonic() - began:.0f} s")
    finally:
        for _, _, log, job in jobs:
            if job.poll() is None:
                job.kill()
                job.wait()
            log.close()
