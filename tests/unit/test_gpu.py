"""The decisions about GPUs: which calls, which limits, which GPU for which. No GPU, no root."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from grit_runtime.checks import Refusal
from grit_runtime.cuda import binary, driver, holders, hugepages, inventory, limits, names, steps
from grit_runtime.cuda.holders import Holder
from grit_runtime.cuda.inventory import Gpu, Live, Part, Process
from grit_runtime.cuda.limits import Level, Raise

OLD, NEW, THIRD = (f"GPU-{n:08x}-1111-2222-3333-0123456789ab" for n in range(3))
PART = Part("580.1", 13000, (Gpu(OLD, "H100", 80, used=30), Gpu(NEW, "H100", 80)), (Process(7, 0, 30),), 30, 30, ())


def live(*gpus: Gpu, **other: Any) -> Live:
    return Live("580.1", 13000, "driver", True, "x86_64", gpus)._replace(**other)


def gpu(uuid: str, **other: Any) -> Gpu:
    return Gpu(uuid, "H100", 80, free=80)._replace(**other)


@pytest.mark.parametrize(
    "start, goal, calls",
    [
        (0, 2, ["lock", "checkpoint"]),
        (1, 2, ["checkpoint"]),
        (2, 2, []),
        (2, 0, ["restore", "unlock"]),
        (2, 1, ["restore"]),
        (1, 0, ["unlock"]),
        (0, 1, ["lock"]),
        (3, 0, []),
        (4, 0, []),
    ],
)
def test_calls_between_states(start: int, goal: int, calls: list[str]) -> None:
    assert [found.call for found in steps.rounds({1: start}, {1: goal})] == calls


def test_all_are_locked_before_one_is_checkpointed() -> None:
    found = steps.rounds({1: 0, 2: 1, 3: 2, 4: 0}, dict.fromkeys((1, 2, 3, 4), 2))
    assert found == [steps.Round("lock", (1, 4)), steps.Round("checkpoint", (1, 2, 4))]


def test_argument_structs_are_those_of_cuda_h() -> None:
    import ctypes

    for struct in (driver.LockArgs, driver.CheckpointArgs, driver.RestoreArgs, driver.UnlockArgs):
        assert ctypes.sizeof(struct) == 64
    assert ctypes.sizeof(driver.GpuPair) == 32
    assert driver.RestoreArgs.count.offset == 8
    assert driver.uuid_text(driver.uuid_bytes(OLD)) == OLD


def test_what_the_program_says_becomes_a_result() -> None:
    assert binary.result_of('Could not lock: "operation not supported"') == names.NOT_SUPPORTED
    assert binary.result_of("something else") == names.UNKNOWN
    assert names.state_number("checkpointed\n") == names.CHECKPOINTED
    assert names.state_number("Error") is None


def test_signs_in_mappings() -> None:
    text = (
        "7f00-7f01 rw-s 00000000 00:06 42 /dev/nvidia-uvm\n7f02-7f03 r-xp 0 08:01 9 /usr/lib/libcuda.so.580.95\n"
        "7f04-7f05 rw-s 0 00:01 3 /dev/shm/cuda.shm.0.1f.2\n7f06-7f07 rw-p 0 00:00 0 [stack]\n"
        "7f08-7f09 rw-p 0 00:00 0\n"
    )
    assert holders.signs(text) == holders.Signs(1, True, True)
    assert holders.signs("7f06-7f07 rw-p 0 00:00 0 [stack]\n") == holders.Signs()
    assert holders.signs("7f02-7f03 r--p 0 08:01 9 /usr/lib/libcuda.so.580.95\n") == holders.Signs()  # only read


def test_links_alone_tell_who_holds_the_gpu() -> None:
    links = {(os.getpid(), 3): "/dev/nvidia0", (os.getpid(), 4): "/dev/null", (1, 9): "/dev/nvidiactl"}
    found = holders.candidates([os.getpid()], links, maps=False)
    assert [(one.pid, one.fds) for one in found] == [(os.getpid(), (3,))]


@pytest.mark.parametrize(
    "change, major, mps, reason",
    [
        ({"driver_state": None, "parent": 1}, 580, (), "gpu-forked-child"),
        ({"driver_state": None, "parent": 99}, 580, (), "gpu-without-cuda"),
        ({"driver_state": 3}, 580, (), "cuda-failed-state"),
        ({"ipc": True}, 580, (), "cuda-ipc"),
        ({"ipc": True}, 610, (), ""),
        ({}, 580, (2,), "gpu-mps"),
        ({"fds": (), "driver_state": 2}, 580, (), ""),
    ],
)
def test_holders_that_cannot_be_suspended(
    change: dict[str, Any], major: int, mps: tuple[int, ...], reason: str
) -> None:
    found = [Holder(1, (3,), 1, names.RUNNING), Holder(2, (3,), 0, names.RUNNING)._replace(**change)]
    if not reason:
        holders.judge(found, major=major, mps=mps)
        return
    with pytest.raises(Refusal) as refusal:
        holders.judge(found, major=major, mps=mps)
    assert refusal.value.reason == reason


def test_same_gpus_keep_their_places_others_are_taken_in_order() -> None:
    assert inventory.map_gpus(PART, live(gpu(NEW), gpu(OLD))) == [(OLD, OLD), (NEW, NEW)]
    assert inventory.map_gpus(PART, live(gpu(NEW), gpu(THIRD))) == [(OLD, NEW), (NEW, THIRD)]


@pytest.mark.parametrize(
    "node, reason",
    [
        (live(gpu(OLD)), "gpu-too-few"),
        (live(gpu(OLD), gpu(THIRD, model="A100")), "gpu-other-model"),
        (live(gpu(OLD), gpu(THIRD, memory=40)), "gpu-less-memory"),
        (live(gpu(OLD, free=29), gpu(NEW)), "gpu-memory-busy"),
        (live(gpu(OLD), gpu(NEW, mig=True)), "gpu-mig"),
        (live(gpu(OLD), gpu(NEW), driver="580.2"), "driver-mismatch"),
        (live(gpu(OLD), gpu(THIRD), maps=False), "gpu-map-unsupported"),
        (live(gpu(OLD), gpu(NEW, persistence=False), way="binary"), "gpu-persistence"),
    ],
)
def test_nodes_that_cannot_take_the_container(node: Live, reason: str) -> None:
    with pytest.raises(Refusal) as refusal:
        inventory.map_gpus(PART, node)
    assert refusal.value.reason == reason


def test_another_driver_is_taken_if_the_admin_allows_it() -> None:
    node = live(gpu(OLD), gpu(NEW), driver="580.2")
    assert inventory.map_gpus(PART, node, ("driver-mismatch",)) == [(OLD, OLD), (NEW, NEW)]


def test_a_manifest_is_read_as_it_was_written() -> None:
    assert inventory.from_json(inventory.to_json(PART)) == PART


@pytest.mark.parametrize(
    "path, value",
    [
        ((), []),
        (("gpus",), "x"),
        (("gpus", 0, "uuid"), "GPU-0; rm"),
        (("gpus", 0, "memory"), -1),
        (("gpus", 1, "uuid"), OLD),
        (("gpus", 0, "model"), "a\nb"),
        (("processes", 0, "pid"), True),
        (("processes", 0, "before"), 3),
        (("driver",), 580),
        (("bytes",), 1 << 70),
    ],
)
def test_a_manifest_that_is_otherwise_is_refused(path: tuple[Any, ...], value: object) -> None:
    top: Any = {"": inventory.to_json(PART)}
    inner = top
    for key in ("", *path[:-1]) if path else ():
        inner = inner[key]
    inner[path[-1] if path else ""] = value
    with pytest.raises(Refusal) as refusal:
        inventory.from_json(top[""])
    assert refusal.value.reason == "gpu-manifest-invalid"


def test_which_gpus_a_spec_gives() -> None:
    spec: dict[str, Any] = {"linux": {"devices": [{"path": "/dev/nvidia3", "minor": 3}, {"path": "/dev/nvidiactl"}]}}
    assert inventory.minors_of_spec(spec) == {3} and inventory.in_spec(spec)
    assert not inventory.in_spec({"mounts": [{"source": "/var/log", "destination": "/log"}], "linux": None})
    assert inventory.in_spec({"hooks": {"prestart": [{"path": "/usr/bin/nvidia-container-runtime-hook"}]}})


# --- memory limits ---

LEVELS = [
    Level("/pod/c", 10, (("memory.max", 15), ("memory.high", 100))),
    Level("/pod", 40, (("memory.max", 60),)),
    Level("/top", 50, (("memory.max", 1000),)),
]


def test_limits_rise_by_what_is_needed_and_no_more() -> None:
    assert limits.plan(LEVELS, 30) == [Raise("/pod/c/memory.max", 40, 15), Raise("/pod/memory.max", 70, 60)]
    assert limits.plan(LEVELS, 5) == []


def test_limits_come_back_in_an_order_that_version_1_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both, memory = (tmp_path / name for name in limits.FILES_V1)
    for file in (both, memory):
        file.write_text("100")
    (tmp_path / "memory.stat").write_text("total_rss 50\ntotal_shmem 1\n")
    order: list[str] = []
    real = limits.write

    def write(file: str, value: int) -> bool:
        order.append(os.path.basename(file))
        return real(file, value)

    monkeypatch.setattr(limits, "write", write)
    plan = limits.plan([Level(str(tmp_path), 90, ((both.name, 100), (memory.name, 100)))], 60)
    limits.raise_all(plan)
    assert (both.read_text(), memory.read_text(), order) == ("150", "150", [both.name, memory.name])
    order.clear()
    assert limits.lower_all([[step.file, step.old] for step in plan]) == []
    assert (both.read_text(), memory.read_text(), order) == ("100", "100", [memory.name, both.name])


def test_a_limit_that_would_kill_is_left_and_named(tmp_path: Path) -> None:
    (tmp_path / "memory.stat").write_text("anon 150\nshmem 0\n")
    (tmp_path / "memory.max").write_text("200")
    assert limits.lower_all([[str(tmp_path / "memory.max"), 100]], patience=0.1) == [str(tmp_path / "memory.max")]
    assert (tmp_path / "memory.max").read_text() == "200"
    assert limits.lower_all([["/nonexistent/memory.max", 100]], patience=0.1) == []  # the container is gone


@pytest.mark.parametrize(
    "path, parent",
    [
        ("/kubepods/burstable/podX/ID", "/kubepods/burstable/podX"),
        ("kubepods-besteffort-podX.slice:cri-containerd:ID",
         "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podX.slice"),
        ("/ID", "/"),
        ("", ""),
        ("../../x", "/"),
        (":cri:ID", ""),
    ],
)  # fmt: skip
def test_parent_group_of_a_spec(path: str, parent: str) -> None:
    assert limits.parent_path(path) == parent


def test_spec_gets_room_and_tells_what_stood_there() -> None:
    memory, unified = {"limit": 100, "swap": 100, "reservation": 5}, {"memory.high": "90", "memory.max": "max"}
    spec = {"linux": {"resources": {"memory": memory, "unified": unified}}}
    assert limits.raise_spec(spec, 40) == {"memory": {"limit": 100, "swap": 100}, "unified": {"memory.high": "90"}}
    assert memory == {"limit": 140, "swap": 140, "reservation": 5} and unified["memory.high"] == "130"
    assert limits.raise_spec({"linux": {"resources": {"memory": {"limit": -1}}}}, 40) == {"memory": {}, "unified": {}}


# --- huge pages ---


class Pages:
    def __init__(self, folder: Path) -> None:
        self.setting, self.state = folder / "enabled", folder / "run/hugepages"
        self.setting.write_text("always [madvise] never\n")

    def now(self) -> str:
        """What stands in the file; a write to the kernel's would come back in brackets."""
        text = self.setting.read_text()
        return hugepages.chosen(text) or text

    def kernel(self) -> None:
        """As the kernel would show what was written."""
        self.setting.write_text(" ".join(f"[{w}]" if w == self.now() else w for w in ("always", "madvise", "never")))

    def hold(self, record: dict[str, Any]) -> None:
        assert hugepages.hold(record, setting=str(self.setting), state=str(self.state))
        self.kernel()

    def release(self, record: dict[str, Any]) -> None:
        hugepages.release(record, setting=str(self.setting), state=str(self.state))
        self.kernel()


def test_huge_pages_last_as_long_as_one_holds_them(tmp_path: Path) -> None:
    pages, mine, parent = Pages(tmp_path), hugepages.user(), hugepages.user(os.getppid())
    pages.hold(mine)
    pages.hold(parent)
    assert pages.now() == "always"
    pages.release(mine)
    pages.release(mine)  # undone twice
    assert pages.now() == "always"
    pages.release(parent)
    assert pages.now() == "madvise"


def test_the_dead_hold_nothing(tmp_path: Path) -> None:
    pages, dead = Pages(tmp_path), {"user": "999999999:1"}
    pages.hold(dead)
    pages.hold(hugepages.user())
    pages.release(hugepages.user())
    assert pages.now() == "madvise"
    place = {"setting": str(pages.setting), "state": str(pages.state)}
    pages.hold(hugepages.user())
    assert hugepages.owed(**place) == "", "a living one holds them"
    pages.release(hugepages.user())
    pages.hold(dead)
    assert hugepages.owed(**place) == "madvise"
    hugepages.sweep(**place)
    assert (pages.now(), hugepages.owed(**place)) == ("madvise", "")


def test_a_setting_that_somebody_changed_meanwhile_stays(tmp_path: Path) -> None:
    pages = Pages(tmp_path)
    pages.hold(hugepages.user())
    pages.setting.write_text("always madvise [never]\n")
    pages.release(hugepages.user())
    assert pages.now() == "never"


def test_every_state_is_reached_from_every_other() -> None:
    for start, goal in itertools.product((0, 1, 2), repeat=2):
        state = start
        for found in steps.rounds({1: start}, {1: goal}):
            expected = {call: (source, target) for call, source, target in steps.ORDER}[found.call]
            assert state == expected[0]
            state = expected[1]
        assert state == goal
