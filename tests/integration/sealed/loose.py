"""Every 32 bytes that stand somewhere by themselves: each might be somebody's secret."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from boltz_protocol.limits import SECRET_BYTES
from boltz_protocol.v1 import aggregator_pb2, common_pb2

_HEX = re.compile(r"(?:[0-9a-f]{2}){32,}")
#: What the columns of a mesh hold in serialized form.
_STORED = (common_pb2.SignedStatement, aggregator_pb2.SharesDealt)


def loose(message: Message) -> Iterator[bytes]:
    """Of all fields of a message and of the statements in it: alone, or side by side in one field.

    Of 33 bytes, which is a share's size, the last 32 count.
    """
    for descriptor, value in message.ListFields():
        for each in [value] if isinstance(value, (bytes, str, Message)) else _values(value):
            if isinstance(each, Message):
                yield from loose(each)
            elif isinstance(each, bytes):
                yield from _pieces(each)
                if descriptor.name == "payload":
                    yield from _in_statement(message, each)


def loose_in_value(value: object) -> Iterator[bytes]:
    """The same of a column; in JSON and in texts a secret would stand as hex digits."""
    if isinstance(value, bytes):
        yield from _pieces(value)
        for kind in _STORED:
            try:
                yield from loose(kind.FromString(value))
            except DecodeError:
                continue
    elif value is not None:
        for digits in _HEX.findall(json.dumps(value)):
            yield from _pieces(bytes.fromhex(digits))


def _values(value: Any) -> list[object]:
    """Of a repeated field; of a map its values; a number is one of no interest."""
    if hasattr(value, "values"):
        return list(value.values())
    return list(value) if hasattr(value, "__iter__") else []


def _in_statement(statement: Any, payload: bytes) -> Iterator[bytes]:
    try:
        kind = descriptor_pool.Default().FindMessageTypeByName(statement.type)
        yield from loose(message_factory.GetMessageClass(kind).FromString(payload))
    except (KeyError, DecodeError):
        return


def _pieces(value: bytes) -> Iterator[bytes]:
    start = len(value) % SECRET_BYTES if len(value) == SECRET_BYTES + 1 else 0
    for first in range(start, len(value) - SECRET_BYTES + 1, SECRET_BYTES):
        yield value[first : first + SECRET_BYTES]
