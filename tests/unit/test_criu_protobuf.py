"""The decoder of CRIU's images: exact both ways, and never more than a refusal on bytes that are no image."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import pytest
from grit_runtime.checks import Refusal
from grit_runtime.criu import images
from grit_runtime.criu.imagefile import COMMON, MAGIC, entries, kind, rewrite
from grit_runtime.criu.protobuf import decode, encode_varint

from tests.unit import criu_images


def refused(data: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        decode(data, "x.img", 12)
    return caught.value


def test_what_protobuf_writes_is_read() -> None:
    # the examples of the encoding's specification
    message = decode(bytes.fromhex("0896011207746573746 96e671a06038e029ea705".replace(" ", "")), "x")
    assert message.integer(1) == 150
    assert message.text(2) == "testing"
    assert message.integers(3) == [3, 270, 86942]
    assert message.integer(9, 7) == 7


def test_signed_numbers() -> None:
    message = decode(b"\x08" + encode_varint(-2) + b"\x10\x03\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "x")
    assert message.signed(1) == -2
    assert message.zigzag(2) == -2
    assert message.integer(3) == (1 << 64) - 1


@pytest.mark.parametrize("version", criu_images.VERSIONS)
def test_every_entry_is_encoded_as_it_was(version: str) -> None:
    folder = criu_images.DATA / f"criu-{version}"
    seen = 0
    for name in os.listdir(folder):
        if kind(name) and kind(name) != "ghost-file":
            path = folder / name
            encoded = b"".join(struct.pack("<I", len(e.encode())) + e.encode() for e in entries(path))
            assert path.read_bytes().endswith(encoded), name
            seen += len(encoded)
    assert seen > 8000


@pytest.mark.parametrize(
    ("data", "offset", "what"),
    [
        (b"\x08", 13, "without an end"),
        (b"\x08" + b"\xff" * 10, 13, "without an end"),
        (b"\x12\x05abc", 12, "longer than its message"),
        (b"\x12\xff\xff\xff\xff\x0f", 12, "longer than its message"),
        (b"\x0d\x01\x02", 12, "longer than its message"),
        (b"\x0b\x0c", 12, "wire type 3"),
        (b"\x00\x01", 12, "number 0"),
    ],
)
def test_malformed_bytes_are_named_with_their_offset(data: bytes, offset: int, what: str) -> None:
    refusal = refused(data)
    assert refusal.reason == "image-malformed"
    assert what in refusal.message
    assert f"byte {offset}" in refusal.message


def test_a_field_of_another_type_is_refused() -> None:
    message = decode(b"\x08\x01\x12\x01a", "x")
    for read in (lambda: message.text(1), lambda: message.message(1), lambda: message.integer(2)):
        with pytest.raises(Refusal):
            read()


def test_rewriting_keeps_everything_else_and_leaves_hard_links_alone(tmp_path: Path) -> None:
    source = criu_images.DATA / "criu-4.2.1" / "utsns-12.img"
    first, second = tmp_path / "utsns-12.img", tmp_path / "utsns-13.img"
    first.write_bytes(source.read_bytes())
    os.link(first, second)
    rewrite(first, second, lambda entry: entry.replaced(1, b"new"))
    assert first.read_bytes() == source.read_bytes()
    assert second.read_bytes() == source.read_bytes().replace(b"\x11\0\0\0\x0a\x07old-pod", b"\x0d\0\0\0\x0a\x03new")


@pytest.mark.parametrize("seed", range(60))
def test_damaged_images_end_in_a_refusal_or_in_values(seed: int, tmp_path: Path) -> None:
    """Flip, cut and stretch bytes of a whole image: whatever comes out, it is no other exception, and it ends."""
    dice = random.Random(seed)
    folder = criu_images.copy(criu_images.VERSIONS[seed % 2], tmp_path)
    for name in dice.sample([n for n in sorted(os.listdir(folder)) if kind(n)], 4):
        path = Path(folder, name)
        data = bytearray(path.read_bytes())
        for _ in range(dice.randint(1, 6)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        if dice.random() < 0.3:
            del data[dice.randrange(len(data)) :]
        path.write_bytes(bytes(data))
    readers = (images.tasks, images.mounts, images.open_files, images.sockets, images.remaps, images.namespaces,
               images.hostname, images.cgroups, images.stats, images.timers, images.masks)  # fmt: skip
    for read in (*readers, lambda where: list(images.problems(where)), lambda where: images.memory(where, 1)):
        try:
            read(folder)
        except Refusal as refusal:
            assert refusal.reason.startswith("image-")


def test_a_file_that_claims_a_gigabyte_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "pstree.img"
    with open(path, "wb") as file:
        file.write(struct.pack("<III", COMMON, MAGIC["pstree"], 1 << 30))
        file.truncate((1 << 30) + 12)
    with pytest.raises(Refusal) as caught:
        list(entries(path))
    assert caught.value.reason == "image-malformed"
    assert "an entry of 1073741824 bytes" in caught.value.message


def test_links_and_pipes_are_not_opened(tmp_path: Path) -> None:
    os.symlink(criu_images.DATA / "criu-4.2.1" / "pstree.img", tmp_path / "pstree.img")
    os.mkfifo(tmp_path / "inventory.img")
    for name in ("pstree.img", "inventory.img"):
        with pytest.raises(Refusal) as caught:
            list(entries(tmp_path / name))
        assert caught.value.reason == "image-missing"
