"""The rw layer of real overlays: what is saved from one gives the same tree on a fresh one."""

import contextlib
import hashlib
import os
import random
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from grit_runtime import layer, mounts
from grit_runtime.checks import Refusal

Mounted = Callable[..., Path]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    """Mounts a fresh overlay over tmp_path/lower, and unmounts all of them at the end."""
    assert os.getuid() == 0, "these tests mount file systems: run them as root"
    done: list[Path] = []

    def mount(name: str, options: str = "", lowers: Sequence[str] = ("lower",), point: str = "merged") -> Path:
        home = tmp_path / name
        for folder in ("upper", "work", point):
            (home / folder).mkdir(parents=True, exist_ok=True)
        lower = ":".join(str(tmp_path / part) for part in lowers)
        text = f"lowerdir={lower},upperdir={home}/upper,workdir={home}/work{options}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", text, home / point], check=True, timeout=60)
        done.append(home / point)
        return home / point

    yield mount
    for point in reversed(done):
        while any(known.point == str(point) for known in mounts.read("self")):
            subprocess.run(["umount", "-l", point], check=True, timeout=60)


def look(root: Path) -> dict[bytes, object]:
    """All that must be equal in two trees, by path. Names of one inode stand for its number."""
    found: dict[bytes, list[object]] = {}
    inodes: dict[tuple[int, int], list[bytes]] = {}
    top = os.fsencode(root)
    for folder, folders, files in os.walk(top):
        for name in [b".", *folders, *files] if folder == top else [*folders, *files]:
            path = os.path.join(folder, name)
            key = os.path.relpath(path, top)
            facts = os.lstat(path)
            kind = stat.S_IFMT(facts.st_mode)
            if kind in (stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK) or name.startswith(b".wh."):
                continue
            what: list[object] = [oct(facts.st_mode), facts.st_uid, facts.st_gid, facts.st_mtime_ns]
            what.append({
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
                if not name.startswith("trusted.")
            })  # fmt: skip
            if kind == stat.S_IFREG:
                with open(path, "rb") as file:
                    # A small hole may be filled: an extra block for attributes hides it from st_blocks.
                    spans = runs(file.fileno()) if facts.st_size > 1 << 16 else [(0, facts.st_size)]
                    digest = hashlib.sha256()
                    for start, end in spans:
                        digest.update(os.pread(file.fileno(), end - start, start))
                what += [facts.st_size, digest.hexdigest(), spans]
            if kind == stat.S_IFLNK:
                what.append(os.readlink(path))
            if kind != stat.S_IFDIR:
                inodes.setdefault((facts.st_dev, facts.st_ino), []).append(key)
            found[key] = what
    for paths in inodes.values():
        for path in paths:
            found[path].append(sorted(paths))
    return dict(found)


def runs(file: int) -> list[tuple[int, int]]:
    """Where a file has data, in whole pages."""
    found, at, size = [], 0, os.fstat(file).st_size
    with contextlib.suppress(OSError):
        while at < size:
            start = os.lseek(file, at, os.SEEK_DATA)
            at = os.lseek(file, start, os.SEEK_HOLE)
            found.append((start, at))
    return found


def differences(one: Path, other: Path) -> list[object]:
    left, right = look(one), look(other)
    return [
        (path, left.get(path), right.get(path)) for path in sorted({*left, *right}) if left.get(path) != right.get(path)
    ]


def moved(merged: Path, archive: Path, fresh: Path) -> layer.Saved:
    found = layer.overlay(mounts.read("self"), str(merged))
    assert found is not None
    saved = layer.save(found, str(merged), str(archive))
    applied = layer.apply_once(str(archive), str(fresh))
    assert not applied.already and applied.entries == saved.entries
    return saved


def fill_lower(lower: Path) -> None:
    for path in ("etc", "usr/lib/deep/deeper", "gone/below", "emptied/old", "renamed/sub", "swap", "var/log"):
        (lower / path).mkdir(parents=True)
    for number in range(8):
        (lower / f"etc/file{number}").write_bytes(random.Random(number).randbytes(30_000 * number))
    (lower / "usr/lib/tool").write_bytes(b"\x7fELF" * 60_000)
    (lower / "usr/lib/deep/deeper/data").write_bytes(b"data" * 10_000)
    (lower / "gone/below/file").write_text("gone")
    (lower / "emptied/old/file").write_text("old")
    (lower / "emptied/kept").write_text("in both")
    for name in ("a", "b", "c", "sub/d"):
        (lower / f"renamed/{name}").write_bytes(name.encode() * 50_000)
    os.link(lower / "renamed/a", lower / "renamed/also-a")
    (lower / "renamed/link").symlink_to("sub/d")
    (lower / "swap/file").write_text("a folder becomes a file")
    (lower / "plain").write_text("a file becomes a folder")
    (lower / "log").symlink_to("var/log")


def work(merged: Path) -> None:
    """What a container may do to its root filesystem."""
    (merged / "etc/file1").chmod(0o4711)  # metadata only
    os.chown(merged / "etc/file2", 3_000_000, 4_000_000_000)
    os.setxattr(merged / "etc/file3", "user.note", b"bytes\0and\nlines")
    os.rename(merged / "usr/lib/tool", merged / "usr/lib/tool-2")  # metacopy with redirect
    (merged / "usr/lib/tool-2").chmod(0o700)
    with open(merged / "etc/file4", "r+b") as file:
        file.seek(1000)
        file.write(b"changed in the middle")
    (merged / "etc/file5").unlink()
    subprocess.run(["rm", "-r", merged / "gone", merged / "emptied", merged / "swap", merged / "plain"], check=True)
    (merged / "emptied").mkdir(mode=0o750)
    (merged / "emptied/kept").write_text("only here")
    (merged / "swap").write_text("file")
    (merged / "plain/in").mkdir(parents=True)
    (merged / "plain/in/file").write_text("folder")
    new = merged / "new"
    new.mkdir(mode=0o2775)
    for number in range(40):
        (new / f"small{number}").write_bytes(b"x" * number * 13)
    (new / "big").write_bytes(random.Random(1).randbytes(3 << 20))
    os.link(new / "big", merged / "etc/big-too")
    os.link(new / "small3", new / "small3-too")
    os.mkfifo(new / "fifo", 0o640)
    with open(new / "sparse", "wb") as file:
        file.write(b"head" * 2000)
        file.seek(200 << 20)
        file.write(b"middle" * 2000)
        file.truncate(300 << 20)
    (new / "hole").touch()
    os.truncate(new / "hole", 1 << 40)
    (new / "empty").touch()
    (new / "link").symlink_to("x" * 200 + "/é")
    os.lchown(new / "link", 7, 8)
    os.utime(new / "empty", ns=(1, -1_500_000_001))
    os.utime(new / "link", ns=(5, 1_700_000_000_123_456_789), follow_symlinks=False)
    (new / ("n" * 255)).write_text("long name")
    deep = new
    for number in range(30):
        deep = deep / f"{'d' * 20}{number}"
        deep.mkdir()
    (deep / "leaf").write_text("deep")
    for odd in (b"\xff\xfe latin", b"new\nline", b"tab\t space ", "Größe".encode(), b"-rf", b"back\\slash", b"100%s"):
        with open(os.fsencode(new) + b"/" + odd, "wb") as file:
            file.write(odd)
    (new / "capable").write_text("#!")
    os.setxattr(new / "capable", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
    (new / "setuid").write_text("#!")
    (new / "setuid").chmod(0o6755)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(new / "socket"))
    os.mknod(new / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (new / ".wh.small7").write_text("would hide small7")
    (merged / "log/entry").write_text("through the link")


def test_a_plain_overlay(tmp_path: Path, mounted: Mounted) -> None:
    fill_lower(tmp_path / "lower")
    merged, fresh = mounted("one"), mounted("two")
    work(merged)
    saved = moved(merged, tmp_path / "out.tar", fresh)
    assert saved.left_out == 3
    assert not differences(merged, fresh)
    facts = (tmp_path / "out.tar").stat()
    assert stat.S_IMODE(facts.st_mode) == 0o600 and facts.st_size == saved.bytes < 6 << 20
    assert not (tmp_path / "out.tar.part").exists()
    assert layer.apply_once(str(tmp_path / "out.tar"), str(fresh)).already
    layer.apply(str(tmp_path / "out.tar"), str(fresh))
    assert not differences(merged, fresh), "a second time changes nothing"


@pytest.mark.parametrize("options", [",metacopy=on,redirect_dir=on", ",metacopy=on,redirect_dir=on,index=on,xino=on"])
def test_metacopy_and_redirect(tmp_path: Path, mounted: Mounted, options: str) -> None:
    fill_lower(tmp_path / "lower")
    (tmp_path / "lower/to").mkdir()
    (tmp_path / "lower/to/hidden").write_text("must not show below the renamed folder")
    merged, fresh = mounted("one", options), mounted("two")
    (merged / "renamed/b").write_text("changed before")
    (merged / "renamed/c").chmod(0o600)
    (merged / "renamed/sub/new").write_text("new")
    subprocess.run(["rm", "-r", merged / "to"], check=True)
    os.rename(merged / "renamed", merged / "to")
    os.rename(merged / "to/sub", merged / "sub-out")
    (merged / "renamed").mkdir()
    (merged / "renamed/again").write_text("in the place of the old one")
    (merged / "to/a").chmod(0o640)
    (merged / "to/link").unlink()
    (merged / "outside").write_text("one file")
    os.link(merged / "outside", merged / "to/inside")
    work(merged)
    upper = tmp_path / "one/upper"
    assert (
        os.getxattr(upper / "to", "trusted.overlay.redirect")
        and os.getxattr(upper / "etc/file1", "trusted.overlay.metacopy") == b""
    )
    moved(merged, tmp_path / "out.tar", fresh)
    assert not differences(merged, fresh)


def test_names_that_only_the_index_knows(tmp_path: Path, mounted: Mounted) -> None:
    """With index=on a file that is written through one of its names has changed under the others too."""
    fill_lower(tmp_path / "lower")
    os.link(tmp_path / "lower/renamed/a", tmp_path / "lower/a-third")
    merged, fresh = mounted("one", ",index=on"), mounted("two")
    (merged / "renamed/a").write_text("changed")
    assert (merged / "a-third").read_text() == "changed"
    assert not (tmp_path / "one/upper/a-third").exists()
    moved(merged, tmp_path / "out.tar", fresh)
    assert not differences(merged, fresh)


def test_content_comes_from_the_mount_below_a_bind(tmp_path: Path, mounted: Mounted) -> None:
    """With only the container's view, a metacopy file under another mount has no content to be read: refused."""
    fill_lower(tmp_path / "lower")
    merged = mounted("one", ",metacopy=on")
    (merged / "etc/file1").chmod(0o600)
    found = layer.overlay(mounts.read("self"), str(merged))
    assert found is not None
    child = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"mount --bind /etc/hostname {merged}/etc/file1; echo; exec sleep 600"],
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == b"\n"
        view = f"/proc/{child.pid}/root{merged}"
        layer.save(found, view, str(tmp_path / "ours.tar"))
        fresh = mounted("two")
        layer.apply(str(tmp_path / "ours.tar"), str(fresh))
        assert not differences(merged, fresh)
        subprocess.run(["umount", "-l", merged], check=True, timeout=60)
        with pytest.raises(Refusal, match="layer-unreadable"):
            layer.save(found, view, str(tmp_path / "theirs.tar"))
        assert not list(tmp_path.glob("theirs*"))
    finally:
        child.kill()
        child.wait(30)


def test_what_is_mounted_is_found(tmp_path: Path, mounted: Mounted) -> None:
    """Names with all that gets escaped on the way: by whoever mounts (`\\:`), and by the kernel in mountinfo."""
    for odd in ("lower: one", "l\\2 #"):
        (tmp_path / odd).mkdir()
    merged = mounted("a b=c#", lowers=("lower\\: one", "l\\\\2 #"), point="m\tq")
    found = layer.overlay(mounts.read("self"), str(merged))
    assert found is not None
    assert found.upper == f"{tmp_path}/a b=c#/upper"
    assert found.lowers == (f"{tmp_path}/lower: one", f"{tmp_path}/l\\2 #")
    (merged / "file").touch()
    assert layer.save(found, str(merged), str(tmp_path / "out.tar")).entries == 2
    subprocess.run(["mount", "-t", "tmpfs", "t", merged], check=True, timeout=60)
    try:
        assert layer.overlay(mounts.read("self"), str(merged)) is None
    finally:
        subprocess.run(["umount", merged], check=True, timeout=60)
    assert layer.overlay(mounts.read("self"), str(tmp_path)) is None


def test_relative_directories_as_podman_mounts_them(tmp_path: Path) -> None:
    for part in ("lower", "7/diff", "7/work", "7/merged"):
        (tmp_path / part).mkdir(parents=True)
    text = "lowerdir=lower,upperdir=7/diff,workdir=7/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", text, "7/merged"], check=True, cwd=tmp_path, timeout=60)
    try:
        (tmp_path / "7/merged/file").write_text("written")
        found = layer.overlay(mounts.read("self"), str(tmp_path / "7/merged"))
        assert found is not None
        layer.save(found, "/nowhere", str(tmp_path / "out.tar"))
    finally:
        subprocess.run(["umount", tmp_path / "7/merged"], check=True, timeout=60)
    listed = subprocess.run(["tar", "-tf", tmp_path / "out.tar"], check=True, capture_output=True, timeout=60).stdout
    assert listed == b"./\nfile\n"


def test_no_room_and_no_folder(tmp_path: Path, mounted: Mounted) -> None:
    (tmp_path / "lower").mkdir()
    merged = mounted("one")
    (merged / "file").write_bytes(b"x" * (2 << 20))
    found = layer.overlay(mounts.read("self"), str(merged))
    assert found is not None
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "t", small], check=True, timeout=60)
    try:
        with pytest.raises(Refusal, match="layer-unwritable"):
            layer.save(found, str(merged), str(small / "out.tar"))
        assert not os.listdir(small)
        layer.save(found, str(merged), str(tmp_path / "out.tar"))
        with pytest.raises(Refusal, match="layer-too-large"):
            layer.apply(str(tmp_path / "out.tar"), str(small))
    finally:
        subprocess.run(["umount", small], check=True, timeout=60)
    with pytest.raises(Refusal, match="layer-unwritable"):
        layer.save(found, str(merged), str(tmp_path / "missing/out.tar"))


def test_random_trees(tmp_path: Path, mounted: Mounted) -> None:
    """Chance finds what nobody thought of: random operations on an overlay, saved and applied, many times."""
    fill_lower(tmp_path / "lower")
    for seed in range(int(os.environ.get("GRIT_TEST_SEEDS", "12"))):
        chance = random.Random(seed)
        options = chance.choice(["", ",metacopy=on,redirect_dir=on", ",redirect_dir=on"])
        merged, fresh = mounted(f"{seed}-one", options), mounted(f"{seed}-two")
        for _ in range(120):
            with contextlib.suppress(OSError):
                step(chance, merged)
        moved(merged, tmp_path / f"{seed}.tar", fresh)
        assert not differences(merged, fresh), f"seed {seed}{options}: {differences(merged, fresh)}"


def step(chance: random.Random, root: Path) -> None:
    everything = [root / os.path.relpath(os.path.join(f, n), root) for f, d, n_ in os.walk(root) for n in [*d, *n_]]
    some = chance.choice(everything)
    folder = some if some.is_dir() and not some.is_symlink() else some.parent
    new = folder / chance.choice(["a", "b", "etc", "sub", "x" * 120, "kept", "file"])
    what = chance.randrange(11)
    if what == 0:
        new.mkdir()
    elif what == 1:
        with open(new, "wb") as file:
            file.write(chance.randbytes(chance.choice([0, 1, 511, 512, 513, 70_000, 200_000])))
    elif what == 2:
        os.rename(some, new)
    elif what == 3:
        os.link(some, new, follow_symlinks=False)
    elif what == 4:
        os.symlink(chance.choice(["../x", "/etc", "nowhere"]), new)
    elif what == 5:
        some.unlink()
    elif what == 6:
        subprocess.run(["rm", "-rf", some], check=False)
    elif what == 7 and not some.is_symlink():
        os.chmod(some, chance.randrange(0o10000))
    elif what == 8 and stat.S_ISREG(some.lstat().st_mode):
        os.truncate(some, chance.choice([0, 100, 1 << 20, 1 << 24]))
    elif what == 9:
        os.utime(some, ns=(0, chance.randrange(1 << 61)), follow_symlinks=False)
    elif what == 10:
        os.setxattr(some, "user.n", chance.randbytes(5), follow_symlinks=False)
