"""How does a protobuf message read and change without its schema?

Only what the serialised syntax trees of CEL need: varints and length-delimited fields keep their meaning, fixed-width
fields are carried along as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5
_WIDTH: Final = {_FIXED64: 8, _FIXED32: 4}


class WireError(ValueError):
    """The bytes are no protobuf message."""


@dataclass(slots=True)
class Field:
    """One field of a message; bytes become a Message when they are first opened."""

    number: int
    wire: int
    value: int | bytes | Message


@dataclass(slots=True)
class Message:
    """The fields of a message in their order."""

    fields: list[Field] = field(default_factory=list)

    @staticmethod
    def decode(data: bytes) -> Message:
        """The message that `data` is, its sub-messages still closed."""
        fields: list[Field] = []
        at = 0
        while at < len(data):
            key, at = _varint(data, at)
            number, wire = key >> 3, key & 7
            if wire == _VARINT:
                value, at = _varint(data, at)
                fields.append(Field(number, wire, value))
                continue
            if wire == _BYTES:
                length, at = _varint(data, at)
            else:
                length = _WIDTH.get(wire, -1)
            if length < 0 or at + length > len(data):
                raise WireError(f"field {number} of wire type {wire} does not fit into {len(data)} bytes")
            fields.append(Field(number, wire, data[at : at + length]))
            at += length
        return Message(fields)

    def encode(self) -> bytes:
        """The bytes of the message."""
        out = bytearray()
        for item in self.fields:
            _write_varint(out, item.number << 3 | item.wire)
            if isinstance(item.value, int):
                _write_varint(out, item.value)
                continue
            data = item.value.encode() if isinstance(item.value, Message) else item.value
            if item.wire == _BYTES:
                _write_varint(out, len(data))
            out += data
        return bytes(out)

    def messages(self, number: int) -> list[Message]:
        """The sub-messages in a field, opened for reading and changing."""
        found = []
        for item in self.fields:
            if item.number == number and item.wire == _BYTES:
                if isinstance(item.value, bytes):
                    item.value = Message.decode(item.value)
                if isinstance(item.value, Message):
                    found.append(item.value)
        return found

    def message(self, number: int) -> Message | None:
        """The last sub-message in a field, as protobuf counts."""
        found = self.messages(number)
        return found[-1] if found else None

    def text(self, number: int) -> str | None:
        """The last string in a field; None where it is absent."""
        for item in reversed(self.fields):
            if item.number == number and isinstance(item.value, bytes):
                return item.value.decode()
        return None

    def integer(self, number: int) -> int:
        """The last varint in a field; 0 where it is absent."""
        return next((f.value for f in reversed(self.fields) if f.number == number and isinstance(f.value, int)), 0)

    def add(self, number: int, value: int | str | Message) -> Message:
        """Appends a field and gives back the message itself."""
        wire = _VARINT if isinstance(value, int) else _BYTES
        self.fields.append(Field(number, wire, value.encode() if isinstance(value, str) else value))
        return self

    def replace_text(self, number: int, value: str) -> None:
        """Sets a string field that is there."""
        for item in self.fields:
            if item.number == number:
                item.value = value.encode()


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise WireError(f"a number at byte {at} does not end")


def _write_varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
