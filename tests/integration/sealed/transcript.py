"""What passes through a server process, as raw as it comes, and the tap that records it.

`Tap` sits where the process meets the outside: the bytes of every message in and out of every
method, every version of every row that is ever written, every blob that is ever made, and the file
with the key-encryption key. That is all there is: what the process holds in memory is computed from
it (and the randomness of its own encryption at rest, which the key-encryption key makes needless).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest

from boltz_mesh.services.guard import Guard
from boltz_mesh.storage.directory_blobs import DirectoryBlobs
from tests.support.postgres import execute

PARTICIPATE = "/boltz_mesh.v1.Aggregator/Participate"
SUBMIT_UPDATE = "/boltz_mesh.v1.Aggregator/SubmitUpdate"
_OURS = "/boltz_mesh.v1."
_TAP = """
CREATE SCHEMA tap;
CREATE TABLE tap.rows (id bigserial PRIMARY KEY, name text NOT NULL, content jsonb NOT NULL);
CREATE FUNCTION tap.keep() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tap.rows (name, content) VALUES (TG_TABLE_NAME, to_jsonb(NEW));
    RETURN NULL;
END $$;
DO $$
DECLARE each text;
BEGIN
    FOR each IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP
        EXECUTE format('CREATE TRIGGER tap AFTER INSERT OR UPDATE ON public.%I'
                       ' FOR EACH ROW EXECUTE FUNCTION tap.keep()', each);
    END LOOP;
END $$;
"""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of one method: its messages, serialized, in the order of each direction."""

    method: str
    received: tuple[bytes, ...] = field(repr=False)
    sent: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Row:
    """One version of one row. Values are JSON's, but byte strings are bytes."""

    table: str
    values: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Transcript:
    """All bytes that a server process handled.

    Attributes:
        blobs: by digest.
        kek_file: of the key-encryption key; empty for a thief who did not get it.
    """

    calls: tuple[Call, ...] = field(repr=False)
    rows: tuple[Row, ...] = field(repr=False)
    blobs: Mapping[bytes, bytes] = field(repr=False)
    kek_file: bytes = field(repr=False)

    def at_rest(self) -> Transcript:
        """What was written, without what went over the network."""
        return replace(self, calls=())

    def without_kek(self) -> Transcript:
        """Without the key-encryption key."""
        return replace(self, kek_file=b"")


@dataclass(slots=True)
class _Recording:
    method: str
    received: list[bytes] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)


class Tap:
    """Records a server of this process."""

    def __init__(self, database_url: str, kek_path: Path) -> None:
        self._url = database_url
        self._kek_path = kek_path
        self._calls: list[_Recording] = []
        self._blobs: dict[bytes, bytes] = {}
        self._more = asyncio.Event()

    async def open(self, patch: pytest.MonkeyPatch) -> None:
        """Before the server starts; its database is migrated."""
        await execute(self._url, _TAP)
        intercept, publish = Guard.intercept_service, DirectoryBlobs.publish

        async def tapped(
            guard: Guard,
            continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
            details: grpc.HandlerCallDetails,
        ) -> Any:
            handler = await intercept(guard, continuation, details)
            ours = handler is not None and str(details.method).startswith(_OURS)
            return self._tapped(handler, str(details.method)) if ours else handler

        def kept(store: DirectoryBlobs, path: Path, digest: bytes) -> None:
            self._blobs[digest] = path.read_bytes()
            publish(store, path, digest)

        patch.setattr(Guard, "intercept_service", tapped)
        patch.setattr(DirectoryBlobs, "publish", kept)

    def _tapped(self, handler: Any, method: str) -> Any:
        recording = _Recording(method)
        self._calls.append(recording)

        def parse(data: bytes) -> Any:
            recording.received.append(data)
            self._more.set()
            return handler.request_deserializer(data)

        def serialize(message: Any) -> bytes:
            data: bytes = handler.response_serializer(message)
            recording.sent.append(data)
            return data

        return handler._replace(request_deserializer=parse, response_serializer=serialize)

    def has(self, message: bytes) -> bool:
        """Whether this message has come in."""
        return any(message in call.received for call in self._calls)

    async def heard(self, message: bytes) -> None:
        """Until this message has come in."""
        async with asyncio.timeout(30):
            while not self.has(message):
                self._more.clear()
                await self._more.wait()

    async def transcript(self) -> Transcript:
        """Everything up to now."""
        connection = await asyncpg.connect(self._url)
        try:
            found = await connection.fetch("SELECT name, content FROM tap.rows ORDER BY id")
        finally:
            await connection.close()
        return Transcript(
            calls=tuple(
                Call(call.method, tuple(call.received), tuple(call.sent)) for call in self._calls
            ),
            rows=tuple(Row(row["name"], _values(row["content"])) for row in found),
            blobs=dict(self._blobs),
            kek_file=self._kek_path.read_bytes(),
        )


def _values(content: str) -> dict[str, Any]:
    """PostgreSQL writes byte strings into JSON as \\x and hex digits."""
    return {
        name: bytes.fromhex(value[2:])
        if isinstance(value, str) and value.startswith("\\x")
        else value
        for name, value in json.loads(content).items()
    }
