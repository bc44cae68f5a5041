"""What CRIU must be told to dump the container: pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from grit_runtime.look import sockets
from grit_runtime.look.facts import Look

GHOST_DEFAULT = 1 << 20  # DEFAULT_GHOST_LIMIT of CRIU


class Needs(NamedTuple):
    """Options by CRIU's names. `external_files`: (mount id, inode, descriptor of the init process).

    `ghost_limit` is bytes; CRIU's default where nothing is larger. `masters`: `enable-external-masters`.
    """

    tcp_established: bool
    skip_in_flight: bool
    ext_unix_sk: bool
    file_locks: bool
    link_remap: bool
    ghost_limit: int
    shell_job: bool
    external_files: list[tuple[int, int, int]]
    masters: bool


def needs(look: Look, spec: dict[str, Any]) -> Needs:
    """The options for a container as it was looked at."""
    ghosts = [file.size for file in look.files if not file.names]
    return Needs(
        tcp_established=any(map(sockets.connected, look.sockets)),
        skip_in_flight=any(socket.waiting for socket in look.sockets if socket.protocol.startswith("TCP")),
        ext_unix_sk=any(socket.named for socket in look.sockets),
        file_locks=bool(look.locks),
        link_remap=any(file.names for file in look.files),
        ghost_limit=max(GHOST_DEFAULT, max(ghosts, default=0) * 2),
        shell_job=_session_outside(look) and not (spec.get("process") or {}).get("terminal"),
        external_files=external_files(look),
        masters=bool(look.masters),
    )


def _session_outside(look: Look) -> bool:
    init = look.process(look.init)
    return init is not None and init.session == 0


def external_files(look: Look) -> list[tuple[int, int, int]]:
    """Regular files of the host that the container has as its stdio: one entry each, at its lowest descriptor."""
    found: dict[tuple[int, int], int] = {}
    for file in sorted(look.outside):
        if file.place[0] == look.init and file.kind == "file":
            found.setdefault((file.mount, file.inode), file.place[1])
    return [(mount, inode, fd) for (mount, inode), fd in found.items()]
