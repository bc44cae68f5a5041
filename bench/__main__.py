"""usage: python -m bench [MEASURE...]   Measures what we cost on real nodes; exit code 1 if a limit is broken.

calls   a call that passes through, and a container's life from create to delete, against the next runtime alone
dumps   a checkpoint of the demo's container, against runc's own

Both sides of a figure are taken in one run, in turn, so that a busy machine is busy for both; the load average
says how busy it is. Also written to build/bench.json."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path

from bench import figures
from tests.testbed import Testbed

# Each is a module here with `measure(bed: Testbed) -> list[Figure]`.
MEASURES = ("calls", "dumps")
CHECKOUT = Path(__file__).resolve().parents[1]


def main(wanted: list[str]) -> int:
    debs = sorted((CHECKOUT / "build").glob("grit-runtime_*.deb"))
    if not debs or not set(wanted) <= set(MEASURES):
        print(__doc__, f"\nMeasures: {' '.join(MEASURES)}. The package must be there: make deb", file=sys.stderr)
        return 2
    found: list[figures.Figure] = []
    with Testbed(deb=debs[-1]) as bed:
        for name in wanted or MEASURES:
            part = import_module(f"bench.{name}").measure(bed)
            print(figures.table(part), flush=True)
            print("load average of 1, 5, 15 minutes:", *(f"{load:.1f}" for load in os.getloadavg()), flush=True)
            found += part
    (CHECKOUT / "build/bench.json").write_text(json.dumps([figure._asdict() for figure in found], indent=1) + "\n")
    broken = [figure for figure in found if figure.broken]
    for figure in broken:
        print(f"broken: {figure.name}: {figure.value:+.1f} of {figure.limit:g} {figure.unit}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
