"""Between rows and frozen dataclasses; JSON columns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

import asyncpg

T = TypeVar("T")


def build(cls: type[T], row: asyncpg.Record, **converted: object) -> T:
    """A `cls` from the columns that bear its fields' names; `converted` replaces some of them.

    Columns that the class does not know are left out, so that an older replica can go on while a
    newer one has added some.
    """
    # `fields` is typed for dataclass instances only; every caller passes a dataclass.
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    return cls(**{name: converted[name] if name in converted else row[name] for name in names})


def to_json(value: Mapping[str, Any]) -> str:
    """Text for a jsonb column. A NaN or an infinity is an error (ValueError): JSON has none."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def from_json(text: str) -> dict[str, Any]:
    """An object from a jsonb column."""
    value = json.loads(text)
    assert isinstance(value, dict)
    return value


def affected(status: str) -> int:
    """How many rows a statement touched, from its command tag ("UPDATE 3")."""
    return int(status.rsplit(" ", 1)[1])
