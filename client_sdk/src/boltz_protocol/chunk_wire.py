"""Chunks in protobuf's own bytes, written and read without protobuf's copies.

The three messages that carry bulk data have the same shape: a oneof whose field 2 is a message with
`uint64 offset = 1` and `bytes data = 2` (SubmitUpdateRequest, PullResponse, PublishRequest). What
`encode_chunk` writes is what protobuf would write, byte for byte (a test compares them). What
`parse_chunk` reads is only that form, in that order; anything else is left to protobuf, which
accepts every valid encoding (https://protobuf.dev/programming-guides/encoding/).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

_OFFSET_TAG: Final = 1 << 3 | 0
_BYTES_TAG: Final = 2 << 3 | 2
#: A varint of 64 bits has at most ten bytes.
_MAX_VARINT_BYTES: Final = 10


@dataclass(frozen=True, slots=True)
class WireChunk:
    """A chunk as it came; `data` is a view of the message's bytes."""

    offset: int
    data: memoryview = field(repr=False)


def encode_chunk(offset: int, data: bytes | bytearray | memoryview) -> bytes:
    """The bytes of a message whose oneof holds this chunk (one copy of `data`)."""
    inner = b"" if offset == 0 else bytes([_OFFSET_TAG]) + _varint(offset)
    if len(data):
        inner += bytes([_BYTES_TAG]) + _varint(len(data))
    return b"".join((bytes([_BYTES_TAG]), _varint(len(inner) + len(data)), inner, data))


def parse_chunk(message: bytes) -> WireChunk | None:
    """The chunk in a message of the form above; None for anything else, which protobuf decides."""
    if not message or message[0] != _BYTES_TAG:
        return None
    size, position = _read_varint(message, 1)
    if position == 0 or position + size != len(message):
        return None
    offset = 0
    if message[position : position + 1] == bytes([_OFFSET_TAG]):
        offset, position = _read_varint(message, position + 1)
    if position == 0 or message[position : position + 1] != bytes([_BYTES_TAG]):
        return None
    size, position = _read_varint(message, position + 1)
    if position == 0 or position + size != len(message):
        return None
    return WireChunk(offset, memoryview(message)[position:])


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    """A varint and the position behind it; position 0 where there is none of 64 bits."""
    value = 0
    for index, byte in enumerate(message[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return (value, position + index + 1) if value < 1 << 64 else (0, 0)
    return 0, 0
