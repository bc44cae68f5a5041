"""grit.json: written whole, read as if somebody else had written it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from grit_runtime import manifest
from grit_runtime.checks import Refusal

CONTENT: dict[str, Any] = {
    "node": {"kernel": "6", "arch": "x86_64", "cpu": "sse2", "criu": "4.2.1", "runtime": "runc"},
    "container": {}, "files": {}, "mounts": [], "watches": {}, "fingerprints": {}, "gpu": {},
}  # fmt: skip


def reason(folder: Path) -> str:
    with pytest.raises(Refusal) as caught:
        manifest.read(str(folder))
    return caught.value.reason


def test_what_is_written_is_read_again_and_only_root_may_read_it(tmp_path: Path) -> None:
    manifest.write(str(tmp_path), CONTENT)
    read = manifest.read(str(tmp_path))
    assert {name: read[name] for name in CONTENT} == CONTENT
    assert read["format"] == 1
    assert (tmp_path / "grit.json").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["grit.json"]


def test_a_folder_without_one_is_no_checkpoint(tmp_path: Path) -> None:
    assert reason(tmp_path) == "manifest-missing"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "manifest-broken"),
        ("[]", "manifest-broken"),
        ('{"format": "1"}', "manifest-broken"),
        ('{"format": 999999}', "manifest-future"),
        (json.dumps({"format": 1, **CONTENT, "files": []}), "manifest-broken"),
        (json.dumps({"format": 1, **CONTENT, "node": {"arch": 1}}), "manifest-broken"),
        ("[" * 200_000, "manifest-broken"),
    ],
    ids=["empty", "list", "text-format", "future", "files-list", "node", "deep"],
)
def test_what_is_not_a_manifest_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "grit.json").write_text(text)
    assert reason(tmp_path) == expected


def test_a_link_and_a_pipe_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text(json.dumps({"format": 1, **CONTENT}))
    (tmp_path / "grit.json").symlink_to("other")
    assert reason(tmp_path) == "manifest-broken"
    (tmp_path / "grit.json").unlink()
    os.mkfifo(tmp_path / "grit.json")
    assert reason(tmp_path) == "manifest-broken"


def test_every_change_of_a_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "PIECE", 1 << 20)
    (tmp_path / "pages-1.img").write_bytes(os.urandom((2 << 20) + 5))
    (tmp_path / "empty.img").write_bytes(b"")
    sums = manifest.sums(str(tmp_path), ["pages-1.img", "empty.img"])
    assert [len(sums[name]["pieces"]) for name in ("pages-1.img", "empty.img")] == [3, 1]
    assert manifest.differences(str(tmp_path), sums, content=True) == []
    with open(tmp_path / "pages-1.img", "r+b") as file:
        file.seek((1 << 20) + 7)
        byte = file.read(1)
        file.seek((1 << 20) + 7)
        file.write(bytes([byte[0] ^ 1]))
    assert manifest.differences(str(tmp_path), sums, content=False) == []
    assert manifest.differences(str(tmp_path), sums, content=True) == [("pages-1.img", "content")]
    os.truncate(tmp_path / "pages-1.img", 100)
    (tmp_path / "empty.img").unlink()
    found = manifest.differences(str(tmp_path), sums, content=False)
    assert found == [("empty.img", "missing"), ("pages-1.img", "size")]


def test_a_name_that_leaves_the_folder_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "link.img").symlink_to("/etc/passwd")
    names = {"../x": {"size": 1}, "/etc/passwd": {"size": 1}, "..": {}, "link.img": {"size": 11}, "x": 3}
    found = manifest.differences(str(tmp_path), names, content=True)
    assert found == [("../x", "name"), ("/etc/passwd", "name"), ("..", "name"), ("link.img", "name"), ("x", "name")]


def test_hashing_while_a_file_grows_comes_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "PIECE", 1 << 16)
    summing = manifest.Sums(str(tmp_path))
    for _ in range(40):
        for name in ("pages-1.img", "pages-2.img"):
            with open(tmp_path / name, "ab") as file:
                file.write(os.urandom(30_001))
    found = summing.finish(["pages-1.img", "pages-2.img"], {})
    assert found == manifest.sums(str(tmp_path), ["pages-1.img", "pages-2.img"])
    assert len(found["pages-1.img"]["pieces"]) == 19
