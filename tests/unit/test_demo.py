"""The demo can fail: what it takes for a success and for the expected failure."""

from tests.demo.cases import WITH, WITHOUT, Case, Run

GOOD: dict[str, object] = {"bad": [], "memory_sha256_equal": True, "counter_gap": 0, "watches": 6,
                           "watches_same_number": 6, "watches_delivering": 4}  # fmt: skip
US = Case("everything", "node-a", "node-b", True)
COUNTER = Case("counter", "node-a", "node-b", False)
EVERYTHING = Case("everything", "node-a", "node-b", False)


def test_with_us_only_an_unharmed_container_is_a_success() -> None:
    assert Run(US, True, True, GOOD).as_expected
    assert not Run(US, True, True, {**GOOD, "bad": ["flock_held"]}).as_expected
    assert not Run(US, True, True, GOOD, "it is another process").as_expected
    assert not Run(US, True, False, None, "no").as_expected
    assert not Run(US).as_expected


def test_without_us_it_must_fail_as_on_the_nodes() -> None:
    assert Run(COUNTER, True, error="mnt: No mapping for 500:(null) mountpoint").as_expected
    assert not Run(COUNTER, False, error="mnt: No mapping for 500:(null) mountpoint").as_expected
    assert not Run(COUNTER, True, True, GOOD).as_expected
    assert not Run(COUNTER, True, error="something else").as_expected
    assert Run(EVERYTHING, error="fsnotify: Can't dump that handle").as_expected
    assert not Run(EVERYTHING, True, error="fsnotify: Can't dump that handle").as_expected


def test_both_directions_in_place_and_second_generation_are_run() -> None:
    cases = [case for life in WITH for case in life]
    moves = {(case.program, case.source, case.target) for case in cases}
    nodes = ("node-a", "node-b")
    assert moves == {(program, a, b) for program in ("counter", "everything") for a in nodes for b in nodes}
    assert {case.generation for case in cases} == {1, 2}
    assert {(case.source, case.leave_running) for case in cases} >= {("node-a", True), ("node-b", True)}
    assert {(case.program, case.source) for case in WITHOUT} == {(p, n) for p, n, _ in moves}


def test_a_row_has_the_documented_fields() -> None:
    row = Run(US, True, True, GOOD, None, {"checkpoint": 1.234}).row()
    assert row["seconds"] == {"checkpoint": 1.23, "copy": 0.0, "restore": 0.0}
    assert {"from", "to", "with_grit_runtime", "checkpointed", "restored", "memory_sha256_equal", "counter_gap",
            "watches", "watches_same_number", "watches_delivering", "error"} <= row.keys()  # fmt: skip
