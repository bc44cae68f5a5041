"""Images that CRIU 4.1.1 and 4.2.1 made of a small busybox container, for the tests. Their pages were left out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from grit_runtime.criu import tasks

DATA = Path(__file__).parent / "data"
VERSIONS = ("4.1.1", "4.2.1")


def copy(version: str, target: Path) -> str:
    """A copy of the images, with holes of the right size for the pages."""
    folder = target / f"criu-{version}"
    shutil.copytree(DATA / f"criu-{version}", folder)
    for name in sorted(os.listdir(folder)):
        if name.startswith("pagemap-"):
            pages, _, number = tasks.stored_pages(folder, name[len("pagemap-") : -len(".img")])
            with open(folder / f"pages-{number}.img", "xb") as file:
                file.truncate(pages * 4096)
    return str(folder)
