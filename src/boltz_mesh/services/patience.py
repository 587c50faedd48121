"""Trying again while the database cannot be reached, for what nobody would ask for again."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import tenacity

from boltz_protocol import limits
from boltz_protocol.errors import Unavailable

_log: Final = logging.getLogger(__name__)


async def patiently(action: Callable[[], Awaitable[None]]) -> None:
    """Run `action` until it does not end in Unavailable. It must be safe to repeat.

    A watch that ended with the first lost connection would take the whole server with it.
    """
    async for attempt in tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(Unavailable),
        wait=tenacity.wait_random_exponential(
            multiplier=0.05, max=limits.MAX_DATABASE_RECONNECT_MS / 1000
        ),
        before_sleep=tenacity.before_sleep_log(_log, logging.WARNING),
    ):
        with attempt:
            await action()
