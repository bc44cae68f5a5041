"""The table of reasons."""

import string

import pytest
from grit_runtime import checks


def test_no_reason_stands_twice() -> None:
    seen: dict[str, str] = {}
    for area, part in checks.areas().items():
        for name in part:
            assert name not in seen, f"{name} stands in {seen[name]} and {area}"
            seen[name] = area


def test_every_row_has_a_plain_name_and_says_what_is_wrong_and_what_to_do() -> None:
    for name, row in checks.table().items():
        assert set(name) <= set(string.ascii_lowercase + string.digits + "-"), name
        assert row.text and row.remedy, name
        assert not row.text.endswith("."), name
        assert "\n" not in row.text + row.remedy, name


def test_facts_from_outside_can_not_break_the_line() -> None:
    refusal = checks.refuse("manifest-missing", path="/x\n\x1b[31m" + "y" * 1000)
    assert "\n" not in str(refusal)
    assert "\x1b" not in str(refusal)
    assert len(str(refusal)) < 700
    assert str(refusal).startswith("grit-runtime: manifest-missing: /x??[31m")


def test_a_reason_that_no_table_has_is_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError):
        checks.refuse("no-such-reason")
