"""Container images as docker-archives, written here: no registry. Both nodes get the same archive."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from pathlib import Path

from .places import HERE, IMAGES, digest

#: folders of the standard library that no workload needs
LEFT_OUT = ("test", "idlelib", "lib2to3", "ensurepip", "pydoc_data", "tkinter", "turtledemo", "venv", "distutils")

APPLETS = (
    "sh sleep cat ls echo ps touch ip mount stat readlink sha256sum mkdir rm ln kill true false env id hostname nc "
    "ping test tail head grep df dd date printf mv cp chmod find top nohup"
).split()


#: workload; busybox, which is the pods' pause image too
ARCHIVES = ("workload.tar", "busybox.tar")


def build(tree: Path) -> Path:
    """The folder of the ARCHIVES, made from a node's tree if not cached. Nodes have it at /srv."""
    sources = sorted(HERE.glob("workload*.py"))
    target = IMAGES / digest(tree.name, HERE / "images.py", *sources)
    archives = [target / name for name in ARCHIVES]
    if not all(archive.exists() for archive in archives):
        target.mkdir(parents=True, exist_ok=True)
        _archive(archives[0], ["workload"], _python_layer(tree, sources),
                 {"Cmd": ["/usr/bin/python3", "-I", "-S", "/workload/workload.py"]})  # fmt: skip
        # not sleep: CRIU lets a nanosleep fail with EINTR, at the dump already, and busybox's sleep ends then
        _archive(archives[1], ["busybox", "pause"], _base_layer(tree), {"Cmd": ["/bin/tail", "-f", "/dev/null"]})
    return target


def _base_layer(tree: Path) -> bytes:
    with _Layer() as layer:
        _base(layer, tree)
        return layer.done()


def _python_layer(tree: Path, sources: list[Path]) -> bytes:
    with _Layer() as layer:
        _base(layer, tree)
        program = Path(os.path.realpath(tree / "usr/bin/python3"))
        library = next((tree / "usr/lib").glob("python3.[0-9]*"))
        layer.file(program, "usr/bin/python3")
        modules = [
            path
            for path in sorted(library.rglob("*"))
            if path.relative_to(library).parts[0] not in LEFT_OUT and not path.is_symlink() and path.is_file()
        ]
        for path in modules:
            layer.file(path, f"usr/lib/{library.name}/{path.relative_to(library)}")
        for needed in _needed(tree, [program, *(path for path in modules if path.suffix == ".so")]):
            layer.file(tree / needed.lstrip("/"), needed)
        for source in sources:
            layer.file(source, f"workload/{source.name}")
        # what the workload watches, changes and deletes: files of the lower layer
        for name in ("watched", "changed", "deleted"):
            layer.text(f"data/lower/{name}", f"{name} in the image\n")
        layer.text("data/replaced/old", "old\n")
        layer.text("data/upper/.keep", "")
        return layer.done()


def _base(layer: _Layer, tree: Path) -> None:
    for folder in ("proc", "sys", "dev", "run", "tmp", "etc", "root", "var/lib"):
        layer.folder(folder)
    for name, target in (("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")):
        layer.link(name, target)
    layer.text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
    layer.text("etc/group", "root:x:0:\n")
    layer.file(tree / "usr/bin/busybox", "usr/bin/busybox")
    for applet in APPLETS:
        layer.link(f"usr/bin/{applet}", "busybox")


def _needed(tree: Path, programs: list[Path]) -> list[str]:
    """The shared libraries of these files of the tree, as paths in it."""
    inside = [f"/{path.relative_to(tree)}" for path in programs]
    found = subprocess.run(
        ["chroot", tree, "/usr/bin/ldd", *inside], capture_output=True, text=True, timeout=60, check=False
    ).stdout
    places = set(re.findall(r"(?:=> |^\s+)(/\S+) \(0x", found, re.MULTILINE))
    return sorted("/usr" + place if place.startswith("/lib") else place for place in places)


class _Layer:
    """A layer's tar. Times are kept, so that Python's cached bytecode stays valid."""

    def __init__(self) -> None:
        self._data = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._data, mode="w", format=tarfile.PAX_FORMAT)
        self._there: set[str] = set()

    def __enter__(self) -> _Layer:
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()

    def folder(self, name: str) -> None:
        for parent in [*reversed(Path(name).parents), Path(name)]:
            if str(parent) != "." and str(parent) not in self._there:
                self._there.add(str(parent))
                entry = tarfile.TarInfo(str(parent))
                entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if parent.name == "tmp" else 0o755
                self._tar.addfile(entry)

    def link(self, name: str, target: str) -> None:
        self.folder(str(Path(name).parent))
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = tarfile.SYMTYPE, target
        self._tar.addfile(entry)

    def text(self, name: str, text: str) -> None:
        self.folder(str(Path(name).parent))
        entry = tarfile.TarInfo(name)
        entry.size = len(text.encode())
        self._tar.addfile(entry, io.BytesIO(text.encode()))

    def file(self, source: Path, name: str) -> None:
        """The file itself, a symlink followed."""
        name = name.lstrip("/")
        if name in self._there:
            return
        self._there.add(name)
        self.folder(str(Path(name).parent))
        data, status = source.read_bytes(), source.stat()
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode, entry.mtime = len(data), status.st_mode & 0o755, int(status.st_mtime)
        self._tar.addfile(entry, io.BytesIO(data))

    def done(self) -> bytes:
        self._tar.close()
        return self._data.getvalue()


def _archive(target: Path, names: list[str], layer: bytes, run: dict[str, object]) -> None:
    """Writes a docker-archive of one layer, by rename."""
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {"Env": ["PATH=/usr/bin:/bin"], "WorkingDir": "/", **run},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
    }
    text = json.dumps(config).encode()
    manifest = [
        {
            "Config": hashlib.sha256(text).hexdigest() + ".json",
            "RepoTags": [f"{name}:latest" for name in names],
            "Layers": ["layer.tar"],
        }
    ]
    part = target.with_suffix(f".{os.getpid()}")
    with tarfile.open(part, "w") as archive:
        for name, data in (
            ("manifest.json", json.dumps(manifest).encode()),
            (str(manifest[0]["Config"]), text),
            ("layer.tar", layer),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    part.rename(target)
