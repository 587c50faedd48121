"""NOTIFY from other replicas, on one dedicated connection that comes back when it breaks.

A notification only says where to look: what happened stands in the tables. So wakeups may be
merged, and after a reconnect (when some were missed) each subscriber is told to read everything
again. The same connection carries the replica's lock, which shows the others that it lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import asyncpg

from boltz_mesh.storage.dedicated import connect_patiently, loss_of, watch
from boltz_mesh.storage.postgres import (
    CONNECTION_ERRORS,
    REPLICA_LOCK_CLASS,
    Channel,
    connect,
    is_unreachable,
    unavailable,
)
from boltz_protocol import limits
from boltz_protocol.errors import Unavailable


@dataclass(frozen=True, slots=True)
class Wakeup:
    """What to look at. With `resync`, everything: notifications may have been missed."""

    payloads: frozenset[str]
    resync: bool


class Subscription(AsyncIterator[Wakeup]):
    """The wakeups of one channel, merged while the subscriber is busy.

    The first wakeup comes at once and is a resync. Iteration ends when the listener is closed.
    """

    def __init__(self) -> None:
        self._payloads: set[str] = set()
        self._resync = True
        self._closed = False
        self._failure: BaseException | None = None
        self._due = asyncio.Event()
        self._due.set()

    def _wake(self, payload: str) -> None:
        if not self._resync:
            self._payloads.add(payload)
            if len(self._payloads) > limits.MAX_PENDING_WAKEUPS:
                self._wake_all()
        self._due.set()

    def _wake_all(self) -> None:
        self._payloads.clear()
        self._resync = True
        self._due.set()

    def _close(self, failure: BaseException | None) -> None:
        self._closed = True
        self._failure = failure
        self._due.set()

    async def __anext__(self) -> Wakeup:
        await self._due.wait()
        if self._closed:
            if self._failure is not None:
                raise self._failure
            raise StopAsyncIteration
        wakeup = Wakeup(frozenset(self._payloads), self._resync)
        self._payloads.clear()
        self._resync = False
        self._due.clear()
        return wakeup


def replica_lock(replica_id: str) -> int:
    """The second key of a replica's advisory lock: a signed 32-bit number from its id."""
    return int.from_bytes(hashlib.sha256(replica_id.encode()).digest()[:4], "big", signed=True)


class Listener:
    """Listens on all channels. Made by `open`; `async with` closes it."""

    def __init__(self, url: str, replica_id: str | None) -> None:
        self._url = url
        self._replica_id = replica_id
        self._subscriptions: dict[Channel, set[Subscription]] = {c: set() for c in Channel}
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"Listener(replica_id={self._replica_id!r})"

    @classmethod
    async def open(cls, url: str, *, replica_id: str | None = None) -> Self:
        """Connect and listen. With `replica_id`, also hold that replica's lock.

        Raises: Unavailable, ConfigurationError.
        """
        listener = cls(url, replica_id)
        connection = await connect(url, application_name="boltz-mesh listener")
        try:
            await listener._set_up(connection)
        except CONNECTION_ERRORS as error:
            connection.terminate()
            if not is_unreachable(error):
                raise
            raise unavailable(error) from error
        listener._task = asyncio.create_task(listener._run(connection))
        listener._task.add_done_callback(listener._ended)
        return listener

    @contextlib.contextmanager
    def subscribe(self, channel: Channel) -> Iterator[Subscription]:
        """`with listener.subscribe(channel) as wakeups: async for wakeup in wakeups: ...`."""
        subscription = Subscription()
        if self._task is None or self._task.done():
            subscription._close(Unavailable("the listener is closed"))
        self._subscriptions[channel].add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions[channel].discard(subscription)

    async def close(self) -> None:
        """Stop listening; every iteration ends."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _set_up(self, connection: asyncpg.Connection[Any]) -> None:
        if self._replica_id is not None:
            # Shared: after a reconnect the old session may still be dying, and must not block us.
            await connection.execute(
                "-- replica_lock\nSELECT pg_advisory_lock_shared($1, $2)",
                REPLICA_LOCK_CLASS,
                replica_lock(self._replica_id),
            )
        for channel in Channel:
            await connection.add_listener(channel.value, self._notified)

    def _notified(self, _connection: Any, _pid: int, channel: str, payload: object) -> None:
        for subscription in self._subscriptions[Channel(channel)]:
            subscription._wake(str(payload))

    async def _run(self, connection: asyncpg.Connection[Any]) -> None:
        while True:
            lost = loss_of(connection)
            try:
                await watch(connection, lost)
            finally:
                connection.terminate()
            connection = await self._reconnect()
            for subscriptions in self._subscriptions.values():
                for subscription in subscriptions:
                    subscription._wake_all()

    async def _reconnect(self) -> asyncpg.Connection[Any]:
        while True:
            connection = await connect_patiently(self._url, "boltz-mesh listener")
            try:
                await self._set_up(connection)
            except CONNECTION_ERRORS as error:
                connection.terminate()
                if not is_unreachable(error):
                    raise
            else:
                return connection

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Tell the subscribers, who would wait for ever, how it ended."""
        failure = None if task.cancelled() else task.exception()
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription._close(failure)
