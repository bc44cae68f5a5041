"""A bundle's config.json."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from grit_runtime import spec
from grit_runtime.checks import Refusal


@pytest.mark.parametrize("content, reason", [
    (None, "bundle-unreadable"), (b"", "config-not-json"), (b'{"a":', "config-not-json"), (b"[]", "config-not-json"),
    (b"\xff\xfe\xff", "config-not-json"), (b"[" * 100_000, "config-not-json"),
])  # fmt: skip
def test_what_is_not_a_spec_is_refused(tmp_path: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(Refusal) as caught:
        spec.read(str(tmp_path))
    assert caught.value.reason == reason and str(tmp_path) in caught.value.message


def test_written_whole_with_the_old_ones_mode_and_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}")
    path.chmod(0o640)
    old = path.stat()
    wanted = {"annotations": {"ü\ud800": '"'}, "n": [1, None]}
    spec.write(str(tmp_path), wanted)
    new = path.stat()
    assert (new.st_mode, new.st_uid, new.st_gid) == (old.st_mode, old.st_uid, old.st_gid) and new.st_ino != old.st_ino
    assert os.listdir(tmp_path) == ["config.json"]
    path.write_bytes(path.read_bytes().replace(b"\xed\xa0\x80", b""))
    assert spec.read(str(tmp_path)) == {"annotations": {"ü": '"'}, "n": [1, None]}


def test_a_failed_write_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / f"config.json.{os.getpid()}").symlink_to(tmp_path / "elsewhere")  # somebody waits for our write
    with pytest.raises(Refusal, match="bundle-unwritable"):
        spec.write(str(tmp_path), {"new": 1})
    assert (tmp_path / "config.json").read_text() == "{}" and not (tmp_path / "elsewhere").exists()


def test_names_and_sandboxes() -> None:
    assert spec.container_name({"annotations": {"io.kubernetes.cri.container-name": "app"}}) == "app"
    assert spec.container_name({"annotations": {"io.kubernetes.cri.container-name": 3}}) is None
    assert spec.container_name({"annotations": None}) is None
    assert spec.is_sandbox({"annotations": {"io.kubernetes.cri.container-type": "sandbox"}})
    assert not spec.is_sandbox({"annotations": {"io.kubernetes.cri.container-type": "container"}})
    assert not spec.is_sandbox({})
