"""usage: python -m bench [MEASURE...]   Measures what we cost on a real node; exit code 1 if a limit is broken.

Both sides of a figure are taken in one run, in turn, so that a busy machine is busy for both. Also written to
build/bench.json."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

from bench import figures
from tests.testbed import Testbed

# Each is a module here with `measure(bed: Testbed) -> list[Figure]`.
MEASURES = ("calls",)
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
            found += part
    (CHECKOUT / "build/bench.json").write_text(json.dumps([figure._asdict() for figure in found], indent=1) + "\n")
    return 1 if any(figure.broken for figure in found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
