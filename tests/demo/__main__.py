"""`make demo`: containers move between two nodes, with us and without; prints a report and writes build/demo.json."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tests.testbed import Testbed

from .cases import WITH, WITHOUT, Run
from .moving import Mover

CHECKOUT = Path(__file__).parents[2]


def main() -> int:
    """0 if every run came to what it must."""
    deb = max((CHECKOUT / "build").glob("grit-runtime_*.deb"), key=lambda path: path.stat().st_mtime)
    start = time.monotonic()
    print("Bringing up two nodes ...", flush=True)
    runs: list[Run] = []
    with Testbed(deb=deb) as bed:
        for node in bed.nodes:
            print(f"  {node.name}: {_versions(node)}", flush=True)
        mover = Mover(bed)
        for heading, lives in (("Without grit-runtime", [[case] for case in WITHOUT]), ("With grit-runtime", WITH)):
            print(f"\n{heading}\n{_header()}", flush=True)
            for life in lives:
                for run in mover.life(life):
                    runs.append(run)
                    print(_line(run), flush=True)
    (CHECKOUT / "build" / "demo.json").write_text(json.dumps({"runs": [run.row() for run in runs]}, indent=1) + "\n")
    wrong = [run for run in runs if not run.as_expected]
    wanted = len(WITHOUT) + sum(map(len, WITH))
    print(f"\n{len(runs)} runs in {time.monotonic() - start:.0f} s, written to build/demo.json. ", end="")
    if wrong or len(runs) != wanted:
        print(f"{len(wrong)} did not come to what they must, {wanted - len(runs)} did not happen:")
        for run in wrong:
            print(f"  {run.case.title}: {run.error or run.check}")
        return 1
    print("All came to what they must:")
    print("without us each fails as it does on real nodes, with us each container goes on.")
    return 0


def _versions(node: object) -> str:
    script = """. /etc/os-release; echo "$PRETTY_NAME"; containerd --version | cut -d' ' -f3; runc --version | sed -n 1p
                criu --version | sed -n 1p; stat -fc %T /sys/fs/cgroup"""
    said = node.run(["sh", "-c", script]).stdout.splitlines()  # type: ignore[attr-defined]
    system, containerd, runc, criu, cgroup = said[:5]
    version = {"tmpfs": "v1", "cgroup2fs": "v2"}.get(cgroup, cgroup)
    return f"{system}, containerd {containerd}, {runc}, CRIU {criu.split()[-1]}, cgroup {version}"


def _header() -> str:
    return f"  {'run':<52} {'checkpoint':>10} {'copy':>6} {'restore':>8}  result"


def _line(run: Run) -> str:
    seconds = run.seconds or {}
    numbers = [f"{seconds[name]:.2f} s" if name in seconds else "" for name in ("checkpoint", "copy", "restore")]
    text = f"  {run.case.title:<52} {numbers[0]:>10} {numbers[1]:>6} {numbers[2]:>8}  "
    return text + _result(run)


def _result(run: Run) -> str:
    if run.error:
        return f"{'restore' if run.checkpointed else 'dump'} fails: {run.error}"
    check = run.check or {}
    if check.get("bad"):
        return f"NOT THE SAME: {check['bad']}"
    told = f"works: memory equal, counter {check['counter']}, gap {check['counter_gap']}"
    if "watches" in check:
        told += f", {check['watches_same_number']} of {check['watches']} watches, {check['watches_delivering']} deliver"
    return told


if __name__ == "__main__":
    sys.exit(main())
