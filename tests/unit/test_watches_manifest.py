"""The record in the manifest: what is written comes back, and nothing else is let in."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from grit_runtime.checks import Refusal
from grit_runtime.watches import Group, Holder, Instance, Mark, Record, Target, Timer, Watch, from_json, to_json

TARGET = Target(0xFFFFFFFF, 2**64 - 1, 0xF8, "0011aaff")
RECORD = Record(
    (
        Instance(
            (Holder(1, 3), Holder(7, 3)),
            (Watch(1, 0x84000FFF, TARGET, "/a/b\udcff"), Watch(5, 2, TARGET, "FD:7:9", 7)),
            9,
            2,
        ),
        Instance((Holder(1, 4),), ()),
    ),
    (Group((Holder(1, 5),), 0x606, 0x8000, (Mark("mount", 0x240, 0x08000002, 1, TARGET, 30, "/"),), (), 1),),
    (Timer((Holder(1, 6),), 0, 1, 3, 5, 10**9, 77),),
    1,
)


def test_round_trip() -> None:
    """Through JSON text, with a file name that is not UTF-8; host pids don't travel."""
    here = RECORD._replace(
        inotify=(RECORD.inotify[0]._replace(holders=(Holder(1, 3, 4711), Holder(7, 3, 4712))), RECORD.inotify[1]),
        pids=(4711,),
    )
    assert from_json(json.loads(json.dumps(to_json(here)))) == RECORD
    assert "4711" not in json.dumps(to_json(here))


WATCH, MARK, TIMER = ("inotify", 0, "watches", 0), ("fanotify", 0, "marks", 0), ("timers", 0)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("version",), 2),
        (("version",), True),
        (("init",), -1),
        (("more",), 1),
        (("inotify",), {}),
        (("inotify", 0, "holders"), []),
        (("inotify", 0, "holders", 0), [1]),
        (("inotify", 0, "holders", 0), [0, 3]),
        (("inotify", 0, "holders", 0), [2**22 + 1, 3]),
        (("inotify", 0, "holders", 0), [1, -100]),  # AT_FDCWD
        (("inotify", 0, "holders", 0), [1, True]),
        (("inotify", 0, "next_wd"), 2**31),
        (("inotify", 0, "lost"), 1.5),
        (WATCH, [1, 2]),
        ((*WATCH, 0), 0),
        ((*WATCH, 0), 2**31),
        ((*WATCH, 0), 5),  # twice the same number
        ((*WATCH, 1), 0x20000002),  # IN_MASK_ADD
        ((*WATCH, 2), [2**32, 0, 0, ""]),
        ((*WATCH, 2), [0, 0, 0, "../"]),
        ((*WATCH, 2), [0, 0, 0, "a" * 257]),
        ((*WATCH, 3), ""),
        ((*WATCH, 3), "a/b"),
        ((*WATCH, 3), "/a/../../etc"),
        ((*WATCH, 3), "/a//b"),
        ((*WATCH, 3), "/a/./b"),
        ((*WATCH, 3), "/a\0b"),
        ((*WATCH, 3), "/" + "a" * 4096),
        ((*WATCH, 3), "/" + "\u20ac" * 2000),
        ((*WATCH, 3), "/\ud800"),
        ((*WATCH, 3), 7),
        ((*WATCH, 3), "FD:1"),
        ((*WATCH, 3), "FD:1:-1"),
        ((*WATCH, 3), "FD:1:2/3"),
        ((*WATCH, 3), "FD:\u0661:2"),
        ((*WATCH, 3), "FD:9999999999:2"),
        ((*WATCH, 4), "1"),
        ((*MARK, 0), "mntns"),
        ((*MARK, 0), ["mount"]),
        ((*MARK, 1), 0x80),  # FAN_MARK_FLUSH
        ((*MARK, 2), 1 << 40),
        ((*MARK, 3), -1),
        ((*MARK, 6), "/.."),
        (("fanotify", 0, "flags"), "6"),
        ((*TIMER, "clock"), 2),  # CLOCK_PROCESS_CPUTIME_ID
        ((*TIMER, "clock"), True),
        ((*TIMER, "flags"), 4),
        ((*TIMER, "interval"), 2**63),
        ((*TIMER, "value"), -1),
        ((*TIMER, "ticks"), 2**64),
        ((*TIMER, "due"), None),
    ],
)
def test_out_of_bounds(place: tuple[Any, ...], value: object) -> None:
    content: Any = copy.deepcopy(json.loads(json.dumps(to_json(RECORD))))
    spot = content
    for step in place[:-1]:
        spot = spot[step]
    spot[place[-1]] = value
    with pytest.raises(Refusal, match="watches-record-invalid"):
        from_json(content)


@pytest.mark.parametrize("content", [None, [], "x", {}, {"version": 1}])
def test_not_a_record(content: object) -> None:
    with pytest.raises(Refusal, match="watches-record-invalid"):
        from_json(content)
