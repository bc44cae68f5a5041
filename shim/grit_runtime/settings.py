"""The configuration, /etc/grit-runtime/config.toml: read, checked, and never changed while we run.

packaging/config.toml documents every key. A key that it leaves out has the default given here; what it should not hold
is refused by name, because a misspelt key that is silently ignored is found only when a container is lost.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NamedTuple

from grit_runtime.checks import refuse

CONFIG = "/etc/grit-runtime/config.toml"
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Runtime(NamedTuple):
    """`next`: the next runtime, an absolute path or a name to look up in PATH."""

    next: str = "/usr/bin/nvidia-container-runtime"


class Nvidia(NamedTuple):
    """`config`: the NVIDIA Container Toolkit's own configuration. `inject`: auto, always, never."""

    config: str = "/etc/nvidia-container-runtime/config.toml"
    inject: str = "auto"


class Checkpoint(NamedTuple):
    """`ghost_limit` in bytes, `timeout` in seconds, `network_lock`: auto, iptables, nftables, skip."""

    rw_layer: bool = True
    shm: bool = True
    ghost_limit: int = 1 << 30
    network_lock: str = "auto"
    timeout: int = 600


class Restore(NamedTuple):
    """`roots`: the folders below which an annotation may point. `wait`: seconds, for data that is still arriving."""

    roots: tuple[str, ...] = ("/var/lib/grit", "/var/lib/kubelet/checkpoints", "/mnt/grit-agent", "/mnt/checkpoints")
    wait: int = 100
    optional_mounts: tuple[str, ...] = (
        "*/gbm/nvidia-drm_gbm.so", "*/nvidia/xorg/*", "*/vdpau/libvdpau_nvidia.so*", "/etc/vulkan/*",
        "/usr/share/vulkan/*", "/usr/share/egl/*", "/usr/share/glvnd/*", "/usr/share/X11/*", "/usr/share/nvidia/*",
    )  # fmt: skip
    allow: tuple[str, ...] = ()


class Cuda(NamedTuple):
    """`way`: auto, driver, binary, off. `timeout` in seconds, `margin` and `past_criu` in bytes."""

    way: str = "auto"
    binary: str = "cuda-checkpoint"
    timeout: int = 120
    margin: int = 1 << 30
    huge_pages: bool = True
    past_criu: int = 64 << 20


class Logs(NamedTuple):
    """`keep`: how many operations of a container; `max_size` in bytes; `metrics`: a folder, or "" for none."""

    keep: int = 5
    max_size: int = 64 << 20
    metrics: str = ""


class Settings(NamedTuple):
    """The whole configuration, one field for each table of the file."""

    runtime: Runtime = Runtime()
    nvidia: Nvidia = Nvidia()
    checkpoint: Checkpoint = Checkpoint()
    restore: Restore = Restore()
    cuda: Cuda = Cuda()
    logs: Logs = Logs()


# What a value may be, beyond its default's type.
_CHOICES = {
    "nvidia.inject": ("auto", "always", "never"),
    "checkpoint.network_lock": ("auto", "iptables", "nftables", "skip"),
    "cuda.way": ("auto", "driver", "binary", "off"),
}
_SIZES = ("checkpoint.ghost_limit", "cuda.margin", "cuda.past_criu", "logs.max_size")
_PATHS = ("nvidia.config", "restore.roots")  # must be absolute


def config_path() -> str:
    """Where the configuration is: GRIT_RUNTIME_CONFIG in our caller's environment, else /etc/grit-runtime."""
    return os.environ.get("GRIT_RUNTIME_CONFIG") or CONFIG


def load(path: str | None = None) -> Settings:
    """Read the configuration. Refuses what `text`, `parse` and `check` refuse."""
    path = path or config_path()
    return check(parse(text(path), path), path)


def text(path: str) -> str:
    """The file's text. Refuses `config-missing`, `config-unreadable`, `config-broken` (not UTF-8)."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError as error:
        raise refuse("config-missing", path=path) from error
    except OSError as error:
        raise refuse("config-unreadable", path=path, error=error.strerror) from error
    except UnicodeDecodeError as error:
        raise refuse("config-broken", path=path, error=error) from error


def parse(content: str, path: str = CONFIG) -> dict[str, Any]:
    """TOML to plain values; `path` is only for the message. Refuses `config-broken`."""
    try:
        if sys.version_info >= (3, 11):
            import tomllib

            return tomllib.loads(content)
        import tomlkit

        return dict(tomlkit.parse(content).unwrap())
    except ValueError as error:  # both libraries' errors are ValueErrors that tell the line
        raise refuse("config-broken", path=path, error=error) from error


def check(tree: dict[str, Any], path: str = CONFIG) -> Settings:
    """`tree` as settings. Refuses `config-unknown-key`, `config-wrong-type`, `config-wrong-value`, naming the key."""
    tables = {}
    for name, values in tree.items():
        table = Settings._field_defaults.get(name)
        if table is None:
            raise refuse("config-unknown-key", path=path, key=name)
        if not isinstance(values, dict):
            raise refuse("config-wrong-type", path=path, key=name, wanted="a table")
        known = table._asdict()
        for key in values:
            if key not in known:
                raise refuse("config-unknown-key", path=path, key=f"{name}.{key}")
        tables[name] = table._replace(
            **{key: _value(f"{name}.{key}", value, known[key], path) for key, value in values.items()}
        )
    return Settings(**tables)


def size(value: object) -> int | None:
    """Bytes from 1073741824, "1073741824", "1G" or "512M" (powers of 1024); None where it is no size."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if value >= 0 else None
    if not isinstance(value, str):
        return None
    number = value[:-1] if value[-1:] in _UNITS else value
    if not (number.isascii() and number.isdigit()):
        return None
    return int(number) * _UNITS.get(value[-1:], 1)


def _value(key: str, value: object, default: object, path: str) -> object:
    """One value, as the type of its default."""
    if key in _SIZES:
        number = size(value)
        if number is None:
            raise refuse("config-wrong-type", path=path, key=key, wanted='a size like "512M" or "1G"')
        return number
    if isinstance(default, tuple):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise refuse("config-wrong-type", path=path, key=key, wanted="a list of strings")
        value = tuple(value)
    elif type(value) is not type(default):
        wanted = {bool: "true or false", int: "a whole number", str: "a string"}[type(default)]
        raise refuse("config-wrong-type", path=path, key=key, wanted=wanted)
    if key in _CHOICES and value not in _CHOICES[key]:
        raise refuse("config-wrong-value", path=path, key=key, wanted="one of " + ", ".join(_CHOICES[key]))
    if isinstance(value, int) and value < 0:
        raise refuse("config-wrong-value", path=path, key=key, wanted="0 or more")
    if key in _PATHS and not all(os.path.isabs(str(item)) for item in (value if isinstance(value, tuple) else [value])):
        raise refuse("config-wrong-value", path=path, key=key, wanted="absolute paths")
    if key == "runtime.next" and (not value or ("/" in str(value) and not os.path.isabs(str(value)))):
        raise refuse("config-wrong-value", path=path, key=key, wanted="an absolute path or a program's name")
    return value
