"""The one wall clock: Unix time in milliseconds, passed to whoever needs it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

#: Gives Unix time in milliseconds.
Clock = Callable[[], int]


def system_clock() -> int:
    """The operating system's clock."""
    return time.time_ns() // 1_000_000


def as_datetime(at_ms: int) -> datetime:
    """Aware, UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC)
