"""Whether an image folder is whole: every file that another one promises is there and as long as it must be.

Source: CRIU's criu/image-desc.c (names), cr-dump.c (who has which files), filesystems.c (tmpfs), pagemap.c (pages).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from grit_runtime.checks import Refusal, refuse
from grit_runtime.criu import imagefile, inventory, mountpoints, openfiles, tasks
from grit_runtime.criu.imagefile import Path

OF_TASK = ("core-{pid}.img", "ids-{pid}.img", "mm-{pid}.img", "fs-{pid}.img", "pagemap-{pid}.img")
OF_NAMESPACE = {"uts": "utsns-{id}.img", "mnt": "mountpoints-{id}.img", "ipc": "ipcns-var-{id}.img"}


def complete(folder: Path) -> None:
    """Refuses with the first of the problems."""
    for problem in problems(folder):
        raise problem


def parent(folder: Path) -> str | None:
    """Where the `parent` link of an incremental image leads: CRIU follows it to read pages. None: there is none."""
    path = os.path.join(folder, "parent")
    try:
        return os.readlink(path) if stat.S_ISLNK(os.lstat(path).st_mode) else path
    except OSError:
        return None


def problems(folder: Path) -> Iterator[Refusal]:
    """All that is missing, cut short or not an image, as refusals that were not raised. Reads no page's contents."""
    told: set[str] = set()
    for problem in _problems(folder):
        if problem.message not in told:
            told.add(problem.message)
            yield problem


def _problems(folder: Path) -> Iterator[Refusal]:
    """The same, with some of them twice."""
    try:
        found = imagefile.names(folder)
    except Refusal as problem:
        yield problem
        return
    broken = False
    for name in found:
        try:
            _frame(folder, name)
        except Refusal as problem:
            broken = True
            yield problem
    # What a missing or broken file would promise can't be known.
    try:
        for name in _promised(folder):
            if name not in found:
                broken = True
                yield refuse("image-missing", path=os.path.join(folder, name), what="it isn't there")
    except Refusal as problem:
        broken = True
        yield problem
    yield from _pages(folder, found, broken)


def _frame(folder: Path, name: str) -> None:
    """Walk through the entries of one file of a known kind; refuses what isn't right. Pagemaps are read by _pages."""
    if imagefile.kind(name) not in ("", "pagemap", "pagemap-shmem"):
        for _ in imagefile.entries(os.path.join(folder, name)):
            pass


def _promised(folder: Path) -> Iterator[str]:
    """The names of the files that the others promise."""
    own = inventory.inventory(folder).namespaces
    yield "files.img"
    seen: set[str] = set()
    for pid, _, threads in inventory.processes(folder):
        yield f"core-{pid}.img"
        if not os.path.lexists(os.path.join(folder, f"core-{pid}.img")):
            continue
        core = imagefile.first(os.path.join(folder, f"core-{pid}.img"))
        common = core.message(3)
        if common and tasks.STATES.get(common.integer(1)) in ("dead", "zombie"):
            continue
        yield from (f"core-{thread}.img" for thread in threads if thread != pid)
        yield from (name.format(pid=pid) for name in OF_TASK)
        if not os.path.lexists(os.path.join(folder, f"ids-{pid}.img")):
            continue
        ids = inventory.ids(folder, pid)
        yield f"fdinfo-{ids.integer(2)}.img"
        for kind, name in OF_NAMESPACE.items():
            number = ids.integer(inventory.KINDS[kind])
            if number and number != own.get(kind) and name.format(id=number) not in seen:
                seen.add(name.format(id=number))
                yield name.format(id=number)
    yield from _contents(folder)


def _contents(folder: Path) -> Iterator[str]:
    """Files that hold the contents of what others only name: tmpfs, deleted files, TCP queues."""
    found = mountpoints.mounts(folder)
    # What is bound from outside and bound again inside belongs to the node.
    outside = {mount.device for mount in found if mount.external and mount.root == "/"}
    for device in sorted({mount.device for mount in found if _carried(mount)} - outside):
        yield f"tmpfs-dev-{device}.tar.gz.img"
    if imagefile.exists(folder, "remap-fpath.img"):
        for entry in imagefile.entries(os.path.join(folder, "remap-fpath.img")):
            if entry.integer(3) == openfiles.GHOST:
                yield openfiles.ghost_name(entry.integer(2))
    for socket in openfiles.sockets(folder):
        if socket.protocol == "tcp" and socket.state == "established" and not inventory.inventory(folder).tcp_close:
            yield openfiles.stream_name(socket.inode)


def _carried(mount: mountpoints.Mount) -> bool:
    return mount.kind == "tmpfs" and not mount.external and mount.root == "/" and mount.mountpoint != "/"


def _pages(folder: Path, found: list[str], broken: bool) -> Iterator[Refusal]:
    """Compare the size of each pages file with what the pagemaps that name it promise.

    CRIU (4.2.1) doesn't: given fewer pages it restores for ever, and its log fills the disk.
    """
    wanted: dict[int, int] = {}
    for name in found:
        if imagefile.kind(name) in ("pagemap", "pagemap-shmem"):
            try:
                stored, _, number = tasks.stored_pages(folder, name[len("pagemap-") : -len(".img")])
            except Refusal as problem:
                broken = True
                yield problem
            else:
                wanted[number] = wanted.get(number, 0) + stored
    if broken:
        return
    sizes = {number: _size(os.path.join(folder, f"pages-{number}.img")) for number in wanted}
    page = _page_size(folder, wanted, sizes)
    for number, pages in sorted(wanted.items()):
        path, size = os.path.join(folder, f"pages-{number}.img"), sizes[number]
        if size is None:
            if pages:
                yield refuse("image-missing", path=path, what="it isn't there")
        elif size < pages * page:
            yield refuse("image-truncated", path=path, what=f"{size} bytes are there of {pages * page}")
        elif size > pages * page:
            yield refuse("image-truncated", path=path, what=f"{size} bytes are there, but pagemaps name {pages * page}")


def _page_size(folder: Path, wanted: dict[int, int], sizes: dict[int, int | None]) -> int:
    """The image doesn't say. x86 and s390x have one size; elsewhere the one that fits most files."""
    pid = inventory.processes(folder)[0][0]
    core = imagefile.first(os.path.join(folder, f"core-{pid}.img"))
    if tasks.ARCHITECTURES.get(core.integer(1)) not in ("aarch64", "ppc64le", "mips", "loongarch64"):
        return tasks.PAGE
    fits = {size: sum(wanted[one] * size == sizes[one] for one in wanted) for size in (4096, 16384, 65536)}
    return max(fits, key=lambda size: fits[size])


def _size(path: str) -> int | None:
    try:
        with imagefile.open_file(path) as file:
            return os.fstat(file.fileno()).st_size
    except Refusal:
        return None
