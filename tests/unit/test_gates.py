"""What stands between two nodes."""

import pytest
from grit_runtime import gates
from grit_runtime.checks import Refusal, refuse

NODE = {"arch": "x86_64", "cpu": "avx sse2", "criu": "4.2.1", "runtime": "runc", "kernel": "6.1"}


def reasons(**theirs: str) -> list[str]:
    return [refusal.reason for refusal in gates.node({**NODE, **theirs}, NODE)]


def test_the_same_node_is_fine() -> None:
    assert reasons() == []


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ({"arch": "aarch64", "cpu": "other"}, ["arch-mismatch"]),
        ({"cpu": "avx avx512f sse2"}, ["cpu-mismatch"]),
        ({"cpu": "sse2"}, []),
        ({"criu": "4.3"}, ["criu-older"]),
        ({"criu": "4.10"}, ["criu-older"]),
        ({"criu": "4.2"}, []),
        ({"criu": "x"}, []),
        ({"runtime": "crun"}, ["runtime-differs"]),
        ({"cpu": "hypervisor"}, []),
    ],
)
def test_what_differs_is_named(theirs: dict[str, str], expected: list[str]) -> None:
    assert reasons(**theirs) == expected


def test_a_file_of_another_content_is_named_and_a_missing_one_too() -> None:
    found = gates.files({"/a": "1:x", "/b": "1:x", "/c": "1:x"}, {"/a": "1:x", "/b": "1:y", "/c": None})
    assert [(f.reason, "/b" in f.message, "/c" in f.message) for f in found] == [
        ("file-differs", True, False),
        ("file-missing", False, True),
    ]


def test_a_file_that_is_not_compared_is_no_difference() -> None:
    assert gates.files({"/proc/1/maps": "1:x"}, {}) == []


def test_only_what_is_allowed_is_passed() -> None:
    refusals = [refuse("cpu-mismatch", missing="avx"), refuse("criu-older", theirs="5", ours="4")]
    with pytest.raises(Refusal) as caught:
        gates.first(refusals, {"cpu-mismatch"})
    assert caught.value.reason == "criu-older"
    assert gates.first(refusals, {"cpu-mismatch", "criu-older"}) == refusals
