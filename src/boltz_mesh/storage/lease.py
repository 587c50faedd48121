"""The coordinator's lease: one replica at a time turns facts into rounds.

The lease is an advisory lock on a dedicated connection: waiting for it blocks in the database, and
it becomes free when its holder's session ends. A holder that does not know yet that it lost the
lease is stopped by the fencing token: each acquisition raises it, and every transaction of the
coordinator checks that its own is still the newest (Kleppmann, "How to do distributed locking",
2016).
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

import asyncpg

from boltz_mesh.storage.dedicated import connect_patiently, loss_of, watch
from boltz_mesh.storage.postgres import (
    CONNECTION_ERRORS,
    LOCK_CLASS,
    Connection,
    LockName,
    is_unreachable,
)
from boltz_protocol import limits
from boltz_protocol.errors import StateConflict


class CoordinatorLease:
    """A lease that is held until `release`, or until `lost` is set. Made by `acquire`."""

    def __init__(self, connection: asyncpg.Connection[Any], holder: str, token: int) -> None:
        self._connection = connection
        self._holder = holder
        self._token = token
        self._lost = loss_of(connection)
        self._watch = asyncio.create_task(self._watch_connection())

    def __repr__(self) -> str:
        return f"CoordinatorLease(holder={self._holder!r}, token={self._token})"

    @property
    def token(self) -> int:
        """The fencing token of this acquisition: give it to every transaction."""
        return self._token

    @property
    def lost(self) -> asyncio.Event:
        """Set when the lease is no longer ours; stop coordinating then."""
        return self._lost

    @classmethod
    async def acquire(cls, url: str, holder: str) -> Self:
        """Wait for the lease, for as long as it takes; cancel to give up.

        Args:
            url: the database.
            holder: the replica's name, for people who look at the table.

        Raises: ConfigurationError when the database refuses us for good.
        """
        while True:
            connection = await connect_patiently(url, "boltz-mesh coordinator lease")
            try:
                await connection.execute(
                    "-- acquire_lease\nSELECT pg_advisory_lock($1, $2)",
                    LOCK_CLASS,
                    LockName.COORDINATOR.value,
                    timeout=limits.LEASE_WAIT_MS / 1000,
                )
                # Waits for transactions that have checked the old token to end.
                token = await connection.fetchval(
                    "-- acquire_lease\n"
                    "UPDATE coordinator_lease SET fencing_token = fencing_token + 1, holder = $1"
                    " RETURNING fencing_token",
                    holder,
                )
            except CONNECTION_ERRORS as error:
                connection.terminate()
                if not is_unreachable(error):
                    raise
            except BaseException:
                connection.terminate()
                raise
            else:
                return cls(connection, holder, int(token))

    async def release(self) -> None:
        """Give the lease back. `lost` is set afterwards. Safe to call twice."""
        self._watch.cancel()
        await asyncio.wait({self._watch})
        try:
            await self._connection.close(timeout=limits.DATABASE_CLOSE_MS / 1000)
        except CONNECTION_ERRORS:
            self._connection.terminate()
        self._lost.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.release()

    async def _watch_connection(self) -> None:
        try:
            await watch(self._connection, self._lost)
        finally:
            self._lost.set()


async def assert_fencing(connection: Connection, token: int) -> None:
    """Check, inside a transaction, that `token` is the newest, and keep it so until the commit.

    Raises: StateConflict when another replica has taken the lease.
    """
    newest = await connection.fetchval(
        "-- assert_fencing\nSELECT fencing_token FROM coordinator_lease FOR SHARE"
    )
    if newest != token:
        raise StateConflict(
            "another replica has taken the coordinator's lease", token=token, newest=newest
        )
