"""Connections of their own, for what belongs to a session: LISTEN and advisory locks."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import tenacity

from boltz_mesh.storage.postgres import CONNECTION_ERRORS, connect, is_unreachable
from boltz_protocol import limits
from boltz_protocol.errors import Unavailable


async def connect_patiently(url: str, application_name: str) -> asyncpg.Connection[Any]:
    """Connect, trying again with a growing, jittered wait until it works or we are cancelled.

    Raises: ConfigurationError when waiting would not help.
    """
    longest_s = limits.MAX_DATABASE_RECONNECT_MS / 1000
    async for attempt in tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(Unavailable),
        wait=tenacity.wait_random_exponential(multiplier=longest_s / 100, max=longest_s),
    ):
        with attempt:
            return await connect(url, application_name=application_name)
    raise AssertionError("retries without end")


def loss_of(connection: asyncpg.Connection[Any]) -> asyncio.Event:
    """An event that is set when `connection` ends."""
    lost = asyncio.Event()
    connection.add_termination_listener(lambda _: lost.set())
    if connection.is_closed():
        lost.set()
    return lost


async def watch(connection: asyncpg.Connection[Any], lost: asyncio.Event) -> None:
    """Return when the connection is lost. Asks now and then, since a peer may vanish silently."""
    while not lost.is_set():
        try:
            await asyncio.wait_for(lost.wait(), limits.DATABASE_HEARTBEAT_MS / 1000)
        except TimeoutError:
            try:
                await connection.execute(
                    "-- watch\nSELECT 1", timeout=limits.DATABASE_PROBE_MS / 1000
                )
            except CONNECTION_ERRORS as error:
                if not is_unreachable(error):
                    raise
                connection.terminate()
                lost.set()
