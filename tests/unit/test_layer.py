"""Layers as archives: what is written can be read back, and what must not be applied isn't."""

import gzip
import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from grit_runtime import layer, mounts
from grit_runtime.checks import Refusal
from grit_runtime.layer import tarin, tarout
from grit_runtime.layer.mounted import octal, split_lowers

ME, GROUP = os.getuid(), os.getgid()


def member(
    name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **facts: object
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.uid, info.gid, info.mode = kind, len(data), ME, GROUP, 0o755
    for key, value in facts.items():
        setattr(info, key, value)
    return info, data


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> str:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        for info, data in members:
            file.addfile(info, io.BytesIO(data))
    return str(path)


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """A root filesystem with a link that leads out of it, beside a folder that nobody may touch."""
    root = tmp_path / "rootfs"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("root")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("outside")
    (root / "out").symlink_to(outside)
    (root / "up").symlink_to("..")
    return root


def test_octal_escapes_are_undone_once() -> None:
    assert octal("a\\040b\\134040c\\") == "a b\\040c\\"
    assert split_lowers("/a\\:b:/c\\\\::/d") == ("/a:b", "/c\\", "/d")


def test_the_root_mount_on_top_counts() -> None:
    text = (
        "1 0 0:50 / / rw - overlay overlay rw,lowerdir=/l1:/l2,upperdir=/u\\0541,workdir=/w,index=on\n"
        "2 1 0:51 / /dev/shm rw - tmpfs shm rw,size=65536k\n"
        "3 1 0:52 /sub /mnt rw - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w\n"
        "4 1 0:53 / /ro ro - overlay overlay ro,lowerdir+=/a:b,lowerdir+=/c\n"
        "5 1 0:54 / /user rw - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w,userxattr\n"
    )
    known = mounts.parse(text)
    found = layer.overlay(known)
    assert found == ("/u,1", ("/l1", "/l2"), "/w", "0:50", "trusted.overlay.", True)
    assert layer.overlay(known, "/mnt") is None and layer.overlay(known, "/ro") is None
    user = layer.overlay(known, "/user")
    assert user is not None and user.xattr == "user.overlay."
    bind = mounts.parse("1 0 8:1 /srv / rw - ext4 /dev/sda rw\n")
    assert layer.overlay([*known, *bind]) is None

    pod = mounts.parse("9 0 0:51 / /run/sandbox/shm rw - tmpfs shm rw\n")
    shared = layer.shm_of(known, pod)
    assert shared is not None and shared.point == "/dev/shm"
    assert layer.shm_of(known, bind) is None, "a tmpfs of the container's own is CRIU's"
    node = mounts.parse("9 0 0:51 / /dev/shm rw - tmpfs tmpfs rw\n10 0 0:51 / /srv/shm rw - tmpfs tmpfs rw\n")
    assert layer.shm_of(known, node) is None, "the node's holds what others have put there"


def test_pax_records_count_their_own_length() -> None:
    for size in (0, 80, 85, 86, 87, 88, 89, 90, 91, 92, 980, 985, 986, 987, 988, 989, 990, 991, 9990):
        record = tarout.record(b"path", b"x" * size)
        assert int(record.split(b" ")[0]) == len(record)
    assert tarout.pax_time(-1_500_000_001) == b"-1.500000001"


def test_others_read_what_we_write(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    odd = os.fsdecode(b"\xff\n" + b"n" * 150)
    with open(source / odd, "wb") as file:
        file.write(b"a")
        file.seek(40 << 20)
        file.write(b"b" * 300_000)
        file.truncate(50 << 20)
    os.utime(source / odd, ns=(0, -1_500_000_001))
    (source / "all-hole").touch()
    os.truncate(source / "all-hole", 1 << 20)
    (source / "big").write_bytes(os.urandom(400_000))
    os.link(source / "big", source / "big-too")
    root = tmp_path / "root/dev"
    root.mkdir(parents=True)
    os.rename(source, root / "shm")
    saved = layer.save_shm(str(tmp_path / "root"), str(tmp_path / "out.tar"))
    assert saved is not None and saved.entries == 4 and saved.bytes == (tmp_path / "out.tar").stat().st_size < 1 << 20
    source = root / "shm"
    with tarfile.open(tmp_path / "out.tar") as file:
        assert [info.name for info in file] == ["all-hole", "big", "big-too", odd]
        info = file.getmember(odd)
        assert info.mtime == pytest.approx(-1.500000001) and info.size == 50 << 20
        for name in ("all-hole", "big", "big-too", odd):
            content = file.extractfile(name)
            assert content is not None and content.read() == (source / name).read_bytes()


def test_numbers_that_octal_digits_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "out.tar"
    facts = tarout.Attributes(0o100644, 3_000_000_000, 4_000_000_000, (1 << 36) * 1_000_000_000)
    with open(path, "wb") as file:
        writer = tarout.Writer(file.fileno())
        writer.entry("a", b"0", facts)
        writer.finish()
    expected = ("a", 3_000_000_000, 4_000_000_000, (1 << 36) * 1_000_000_000)
    with tarfile.open(path) as tar:
        info = tar.getmember("a")
        assert (info.name, info.uid, info.gid, info.mtime * 1_000_000_000) == expected
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:  # base 256, and long names in blocks of their own
        info = tarfile.TarInfo("n" * 300)
        info.uid, info.type, info.linkname = 3_000_000_000, tarfile.SYMTYPE, "t" * 200
        tar.addfile(info)
    with open(path, "rb") as file:
        (read,) = tarin.Reader(file.fileno())
    assert (read.name, read.uid, read.link) == ("n" * 300, 3_000_000_000, "t" * 200)


HOSTILE: dict[str, Callable[[Path], list[tuple[tarfile.TarInfo, bytes]]]] = {
    "absolute": lambda out: [member(f"{out}/new", data=b"x")],
    "dots": lambda out: [member("etc/../../outside/new", data=b"x")],
    "dots in a whiteout": lambda out: [member("../outside/.wh.file")],
    "whiteout of the parent": lambda out: [member("etc/.wh...")],
    "whiteout of the folder itself": lambda out: [member("etc/.wh..")],
    "link in the rootfs": lambda out: [member("out/new", data=b"x")],
    "whiteout through a link": lambda out: [member("etc/x"), member("out/sub/new")],
    "link in the archive": lambda out: [member("l", tarfile.SYMTYPE, linkname=str(out)), member("l/new", data=b"x")],
    "link replaces a folder": lambda out: [
        member("d", tarfile.DIRTYPE), member("d/e", data=b"x"), member("d", tarfile.SYMTYPE, linkname=str(out)),
        member("d/new", data=b"x"),
    ],
    "hard link out": lambda out: [member("h", tarfile.LNKTYPE, linkname="../outside/file")],
    "hard link absolute": lambda out: [member("h", tarfile.LNKTYPE, linkname=f"{out}/file")],
    "hard link through a link": lambda out: [member("h", tarfile.LNKTYPE, linkname="out/file")],
    "hard link to a folder": lambda out: [member("h", tarfile.LNKTYPE, linkname="etc")],
    "the root as a link": lambda out: [member("./", tarfile.SYMTYPE, linkname=str(out))],
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_nothing_leaves_the_rootfs(case: str, rootfs: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    path = archive(tmp_path / "bad.tar", *HOSTILE[case](outside))
    with pytest.raises(Refusal) as caught:
        layer.apply(path, str(rootfs))
    assert caught.value.reason == "layer-hostile"
    assert sorted(os.listdir(tmp_path)) == ["bad.tar", "outside", "rootfs"]
    assert os.listdir(outside) == ["file"] and (outside / "file").read_text() == "outside"
    assert (outside / "file").stat().st_nlink == 1 and (rootfs / "etc/passwd").read_text() == "root"


def test_links_are_replaced_and_not_followed(rootfs: Path, tmp_path: Path) -> None:
    """A member, an opaque directory and a whiteout with the name of a link mean the link itself."""
    (rootfs / "out2").symlink_to(tmp_path / "outside")
    (rootfs / "etc/in").symlink_to(tmp_path / "outside")
    path = archive(
        tmp_path / "a.tar", member("out", data=b"file"), member(".wh.out2"), member("up", tarfile.DIRTYPE),
        member("etc/.wh..wh..opq"), member("up/.wh..wh..opq"), member("etc", tarfile.DIRTYPE), member("etc/new"),
        member("up/.wh..wh.plnk"), member("gone/below/.wh.nothing"),
    )  # fmt: skip
    layer.apply(path, str(rootfs))
    assert (rootfs / "out").read_text() == "file" and not (rootfs / "out").is_symlink()
    assert sorted(os.listdir(rootfs)) == ["etc", "out", "up"] and os.listdir(rootfs / "etc") == ["new"]
    assert (tmp_path / "outside/file").read_text() == "outside"


def test_opaque_hides_only_what_was_below(rootfs: Path, tmp_path: Path) -> None:
    (rootfs / "etc/sub").mkdir()
    (rootfs / "etc/sub/old").touch()
    path = archive(
        tmp_path / "a.tar", member("etc", tarfile.DIRTYPE), member("etc/sub", tarfile.DIRTYPE),
        member("etc/sub/new", data=b"x"), member("etc/.wh..wh..opq"), member("etc/.wh.passwd"),
    )  # fmt: skip
    layer.apply(path, str(rootfs))
    assert os.listdir(rootfs / "etc") == ["sub"] and os.listdir(rootfs / "etc/sub") == ["new"]


def test_devices_are_left_out_and_modes_kept(rootfs: Path, tmp_path: Path) -> None:
    path = archive(
        tmp_path / "a.tar", member("disk", tarfile.BLKTYPE, devmajor=8), member("mem", tarfile.CHRTYPE, devmajor=1),
        member("tool", data=b"x", mode=0o6755), member("pipe", tarfile.FIFOTYPE, mode=0o620),
    )  # fmt: skip
    done = layer.apply(path, str(rootfs))
    assert done.left_out == 2 and sorted(os.listdir(rootfs)) == ["etc", "out", "pipe", "tool", "up"]
    assert stat.S_IMODE((rootfs / "tool").stat().st_mode) == 0o6755
    assert stat.S_IMODE((rootfs / "pipe").stat().st_mode) == 0o620


def test_attributes_that_no_layer_may_set(rootfs: Path, tmp_path: Path) -> None:
    if not _keeps_attributes(tmp_path):
        pytest.fail("the temporary directory keeps no user.* attributes")
    headers = {f"SCHILY.xattr.{key}": "y" for key in ("user.ok", "trusted.overlay.opaque", "security.selinux")}
    layer.apply(archive(tmp_path / "a.tar", member("file", data=b"x", pax_headers=headers)), str(rootfs))
    assert [key for key in os.listxattr(rootfs / "file") if key != "security.selinux"] == ["user.ok"]


def _keeps_attributes(folder: Path) -> bool:
    try:
        os.setxattr(folder, "user.try", b"")
    except OSError:
        return False
    return True


def good(tmp_path: Path) -> bytes:
    path = archive(tmp_path / "good.tar", member("a", data=b"x" * 5000), member("b", data=os.urandom(3000)))
    content = Path(path).read_bytes()
    return content[: content.index(bytes(1024), 9000) + 1024]


def test_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = good(tmp_path)
    for number, length in enumerate([0, 1, 511, 512, 700, 512 + 5120, 512 + 5120 + 600, len(whole) - 1024, 100]):
        for packed in (whole[:length], gzip.compress(whole)[: length // 4]):
            target = tmp_path / f"{number}-{len(packed)}"
            target.mkdir(exist_ok=True)
            (tmp_path / "cut.tar").write_bytes(packed)
            with pytest.raises(Refusal, match="layer-corrupt"):
                layer.apply(str(tmp_path / "cut.tar"), str(target))
    (tmp_path / "cut.tar").write_bytes(whole)
    (tmp_path / "whole").mkdir()
    assert layer.apply(str(tmp_path / "cut.tar"), str(tmp_path / "whole")).entries == 2


def test_damage_is_an_error_and_never_a_crash(tmp_path: Path) -> None:
    """A flipped byte anywhere in a header; only the filling after its checksum may pass."""
    whole = bytearray(good(tmp_path))
    target = tmp_path / "target"
    target.mkdir()
    for at in [*range(0, 512, 3), *range(512 + 5120, 1024 + 5120, 5)]:
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        (tmp_path / "bad.tar").write_bytes(damaged)
        try:
            layer.apply(str(tmp_path / "bad.tar"), str(target))
        except Refusal as refusal:
            assert refusal.reason == "layer-corrupt"
        else:
            assert 154 <= at % 512 <= 155 or 154 <= (at - 5120) % 512 <= 155


@pytest.mark.parametrize(
    "numbers", [b"1\n0\n", b"2\n0\n5\n3\n2\n", b"99999999\n0\n1\n", b"1\n-1\n7\n", b"1\n0\n900\n", b"1\n5\n7\n"]
)
def test_maps_of_sparse_files_are_checked(numbers: bytes, tmp_path: Path) -> None:
    with open(tmp_path / "a.tar", "wb") as file:
        writer = tarout.Writer(file.fileno())
        data = numbers + bytes(-len(numbers) % 512) + b"x" * 7
        records = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"10")]
        writer.entry("a", b"0", tarout.NOTHING, size=len(data), records=records)
        writer.text(data + bytes(-len(data) % 512))
        writer.finish()
    (tmp_path / "target").mkdir()
    with pytest.raises(Refusal, match="layer-corrupt"):
        layer.apply(str(tmp_path / "a.tar"), str(tmp_path / "target"))


def test_a_bomb_stops_at_the_room_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tar"
    with gzip.open(path, "wb", compresslevel=1) as file, tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(*_zeros(member("zeros")[0], 64 << 20))
    target = tmp_path / "target"
    target.mkdir()
    monkeypatch.setattr("grit_runtime.layer.applying.room", lambda _: 8 << 20)
    with pytest.raises(Refusal, match="layer-too-large"):
        layer.apply(str(path), str(target))
    assert path.stat().st_size < 1 << 20 and sum(f.stat().st_size for f in target.iterdir()) <= 9 << 20


def _zeros(info: tarfile.TarInfo, size: int) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info.size = size
    return info, io.BytesIO(bytes(size))


def test_gzip_under_the_name_of_a_tar(rootfs: Path, tmp_path: Path) -> None:
    plain = Path(archive(tmp_path / "a.tar", member("file", data=b"x" * 600_000, mtime=1_700_000_000)))
    whole = plain.read_bytes()
    plain.write_bytes(gzip.compress(whole[:1000]) + gzip.compress(whole[1000:]) + bytes(512))
    assert layer.apply(str(plain), str(rootfs)).bytes == 600_000
    assert (rootfs / "file").read_bytes() == b"x" * 600_000
    plain.write_bytes(b"\x28\xb5\x2f\xfd" + whole)
    with pytest.raises(Refusal, match="zstd"):
        layer.apply(str(plain), str(rootfs))


def test_once_and_not_twice(rootfs: Path, tmp_path: Path) -> None:
    os.link(rootfs / "etc/passwd", rootfs / "keep")
    path = archive(
        tmp_path / "a.tar", member("etc", tarfile.DIRTYPE), member("etc/.wh.passwd"), member("etc/.wh..wh..opq"),
        member("etc/file", data=b"one", mtime=1_700_000_000), member("link", tarfile.SYMTYPE, linkname="etc"),
    )  # fmt: skip
    assert not layer.applied(path, str(rootfs))
    assert not layer.apply_once(path, str(rootfs)).already
    (rootfs / "etc/file").write_text("two")  # as a hook might, in between
    os.utime(rootfs / "etc/file", ns=(0, 1_700_000_000 * 1_000_000_000))
    assert layer.apply_once(path, str(rootfs)).already and (rootfs / "etc/file").read_text() == "two"
    for spoiled in ("made", "more", "mode"):
        if spoiled == "made":
            (rootfs / "etc/passwd").touch()
        elif spoiled == "more":
            (rootfs / "etc/shadow").touch()
        else:
            (rootfs / "etc/file").chmod(0o600)
        assert not layer.applied(path, str(rootfs))
        layer.apply(path, str(rootfs))
        assert layer.applied(path, str(rootfs))


def shm(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name / "dev/shm"
    folder.mkdir(parents=True)
    return folder


def test_shm_is_shared_and_never_overwritten(tmp_path: Path) -> None:
    old, new = shm(tmp_path, "old"), shm(tmp_path, "new")
    assert layer.save_shm(str(tmp_path / "old"), str(tmp_path / "none.tar")) is None
    assert not (tmp_path / "none.tar").exists()
    (old / "seg").write_bytes(b"segment" * 1000)
    (old / "seg").chmod(0o620)
    os.link(old / "seg", old / "seg-too")
    (old / "sub").mkdir(mode=0o1777)
    (old / "sub/sem").write_bytes(bytes(32))
    path = str(tmp_path / "shm.tar")
    assert layer.save_shm(str(tmp_path / "old"), path)
    placed = layer.apply_shm(path, str(new))
    assert placed.made == ("seg", "seg-too", "sub", "sub/sem") and placed.shared == 0
    assert (new / "seg").read_bytes() == b"segment" * 1000 and (new / "seg").stat().st_nlink == 2
    assert stat.S_IMODE((new / "seg").stat().st_mode) == 0o620
    again = layer.apply_shm(path, str(new))
    assert again.made == () and again.shared == 4, "a sibling finds the same content"

    (new / "seg").write_bytes(b"another")
    (new / "sub/sem").unlink()
    if os.getuid() == 0:  # only root can mark them
        assert layer.apply_shm(path, str(new)).made == ("sub/sem",), "the same segment, which has gone on since"
        assert (new / "seg").read_bytes() == b"another"
        (new / "sub/sem").unlink()
    for name in ("seg", "seg-too"):
        (new / name).unlink()
    (new / "seg").write_bytes(b"another")
    with pytest.raises(Refusal, match="shm-conflict"):
        layer.apply_shm(path, str(new))
    assert sorted(os.listdir(new)) == ["seg", "sub"] and (new / "seg").read_bytes() == b"another"
    layer.remove_shm(str(new), ["sub", "nothing/here"])
    assert os.listdir(new) == ["seg"]


def test_shm_that_a_sibling_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shm(tmp_path, "old")
    for name in ("a", "b", "c"):
        (folder / name).write_bytes(b"x" * 300_000)
    real = tarout.Writer.entry

    def change(writer: tarout.Writer, name: str, *rest: object, **more: object) -> None:
        (folder / "b").unlink(missing_ok=True)
        if name == "c":  # its size has been read, its content hasn't
            os.truncate(folder / "c", 200_000)
        real(writer, name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(tarout.Writer, "entry", change)
    layer.save_shm(str(tmp_path / "old"), str(tmp_path / "out.tar"))
    with tarfile.open(tmp_path / "out.tar") as file:
        assert file.getnames() == ["a", "c"]
        content = file.extractfile("c")
        assert content is not None and content.read() == b"x" * 200_000 + bytes(100_000)


def test_shm_without_room_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = shm(tmp_path, "old"), shm(tmp_path, "new")
    (old / "seg").write_bytes(b"x" * 10_000)
    layer.save_shm(str(tmp_path / "old"), str(tmp_path / "shm.tar"))
    monkeypatch.setattr("grit_runtime.layer.shm.room", lambda _: 12_287)
    with pytest.raises(Refusal, match="12288 bytes and has 12287"):
        layer.apply_shm(str(tmp_path / "shm.tar"), str(new))
    monkeypatch.undo()
    for bad in (
        [member("a"), member("../x")],
        [member("a"), member("dev", tarfile.CHRTYPE)],
        [member("a"), member("b/c")],
    ):
        with pytest.raises(Refusal, match="layer-hostile"):
            layer.apply_shm(archive(tmp_path / "bad.tar", *bad), str(new))
        assert not os.listdir(new)
    (new.parent / "target").write_text("safe")
    (new / "link").symlink_to("../target")
    with pytest.raises(Refusal, match="shm-conflict"):
        layer.apply_shm(archive(tmp_path / "bad.tar", member("link", data=b"x")), str(new))
    assert (new.parent / "target").read_text() == "safe"
