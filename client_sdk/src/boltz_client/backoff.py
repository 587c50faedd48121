"""Waiting before another try: exponential with full jitter, or what the server asks for."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from tenacity import RetryCallState
from tenacity.wait import wait_base, wait_random_exponential

from boltz_protocol import limits
from boltz_protocol.errors import MeshError


class Clock:
    """Unix time; tests hand in one of their own."""

    def now_ms(self) -> int:
        """Unix time in milliseconds."""
        return time.time_ns() // 1_000_000

    def now(self) -> datetime:
        """The same as an aware datetime."""
        return datetime.fromtimestamp(self.now_ms() / 1000, UTC)


#: The machine's clock.
system_clock: Final = Clock()


class Backoff(wait_base):
    """Full jitter (Brooker 2015, "Exponential Backoff and Jitter"), capped; RetryInfo wins."""

    def __init__(self) -> None:
        self._jitter = wait_random_exponential(
            multiplier=limits.MIN_RECONNECT_WAIT_MS / 1000,
            max=limits.MAX_RECONNECT_WAIT_MS / 1000,
        )

    def __call__(self, retry_state: RetryCallState) -> float:
        """Seconds to wait."""
        outcome = retry_state.outcome
        error = outcome.exception() if outcome is not None else None
        if isinstance(error, MeshError) and error.retry_after_ms is not None:
            # Never more often than the server asks, and never for ever.
            return max(
                min(error.retry_after_ms, limits.MAX_RECONNECT_WAIT_MS) / 1000,
                limits.MIN_RECONNECT_WAIT_MS / 1000,
            )
        return self._jitter(retry_state)


class StopWithoutProgress:
    """Stops when so many tries in a row brought no further byte."""

    def __init__(self, progress: Callable[[], int]) -> None:
        self._progress = progress
        self._seen = -1
        self._tries = 0

    def __call__(self, retry_state: RetryCallState) -> bool:
        """Whether to give up."""
        reached = self._progress()
        self._tries = 1 if reached > self._seen else self._tries + 1
        self._seen = reached
        return self._tries >= limits.MAX_TRANSFER_TRIES
