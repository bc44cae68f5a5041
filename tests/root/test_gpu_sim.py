"""Suspend and resume on a SIMULATED driver (tests/gpu/simulation): real processes and descriptors, no GPU, no CRIU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from grit_runtime import gpu
from grit_runtime.checks import Refusal
from grit_runtime.cuda import client, holders, names, suspend
from grit_runtime.journal import Journal, open_steps
from grit_runtime.settings import Cuda

from tests.gpu import simulation
from tests.gpu.simulation import MIB, SimulatedGpu, Simulation, uuid

PROBE = Path(gpu.__file__).parent / "cuda/probe.py"
SPEC = {"linux": {"devices": [{"path": "/dev/nvidia0", "major": 10, "minor": simulation.UNDUMPABLE[0]}]}}
CUDA = Cuda(way="driver", timeout=60, margin=0, huge_pages=False)
# Its own /dev: with the nodes of the simulation, and nothing of ours.
ENTER = """mount -t tmpfs -o mode=755 tmpfs /dev; mkdir /dev/shm
for node in "null 1 3" "zero 1 5" "urandom 1 9" $NODES; do set -- $node; mknod -m 666 /dev/$1 c $2 $3; done
exec "$PYTHON" -I "$PROBE" $ARGUMENTS"""


def until(what: str, ask: Callable[[], Any], timeout: float = 90) -> Any:
    end = time.monotonic() + timeout
    while not (found := ask()):
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.02)
    return found


class Program:
    """A running probe with its processes."""

    def __init__(self, process: subprocess.Popen[bytes], talk: Path, count: int) -> None:
        self.process, self.talk, self.count = process, talk, count
        for number in range(count):
            status = talk / f"status.{number}"
            until("the program's start", partial(self.there, status))

    def there(self, status: Path) -> bool:
        return self.alive() and status.exists()

    def alive(self) -> bool:
        assert self.process.poll() is None, "the program ended"
        return True

    def status(self, number: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.talk / f"status.{number}").read_text())
        return found

    @property
    def pids(self) -> list[int]:
        """Those with GPU memory."""
        return [self.status(number)["pid"] for number in range(self.count)]

    def descriptors(self) -> list[list[str]]:
        """What each process has open, but for the file that it tells its status in now and then."""
        found = [holders.links_of(pid) for pid in self.pids]
        return [sorted(link for link in links.values() if str(self.talk) not in link) for links in found]

    def intact(self) -> None:
        """Every process answers, counts, and has in its GPU memory what it put there."""
        for number in range(self.count):
            word, answer = str(time.monotonic_ns()), self.talk / f"answer.{number}"
            (self.talk / "new").write_text(word)
            (self.talk / "new").rename(self.talk / f"ask.{number}")

            def given(answer: Path = answer, word: str = word) -> Any:
                self.alive()
                return answer.exists() and (found := json.loads(answer.read_text()))["word"] == word and found

            assert until("an answer", given)["hash"] == self.status(number)["hash"]


Start = Callable[..., Program]


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert os.geteuid() == 0, "these tests need root: device nodes, mount namespaces"
    return simulation.build(tmp_path_factory.mktemp("simulation"))


@pytest.fixture
def sim(libraries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Simulation:
    """A node with two GPUs; the second is CUDA's first."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(libraries))
    monkeypatch.setenv("GPU_SIMULATION", str(tmp_path / "sim"))
    return Simulation(tmp_path / "sim", tuple(SimulatedGpu(uuid(n), minor=simulation.UNDUMPABLE[n]) for n in range(2)))


@pytest.fixture
def start(sim: Simulation, tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def run(size: int = MIB, processes: int = 1, *flags: str) -> Program:
        talk = tmp_path / f"talk{len(started)}"
        talk.mkdir()
        words = [str(talk), "--bytes", str(size), "--processes", str(processes), *flags]
        nodes = " ".join(f'"{name} {major} {minor}"' for name, major, minor in sim.nodes())
        process = subprocess.Popen(
            ["unshare", "-m", "--propagation", "private", "sh", "-e", "-c", ENTER.replace("$NODES", nodes)],
            env={**os.environ, "PYTHON": os.path.realpath(sys.executable), "PROBE": str(PROBE),
                 "ARGUMENTS": " ".join(words)},
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return Program(process, talk, processes)

    yield run
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(str(tmp_path / "journal"))
    yield made
    made.close()


def states(pids: list[int]) -> list[str]:
    with client.Helper("driver") as helper:
        return [names.state_name(answer.state) for answer in helper.states(pids).values()]


def plan(pids: list[int], cuda: Cuda = CUDA) -> gpu.Suspension:
    return gpu.plan(cuda, pids, None, SPEC)


def test_gpu_memory_leaves_the_gpu_and_comes_back(sim: Simulation, start: Start, journal: Journal) -> None:
    program = start(8 * MIB, 3)
    suspension = plan(program.pids)
    assert [len(holder.fds) for holder in suspension.holders] == [3, 3, 3]  # two GPUs and the control device
    assert all(holder.maps for holder in suspension.holders)
    assert suspension.bytes >= 24 * MIB
    assert [found.uuid for found in suspension.gpus] == [uuid(1), uuid(0)]  # CUDA's order, not NVML's
    record = suspension.suspend(journal)
    assert sim.used() == 0
    assert suspension.taken >= 24 * MIB
    gpu.prove_absent(program.pids)
    assert states(program.pids) == ["CHECKPOINTED"] * 3
    ticks = program.status()["ticks"]
    time.sleep(0.3)
    assert program.status()["ticks"] == ticks  # its CUDA calls block
    gpu.resume(record)
    assert sim.used() >= 24 * MIB
    assert states(program.pids) == ["RUNNING"] * 3
    program.intact()


def test_suspended_all_at_once(sim: Simulation, start: Start, journal: Journal) -> None:
    program = start(MIB, 4)
    with sim.fault("checkpoint", "slow=1000"):
        suspension = plan(program.pids)
        suspension.suspend(journal)
    phase = suspension.phases[-1]
    assert phase.call == "checkpoint" and sum(phase.each.values()) >= 4.0
    assert phase.seconds < 3.0  # one after the other would take 4
    gpu.resume(suspension.record)
    program.intact()


@pytest.mark.parametrize("what", ["999", "801", "hang"])
@pytest.mark.parametrize("verb", ["lock", "checkpoint"])
def test_one_that_fails_takes_nothing_from_the_others(
    sim: Simulation, start: Start, journal: Journal, verb: str, what: str
) -> None:
    program = start(MIB, 3)
    before = program.descriptors()
    suspension = plan(program.pids, CUDA._replace(timeout=2))
    with sim.fault(verb, what, program.pids[1]):
        try:
            if what == "hang":  # released as the undo begins: only then can the driver answer again
                release = subprocess.Popen(["sh", "-c", f"sleep 6; : >{sim.folder}/faults"])
            with pytest.raises(Refusal) as refusal:
                suspension.suspend(journal)
        finally:
            if what == "hang":
                release.wait()
    expected = {"hang": "cuda-timeout", "801": "cuda-managed-memory", "999": "cuda-call-failed"}
    assert refusal.value.reason == expected[what]
    assert str(program.pids[1]) in refusal.value.message
    if open_steps(journal.folder):  # the driver hung on: what the guardian does later
        journal.undo(max(journal.open))
    assert states(program.pids) == ["RUNNING"] * 3
    assert program.descriptors() == before
    program.intact()


def test_states_made_by_somebody_else_are_kept(start: Start, journal: Journal) -> None:
    program = start(MIB, 3)
    running, locked, checkpointed = program.pids
    with client.Helper("driver") as helper:
        for pid in (locked, checkpointed):
            helper.one("lock", 30, pid=pid, timeout_ms=0)
        helper.one("checkpoint", 30, pid=checkpointed)
    suspension = plan(program.pids)
    assert len(suspension.holders) == 3  # one of them holds nothing of the GPU any more
    gpu.resume(suspension.suspend(journal))
    assert states(program.pids) == ["RUNNING", "LOCKED", "CHECKPOINTED"]
    description = suspension.description
    assert [process["before"] for process in description["processes"]] == [0, 1, 2]
    gpu.resume({**suspension.record, "states_before": {str(pid): 0 for pid in program.pids}})
    program.intact()


def test_undone_by_another_process_after_our_death(start: Start, tmp_path: Path) -> None:
    program = start(MIB, 2)
    code = f"""
import os, signal
from grit_runtime import gpu
from grit_runtime.journal import Journal
from grit_runtime.settings import Cuda
suspension = gpu.plan(Cuda(way="driver", huge_pages=False), {program.pids}, None, {SPEC!r})
suspension.suspend(Journal({str(tmp_path / "dead")!r}))
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": "shim:."}
    died = subprocess.run([sys.executable, "-c", code], env=environment, timeout=120, check=False)
    assert died.returncode == -signal.SIGKILL
    assert states(program.pids) == ["CHECKPOINTED"] * 2
    for _, _, arguments in open_steps(str(tmp_path / "dead")):
        gpu.resume(arguments["record"])
    program.intact()


def test_a_frozen_process_is_not_waited_for_longer_than_allowed(start: Start, journal: Journal) -> None:
    program = start()
    suspension = plan(program.pids, CUDA._replace(timeout=2))
    os.kill(program.pids[0], signal.SIGSTOP)
    try:
        with pytest.raises(Refusal) as refusal:
            suspension.suspend(journal)
    finally:
        os.kill(program.pids[0], signal.SIGCONT)
    assert refusal.value.reason == "cuda-timeout"
    gpu.resume(suspension.record)  # the lock that was asked for comes through now
    assert states(program.pids) == ["RUNNING"]
    program.intact()


def test_process_that_dies_in_the_copy_is_named(sim: Simulation, start: Start, journal: Journal) -> None:
    program = start(MIB, 2)
    suspension = plan(program.pids)
    pids = program.pids
    with sim.fault("checkpoint", "die", pids[0]), pytest.raises(Refusal) as refusal:
        suspension.suspend(journal)
    assert refusal.value.reason == "cuda-process-died"
    assert states(pids[1:]) == ["RUNNING"]


def test_managed_memory_is_refused_and_the_process_runs_on(start: Start, journal: Journal) -> None:
    program = start(MIB, 1, "--managed")
    with pytest.raises(Refusal) as refusal:
        plan(program.pids).suspend(journal)
    assert refusal.value.reason == "cuda-managed-memory"
    assert states(program.pids) == ["RUNNING"]
    assert not open_steps(journal.folder)
    program.intact()


def test_forked_child_that_holds_the_gpu(start: Start) -> None:
    program = start(MIB, 1, "--fork")
    parent = program.pids[0]
    child = until("a child", lambda: Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    with pytest.raises(Refusal) as refusal:
        plan([parent, int(child[0])])
    assert refusal.value.reason == "gpu-forked-child"
    assert child[0] in refusal.value.message and "spawn" in refusal.value.remedy


def test_mig_is_refused(sim: Simulation, start: Start) -> None:
    program = start()
    sim.gpus = tuple(found._replace(mig=1) for found in sim.gpus)
    sim.write()
    with pytest.raises(Refusal) as refusal:
        plan(program.pids)
    assert refusal.value.reason == "gpu-mig"


def test_moves_to_gpus_with_other_uuids(sim: Simulation, start: Start, journal: Journal) -> None:
    program = start(4 * MIB, 2)
    suspension = plan(program.pids)
    suspension.suspend(journal)
    sim.gpus = tuple(found._replace(uuid=uuid(number + 7)) for number, found in enumerate(sim.gpus))
    sim.write()
    devices = [{"path": f"/dev/nvidia{n}", "minor": minor} for n, minor in enumerate(simulation.UNDUMPABLE[:2])]
    spec = {"linux": {"devices": devices}}
    resumption = gpu.plan_restore(CUDA, suspension.description, spec)
    assert resumption.pairs == [(uuid(1), uuid(8)), (uuid(0), uuid(7))]
    # half a map is what the driver refuses; then all of it
    with pytest.raises(Refusal):
        suspend.resume({**suspension.record, "pairs": resumption.pairs[:1]})
    resumption.resume(program.pids)
    assert len(list((sim.folder / "memory" / uuid(8)).iterdir())) == 0  # allocation 1 is on the second GPU
    assert len(list((sim.folder / "memory" / uuid(7)).iterdir())) == 2
    program.intact()


@pytest.mark.parametrize("toggle_only", [False, True])
def test_the_cuda_checkpoint_program_as_the_way(
    sim: Simulation, libraries: Path, start: Start, journal: Journal, monkeypatch: pytest.MonkeyPatch, toggle_only: bool
) -> None:
    program = start(2 * MIB, 2)
    if toggle_only:  # driver 550: libcuda has no checkpoint functions, the program knows --toggle alone
        (sim.folder / "toggle-only").touch()
        monkeypatch.setenv("LD_LIBRARY_PATH", f"{libraries}/old:{libraries}")
    cuda = CUDA._replace(way="auto" if toggle_only else "binary", binary=str(libraries / "cuda-checkpoint"))
    suspension = plan(program.pids, cuda)
    gpu.resume(suspension.suspend(journal))
    program.intact()
    suspension = plan(program.pids, cuda)
    suspension.suspend(journal)
    assert sim.used() == 0
    gpu.prove_absent(program.pids)
    resumption = gpu.plan_restore(cuda, suspension.description, SPEC | {"linux": {"devices": []}})
    resumption.resume(program.pids)
    program.intact()


def test_an_old_driver_without_the_program_is_refused(
    libraries: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = start()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{libraries}/old:{libraries}")
    with pytest.raises(Refusal) as refusal:
        plan(program.pids, CUDA._replace(way="auto", binary="/nonexistent"))
    assert refusal.value.reason == "driver-too-old"


def test_a_container_without_a_gpu_starts_no_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a helper was started")

    monkeypatch.setattr(client, "Helper", never)
    suspension = gpu.plan(CUDA, [os.getpid()], {(os.getpid(), 0): "/dev/null"}, {"linux": {}})
    assert suspension.holders == [] and suspension.description == {}
