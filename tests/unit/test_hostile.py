"""What an image may not give a process: decided from values alone."""

from __future__ import annotations

from typing import Any

import pytest
from grit_runtime import hostile
from grit_runtime.criu.inventory import Namespaces
from grit_runtime.criu.tasks import Capabilities, Credentials, Task

CHOWN, NET_ADMIN, SYS_ADMIN, SETUID = (
    hostile.mask([f"CAP_{name}"]) for name in "CHOWN NET_ADMIN SYS_ADMIN SETUID".split()
)


def spec(**process: Any) -> dict[str, Any]:
    given = {kind: ["CAP_CHOWN", "CAP_SETUID"] for kind in ("bounding", "permitted", "effective")}
    kinds = [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")]
    return {"process": {"capabilities": given, "user": {"uid": 0, "gid": 0}, **process}, "linux": {"namespaces": kinds}}


def credentials(**changes: Any) -> Credentials:
    honest = Credentials(1, 0, 0, 0, 0, [], Capabilities(0, CHOWN, CHOWN, CHOWN | SETUID, 0), 0, False, "", "disabled")
    return honest._replace(**changes)


def what(one: Credentials, wanted: dict[str, Any]) -> list[str]:
    return list(hostile.raised(one, wanted))


def test_numbers_of_capabilities() -> None:
    assert CHOWN == 1 and NET_ADMIN == 1 << 12 and SYS_ADMIN == 1 << 21
    assert hostile.mask(["CAP_CHECKPOINT_RESTORE"]) == 1 << 40
    assert hostile.names(1 << 21 | 1 << 50) == ["CAP_SYS_ADMIN", "CAP_50"]


def test_an_honest_process_may_have_less_and_what_its_bounding_set_gives() -> None:
    assert what(credentials(), spec()) == []
    assert what(credentials(capabilities=Capabilities(SETUID, SETUID, 0, CHOWN, SETUID)), spec()) == []
    assert what(credentials(uid=33, gid=33, groups=[33], no_new_privs=True, seccomp="filter"), spec()) == []


@pytest.mark.parametrize("kind", Capabilities._fields)
def test_a_capability_beyond_the_spec_in_any_set(kind: str) -> None:
    more = credentials().capabilities._replace(**{kind: NET_ADMIN})
    assert what(credentials(capabilities=more), spec()) == [f"CAP_NET_ADMIN in its {kind} set"]
    assert what(credentials(capabilities=more), {}) != []


def test_filter_and_no_new_privs() -> None:
    wanted = spec()
    wanted["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ERRNO"}
    assert what(credentials(), wanted) == ["no seccomp filter"]
    assert what(credentials(seccomp="filter"), wanted) == []
    assert what(credentials(), spec(noNewPrivileges=True)) == ["no no_new_privs"]
    assert what(credentials(no_new_privs=None), spec(noNewPrivileges=True)) == ["no no_new_privs"]


def test_another_user_where_nobody_could_become_one() -> None:
    bare = spec(noNewPrivileges=True, user={"uid": 1000, "gid": 1000, "additionalGids": [7]}, capabilities={})
    none = Capabilities(0, 0, 0, 0, 0)
    own = credentials(uid=1000, effective_uid=1000, gid=1000, effective_gid=1000, groups=[7], capabilities=none)
    own = own._replace(no_new_privs=True)
    assert what(own, bare) == []
    assert what(own._replace(effective_uid=0), bare) == ["user 0"]
    assert what(own._replace(groups=[0, 7]), bare) == ["group 0"]


def test_tasks_outside_of_what_the_spec_gives() -> None:
    ids = {"pid": 1}
    inside = Namespaces(1, ids, ("user", "cgroup", "time"))
    assert hostile.outside([inside], spec()) == []
    assert hostile.outside([inside, Namespaces(2, ids, ("net", "mnt"))], spec()) == ["mount", "network"]
    shared = spec()
    shared["linux"]["namespaces"] = [{"type": "pid"}, {"type": "mount"}]
    assert hostile.outside([Namespaces(2, ids, ("net",))], shared) == []


def test_refusals_name_the_process() -> None:
    bad = credentials(capabilities=Capabilities(0, 0, 0, SYS_ADMIN, 0))
    task = Task(7, 1, "x", "running", "x86_64", [7], "", [credentials(), bad], [], 0, 0)
    found = hostile.refusals([task], [Namespaces(7, {}, ("pid",))], spec())
    assert [one.reason for one in found] == ["privilege-raised", "outside-namespaces"]
    assert "process 7 has CAP_SYS_ADMIN in its bounding set" in found[0].message
