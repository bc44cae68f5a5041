"""A process whose threads all stand still under ptrace(2), one of which can be made to drop memory of its own.

No other call drops pages of another process: process_madvise(2) knows no MADV_DONTNEED for them. The request and option
numbers are those of <linux/ptrace.h>. Only x86-64: elsewhere `Stopped` refuses, and CRIU carries the memory.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterable

from .copying import LIBC, transfer
from .regions import Region, there_in

CONT, DETACH, SYSCALL, GETREGS, SETREGS = 7, 17, 24, 12, 13
SETOPTIONS, SEIZE, INTERRUPT, GETSIGMASK, SETSIGMASK = 0x4200, 0x4206, 0x4207, 0x420A, 0x420B
O_TRACESYSGOOD, O_SUSPEND_SECCOMP = 0x1, 0x200000
EVENT_STOP = 128
IN_SYSCALL_STOP = signal.SIGTRAP | 0x80
WALL = 0x40000000  # waitpid: of threads too
MADVISE, DONTNEED = 28, 4
USER_CODE = 0x33  # cs of a 64-bit program
SYSCALL_INSTRUCTION = b"\x0f\x05"

LIBC.ptrace.restype = ctypes.c_long
LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]


class Registers(ctypes.Structure):
    """struct user_regs_struct of <sys/user.h>, x86-64."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base "
        "gs_base ds es fs gs".split()
    )


class CannotStop(Exception):
    """This process cannot be made to stand still, or to drop its memory; it runs on as before."""


class Stopped:
    """A process, from `__init__` to `let_go`, which is due whatever happens. All calls from one thread."""

    def __init__(self, pid: int, patience: float = 5.0) -> None:
        if os.uname().machine != "x86_64" or ctypes.sizeof(ctypes.c_void_p) != 8:
            raise CannotStop(f"not known for {os.uname().machine}")
        self.pid = pid
        self.end = time.monotonic() + patience
        self.threads: list[int] = []
        self.standing: set[int] = set()
        self.running = False  # the thread that is to make a call
        try:
            while fresh := [tid for tid in self._tasks() if tid not in self.threads]:
                for tid in fresh:
                    self._seize(tid)
                for tid in fresh:
                    if tid in self.threads:
                        self._await_stop(tid)
        except BaseException:
            self.let_go()
            raise

    def drop(self, found: Iterable[Region]) -> None:
        """Have the process drop regions, MADV_DONTNEED of madvise(2): they are empty afterwards, which is looked at."""
        tid, before = self._in_a_call()
        at = self._instruction()
        # only now, that it stands still: a running thread must not be without its filter for a moment
        self._ask(SETOPTIONS, tid, 0, O_TRACESYSGOOD | (O_SUSPEND_SECCOMP if self._filtered(tid) else 0))
        mask = ctypes.c_uint64()
        self._ask(GETSIGMASK, tid, 8, ctypes.addressof(mask))
        everything = ctypes.c_uint64(0xFFFFFFFFFFFFFFFF)
        self._ask(SETSIGMASK, tid, 8, ctypes.addressof(everything))  # a handler must not run on registers of ours
        try:
            for region in found:
                result = self._call(tid, before, at, MADVISE, region.start, region.size, DONTNEED)
                if result != 0:
                    raise CannotStop(f"madvise of {region.size} bytes in process {self.pid}: {os.strerror(-result)}")
                if 1 in there_in(self.pid, region):
                    raise CannotStop(f"process {self.pid} kept what it was to drop")
        finally:
            # It stands on its way out of a call again, and the end of the tracing wakes it as a signal does: the kernel
            # then begins the interrupted call anew, or ends it, as it would have.
            self._stand(tid)
            try:
                self._ask(SETREGS, tid, 0, ctypes.addressof(before))
            finally:
                self._ask(SETSIGMASK, tid, 8, ctypes.addressof(mask))

    def let_go(self) -> None:
        """Let every thread run on. One that had not stopped yet does so when this process ends, with the signal that
        it may be about to get."""
        for tid in self.standing:
            LIBC.ptrace(DETACH, tid, 0, 0)  # one that is gone needs nothing
        self.threads, self.standing = [], set()

    # --- stopping ---

    def _tasks(self) -> list[int]:
        try:
            return [int(name) for name in os.listdir(f"/proc/{self.pid}/task")]
        except OSError:
            raise CannotStop(f"process {self.pid} is gone") from None

    def _seize(self, tid: int) -> None:
        if LIBC.ptrace(SEIZE, tid, 0, O_TRACESYSGOOD) != 0:
            number = ctypes.get_errno()
            if number == 3 and not os.path.exists(f"/proc/{self.pid}/task/{tid}"):  # ESRCH: it ended meanwhile
                return
            raise CannotStop(f"thread {tid} of process {self.pid}: {os.strerror(number)}")
        self.threads.append(tid)
        self._ask(INTERRUPT, tid)

    def _filtered(self, tid: int) -> bool:
        """Has the thread a seccomp filter, which may end it for a call that is not its own?"""
        with open(f"/proc/{self.pid}/task/{tid}/status", "rb") as lines:
            return any(line.startswith(b"Seccomp:") and line.split()[1] != b"0" for line in lines)

    def _await_stop(self, tid: int) -> None:
        """Until the thread stands at our interrupt. A signal that comes first is delivered as it would have been."""
        while True:
            status = self._wait(tid)
            number = os.WSTOPSIG(status)
            if status >> 16 == EVENT_STOP:
                if number != signal.SIGTRAP:
                    raise CannotStop(f"process {self.pid} is stopped by a signal")
                self.standing.add(tid)
                return
            self._ask(CONT, tid, 0, number)

    def _wait(self, tid: int) -> int:
        pause = 0.00005
        while True:
            found, status = os.waitpid(tid, WALL | os.WNOHANG)
            if found:
                if not os.WIFSTOPPED(status):
                    self.threads.remove(tid)
                    self.standing.discard(tid)
                    raise CannotStop(f"thread {tid} of process {self.pid} ended")
                return status
            if time.monotonic() > self.end:
                raise CannotStop(f"thread {tid} of process {self.pid} does not stop")
            time.sleep(pause)
            pause = min(pause * 2, 0.005)

    # --- a call of ours in one of its threads ---

    def _in_a_call(self) -> tuple[int, Registers]:
        """A thread that stands in a system call, with its registers: one that doesn't may be in a restartable sequence
        (rseq(2)), which must not be left."""
        for tid in self.threads:
            registers = Registers()
            self._ask(GETREGS, tid, 0, ctypes.addressof(registers))
            if registers.cs == USER_CODE and registers.orig_rax < 1 << 63:
                return tid, registers
        raise CannotStop(f"no thread of process {self.pid} is in a system call")

    def _instruction(self) -> int:
        """Where the vdso, which every process has, has a `syscall` instruction."""
        with open(f"/proc/{self.pid}/maps", "rb") as lines:
            found = [fields for line in lines if (fields := line.split())[5:] == [b"[vdso]"]]
        if not found:
            raise CannotStop(f"process {self.pid} has no vdso")
        first, _, last = found[0][0].decode().partition("-")
        code = bytearray(int(last, 16) - int(first, 16))
        transfer(LIBC.process_vm_readv, self.pid, int(first, 16), memoryview(code))
        at = code.find(SYSCALL_INSTRUCTION)
        if at < 0:
            raise CannotStop(f"the vdso of process {self.pid} has no syscall instruction")
        return int(first, 16) + at

    def _call(self, tid: int, before: Registers, at: int, number: int, *arguments: int) -> int:
        """The result of a system call of the thread; it stands behind the call then."""
        ours = Registers.from_buffer_copy(before)
        ours.rip, ours.rax, ours.orig_rax = at, number, 0xFFFFFFFFFFFFFFFF
        ours.rdi, ours.rsi, ours.rdx = arguments
        self._ask(SETREGS, tid, 0, ctypes.addressof(ours))
        self.end = time.monotonic() + 60
        for way in ("in", "out"):
            self._ask(SYSCALL, tid)
            self.running = True
            status = self._wait(tid)
            self.running = False
            self._ask(GETREGS, tid, 0, ctypes.addressof(ours))
            if os.WSTOPSIG(status) != IN_SYSCALL_STOP or (way == "in" and ours.orig_rax != number):
                raise CannotStop(f"thread {tid} of process {self.pid} stopped for {os.WSTOPSIG(status)}")
        return ctypes.c_int64(ours.rax).value

    def _stand(self, tid: int) -> None:
        """Wait until the thread stands, however long that takes: it must not run on with our registers."""
        if self.running:
            self._ask(INTERRUPT, tid)
            self.end = float("inf")
            self._wait(tid)
            self.running = False

    def _ask(self, request: int, tid: int, address: int = 0, data: int = 0) -> None:
        if LIBC.ptrace(request, tid, address, data) != 0:
            raise CannotStop(f"ptrace {request:#x} of thread {tid}: {os.strerror(ctypes.get_errno())}")
