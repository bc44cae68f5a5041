"""Which mappings hold what was on the GPU."""

from __future__ import annotations

import pytest
from grit_runtime import manifest
from grit_runtime.checks import Refusal
from grit_runtime.cuda import inventory
from grit_runtime.cuda.carry import copying
from grit_runtime.cuda.carry.regions import Region, anonymous, new, runs, there, within

MAPS = """\
555500000000-555500021000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000002000 rw-p 00000000 00:00 0
7f0000002000-7f0000003000 rw-p 00000000 00:00 0                          [anon:cuda]
7f0000003000-7f0000004000 r--p 00000000 00:00 0
7f0000005000-7f0000006000 rw-s 00000000 00:01 17                         /dev/zero (deleted)
7f0000006000-7f0000007000 rw-p 00000000 fe:00 42                         /usr/lib/libc.so.6
7f0000007000-7f0000008000 rw-p 00000000 00:00 0
7ffe00000000-7ffe00021000 rw-p 00000000 00:00 0                          [stack]
"""


def test_only_private_anonymous_memory_that_can_be_written() -> None:
    assert anonymous(MAPS) == [Region(0x7F0000000000, 0x3000), Region(0x7F0000007000, 0x1000)]


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ([], [(10, 5)], [(10, 5)]),
        ([(10, 5)], [(10, 5)], []),
        ([(10, 5)], [(5, 20)], [(5, 5), (15, 10)]),  # it has grown to both sides
        ([(0, 5), (20, 5)], [(3, 20)], [(5, 15)]),  # it has grown together with two others
        ([(0, 100)], [(10, 5), (50, 5)], []),  # parts of it are left
        ([(10, 2), (14, 2)], [(8, 10)], [(8, 2), (12, 2), (16, 2)]),
    ],
)
def test_what_is_new(before: list[tuple[int, int]], after: list[tuple[int, int]], found: list[tuple[int, int]]) -> None:
    assert new([Region(*one) for one in before], [Region(*one) for one in after]) == [Region(*one) for one in found]


def test_within() -> None:
    known = [Region(10, 10), Region(40, 5)]
    assert within([Region(10, 10), Region(41, 2)], known)
    assert not within([Region(10, 10), Region(19, 2)], known)
    assert not within([Region(20, 20)], known)
    assert not within([Region(0, 5)], known)
    assert not within([Region(50, 5)], known)


def test_pages_that_are_there() -> None:
    """Bit 63 of an entry: present; bit 62: swapped; bit 55, soft-dirty, is set of pages that nobody has touched too."""
    entries = [1 << 63 | 7, 0, 1 << 62 | 9, 1 << 55, 1 << 63]
    pages = there(b"".join(entry.to_bytes(8, "little") for entry in entries))
    assert list(pages) == [1, 0, 1, 0, 1]
    assert runs(pages) == [(0, 1), (2, 1), (4, 1)]
    assert runs(bytes([0, 1, 1, 1])) == [(1, 3)] and runs(bytes(3)) == [] and runs(b"") == []


def test_the_file_in_pieces() -> None:
    """Regions lie in the file one after the other; a piece may have the end of one and the beginning of the next."""
    piece = manifest.PIECE
    job = copying.Job(1, "f", (Region(0, piece + 4096), Region(1 << 30, 2 * piece)))
    found = copying.parts(job)
    assert [part.offset for part in found] == [0, piece, 2 * piece, 3 * piece]
    assert found[1].places == ((piece, 4096), (1 << 30, piece - 4096))
    assert sum(count for part in found for _, count in part.places) == job.size
    assert found[3].places == (((1 << 30) + 2 * piece - 4096, 4096),)


def test_a_process_has_several_files() -> None:
    """As many as can be written at the same time, in whole pieces, without gaps; a small one has one."""
    share, piece = copying.SHARE, manifest.PIECE
    assert copying.shares([Region(0, 8 * 4096)]) == [(Region(0, 8 * 4096),)]
    regions = [Region(0, 3 * share + 4096), Region(1 << 40, 9 * share)]
    found = copying.shares(regions)
    assert len(found) == copying.FILES
    assert [one for one in found[:-1] if sum(region.size for region in one) % piece] == []
    assert sum(region.size for one in found for region in one) == 12 * share + 4096
    flat = [region for one in found for region in one]
    assert flat == sorted(flat) and within(flat, regions)
    assert all(first.end <= second.start for first, second in zip(flat, flat[1:], strict=False))


def part(**more: object) -> dict[str, object]:
    known = {"driver": "580.1", "cuda": 13000, "gpus": [], "bytes": 1, "taken": 1}
    return {**known, "processes": [{"pid": 7, "before": 0, "bytes": 1}], **more}


def test_a_manifest_without_such_files_is_an_older_one() -> None:
    assert inventory.from_json(part()).beside == ()
    row = {"pid": 7, "number": 3, "regions": [[4096, 8192]]}
    assert inventory.from_json(part(beside=[row])).beside == (inventory.Beside(7, 3, ((4096, 8192),)),)


@pytest.mark.parametrize(
    "beside",
    [
        "x",
        None,
        [{"pid": 8, "number": 0, "regions": [[4096, 4096]]}],
        [{"pid": 7, "number": 0, "regions": [[4096, 4096]]}] * 2,
        [{"pid": 7, "number": 0, "regions": [[4096]]}],
        [{"pid": 7, "number": 0, "regions": [[4096, -4096]]}],
        [{"pid": 7, "number": 0, "regions": [[4097, 4096]]}],
        [{"pid": 7, "number": 0, "regions": [[4096, 1 << 62]]}],
        [{"pid": 7, "number": 0, "regions": [[True, 4096]]}],
        [{"pid": "7", "number": 0, "regions": []}],
        [{"pid": 7, "regions": [[4096, 4096]]}],
        [{"pid": 7, "number": -1, "regions": [[4096, 4096]]}],
        [{"pid": 7, "number": 0, "regions": [[4096, 4096]] * ((1 << 16) + 1)}],
    ],
)
def test_a_manifest_that_somebody_has_written(beside: object) -> None:
    with pytest.raises(Refusal, match="gpu-manifest-invalid"):
        inventory.from_json(part(beside=beside))
