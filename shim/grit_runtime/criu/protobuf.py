"""Protocol Buffers on the wire, as CRIU's images use them: messages of numbered fields, no schema.

A Message keeps every field in its order, so that encoding a decoded message gives the same bytes back, fields
that we have never heard of included. Images come from anywhere: each length is checked against what is there, and
whatever isn't a message is a Refusal `image-malformed` that names the file and the offset.

Wire types (the encoding's specification): 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes. 3 and 4
(groups) were never used by CRIU and are refused.
"""

from __future__ import annotations

from typing import NamedTuple

from grit_runtime.checks import Refusal, refuse

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
NUMBERS = (1 << 29) - 1  # the largest field number
BITS = (1 << 64) - 1
LONGEST = 10  # bytes of a number of 64 bits

Value = int | bytes


class Field(NamedTuple):
    """One field. `value`: an unsigned number, or bytes for wire type 2; `offset`: where it starts in the file."""

    number: int
    wire: int
    value: Value
    offset: int


class Message:
    """The fields of one message. A field that isn't there reads as its default; the last of several wins."""

    __slots__ = ("fields", "where")

    def __init__(self, fields: list[Field], where: str) -> None:
        self.fields, self.where = fields, where

    def integer(self, number: int, default: int = 0) -> int:
        """An unsigned integer, bool or enum."""
        for field in reversed(self.fields):
            if field.number == number:
                if isinstance(field.value, int):
                    return field.value
                raise self._wrong(field, "a number")
        return default

    def signed(self, number: int, default: int = 0) -> int:
        """An int32 or int64: two's complement in 64 bits."""
        value = self.integer(number, default & BITS)
        return value - (1 << 64) if value >> 63 else value

    def zigzag(self, number: int, default: int = 0) -> int:
        """A sint32 or sint64."""
        if not self.has(number):
            return default
        value = self.integer(number)
        return (value >> 1) ^ -(value & 1)

    def raw(self, number: int, default: bytes = b"") -> bytes:
        for field in reversed(self.fields):
            if field.number == number:
                if isinstance(field.value, bytes):
                    return field.value
                raise self._wrong(field, "bytes")
        return default

    def text(self, number: int, default: str = "") -> str:
        """A string; bytes that are not UTF-8 come back as surrogates, as os.fsdecode gives them for names."""
        return self.raw(number).decode("utf-8", "surrogateescape") if self.has(number) else default

    def message(self, number: int) -> Message | None:
        found = self.messages(number)
        return found[-1] if found else None

    def messages(self, number: int) -> list[Message]:
        result = []
        for field in self.fields:
            if field.number == number:
                if not isinstance(field.value, bytes):
                    raise self._wrong(field, "a message")
                result.append(decode(field.value, self.where, field.offset))
        return result

    def integers(self, number: int) -> list[int]:
        """A repeated integer, packed or not."""
        result: list[int] = []
        for field in self.fields:
            if field.number != number:
                continue
            if isinstance(field.value, int):
                result.append(field.value)
                continue
            at = 0
            while at < len(field.value):
                value, at = _varint(field.value, at, self.where, field.offset)
                result.append(value)
        return result

    def texts(self, number: int) -> list[str]:
        found = [field for field in self.fields if field.number == number]
        return [Message([field], self.where).text(number) for field in found]

    def has(self, number: int) -> bool:
        return any(field.number == number for field in self.fields)

    def replaced(self, number: int, value: Value | None) -> Message:
        """The message with field `number` set to `value` (where the field was, or at the end), or without it (None)."""
        fields: list[Field] = []
        wire = VARINT if isinstance(value, int) else BYTES
        for field in self.fields:
            if field.number != number:
                fields.append(field)
            elif value is not None:
                fields.append(Field(number, wire, value, field.offset))
                value = None
        if value is not None:
            fields.append(Field(number, wire, value, 0))
        return Message(fields, self.where)

    def encode(self) -> bytes:
        """The message's bytes: the same ones that it was decoded from when nothing was replaced."""
        out = bytearray()
        for number, wire, value, _ in self.fields:
            out += encode_varint(number << 3 | wire)
            if isinstance(value, bytes):
                out += encode_varint(len(value)) + value
            elif wire == VARINT:
                out += encode_varint(value)
            else:
                out += value.to_bytes(8 if wire == FIXED64 else 4, "little")
        return bytes(out)

    def _wrong(self, field: Field, wanted: str) -> Refusal:
        return malformed(self.where, field.offset, f"field {field.number} is not {wanted}")


def decode(data: bytes, where: str, offset: int = 0) -> Message:
    """The message that `data` is. `where` (the file) and `offset` (of data in it, in bytes) are for the error alone."""
    fields: list[Field] = []
    at, end = 0, len(data)
    while at < end:
        start = at
        # Most numbers are one byte long; images have hundreds of thousands of them.
        if (key := data[at]) < 0x80:
            at += 1
        else:
            key, at = _varint(data, at, where, offset)
        number, wire = key >> 3, key & 7
        if not 1 <= number <= NUMBERS:
            raise malformed(where, offset + start, f"no field has the number {number}")
        value: Value
        begin = at
        if wire == VARINT:
            if at < end and (value := data[at]) < 0x80:
                at += 1
            else:
                value, at = _varint(data, at, where, offset)
        elif wire == BYTES:
            length, begin = _varint(data, at, where, offset)
            at = begin + length
            value = data[begin:at]
        elif wire in (FIXED64, FIXED32):
            at = begin + (8 if wire == FIXED64 else 4)
            value = int.from_bytes(data[begin:at], "little")
        else:
            raise malformed(where, offset + start, f"wire type {wire}")
        if at > end:
            raise malformed(where, offset + start, f"field {number} is longer than its message")
        fields.append(Field(number, wire, value, offset + begin))
    return Message(fields, where)


def encode_varint(value: int) -> bytes:
    """`value` in base 128, low digits first; a negative one as two's complement in 64 bits."""
    value &= BITS
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def malformed(where: str, offset: int, what: str) -> Refusal:
    return refuse("image-malformed", path=where, offset=offset, what=what)


def _varint(data: bytes, at: int, where: str, offset: int) -> tuple[int, int]:
    """The number at `at` in `data`, and where the next thing starts."""
    result = shift = 0
    for byte in data[at : at + LONGEST]:
        result |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return result & BITS, at + shift // 7
    raise malformed(where, offset + at, "a number without an end")
