"""Which mappings of a suspended process hold what was on the GPU. Pure, but for the two that read /proc/PID."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from grit_runtime import process

PAGE = os.sysconf("SC_PAGE_SIZE")
ENTRY = 8  # bytes of /proc/PID/pagemap for one page
# Top byte of an entry: bit 63 is "present", bit 62 "swapped" (the kernel's Documentation/admin-guide/mm/pagemap.rst).
THERE = bytes(1 if top & 0xC0 else 0 for top in range(256))


class Region(NamedTuple):
    """Bytes `start` to `start + size` of a process, whole pages."""

    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size


def anonymous(maps: str) -> list[Region]:
    """The private anonymous mappings that can be read and written, from the text of /proc/PID/maps; those that touch
    are one, for the kernel merges and splits them as it likes. The heap and stacks are none."""
    found: list[Region] = []
    for line in maps.split("\n"):  # the kernel escapes no other character that ends a line somewhere
        fields = line.split(None, 5)
        if len(fields) < 5:
            continue
        name = fields[5] if len(fields) > 5 else ""
        if fields[1] != "rw-p" or fields[4] != "0" or (name and not name.startswith("[anon:")):
            continue
        first, _, last = fields[0].partition("-")
        start, end = int(first, 16), int(last, 16)
        if found and found[-1].end == start:
            found[-1] = Region(found[-1].start, end - found[-1].start)
        else:
            found.append(Region(start, end - start))
    return found


def new(before: Iterable[Region], after: Iterable[Region]) -> list[Region]:
    """What of `after` is not in `before`; both sorted and without overlaps, as `anonymous` gives them."""
    olds, found, place = list(before), [], 0
    for region in after:
        start = region.start
        while place < len(olds) and olds[place].end <= start:
            place += 1
        for old in islice(olds, place, None):
            if old.start >= region.end:
                break
            if old.start > start:
                found.append(Region(start, old.start - start))
            start = min(old.end, region.end)
        if start < region.end:
            found.append(Region(start, region.end - start))
    return found


def within(wanted: Iterable[Region], mappings: Iterable[Region]) -> bool:
    """Does each of `wanted` lie in one of `mappings`, which are sorted and don't overlap?"""
    known = list(mappings)
    starts = [one.start for one in known]
    for region in wanted:
        place = bisect_right(starts, region.start) - 1
        if place < 0 or region.end > known[place].end:
            return False
    return True


def there(pagemap: bytes) -> bytes:
    """One byte for each page of a piece of /proc/PID/pagemap: 1 where the process has something, 0 elsewhere."""
    return pagemap[ENTRY - 1 :: ENTRY].translate(THERE)


def runs(pages: bytes) -> list[tuple[int, int]]:
    """(first, count) of the pages in a row that are there, from what `there` gave."""
    found, at = [], pages.find(1)
    while at >= 0:
        end = pages.find(0, at)
        end = len(pages) if end < 0 else end
        found.append((at, end - at))
        at = pages.find(1, end)
    return found


def of(pid: int) -> list[Region]:
    """`anonymous` of a process; OSError when it is gone."""
    with open(f"/proc/{pid}/maps", "rb") as file:
        return anonymous(file.read().decode("latin-1"))


def there_in(pid: int, region: Region) -> bytes:
    """`there` of a region; OSError when the process is gone."""
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        count = region.size // PAGE * ENTRY
        data = b""
        while len(data) < count:
            part = os.pread(file.fileno(), count - len(data), region.start // PAGE * ENTRY + len(data))
            if not part:
                raise OSError(f"/proc/{pid}/pagemap ends before {region.end:x}")
            data += part
    return there(data)


def worth(pid: int, found: Iterable[Region], least: int) -> list[Region]:
    """What of them the process has in one piece of at least `least` bytes. A mapping may have merged with a thread's
    stack that is hardly used. One that is far larger than all that the process has is not even looked at: that takes
    memory of ours, and a program may reserve as much as it likes."""
    wanted = []
    most = 2 * process.anonymous_bytes(pid)
    for region in found:
        if least <= region.size <= most:
            full = runs(there_in(pid, region))
            wanted += [Region(region.start + first * PAGE, count * PAGE) for first, count in full]
    return [region for region in wanted if region.size >= least]
