"""TOML that people edit: read as plain values, changed with comments and order kept (tomlkit), checked afterwards."""

from __future__ import annotations

import copy
import json
from importlib import import_module
from typing import Any, Protocol

from grit_runtime.checks import refuse


class File(Protocol):
    """Something with a path, for messages, and a text."""

    @property
    def path(self) -> str: ...

    @property
    def text(self) -> str: ...


def loads(text: str) -> dict[str, Any]:
    """Plain values of `text`; ValueError if it is no TOML."""
    try:
        value: dict[str, Any] = import_module("tomllib").loads(text)
    except ImportError:  # Python 3.10
        import tomlkit

        value = _plain(tomlkit.parse(text))
    return value


def parse(file: File) -> dict[str, Any]:
    """Plain values of `file`; refuses containerd-config-unknown."""
    try:
        return loads(file.text)
    except (ValueError, RecursionError) as error:
        raise refuse("containerd-config-unknown", path=file.path, why=f"it is not valid TOML: {error}") from None


def _plain(item: Any) -> Any:
    """tomlkit's items as what they stand for. (`unwrap` does that in versions newer than Ubuntu 22.04's.)"""
    if isinstance(item, dict):
        return {str(key): _plain(entry) for key, entry in item.items()}
    if isinstance(item, list):
        return [_plain(entry) for entry in item]
    if isinstance(item, bool):
        return bool(item)
    return next((kind(item) for kind in (int, float, str) if isinstance(item, kind)), item)


def at(table: Any, keys: list[str], path: str) -> Any:
    """What `table` has at `keys`; None if there is nothing. Refuses when something on the way is no table."""
    for key in keys:
        if table is None:
            return None
        if not isinstance(table, dict):
            raise refuse("containerd-config-unknown", path=path, why=f"{'.'.join(keys)} goes through a value")
        table = table.get(key)
    return table


def has(file: File, keys: list[str]) -> bool:
    """Whether `file` says anything at `keys`."""
    return at(parse(file), keys, file.path) is not None


def same(text: str, wanted: dict[str, Any]) -> bool:
    """Whether `text` is TOML that stands for `wanted`."""
    try:
        return loads(text) == wanted
    except (ValueError, RecursionError):
        return False


def set_value(file: File, keys: list[str], value: Any) -> str:
    """`file`'s text with `value` at `keys`, or without anything there if it is None.

    Refuses containerd-config-unknown if tomlkit can't do that without changing anything else.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    wanted = copy.deepcopy(parse(file))
    _put(wanted, keys, value)
    try:
        document = tomlkit.parse(file.text)
        table: Any = document
        for key in keys[:-1]:
            if key not in table:
                table[key] = tomlkit.table()
            table = table[key]
        if value is None:
            table.pop(keys[-1], None)
        else:
            table[keys[-1]] = value
        text = tomlkit.dumps(document)
    except (TOMLKitError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise refuse("containerd-config-unknown", path=file.path, why=f"it can't be edited: {error}") from None
    if not same(text, wanted):
        raise refuse("containerd-config-unknown", path=file.path, why="an edit would change more than it should")
    return text


def _put(table: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        table = table.setdefault(key, {})
    if value is None:
        table.pop(keys[-1], None)
    else:
        table[keys[-1]] = value


def value(item: object) -> str:
    """A string, a boolean, a whole number or a list of such as TOML writes them (JSON writes these the same way)."""
    return json.dumps(item, ensure_ascii=True)
