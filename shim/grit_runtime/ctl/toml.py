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
        from tomlkit.exceptions import TOMLKitError

        try:
            value = _plain(tomlkit.parse(text))
        except TOMLKitError as error:  # not all of them are ValueErrors
            raise ValueError(error) from None
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
    from tomlkit.items import InlineTable

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
            table[keys[-1]] = _inline(value) if isinstance(table, InlineTable) else value
        text = tomlkit.dumps(document)
    except (TOMLKitError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise refuse("containerd-config-unknown", path=file.path, why=f"it can't be edited: {error}") from None
    if not same(text, wanted):
        raise refuse("containerd-config-unknown", path=file.path, why="an edit would change more than it should")
    return text


def without_table(file: File, keys: list[str]) -> str:
    """`file`'s text without the table at `keys` and those below it: their lines cut out if that does it, else as
    set_value does it."""
    wanted = copy.deepcopy(parse(file))
    _put(wanted, keys, None)
    kept, inside = [], False
    for line in file.text.splitlines(keepends=True):
        header = _header(line)
        if header is not None:
            inside = header[: len(keys)] == keys
        if not inside:
            kept.append(line)
    text = "".join(kept)
    return text if _drop_empty(wanted) == _drop_empty(_loads_or_none(text)) else set_value(file, keys, None)


def _header(line: str) -> list[str] | None:
    """The keys of a line like `[a."b.c".d]`; None for any other line."""
    if not line.lstrip().startswith("[") or line.lstrip().startswith("[["):
        return None
    keys: list[str] = []
    table = _loads_or_none(line)
    while isinstance(table, dict) and len(table) == 1:
        key, table = next(iter(table.items()))
        keys.append(key)
    return keys if table == {} and keys else None


def _loads_or_none(text: str) -> dict[str, Any] | None:
    try:
        return loads(text)
    except (ValueError, RecursionError):
        return None


def _drop_empty(table: Any) -> Any:
    """`table` without empty tables: they may be implied by a header that was cut out."""
    if not isinstance(table, dict):
        return table
    small = {key: _drop_empty(value) for key, value in table.items()}
    return {key: value for key, value in small.items() if value != {}}


def _inline(value: Any) -> Any:
    """`value` as it can stand in an inline table. (Older versions of tomlkit put an ordinary table there.)"""
    import tomlkit

    if not isinstance(value, dict):
        return value
    table = tomlkit.inline_table()
    for key, entry in value.items():
        table[key] = _inline(entry)
    return table


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
