"""Watches and timers on a real kernel: a container-like process tree, stopped, detached, reattached, and going on."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grit_runtime import watches
from grit_runtime.checks import Refusal
from grit_runtime.watches import Holder, Instance, Record, Target, Watch, inotify, syscalls
from grit_runtime.watches.record import Problem
from grit_runtime.watches.syscalls import TimerSetting, pidfd_getfd, timerfd_gettime, timerfd_settime

PATIENCE = 120.0  # seconds; nothing here takes one
ACCESS, MODIFY, CREATE = 0x1, 0x2, 0x100


class Container:
    """The process of watches_child.py, its first process's host pid as `init`."""

    def __init__(self, work: Path, split: bool) -> None:
        script = Path(__file__).with_name("watches_child.py")
        kind = "split" if split else "same"
        command = ["unshare", "-m", "-p", "-f", "--kill-child", sys.executable, str(script), str(work), kind]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert self._line() == b"ready\n"
        self.init = int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])

    def _line(self) -> bytes:
        assert self.process.stdout is not None
        text = b""
        end = time.monotonic() + PATIENCE
        while not text.endswith(b"\n"):
            assert select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))[0], "no answer"
            part = os.read(self.process.stdout.fileno(), 65536)
            assert part, f"the container has ended after {text!r}"
            text += part
        return text

    def ask(self, expression: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(expression.encode() + b"\n")
        answer = json.loads(self._line())
        assert "error" not in answer, (expression, answer)
        return answer["value"]

    @property
    def pids(self) -> list[int]:
        found, left = [], [self.init]
        while left:
            pid = left.pop()
            found.append(pid)
            left += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return sorted(found)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[list[int]]:
        pids = self.pids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        end = time.monotonic() + PATIENCE
        while any(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T" for pid in pids):
            assert time.monotonic() < end, "does not stop"
            time.sleep(0.001)
        try:
            yield pids
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def fdinfo(self, fd: int) -> list[str]:
        """The lines of watches or marks, sorted."""
        lines = Path(f"/proc/{self.init}/fdinfo/{fd}").read_text().splitlines()
        return sorted(line.strip() for line in lines if line.startswith(("inotify ", "fanotify ")))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(PATIENCE)
            raise
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()


@pytest.fixture(params=["same", "split"])
def container(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Container]:
    assert os.geteuid() == 0, "these tests need root"
    one = Container(tmp_path, request.param == "split")
    yield one
    one.close()


def there_and_back(container: Container, pids: list[int]) -> Record:
    """Detach, through JSON, and reattach, twice; the record as a restore would read it."""
    record = watches.resolve(watches.find(pids), container.init)
    with container.frozen():
        record = watches.detach(watches.settle(record, pids, container.init))
        record = watches.from_json(json.loads(json.dumps(watches.to_json(record))))
        assert watches.reattach(record, pids) == []
        assert watches.reattach(record, pids) == []
    return record


def test_inotify(container: Container) -> None:
    """Watches of every kind of file keep number, mask and inode, and deliver; numbers go on where they were."""
    fd = container.ask("child.new('a')")
    paths = {
        "/low/file": "/low/file",
        "/low/deep/er/file": "/low/deep/er/file",
        "/low/copied": "/low/copied",
        "/low": "/low",
        "/up": "/up",
        "/t/file": "/t/file",
        "/bind/file": "/bind/file",
        "/proc/sys/kernel/hostname": "/proc/sys/kernel/hostname",
        "/proc/1/status": "/proc/1/status",
        "/sys/kernel": "/sys/kernel",
        "/t/cfg/..data/key": "/t/cfg/..2026_01_02_03_04_05.1/key",
    }
    numbers = {}
    for path in paths:
        container.ask("child.unwatch('a', child.watch('a', '/etc'))")  # a gap before each number
        numbers[path] = container.ask(f"child.watch('a', {path!r})")
    once = container.ask("child.watch('a', '/low/once', 0x80000000 | 0x2)")
    link = container.ask("child.watch('a', '/low/link', 0x02000000 | 0xfff)")
    tidy = container.ask("child.watch('a', '/low/deep', 0x04000000 | 0xfff)")
    gone = {name: container.ask(f"child.watch('a', '{name}')") for name in ("/low/gone", "/t/gone", "/bind/gone")}
    following = container.ask("child.watch('a', '/etc')") + 1
    container.ask(f"child.unwatch('a', {following - 1})")
    container.ask("child.keep_deleted('/low/gone', '/t/gone', '/bind/gone')")
    container.ask("child.fork()")
    container.ask("child.events('a')")
    container.ask("child.touch('/low/file')")
    before = container.fdinfo(fd)
    assert len(before) == len(paths) + 3 + len(gone)

    pids = container.pids
    record = watches.resolve(watches.find(pids), container.init)
    assert len(record.inotify) == 1, "one open file, though two processes have it four times"
    assert len(record.inotify[0].holders) == 3
    resolved = {watch.wd: watch.path for watch in record.inotify[0].watches}
    assert {path: resolved[wd] for path, wd in numbers.items()} == paths
    assert resolved[link] == "/low/link"
    assert all(resolved[wd].startswith("FD:") for wd in gone.values())

    with container.frozen():
        detached = watches.detach(watches.settle(record, pids, container.init))
        assert container.fdinfo(fd) == []
        assert detached.inotify[0].next_wd == following
        assert detached.inotify[0].lost > 0
        back = watches.from_json(json.loads(json.dumps(watches.to_json(detached))))
        assert watches.reattach(back, pids) == []
        assert container.fdinfo(fd) == before
        assert watches.reattach(back, pids) == [], "a second time there is nothing to do"
        assert container.fdinfo(fd) == before

    assert container.ask("child.events('a')") == [], "neither old events nor IN_IGNORED"
    for path in ("/low/file", "/low/deep/er/file", "/low/copied", "/t/file", "/bind/file", "/t/cfg/..data/key"):
        container.ask(f"child.touch({path!r})")
        assert [numbers[path], MODIFY] in container.ask("child.events('a')"), path
    container.ask("write('/up/new')")
    assert [numbers["/up"], CREATE] in container.ask("child.events('a')")
    for file, wd in enumerate(gone.values()):
        container.ask(f"os.pread(child.kept[{file}].fileno(), 1, 0).decode()")
        assert [wd, ACCESS] in container.ask("child.events('a')")
    container.ask("child.touch('/low/once')")
    assert [once, 0x8000] in container.ask("child.events('a')"), "a ONESHOT watch goes after its first event"
    assert f"wd:{tidy:x} " in " ".join(container.fdinfo(fd))
    assert container.ask("child.watch('a', '/etc')") == following


def test_kernel_without_fid_handles(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 6.5 nothing has a handle on overlay and proc: device and inode number must do."""
    monkeypatch.setattr(syscalls, "_fid_flag", 0)
    paths = ["/low/file", "/low/copied", "/low/deep", "/up", "/t/file", "/proc/sys/kernel/hostname", "/bind/file"]
    container.ask("child.new('a')")
    numbers = {container.ask(f"child.watch('a', {path!r})"): path for path in paths}
    record = there_and_back(container, container.pids)
    assert {watch.wd: watch.path for watch in record.inotify[0].watches} == numbers


def test_fanotify(container: Container) -> None:
    """Inode, mount and file system marks of classic and FID groups keep masks, ignore masks and flags, and deliver."""
    classic = container.ask("child.group('classic', 0x2)")  # FAN_NONBLOCK
    fid = container.ask("child.group('fid', 0x2 | 0x200 | 0xc00)")  # FAN_REPORT_FID | FAN_REPORT_DFID_NAME
    container.ask("child.mark('classic', 0x1, 0x2 | 0x08000000, '/low')")  # FAN_MODIFY | FAN_EVENT_ON_CHILD
    container.ask("child.mark('classic', 0x1 | 0x20 | 0x40, 0x2, '/low/ignored')")  # IGNORED_MASK | SURV_MODIFY
    container.ask("child.mark('classic', 0x1 | 0x10, 0x20, '/t')")  # FAN_MARK_MOUNT, FAN_OPEN
    container.ask("child.mark('fid', 0x1 | 0x200, 0x100 | 0x200 | 0x40000000, '/up')")  # EVICTABLE; CREATE, DELETE
    container.ask("child.mark('fid', 0x1 | 0x400 | 0x40, 0x2, '/low/deep')")  # FAN_MARK_IGNORE with SURV_MODIFY
    container.ask("child.mark('fid', 0x1 | 0x100, 0x8, '/bind')")  # FAN_MARK_FILESYSTEM, FAN_CLOSE_WRITE
    container.ask("child.touch('/low/file')")
    before = container.fdinfo(classic), container.fdinfo(fid)
    pids = container.pids
    descriptors = len(os.listdir("/proc/self/fd"))
    record = watches.resolve(watches.find(pids), container.init)
    with container.frozen():
        detached = watches.detach(watches.settle(record, pids, container.init))
        assert sum(group.lost for group in detached.fanotify) >= 1
        assert len(os.listdir("/proc/self/fd")) == descriptors, "the descriptors that events bring are closed"
        assert [line for line in container.fdinfo(classic) + container.fdinfo(fid) if "mask:" in line] == []
        back = watches.from_json(json.loads(json.dumps(watches.to_json(detached))))
        assert watches.reattach(back, pids) == []
        assert watches.reattach(back, pids) == []
        assert (container.fdinfo(classic), container.fdinfo(fid)) == before
    assert container.ask("child.fan_events('classic')") == []
    container.ask("child.touch('/low/ignored')")
    assert container.ask("child.fan_events('classic')") == []
    container.ask("child.touch('/low/file')")
    container.ask("child.touch('/t/file')")
    assert sorted(set(container.ask("child.fan_events('classic')"))) == [0x2, 0x20]
    container.ask("child.fan_events('fid')")
    container.ask("write('/up/created')")
    container.ask("child.touch('/bind/file')")
    masks = container.ask("child.fan_events('fid')")
    assert any(mask & 0x100 for mask in masks) and any(mask & 0x8 for mask in masks)


def test_marks_of_mounts_need_the_right(container: Container) -> None:
    """A process that may not mark a mount or a file system gets no such mark from a record, whatever that says."""
    container.ask("child.group('a', 0x2)")
    container.ask("child.mark('a', 0x1 | 0x10, 0x20, '/t')")
    container.ask("child.fork('os.setuid(1000)')")
    container.ask("os.close(child.groups['a'])")
    pids = container.pids
    with container.frozen():
        record = watches.detach(watches.settle(watches.find(pids), pids, container.init))
        assert [problem.reason for problem in watches.reattach(record, pids)] == ["not-allowed"]


def test_permission_events_pending(container: Container) -> None:
    """A listener's unanswered questions are not taken from it: refused, and its marks stay."""
    fd = container.ask("child.group('a', 0x2 | 0x4)")  # FAN_CLASS_CONTENT
    container.ask("child.mark('a', 0x1, 0x10000, '/low/file')")  # FAN_OPEN_PERM
    pids = container.pids
    record = watches.resolve(watches.find(pids), container.init)
    assert len(watches.permission_groups(record)) == 1
    before = container.fdinfo(fd)
    opener = subprocess.Popen(["cat", f"/proc/{container.init}/root/low/file"], stdout=subprocess.DEVNULL)
    try:
        duplicate = pidfd_getfd(container.init, fd)
        assert select.select([duplicate], [], [], PATIENCE)[0]
        os.close(duplicate)
        with container.frozen(), pytest.raises(Refusal, match="fanotify-permission-pending"):
            watches.detach(watches.settle(record, pids, container.init))
        assert container.fdinfo(fd) == before
    finally:
        container.ask("os.close(child.groups['a'])")  # answers all of them
        assert opener.wait(PATIENCE) == 0


def test_changes_between_look_and_freeze(container: Container) -> None:
    """What was renamed, replaced or added after the first look is found again in the second."""
    container.ask("child.new('a')")
    moved = container.ask("child.watch('a', '/low/file')")
    kept = container.ask("child.watch('a', '/up')")
    pids = container.pids
    record = watches.resolve(watches.find(pids), container.init)
    container.ask("os.rename('/low/file', '/old/renamed')")
    container.ask("write('/low/file', 'another')")
    added = container.ask("child.watch('a', '/low/file')")
    with container.frozen():
        settled = watches.settle(record, pids, container.init)
    assert {watch.wd: watch.path for watch in settled.inotify[0].watches} == {
        moved: "/old/renamed",
        kept: "/up",
        added: "/low/file",
    }


def test_other_root_and_no_path(container: Container) -> None:
    """A watch from before a chroot, and one from inside it; a watch on what has no path is refused by name."""
    container.ask("child.new('a')")
    container.ask("child.watch('a', '/jail/in/file')")
    container.ask('child.fork(\'os.chroot("/jail"); child.new("b"); child.watch("b", "/in/file")\')')
    inside = "libc.unshare(0x20000); libc.mount(b'none', b'/old', b'tmpfs', 0, None); os.mkdir('/old/private');"
    inside += "child.new('c'); child.watch('c', '/old/private')"
    sandbox = container.ask(f"child.fork({inside!r})")  # a mount namespace of its own
    record = there_and_back(container, container.pids)
    places = sorted((watch.path, watch.root) for one in record.inotify for watch in one.watches)
    assert places == [("/jail/in/file", 0), ("/jail/in/file", 0), ("/old/private", sandbox)]
    container.ask("os.mkdir('/t/hidden')")
    container.ask("child.watch('a', '/t/hidden')")
    container.ask("os.chdir('/t/hidden')")
    container.ask("os.rmdir('/t/hidden')")
    pids = container.pids
    with container.frozen(), pytest.raises(Refusal, match="watch-not-found"):
        watches.settle(watches.find(pids), pids, container.init)


def hostile(path: str, root: int = 0) -> Record:
    watch = Watch(1, MODIFY, Target(0, 0, 0, ""), path, root)
    return Record((Instance((Holder(1, -1),), (watch,)),), init=1)


def test_hostile_record(container: Container, tmp_path: Path) -> None:
    """No path of a record leads out of the container's root: not by "..", nor by links, /proc or descriptors."""
    fd = container.ask("child.new('a')")
    secret = tmp_path / "secret"
    secret.write_text("host")
    pids = container.pids
    paths = [
        f"/../../../../../../../..{secret}",
        f"/..{secret}",
        "/escape/secret",
        "/link/file",
        "/proc/1/root/etc",
        f"/proc/1/root{secret}",
        "/proc/self/root",
        f"FD:{os.getpid()}:0",
        "FD:999999:0",
        "",
    ]

    def attempt(path: str, root: int = 0) -> list[Problem]:
        record = hostile(path, root)
        one = record.inotify[0]._replace(holders=(Holder(1, fd),))
        return watches.reattach(record._replace(inotify=(one,)), pids)

    with container.frozen():
        for path in paths:
            assert [problem.reason for problem in attempt(path)] == ["path-gone"], path
            assert container.fdinfo(fd) == []
        assert [problem.reason for problem in attempt("/low", os.getpid())] == ["path-gone"]
        # ".." is caught at the root: this is the container's own folder
        assert attempt("/../../low") == []
        assert f"ino:{os.stat(f'/proc/{container.init}/root/low').st_ino:x} " in container.fdinfo(fd)[0]
    container.ask("child.unwatch('a', 1)")
    with container.frozen():
        assert attempt("/escape") == [], "a link at the end is itself what is watched"
        assert f"ino:{os.lstat(f'/proc/{container.init}/root/escape').st_ino:x} " in container.fdinfo(fd)[0]
    wrong = hostile("/low")._replace(inotify=(hostile("/low").inotify[0]._replace(holders=(Holder(1, 0),)),))
    assert [problem.reason for problem in watches.reattach(wrong, pids)] == ["descriptor-gone"], "fd 0 is a pipe"


def test_kubelet_volume_of_another_node(container: Container) -> None:
    """A watch on a file of a projected volume follows the volume's ..data to this node's dated folder."""
    container.ask("child.new('a')")
    container.ask("child.watch('a', '/t/cfg/..data/key')")
    pids = container.pids
    with container.frozen():
        record = watches.detach(watches.settle(watches.find(pids), pids, container.init))
    container.ask("os.rename('/t/cfg/..2026_01_02_03_04_05.1', '/t/cfg/..2027_01_02_03_04_05.2')")
    container.ask("[os.unlink('/t/cfg/..data'), os.symlink('..2027_01_02_03_04_05.2', '/t/cfg/..data')]")
    with container.frozen():
        assert watches.reattach(record, pids) == []
    container.ask("child.touch('/t/cfg/..data/key')")
    assert [1, MODIFY] in container.ask("child.events('a')")


def test_detach_undoes_itself(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the second instance fails, the first has its watches back."""
    first = container.ask("child.new('a')")
    second = container.ask("child.new('b')")
    container.ask("[child.watch('a', '/low'), child.watch('b', '/up')]")
    before = container.fdinfo(first), container.fdinfo(second)
    pids = container.pids
    done: list[int] = []
    real = inotify.detach

    def fails_second(fd: int, instance: Instance) -> Instance:
        if done:
            raise OSError(5, "as if")
        done.append(fd)
        return real(fd, instance)

    monkeypatch.setattr(inotify, "detach", fails_second)
    with container.frozen():
        with pytest.raises(Refusal, match="watches-detach-failed"):
            watches.detach(watches.settle(watches.find(pids), pids, container.init))
        assert (container.fdinfo(first), container.fdinfo(second)) == before


def kill_timer(pid: int, fd: int) -> None:
    """As CRIU restores a periodic timer that it found expired."""
    duplicate = pidfd_getfd(pid, fd)
    interval = timerfd_gettime(duplicate).interval
    timerfd_settime(duplicate, 0, TimerSetting(0, interval))
    os.close(duplicate)


def test_timers(container: Container) -> None:
    """A periodic timer that expired unread ticks on after a restore; others are left as they are."""
    ticking = container.ask("child.timer('ticking', 0.01, 0.01)")
    absolute = container.ask("child.timer('absolute', 1, 0.01, 1, 0)")  # TFD_TIMER_ABSTIME, CLOCK_REALTIME
    slow = container.ask("child.timer('slow', 0.001, 5000)")
    off = container.ask("child.timer('off', 0, 0.01)")
    once = container.ask("child.timer('once', 5000, 0)")
    armed = container.ask("child.timer('armed', 5000, 5000)")
    pids = container.pids
    for name in ("ticking", "absolute", "slow"):  # each has expired once and isn't read
        container.ask(f"__import__('select').select([child.timers[{name!r}]], [], [], {PATIENCE})[0]")
    with container.frozen():
        record = watches.detach(watches.settle(watches.find(pids), pids, container.init))
        by_fd = {timer.holders[0].fd: timer for timer in record.timers}
        assert by_fd[absolute].due > 0
        assert 4000 * 10**9 < by_fd[slow].value <= 5000 * 10**9, "the phase is kept"
        record = watches.from_json(json.loads(json.dumps(watches.to_json(record))))
        for fd in (ticking, absolute, slow):
            kill_timer(container.init, fd)
        assert watches.rearm(record, pids) == []
        assert watches.rearm(record, pids) == []
        now = {timer.holders[0].fd: timer for timer in watches.find(pids).timers}
        assert (now[off].value, now[off].ticks) == (0, 0)
        assert now[once].value > 4000 * 10**9
        assert now[armed].ticks == 0, "not one that had to be set"
        assert now[slow].value > 4000 * 10**9 and now[slow].ticks == 1
        assert now[absolute].flags == 1
    for name in ("ticking", "absolute"):
        for _ in range(3):
            assert container.ask(f"child.ticks({name!r}, {PATIENCE})") >= 1
