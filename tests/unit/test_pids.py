"""Which PIDs a restore needs, and which ones a shared pid namespace has left."""

import os
import threading

from grit_runtime import pids

STATUS = """Name:\ttail
NStgid:\t4711\t40\t7
NSpid:\t4712\t41\t8
NSpgid:\t4711\t40\t7
NSsid:\t4700\t30\t0
"""


def test_numbers_at_the_level_of_the_namespace() -> None:
    assert pids.numbers(STATUS, 0) == {8, 7}, "a session from outside has no number here"
    assert pids.numbers(STATUS, 1) == {41, 40, 30}
    assert pids.numbers(STATUS, 2) == {4712, 4711, 4700}
    assert pids.numbers(STATUS, 3) == set()


def test_what_is_needed_and_taken() -> None:
    wanted = pids.needed([(7, 0, [7, 9, 10]), (30, 7, [30])])
    assert wanted == {7, 9, 10, 30}
    assert pids.first_clash(wanted, {1, 2, 8}) is None and pids.first_clash(wanted, {1, 30, 10}) == 10


def test_our_own_namespace_is_looked_through() -> None:
    done, there = threading.Event(), threading.Event()
    mine: list[int] = []

    def live() -> None:
        mine.append(threading.get_native_id())
        there.set()
        done.wait(60)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        assert there.wait(60)
        assert {os.getpid(), os.getpgid(0), *mine} <= pids.taken("/proc/self/ns/pid")
    finally:
        done.set()
        thread.join(60)
    assert pids.taken("/proc/self/ns/user") == set(), "nobody lives in what is no pid namespace"
