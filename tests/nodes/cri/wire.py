"""Protocol buffers, as far as CRI needs them: a message is a dict, its description a dict of the same shape.

A description maps a field's name to (number, kind). Kinds: "text", "bytes", "int" (all of protobuf's varints), "map"
(text to text), another description, or a list of one kind for a repeated field. Fields that aren't described are
skipped; those that aren't sent are missing in the dict, as in protobuf's version 3 a zero is not sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Message = dict[str, Any]
Fields = Mapping[str, tuple[int, Any]]

_PAIR: Fields = {"key": (1, "text"), "value": (2, "text")}


def encode(fields: Fields, message: Mapping[str, Any]) -> bytes:
    """The bytes of `message`; a KeyError names a field that is not described."""
    out = b""
    for name, value in message.items():
        number, kind = fields[name]
        if kind == "map":
            kind, value = [_PAIR], [{"key": key, "value": text} for key, text in value.items()]
        for one in value if isinstance(kind, list) else [value]:
            out += _encode(number, kind[0] if isinstance(kind, list) else kind, one)
    return out


def decode(fields: Fields, data: bytes) -> Message:
    """The message in `data`. ValueError if it is cut."""
    known = {number: (name, kind) for name, (number, kind) in fields.items()}
    found: Message = {}
    for number, value in _fields(data):
        if number not in known:
            continue
        name, kind = known[number]
        if kind == "map":
            pair = decode(_PAIR, _bytes(value))
            found.setdefault(name, {})[pair.get("key", "")] = pair.get("value", "")
        elif isinstance(kind, list):
            found.setdefault(name, []).append(_decode(kind[0], value))
        else:
            found[name] = _decode(kind, value)
    return found


def _encode(number: int, kind: Any, value: Any) -> bytes:
    if kind == "int":
        return _varint(number << 3) + _varint(int(value) & (1 << 64) - 1)
    data = value.encode() if kind == "text" else bytes(value) if kind == "bytes" else encode(kind, value)
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _decode(kind: Any, value: int | bytes) -> Any:
    if kind == "int":
        assert isinstance(value, int)
        return value - (1 << 64) if value >> 63 else value
    data = _bytes(value)
    return data.decode() if kind == "text" else data if kind == "bytes" else decode(kind, data)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = _read(data, at)
        if key & 7 == 0:
            value, at = _read(data, at)
            yield key >> 3, value
            continue
        # the fixed ones are in no message that we describe
        length, at = _read(data, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
        if at + length > len(data):
            raise ValueError("a message that is cut")
        yield key >> 3, data[at : at + length]
        at += length


def _read(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("a number that is cut")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _bytes(value: int | bytes) -> bytes:
    assert isinstance(value, bytes)
    return value
