"""The configuration: what the file means, and that nothing in it is silently ignored."""

from __future__ import annotations

from pathlib import Path

import pytest
from grit_runtime import settings
from grit_runtime.checks import Refusal

SHIPPED = Path(__file__).parents[2] / "packaging/config.toml"


def refused(content: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        settings.check(settings.parse(content))
    return caught.value


def test_the_shipped_file_holds_every_key_with_its_default() -> None:
    tree = settings.parse(SHIPPED.read_text())
    assert settings.check(tree) == settings.Settings()
    assert {table: set(values) for table, values in tree.items()} == {
        table: set(getattr(settings.Settings(), table)._fields) for table in settings.Settings._fields
    }


def test_an_empty_file_means_the_defaults() -> None:
    assert settings.check(settings.parse("")) == settings.Settings()


def test_values_arrive() -> None:
    found = settings.check(
        settings.parse(
            '[runtime]\nnext = "crun"\n[checkpoint]\nghost_limit = "512M"\nshm = false\n'
            '[restore]\nroots = ["/a", "/b"]\n[cuda]\nmargin = 7\n'
        )
    )
    assert found.runtime.next == "crun"
    assert (found.checkpoint.ghost_limit, found.checkpoint.shm, found.checkpoint.rw_layer) == (512 << 20, False, True)
    assert (found.restore.roots, found.cuda.margin) == (("/a", "/b"), 7)


@pytest.mark.parametrize(
    "content, reason, key",
    [
        ("[runtme]\nnext = 'runc'", "config-unknown-key", "runtme"),
        ("[runtime]\nnxt = 'runc'", "config-unknown-key", "runtime.nxt"),
        ("runtime = 'runc'", "config-wrong-type", "runtime"),
        ("[runtime]\nnext = 1", "config-wrong-type", "runtime.next"),
        ("[checkpoint]\nshm = 1", "config-wrong-type", "checkpoint.shm"),
        ("[checkpoint]\ntimeout = true", "config-wrong-type", "checkpoint.timeout"),
        ("[checkpoint]\nghost_limit = '1X'", "config-wrong-type", "checkpoint.ghost_limit"),
        ("[checkpoint]\nghost_limit = -1", "config-wrong-type", "checkpoint.ghost_limit"),
        ("[restore]\nallow = 'x'", "config-wrong-type", "restore.allow"),
        ("[restore]\nallow = [1]", "config-wrong-type", "restore.allow"),
        ("[restore]\nroots = ['here']", "config-wrong-value", "restore.roots"),
        ("[restore]\nwait = -1", "config-wrong-value", "restore.wait"),
        ("[cuda]\nway = 'magic'", "config-wrong-value", "cuda.way"),
        ("[runtime]\nnext = ''", "config-wrong-value", "runtime.next"),
        ("[runtime]\nnext = 'bin/runc'", "config-wrong-value", "runtime.next"),
    ],
)
def test_mistakes_are_refused_by_the_keys_name(content: str, reason: str, key: str) -> None:
    refusal = refused(content)
    assert refusal.reason == reason
    assert f" {key}" in refusal.message


def test_a_file_that_is_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    for content, reason in [(None, "config-missing"), (b"[runtime", "config-broken"), (b"\xff", "config-broken")]:
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(Refusal) as caught:
            settings.load(str(path))
        assert caught.value.reason == reason
        assert str(path) in caught.value.message


def test_sizes() -> None:
    sizes = {"1G": 1 << 30, "64M": 64 << 20, "0": 0, "12K": 12288, 5: 5, "2T": 2 << 40}
    assert {value: settings.size(value) for value in sizes} == sizes
    assert [settings.size(value) for value in ("", "G", "1g", "1.5G", "-1", "1 G", "²", True, None, 1.5)] == [None] * 10
