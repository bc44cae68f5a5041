"""Which image files a pod sees otherwise."""

import os
import struct
from pathlib import Path

from grit_runtime import files, view
from grit_runtime.criu import imagefile, openfiles
from grit_runtime.criu.protobuf import Message

NAMES = ["core-1.img", "ipcns-shm-9.img", "ipcns-sem-9.img", "ipcns-msg-9.img", "ipcns-var-9.img"]


def test_only_the_kinds_that_are_named_are_hidden(tmp_path: Path) -> None:
    assert view.plan(str(tmp_path), NAMES, None, without=[]) == view.Edits({}, [])
    edits = view.plan(str(tmp_path), NAMES, None, without=["shm", "msg"])
    assert sorted(edits.hidden) == ["ipcns-msg-9.img", "ipcns-shm-9.img"]


def test_nothing_to_change_means_no_mount(tmp_path: Path) -> None:
    class NoJournal:
        folder = os.devnull

    assert view.make(NoJournal(), str(tmp_path), view.Edits({}, [])) == str(tmp_path)  # type: ignore[arg-type]


def _files(*names: tuple[str, bool]) -> bytes:
    """A files.img of regular files that were 33 bytes long, with their position at the end."""
    data = struct.pack("<II", imagefile.COMMON, imagefile.MAGIC["files"])
    for number, (name, external) in enumerate(names):
        file = Message([], "").replaced(1, number).replaced(3, 33).replaced(6, name.encode()).replaced(8, 33)
        file = file.replaced(9, int(external)).replaced(10, 0o100644)
        entry = Message([], "").replaced(1, 1).replaced(2, number).replaced(3, file.encode()).encode()
        data += struct.pack("<I", len(entry)) + entry
    return data


def test_a_file_of_the_node_goes_on_where_ours_stands(tmp_path: Path) -> None:
    (tmp_path / "files.img").write_bytes(_files(("file[18e:12]", True), ("file[18e:12]", False), ("tmp/x", False)))
    edits = view.plan(str(tmp_path), ["files.img"], None, without=[], outside={"file[18e:12]": 5})
    (tmp_path / "files.img").write_bytes(edits.replaced["files.img"])
    found = [file.message for file in openfiles.open_files(tmp_path)]
    assert [file.integer(3) for file in found] == [5, 33, 33]
    assert [file.has(8) and file.has(10) for file in found] == [False, True, True]
    again = openfiles.at_home(edits.replaced["files.img"], {"file[18e:12]": None})
    (tmp_path / "files.img").write_bytes(again)
    assert openfiles.open_files(tmp_path)[0].message.signed(3) == -1


def test_positions(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"12345678")
    with open(path, "r+b", buffering=0) as file, open(path, "ab", buffering=0) as appended:
        file.seek(3)
        assert files.position(file.fileno()) == 3
        assert files.position(appended.fileno()) == 8
    reader, writer = os.pipe()
    assert files.position(writer) is None
    os.close(reader)
    os.close(writer)
