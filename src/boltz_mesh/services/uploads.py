"""SubmitUpdate: ciphertext in, checked as it streams, one receipt out.

Order of refusals: who signed, which round, what it was fixed to be, then the bytes. A refused chunk
leaves everything as it was: the client may resume from the offset that the server holds. A vector
that decrypts but is too long, or is not what its manifest says, is refused for good, since its
digest is fixed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

from boltz_mesh.services.announced import Announced, checked_manifest
from boltz_mesh.services.clock import Clock
from boltz_mesh.services.incoming import IncomingUpdate
from boltz_mesh.services.keyring import KeyRing
from boltz_mesh.services.signed import client_key, signed_payload
from boltz_mesh.services.threads import in_thread, to_its_end
from boltz_mesh.services.update_rows import StoredNow, UpdateRows, check_collecting
from boltz_mesh.storage import roster, rounds, updates
from boltz_mesh.storage.blobs import BlobRef, BlobStore, PartialBlob
from boltz_mesh.storage.postgres import Connection, Database
from boltz_mesh.storage.updates import NewUpdate, Update
from boltz_protocol import codec, limits
from boltz_protocol import messages as m
from boltz_protocol.chunk_wire import WireChunk
from boltz_protocol.envelope import ChunkLayout, Opener
from boltz_protocol.errors import (
    ChunkOutOfOrder,
    DigestMismatch,
    NormExceeded,
    NotInRoster,
    RoundClosed,
    Superseded,
)
from boltz_protocol.ids import ClientId
from boltz_protocol.statement import Statement

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes that the server holds."""

    committed_bytes: int


class Uploads:
    """Receives updates. One instance a server."""

    def __init__(
        self,
        *,
        database: Database,
        blobs: BlobStore,
        keyring: KeyRing,
        executor: Executor,
        clock: Clock,
    ) -> None:
        self._database = database
        self._rows = UpdateRows(database=database, clock=clock)
        self._blobs = blobs
        self._keyring = keyring
        self._executor = executor
        self._clock = clock
        #: The stream that sends each upload now; a newer one takes its place.
        self._streams: dict[str, asyncio.Task[object]] = {}

    async def receive(
        self, client_id: ClientId, statement: Statement, chunks: AsyncIterator[WireChunk]
    ) -> AsyncGenerator[Progress | Statement, None]:
        """Take one upload from its manifest to its receipt.

        Args:
            client_id: who calls, from the certificate.
            statement: the manifest as it came.
            chunks: what follows, in order.

        Yields:
            Progress at once and every few chunks, then the receipt.

        Raises: the errors that SubmitUpdate documents.
        """
        announced, known = await self._announced(client_id, statement)
        if known:
            row = await self._begin(announced)
            if row.receipt is not None:
                yield codec.parse_statement(row.receipt)
                return
        # Before the row is made: a key that does not open must not be the one that is kept.
        opener = await self._opener(announced)
        if not known:
            await self._begin(announced)
        async with self._only_stream(announced.key):
            incoming = IncomingUpdate(opener, announced.norm_bound)
            partial = await self._opened(announced, incoming)
            try:
                yield Progress(incoming.next_offset)
                async with contextlib.aclosing(
                    self._take_chunks(chunks, partial, incoming)
                ) as offsets:
                    async for offset in offsets:
                        yield Progress(offset)
                ref = await self._run(lambda: _finish(partial, incoming, announced.manifest))
            except (NormExceeded, DigestMismatch) as error:
                # Its digest is fixed, so nothing better can come for this round: nobody waits.
                await self._drop(announced, error.reason.lower())
                self._blobs.discard_partial(announced.key)
                raise
            finally:
                partial.close()
            yield await self._store(announced, ref)

    async def _opener(self, announced: Announced) -> Opener:
        """Unwrap the content key. Raises: UnknownKey, DecryptionFailed."""
        manifest = announced.manifest
        content_key = await self._keyring.unwrap_content_key(
            manifest.round_id, manifest.encryption_key_id, manifest.wrapped_content_key
        )
        return Opener(content_key, announced.context, announced.layout, manifest.key_commitment)

    async def _opened(self, announced: Announced, incoming: IncomingUpdate) -> PartialBlob:
        align = announced.layout.cipher_bytes(0)
        opening = asyncio.get_running_loop().run_in_executor(
            self._executor,
            lambda: _resumed(self._blobs, announced.key, align, incoming, announced.layout),
        )
        try:
            return await to_its_end(opening)
        except asyncio.CancelledError:
            if opening.exception() is None:
                opening.result().close()
            raise

    # --- before the bytes -----------------------------------------------------------------------

    async def _announced(self, client_id: ClientId, statement: Statement) -> tuple[Announced, bool]:
        """A manifest that is in order, and whether one came before it."""

        async def body(
            connection: Connection,
        ) -> tuple[m.UpdateManifest, rounds.Round, roster.RosterEntry | None, bool]:
            public_key = await client_key(connection, client_id)
            # Verified before anything it says is looked up.
            payload = signed_payload(public_key, statement, m.UPDATE_MANIFEST)
            manifest = codec.parse_update_manifest(payload)
            if manifest.client_id != client_id:
                raise NotInRoster("the manifest names another client than the one that calls")
            found = await rounds.get_round(connection, manifest.round_id)
            key = (manifest.round_id, manifest.attempt, client_id)
            entry = await roster.find_roster_entry(connection, *key)
            row = await updates.find_update(connection, *key)
            return manifest, found, entry, row is not None

        manifest, found, entry, known = await self._database.read("submit_update", body)
        if entry is None or found.config_statement is None:
            raise NotInRoster("this client was not selected for this round and attempt")
        if manifest.session_id != entry.session_id:
            raise NotInRoster("the manifest names another session than the one that checked in")
        if not known:
            check_collecting(found, manifest.attempt)
        return checked_manifest(manifest, statement, found, entry, self._clock()), known

    async def _begin(self, announced: Announced) -> Update:
        manifest = announced.manifest
        new = NewUpdate(
            round_id=manifest.round_id,
            attempt=manifest.attempt,
            client_id=manifest.client_id,
            session_id=manifest.session_id,
            position=announced.position,
            update_digest=manifest.sha256,
            manifest=codec.encode_statement(announced.statement),
            key_commitment=manifest.key_commitment,
            key_id=manifest.encryption_key_id,
            wrapped_content_key=manifest.wrapped_content_key,
            size_bytes=manifest.size_bytes,
            chunk_count=announced.layout.count,
        )

        return await self._rows.begin(new)

    # --- the bytes ------------------------------------------------------------------------------

    async def _take_chunks(
        self, chunks: AsyncIterator[WireChunk], partial: PartialBlob, incoming: IncomingUpdate
    ) -> AsyncGenerator[int, None]:
        """Check and write what comes; one chunk is worked on while the next one arrives."""
        loop = asyncio.get_running_loop()
        working: asyncio.Future[None] | None = None
        expected = incoming.next_offset
        unacknowledged = 0
        try:
            while expected < incoming.size_bytes:
                chunk = await anext(chunks, None)
                if chunk is None:
                    raise ChunkOutOfOrder(
                        f"the stream ended at {expected} of {incoming.size_bytes} bytes",
                        committed_bytes=expected,
                    )
                incoming.validate(chunk.offset, len(chunk.data), expected)
                expected += len(chunk.data)
                if working is not None:
                    await to_its_end(working)
                working = loop.run_in_executor(self._executor, _take, chunk, partial, incoming)
                unacknowledged += 1
                if unacknowledged == limits.ACK_EVERY_CHUNKS:
                    unacknowledged = 0
                    # What is written: a thread may be between checking and writing more.
                    yield partial.offset
        finally:
            if working is not None:
                await to_its_end(working)

    async def _run(self, call: Callable[[], T]) -> T:
        return await in_thread(self._executor, call)

    @contextlib.asynccontextmanager
    async def _only_stream(self, key: str) -> AsyncIterator[None]:
        """End an older stream of the same upload: its client has lost it and come back.

        Raises: Superseded in the older one.
        """
        task = asyncio.current_task()
        assert task is not None
        older = self._streams.get(key)
        self._streams[key] = task
        try:
            if older is not None:
                older.cancel()
                await asyncio.wait({older})
            yield
        except asyncio.CancelledError:
            if self._streams.get(key) is task:
                raise
            task.uncancel()
            raise Superseded("a newer stream of this upload took this one's place") from None
        finally:
            if self._streams.get(key) is task:
                del self._streams[key]

    # --- after the bytes ------------------------------------------------------------------------

    async def _store(self, announced: Announced, ref: BlobRef) -> Statement:
        manifest = announced.manifest
        received_at_ms = self._clock()
        receipt = self._keyring.sign_statement(
            m.UPDATE_RECEIPT,
            codec.encode_update_receipt(
                m.UpdateReceipt(
                    mesh_id=self._keyring.mesh_id,
                    round_id=manifest.round_id,
                    attempt=manifest.attempt,
                    client_id=manifest.client_id,
                    sha256=manifest.sha256,
                    received_at_ms=received_at_ms,
                )
            ),
        )

        row = await self._rows.store(
            StoredNow(
                round_id=manifest.round_id,
                attempt=manifest.attempt,
                client_id=manifest.client_id,
                blob_digest=ref.digest,
                receipt=codec.encode_statement(receipt),
                received_at_ms=received_at_ms,
            )
        )
        assert row.receipt is not None
        return codec.parse_statement(row.receipt)

    async def _drop(self, announced: Announced, reason: str) -> None:
        manifest = announced.manifest

        with contextlib.suppress(RoundClosed):
            await self._rows.drop(manifest.round_id, manifest.attempt, manifest.client_id, reason)


def _resumed(
    blobs: BlobStore, key: str, align_bytes: int, incoming: IncomingUpdate, layout: ChunkLayout
) -> PartialBlob:
    """Open the partial blob and check again what an earlier stream left: the norm is not kept."""
    partial = blobs.resume(key, align_bytes=align_bytes)
    try:
        _catch_up(partial, incoming, layout)
    except BaseException:
        partial.close()
        raise
    return partial


def _catch_up(partial: PartialBlob, incoming: IncomingUpdate, layout: ChunkLayout) -> None:
    if not partial.offset:
        return
    buffer = memoryview(bytearray(layout.cipher_bytes(0)))
    while partial.offset > incoming.next_offset:
        size = min(len(buffer), partial.offset - incoming.next_offset)
        partial.pread_into(buffer[:size], incoming.next_offset)
        incoming.take(buffer[:size])


def _take(chunk: WireChunk, partial: PartialBlob, incoming: IncomingUpdate) -> None:
    # Checked first: what does not authenticate is never written, and may be sent again.
    incoming.take(chunk.data)
    partial.write(chunk.data)


def _finish(partial: PartialBlob, incoming: IncomingUpdate, manifest: m.UpdateManifest) -> BlobRef:
    incoming.finish()
    if partial.sha256 != manifest.sha256:
        raise DigestMismatch("the bytes that came do not have the digest of the manifest")
    return partial.commit()
