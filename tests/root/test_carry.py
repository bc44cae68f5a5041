"""GPU memory past CRIU, without a GPU: real processes, real threads and signals, a real freezer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from grit_runtime import cgroup, manifest
from grit_runtime.checks import Refusal
from grit_runtime.cuda.carry import client, copying, regions
from grit_runtime.cuda.carry.regions import Region
from grit_runtime.journal import Journal, open_steps, undo_all

MIB = 1 << 20
SIZE = 40 * MIB
LEAST = 8 * MIB

# It fills a mapping when it is told to, beside threads that count, wait in calls that restart and in calls that don't,
# and a timer whose signals come all the time. Then it answers whether all of that is as it should be.
PROGRAM = r"""
import ctypes, hashlib, mmap, os, select, signal, sys, threading, time
said = lambda *words: print(*words, flush=True)
said("ready")
sys.stdin.readline()
memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
block = os.urandom(1 << 20)
for at in range(0, SIZE, 1 << 20):
    memory[at : at + (1 << 20)] = block[at >> 20 :] + block[: at >> 20]
whole = hashlib.blake2b(memory).digest()
counted, signals, wrong = 0, 0, []
def count():
    global counted
    while True:
        counted += 1
def poll():
    ends = os.pipe()
    while True:
        if select.select([ends[0]], [], [], 0.05)[0]:
            wrong.append("select said that there is something")
def sleep():
    while True:
        begin = time.monotonic()
        time.sleep(0.05)
        if time.monotonic() - begin < 0.05:
            wrong.append("a sleep was too short")
def read():
    while True:
        wrong.append("read returned " + repr(os.read(silent[0], 1)))
silent = os.pipe()
for one in (count, poll, sleep, read):
    threading.Thread(target=one, daemon=True).start()
def alarm(*_):
    global signals
    signals += 1
signal.signal(signal.SIGALRM, alarm)
signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
said("filled")
for line in sys.stdin:
    before, had = signals, counted
    time.sleep(0.1)
    same = hashlib.blake2b(memory).digest() == whole
    said("same" if same else "OTHER", "counts" if counted > had else "STILL",
         "signals" if signals > before else "SILENT", *wrong)
"""
WELL = "same counts signals"


# A seccomp(2) filter under which madvise(2), number 28, fails with EPERM: BPF of <linux/filter.h>.
FILTER = r"""
import ctypes, struct
lines = [(0x20, 0, 0, 0), (0x15, 0, 1, 28), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(lines), ctypes.addressof(code)))
assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0 and ctypes.CDLL(None).prctl(22, 2, program) == 0
"""


class Program:
    """The program in a control group of its own; `first` runs before it."""

    def __init__(self, group: cgroup.Group, first: str = "") -> None:
        self.group = group
        code = f"SIZE = {SIZE}\n{first}\n{PROGRAM}"
        self.process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.pid = self.process.pid
        cgroup.move([self.pid], group)
        assert self.line() == "ready"
        self.before = client.mappings([self.pid])
        assert self.ask() == "filled"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def ask(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        return self.line()

    def masks(self) -> set[int]:
        """The signals that its threads block; SIGALRM is blocked in its handler."""
        threads = Path(f"/proc/{self.pid}/task").glob("*/status")
        lines = [line for one in threads for line in one.read_text().splitlines() if line.startswith("SigBlk")]
        return {int(line.split()[1], 16) & ~(1 << signal.SIGALRM - 1) for line in lines}

    def has(self, wanted: list[Region]) -> bool:
        """Has it anything in those regions?"""
        return any(1 in regions.there_in(self.pid, region) for region in wanted)


@pytest.fixture
def program(request: pytest.FixtureRequest) -> Iterator[Program]:
    own = cgroup.of(os.getpid())
    group = cgroup.Group(f"{own.path}/carry-test-{os.getpid()}", own.version)
    os.mkdir(group.path)
    made = Program(group, getattr(request, "param", ""))
    try:
        yield made
    finally:
        cgroup.kill(group)
        made.process.communicate()
        cgroup.remove(group)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(str(tmp_path / "op"))
    yield made
    made.close()


def carrier(program: Program, folder: Path, journal: Journal, least: int = LEAST) -> client.Carrier:
    return client.Carrier(str(folder), program.before, {program.pid: 1}, program.group, journal, least)


@pytest.mark.parametrize("program", ["", FILTER], ids=["plain", "seccomp"], indirect=True)
def test_memory_leaves_and_comes_back(program: Program, journal: Journal, tmp_path: Path) -> None:
    """Saved whole, dropped, put back into the frozen process; nothing that runs in it has noticed."""
    assert program.ask() == WELL
    for _ in range(5):
        one = carrier(program, tmp_path, journal)
        one.take(60)
        assert not one.problem
        [job] = one.taken
        assert SIZE <= job.size < SIZE + LEAST
        cgroup.begin_to_freeze(program.group)
        one.let_go(frozen=True)
        cgroup.freeze(program.group)
        assert not program.has(list(job.regions))
        assert os.stat(job.path).st_size == job.size
        assert len(one.pieces[job.path]) == -(-job.size // manifest.PIECE)
        client.put_back(**one.record(one.taken))
        os.unlink(job.path)
        assert program.masks() == {0}
        cgroup.thaw(program.group)
        assert program.ask() == WELL


def test_it_stands_still_until_it_is_let_go(program: Program, journal: Journal, tmp_path: Path) -> None:
    """Nothing of it may run while it lacks its memory: what was taken need not be the GPU's."""
    one = carrier(program, tmp_path, journal)
    one.take(60)
    before = Path(f"/proc/{program.pid}/stat").read_text().split()[13]  # utime
    time.sleep(0.2)
    assert Path(f"/proc/{program.pid}/stat").read_text().split()[13] == before
    cgroup.begin_to_freeze(program.group)
    one.let_go(frozen=True)
    cgroup.freeze(program.group)
    assert undo_all(journal.folder) == []
    cgroup.thaw(program.group)
    assert program.ask() == WELL


def test_a_carrier_whose_caller_dies_puts_everything_back(program: Program, journal: Journal, tmp_path: Path) -> None:
    one = carrier(program, tmp_path, journal)
    one.take(60)
    assert one.process is not None and one.process.stdin is not None
    one.process.stdin.close()  # what the kernel does for one that is killed
    assert undo_all(journal.folder) == []  # the guardian's part, at the same time
    assert program.ask() == WELL
    one.process.wait(10)


def test_a_failure_before_the_freeze_gives_it_back(program: Program, journal: Journal, tmp_path: Path) -> None:
    """Nothing was told to freeze: the processes must not be let go without their memory."""
    one = carrier(program, tmp_path, journal)
    one.take(60)
    assert one.taken
    one.let_go(frozen=False)
    assert program.ask() == WELL
    assert undo_all(journal.folder) == []
    assert program.ask() == WELL


def test_a_caller_that_dies_before_anything_is_dropped(program: Program, journal: Journal, tmp_path: Path) -> None:
    """The memory never left, and old bytes must not be put into a process that runs."""
    one = carrier(program, tmp_path, journal)
    rows = one._asked(one.question, time.monotonic() + 60)["saved"]
    assert one.process is not None and one.process.stdin is not None
    one.process.stdin.close()
    one.process.wait(10)
    jobs = [copying.job(row) for row in rows]
    for job in jobs:
        Path(job.path).write_bytes(bytes(job.size))
    client.put_back(**one.record(jobs))
    assert program.ask() == WELL


def test_a_caller_that_dies_while_it_is_saved() -> None:
    """The carrier ends at once, however long the saving takes, and the processes run on with it; else it stays."""
    code = (
        "import sys, time; from grit_runtime.cuda.carry.carrier import _Leaving\n"
        "with _Leaving(): print(flush=True); time.sleep(float(sys.argv[1]))\n"
        "print(sys.stdin.read())"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for seconds, expected in ((60, 1), (0, 0)):
        child = subprocess.Popen([sys.executable, "-c", code, str(seconds)], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, env=env)  # fmt: skip
        assert child.stdout is not None and child.stdin is not None
        child.stdout.readline()
        time.sleep(0.2)
        child.stdin.close()
        assert child.wait(10) == expected
        child.stdout.close()


def test_a_carrier_that_dies_is_made_up_for(program: Program, journal: Journal, tmp_path: Path) -> None:
    """Killed when the memory is gone from the process, which is frozen by then."""
    one = carrier(program, tmp_path, journal)
    one.take(60)
    cgroup.begin_to_freeze(program.group)
    assert one.process is not None
    one.process.kill()
    with pytest.raises(Refusal, match="gpu-carrier-died"):
        one.let_go(frozen=True)
    cgroup.freeze(program.group)
    assert undo_all(journal.folder) == []
    assert open_steps(journal.folder) == []
    cgroup.thaw(program.group)
    assert program.ask() == WELL


def test_no_space_for_the_file(program: Program, journal: Journal, tmp_path: Path) -> None:
    """CRIU carries it then: the process has all it had, and nothing lies about."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE // 2}", "tmpfs", str(small)], check=True)
    try:
        one = carrier(program, small, journal)
        one.take(60)
        one.let_go(frozen=False)
        assert not one.taken
        assert "No space" in one.problem
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert program.ask() == WELL


def test_a_process_that_is_traced_is_left_to_criu(program: Program, journal: Journal, tmp_path: Path) -> None:
    code = (
        "import sys, time; from grit_runtime.cuda.carry.stopped import Stopped; one = Stopped(int(sys.argv[1]))\n"
        "print(flush=True); time.sleep(600)"
    )
    path = os.pathsep.join(sys.path)
    tracer = subprocess.Popen([sys.executable, "-c", code, str(program.pid)], stdout=subprocess.PIPE,
                              env={**os.environ, "PYTHONPATH": path})  # fmt: skip
    try:
        assert tracer.stdout is not None and tracer.stdout.readline()
        one = carrier(program, tmp_path, journal)
        one.take(60)
        one.let_go(frozen=False)
        assert one.problem and not one.taken
    finally:
        tracer.kill()
        tracer.communicate()
    assert program.ask() == WELL


def test_a_stopped_process_is_left_to_criu(program: Program, journal: Journal, tmp_path: Path) -> None:
    """By SIGSTOP: it stays stopped, and goes on when somebody continues it."""
    os.kill(program.pid, signal.SIGSTOP)
    one = carrier(program, tmp_path, journal)
    one.take(60)
    one.let_go(frozen=False)
    assert "stopped by a signal" in one.problem
    end = time.monotonic() + 5
    while (state := Path(f"/proc/{program.pid}/stat").read_text().split()[2]) != "T" and time.monotonic() < end:
        time.sleep(0.01)
    assert state == "T"
    os.kill(program.pid, signal.SIGCONT)
    assert program.ask() == WELL


def test_a_huge_empty_mapping_is_not_looked_at(program: Program) -> None:
    """A program can reserve terabytes within the time of a suspension; reading what of it is there would take as many
    gigabytes of ours."""
    reserved = Region(1 << 20, 64 << 40)
    assert regions.worth(program.pid, [reserved], LEAST) == []
    mine = regions.new(program.before[program.pid], regions.of(program.pid))
    assert sum(region.size for region in regions.worth(program.pid, [*mine, reserved], LEAST)) >= SIZE


def test_small_mappings_are_left_to_criu(program: Program, journal: Journal, tmp_path: Path) -> None:
    one = carrier(program, tmp_path, journal, least=4 * SIZE)
    one.take(60)
    one.let_go(frozen=False)
    assert (one.taken, one.problem, open_steps(journal.folder)) == ([], "", [])
    assert program.ask() == WELL


def test_what_the_carrier_put_back_is_not_put_back_again(program: Program, journal: Journal, tmp_path: Path) -> None:
    """The process has run on since; the guardian's undo, with what by now are old bytes, comes too late."""
    one = carrier(program, tmp_path, journal)
    one.take(60)
    assert one.process is not None and one.process.stdin is not None
    one.process.stdin.close()
    one.process.wait(10)
    path = one.taken[0].path
    Path(path).write_bytes(bytes(os.stat(path).st_size))
    assert undo_all(journal.folder) == []
    assert program.ask() == WELL


def test_a_process_whose_memory_is_lost_is_not_resumed(program: Program, journal: Journal, tmp_path: Path) -> None:
    """With its file gone, nothing that would make use of that memory is undone, and nobody says that it was."""
    journal.add("discard", folder=str(tmp_path))
    journal.add("resume-gpu", record={"states_before": {str(program.pid): 0}})
    journal.add("thaw", path=program.group.path, version=program.group.version)
    one = carrier(program, tmp_path, journal)
    one.take(60)
    cgroup.begin_to_freeze(program.group)
    one.let_go(frozen=True)
    cgroup.freeze(program.group)
    path = one.taken[0].path
    os.rename(path, path + ".away")
    problems = undo_all(journal.folder)
    assert [problem.partition(":")[0] for problem in problems] == ["return-gpu-memory", "thaw", "resume-gpu", "discard"]
    assert len(open_steps(journal.folder)) == 4 and cgroup.frozen(program.group)
    os.rename(path + ".away", path)
    client.put_back(**one.record(one.taken))
    cgroup.thaw(program.group)
    assert program.ask() == WELL
