"""Periodic timers across a dump.

A periodic timerfd that has expired isn't set again until somebody reads it. A frozen process doesn't, CRIU sees a
timer with no time left, and restores one that never ticks again. So: before the dump it is set again as a read would
do it (the ticks stay unread), and after the restore one that expired once more before CRIU looked is set anew.
"""

from __future__ import annotations

import os
import time

from . import fdinfo
from .fanotify import Finder
from .finding import TIMERFD
from .record import Problem, Record, Timer
from .syscalls import TFD_TIMER_ABSTIME, TimerSetting, timerfd_gettime, timerfd_set_ticks, timerfd_settime

_REALTIME = (0, 8)  # linux/time.h CLOCK_REALTIME, CLOCK_REALTIME_ALARM


def state(fd: int) -> Timer:
    """The timer behind a descriptor of ours, as it is, without setting it again."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        return fdinfo.timerfd(file.read())


def catch_up(record: Record, hosts: dict[int, int], descriptor: Finder) -> tuple[Timer, ...]:
    """The record's timers as they are now; those that expired unread are set again in phase. The process can't tell."""
    timers = []
    for timer in record.timers:
        fd = descriptor(timer.holders, hosts, TIMERFD) if timer.ticking else None
        if fd is None:
            timers.append(timer)
            continue
        try:
            remains = timerfd_gettime(fd).value
            now = state(fd)
            due = 0
            if now.flags & TFD_TIMER_ABSTIME and now.clock in _REALTIME:
                due = time.time_ns() + remains
            timers.append(now._replace(holders=timer.holders, value=remains, due=due))
        except OSError:
            timers.append(timer)
        finally:
            os.close(fd)
    return tuple(timers)


def setting(timer: Timer, now: int, realtime: int) -> tuple[int, TimerSetting]:
    """(flags, setting) for timerfd_settime(2) that lets a dead timer tick on. `now`: its clock, `realtime`: the wall
    clock's time, both ns."""
    flags = timer.flags & TFD_TIMER_ABSTIME
    remains = timer.value or timer.interval
    if timer.due:
        past = max(0, realtime - timer.due)
        remains = max(1, timer.due + -(-past // timer.interval) * timer.interval - realtime)
    return flags, TimerSetting(remains + (now if flags else 0), timer.interval)


def rearm(record: Record, hosts: dict[int, int], descriptor: Finder) -> list[Problem]:
    problems = []
    for timer in record.timers:
        if not timer.ticking:
            continue
        holder = timer.holders[0]
        fd = descriptor(timer.holders, hosts, TIMERFD)
        if fd is None:
            problems.append(Problem("descriptor-gone", "timerfd", holder.pid, holder.fd))
            continue
        try:
            present = state(fd)
            if present.value == 0 and present.clock == timer.clock:
                flags, wanted = setting(timer, time.clock_gettime_ns(timer.clock), time.time_ns())
                timerfd_settime(fd, flags, wanted)
                timerfd_set_ticks(fd, max(1, present.ticks))
        except OSError as error:
            problems.append(Problem("failed", "timerfd", holder.pid, holder.fd, detail=str(error)))
        finally:
            os.close(fd)
    return problems
