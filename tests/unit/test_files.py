"""Fingerprints: other content is another fingerprint, the same size included."""

import os
from pathlib import Path

import pytest
from grit_runtime import files


def fingerprint(path: Path) -> str | None:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return files.fingerprint(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [1, 4096, files.WHOLE])
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_every_byte_of_a_small_file_counts(tmp_path: Path, size: int, where: float) -> None:
    path = tmp_path / "lib.so"
    data = bytearray(os.urandom(size))
    path.write_bytes(data)
    before = fingerprint(path)
    data[min(int(size * where), size - 1)] ^= 1
    path.write_bytes(data)
    assert fingerprint(path) != before


def test_a_large_file_is_known_by_its_ends_and_size(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"\1" * (files.WHOLE + 100))
    before = fingerprint(path)
    with open(path, "r+b") as file:
        file.seek(100)
        file.write(b"\2")
    assert fingerprint(path) != before
    path.write_bytes(b"\1" * (files.WHOLE + 101))
    assert fingerprint(path) != before


def test_what_is_no_regular_file_has_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert fingerprint(tmp_path / "pipe") is None


def test_mapped_files_of_this_process() -> None:
    found = files.mapped([os.getpid()])
    assert os.path.realpath("/proc/self/exe") in found
    assert len(found) == len(set(found))


def test_files_are_read_beneath_the_root_only(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "root" / "good").write_text("y")
    root = os.open(tmp_path / "root", os.O_PATH)
    found = files.fingerprints(root, ["/good", "/link", "/../secret", "/missing"])
    os.close(root)
    assert list(found) == ["/good"]


def test_what_was_made_before_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SETTLED", -1.0)
    (tmp_path / "lib.so").write_bytes(b"one")
    root, kept = os.open(tmp_path, os.O_PATH), str(tmp_path / "kept")
    first = files.fingerprints(root, ["/lib.so"], kept)
    with monkeypatch.context() as forbidden:
        forbidden.setattr(files, "fingerprint", lambda _fd: None)
        assert files.fingerprints(root, ["/lib.so"], kept) == first != {}
        (tmp_path / "lib.so").write_bytes(b"two")
        assert files.fingerprints(root, ["/lib.so"], kept) == {}
    assert files.fingerprints(root, ["/lib.so"], kept) != first
    (tmp_path / "kept").write_text("[]")
    assert files.fingerprints(root, ["/lib.so"], kept) == files.fingerprints(root, ["/lib.so"])
    os.close(root)


def test_what_has_just_changed_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "lib.so").write_bytes(b"one")
    root, kept = os.open(tmp_path, os.O_PATH), tmp_path / "kept"
    assert files.fingerprints(root, ["/lib.so"], str(kept)) and not kept.exists()
    os.close(root)
