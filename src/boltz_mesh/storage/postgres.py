"""The connection pool, and the one place where transactions are named, retried and metered.

Repositories are functions that take a `Connection` and run SQL; `Database.run_tx` gives them one
inside a transaction. Sessions matter here (LISTEN, advisory locks), so a pooler that shares
sessions between clients (PgBouncer in transaction mode) must not stand between.
"""

from __future__ import annotations

import asyncio
import enum
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias, TypeVar

import asyncpg
import tenacity
from asyncpg.pool import PoolConnectionProxy

from boltz_protocol import limits
from boltz_protocol.errors import ConfigurationError, MeshError, Unavailable

#: What a repository function takes: a connection of the pool, or a dedicated one.
Connection: TypeAlias = "asyncpg.Connection[Any] | PoolConnectionProxy[Any]"
Isolation: TypeAlias = Literal["read_committed", "repeatable_read", "serializable"]
T = TypeVar("T")

#: First key of our advisory locks: an arbitrary number, to meet no one else's.
LOCK_CLASS: Final = 0x02151226


class LockName(enum.IntEnum):
    """Second key of the advisory locks below LOCK_CLASS."""

    MIGRATION = 1
    COORDINATOR = 2
    SERVER_KEYS = 3
    LEDGER = 4


#: First key of the locks by which replicas show that they live; the second is made from their id.
REPLICA_LOCK_CLASS: Final = LOCK_CLASS + 1
#: First key of the locks that order writers of one model; the second is made from its id.
MODEL_LOCK_CLASS: Final = LOCK_CLASS + 2

# The server ends a session whose peer is gone, so that its locks become free: over TCP after
# 5 + 3 x 2 seconds, and while it waits for a lock or runs a statement at the next check.
_SERVER_SETTINGS: Final = {
    "timezone": "UTC",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "client_connection_check_interval": "5s",
    "idle_in_transaction_session_timeout": f"{limits.MAX_TX_IDLE_MS}ms",
}
_RETRIED: Final = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    # A migration changed a table under a prepared statement; asyncpg has dropped it by now.
    asyncpg.InvalidCachedStatementError,
)
#: What asyncpg may raise when the server is gone, going, or not there yet. Ask `is_unreachable`.
CONNECTION_ERRORS: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InterfaceError,
    # "Cannot switch to state 12": the server's last message met the start of a new statement.
    asyncpg.InternalClientError,
    OSError,  # with ConnectionError and TimeoutError
)


@dataclass(frozen=True, slots=True)
class TransactionSample:
    """What one `run_tx` took, for the meters."""

    name: str
    outcome: Literal["committed", "refused", "unavailable", "failed"]
    attempts: int
    seconds: float


def is_unreachable(error: BaseException) -> bool:
    """Whether one of CONNECTION_ERRORS says that the connection is gone, and not that we erred."""
    if isinstance(error, asyncpg.InterfaceError):
        # asyncpg has no type of its own for this: "connection is closed", "pool is closing".
        return "is clos" in str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return False  # an OSError, but waiting does not mend a certificate
    return isinstance(error, CONNECTION_ERRORS)


def unavailable(error: BaseException) -> Unavailable:
    """The typed error for a database that cannot be reached now."""
    return Unavailable(
        f"the database cannot be reached: {type(error).__name__}",
        retry_after_ms=limits.DATABASE_RETRY_MS,
    )


async def connect(url: str, *, application_name: str = "boltz-mesh") -> asyncpg.Connection[Any]:
    """Open a dedicated connection, outside any pool.

    Raises: Unavailable when the server cannot be reached now; ConfigurationError when `url` or
    its credentials are wrong.
    """
    try:
        return await asyncpg.connect(
            url,
            timeout=limits.DATABASE_CONNECT_MS / 1000,
            command_timeout=limits.DATABASE_STATEMENT_MS / 1000,
            server_settings={**_SERVER_SETTINGS, "application_name": application_name},
        )
    except (*CONNECTION_ERRORS, asyncpg.PostgresError, ValueError) as error:
        raise _cannot_connect(error) from _shown(error)


def _shown(error: Exception) -> Exception | None:
    """The cause to chain: a parser's message may quote what it took for the port, which may be
    part of a password. (A certificate error is a ValueError too, and an OSError.)
    """
    return None if isinstance(error, ValueError) and not isinstance(error, OSError) else error


def _cannot_connect(error: Exception) -> MeshError:
    """The typed error for a failed attempt to connect."""
    if _shown(error) is None:
        return _bad_url(
            "it must read postgresql://user:password@host:port/database, with the special "
            "characters of its parts percent-encoded"
        )
    return unavailable(error) if is_unreachable(error) else _bad_url(str(error))


def _bad_url(what: str) -> ConfigurationError:
    return ConfigurationError(f"DATABASE_URL does not work: {what}", setting="DATABASE_URL")


class Database:
    """A pool of connections to one PostgreSQL database. Made by `open`; `async with` closes it."""

    def __init__(
        self,
        url: str,
        pool: asyncpg.Pool[Any],
        readers: asyncpg.Pool[Any],
        observe: Callable[[TransactionSample], None] | None,
    ) -> None:
        self._url = url
        self._pool = pool
        self._readers = readers
        self._observe = observe

    def __repr__(self) -> str:
        return "Database(...)"  # the URL may hold a password

    @property
    def url(self) -> str:
        """The connection string, for dedicated connections. Secret."""
        return self._url

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        min_size: int = 2,
        max_size: int = limits.MAX_DATABASE_CONNECTIONS,
        observe: Callable[[TransactionSample], None] | None = None,
    ) -> Self:
        """Connect. `observe` is called once for each transaction, with what it took.

        Raises: Unavailable, ConfigurationError.
        """
        pool = await _pool(url, min_size, max_size, {})
        try:
            # Sessions of their own, so that reads need no transaction around them to be refused
            # writes and row locks: two round trips saved on each.
            readers = await _pool(url, 1, max_size, {"default_transaction_read_only": "on"})
        except BaseException:
            pool.terminate()
            raise
        return cls(url, pool, readers, observe)

    async def close(self) -> None:
        """Give running transactions a moment to end, then close all connections."""
        for pool in (self._pool, self._readers):
            try:
                await asyncio.wait_for(pool.close(), limits.DATABASE_CLOSE_MS / 1000)
            except TimeoutError:
                pool.terminate()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def run_tx(
        self,
        name: str,
        body: Callable[[Connection], Awaitable[T]],
        *,
        isolation: Isolation = "read_committed",
    ) -> T:
        """Run `body` in one transaction and commit; an exception rolls back and goes on up.

        After a serialization failure or a deadlock `body` runs again, up to
        `limits.MAX_TX_ATTEMPTS` times: it must do nothing but SQL. When the connection is lost
        the outcome may be unknown (Unavailable): repeat only what is idempotent.

        Raises: Unavailable, and what `body` raises.
        """

        async def once() -> T:
            async with (
                self._pool.acquire(timeout=limits.DATABASE_CONNECT_MS / 1000) as connection,
                connection.transaction(isolation=isolation),
            ):
                return await body(connection)

        return await self._metered(name, once)

    async def read(self, name: str, body: Callable[[Connection], Awaitable[T]]) -> T:
        """Run `body`, which only reads; writes and row locks are refused by the database.

        Each statement sees what is committed when it starts, as in `run_tx` by default.

        Raises: Unavailable, and what `body` raises.
        """

        async def once() -> T:
            async with self._readers.acquire(
                timeout=limits.DATABASE_CONNECT_MS / 1000
            ) as connection:
                return await body(connection)

        return await self._metered(name, once)

    async def _metered(self, name: str, once: Callable[[], Awaitable[T]]) -> T:
        started = time.perf_counter()
        outcome: Literal["committed", "refused", "unavailable", "failed"] = "failed"
        attempts = 0
        try:
            try:
                attempts = 1
                result = await once()
            except _RETRIED:
                # Rare; tenacity's bookkeeping would cost each transaction more than its SQL.
                async for attempt in tenacity.AsyncRetrying(
                    retry=tenacity.retry_if_exception_type(_RETRIED),
                    stop=tenacity.stop_after_attempt(limits.MAX_TX_ATTEMPTS - 1),
                    # Contention: spread the rivals out rather than let them meet again.
                    wait=tenacity.wait_random_exponential(multiplier=0.005, max=0.2),
                    reraise=True,
                ):
                    with attempt:
                        attempts += 1
                        result = await once()
            outcome = "committed"
            return result
        except MeshError:
            outcome = "refused"
            raise
        except _RETRIED as error:
            outcome = "unavailable"
            raise Unavailable(
                f"transaction {name} met contention {attempts} times",
                retry_after_ms=limits.DATABASE_RETRY_MS,
            ) from error
        except CONNECTION_ERRORS as error:
            if not is_unreachable(error):
                raise
            outcome = "unavailable"
            raise unavailable(error) from error
        finally:
            if self._observe is not None:
                seconds = time.perf_counter() - started
                self._observe(TransactionSample(name, outcome, attempts, seconds))


async def _pool(
    url: str, min_size: int, max_size: int, settings: dict[str, str]
) -> asyncpg.Pool[Any]:
    try:
        return await asyncpg.create_pool(
            url,
            min_size=min_size,
            max_size=max_size,
            timeout=limits.DATABASE_CONNECT_MS / 1000,
            command_timeout=limits.DATABASE_STATEMENT_MS / 1000,
            server_settings={
                **_SERVER_SETTINGS,
                "application_name": "boltz-mesh",
                **settings,
            },
            # Sessions of the pool hold neither locks nor settings nor listeners between
            # transactions, so there is nothing to reset and a round trip is saved.
            reset=_nothing_to_reset,
        )
    except (*CONNECTION_ERRORS, asyncpg.PostgresError, ValueError) as error:
        raise _cannot_connect(error) from _shown(error)


async def _nothing_to_reset(connection: Connection) -> None:
    """Stand in for asyncpg's reset query."""


class Channel(enum.StrEnum):
    """What replicas tell each other when a transaction commits; the payload names whose."""

    ROUND_INBOX = "round_inbox"  # round id: a fact waits for the coordinator
    ROUND_CHANGED = "round_changed"  # round id: new events
    CLIENT_CHANGED = "client_changed"  # client id: status, certificate, or a newer session
    MODEL_CHANGED = "model_changed"  # model id: a new version, or another one is live
    CHECK_IN_CHANGED = "check_in_changed"  # model id: a client came or went
    PLAN_CHANGED = "plan_changed"  # model id: a new plan revision


async def notify(connection: Connection, channel: Channel, payload: str) -> None:
    """Wake the listeners of `channel` when this transaction commits; equal ones are merged."""
    await connection.execute("-- notify\nSELECT pg_notify($1, $2)", channel.value, payload)
