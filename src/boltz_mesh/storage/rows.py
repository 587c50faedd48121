"""Between rows and frozen dataclasses; JSON columns."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

import asyncpg
import msgspec

T = TypeVar("T")


def build(cls: type[T], row: asyncpg.Record, **converted: object) -> T:
    """A `cls` from the columns that bear its fields' names; `converted` replaces some of them.

    Columns that the class does not know are left out, so that an older replica can go on while a
    newer one has added some.
    """
    names = _names(cls)  # type: ignore[arg-type]  # a class is hashable, whatever mypy makes of T
    return cls(**{name: converted[name] if name in converted else row[name] for name in names})


@functools.cache
def _names(cls: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(cls))


def to_json(value: Mapping[str, Any]) -> str:
    """Text for a jsonb column. A NaN or an infinity is an error (ValueError): JSON has none."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def from_json(text: str) -> dict[str, Any]:
    """An object from a jsonb column."""
    value = msgspec.json.decode(text)
    assert isinstance(value, dict)
    return value


def affected(status: str) -> int:
    """How many rows a statement touched, from its command tag ("UPDATE 3")."""
    return int(status.rsplit(" ", 1)[1])
