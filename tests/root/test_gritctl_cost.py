"""What gritctl may cost: a large checkpoint is verified at the speed of hashing, and a large container is looked at in
no time (tests/nodes/test_check.py has the container)."""

from __future__ import annotations

import json
import os
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from grit_runtime import manifest
from grit_runtime.ctl.main import main

from tests.unit import criu_images

SIZE = 4 << 30
SAMPLE = 256 << 20


@pytest.fixture
def large(tmp_path: Path) -> str:
    """A whole checkpoint with 4 GiB more in it: a hole, which is read from memory and hashed like any other bytes."""
    folder = criu_images.copy("4.2.1", tmp_path)
    with open(f"{folder}/zz-large.img", "xb") as file:
        file.truncate(SIZE)
    node = {**manifest.node(), "criu": "4.2.1", "runtime": "runc"}
    sums = manifest.sums(folder, os.listdir(folder))
    parts: dict[str, Any] = {"container": {}, "mounts": [], "watches": {}, "fingerprints": {}, "gpu": {}}
    manifest.write(folder, {"created": 1.0, "node": node, "files": sums, **parts})
    return folder


def one_thread() -> float:
    """Seconds that one thread takes to hash as much, by a sample."""
    block = bytes(4 << 20)
    start = time.monotonic()
    for _ in range(SAMPLE // len(block)):
        zlib.crc32(block)
    return (time.monotonic() - start) * SIZE / SAMPLE


def test_a_large_checkpoint_is_verified_at_the_speed_of_hashing(large: str) -> None:
    """Other work on this machine may make it four times slower than one thread alone would be, and no more."""
    alone = one_thread()
    start = time.monotonic()
    result = CliRunner().invoke(main, ["verify", "--json", large])
    took = time.monotonic() - start
    print(f"4 GiB verified in {took:.2f} s, {SIZE / took / 1e9:.1f} GB/s; one thread hashes them in {alone:.2f} s")
    assert result.exit_code == 0 and json.loads(result.output)["ok"]
    assert took < 4 * alone + 5


def test_it_finds_one_byte_in_it(large: str) -> None:
    with open(f"{large}/zz-large.img", "r+b") as file:
        file.seek(SIZE - 1)
        file.write(b"x")
    result = CliRunner().invoke(main, ["verify", "--json", large])
    found = [gate for gate in json.loads(result.output)["gates"] if gate["level"] == "bad"]
    assert [gate["reason"] for gate in found] == ["image-changed"] and "zz-large.img" in found[0]["message"]
