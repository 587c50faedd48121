"""The two long transfers, each one call: a pull and an upload. Retrying is the caller's.

Both go on from an offset: the pull from what the sink holds, the upload from what the server says
is durable. `client` opens them again after a cut, until they are through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from boltz_client.connection import Duplex
from boltz_client.spool import ModelSink, SealedUpdate, UpdateReader
from boltz_client.tracing import Metadata
from boltz_protocol import codec, limits
from boltz_protocol import messages as m
from boltz_protocol.chunk_wire import WireChunk, encode_chunk
from boltz_protocol.errors import (
    ChunkOutOfOrder,
    LimitExceeded,
    MalformedMessage,
    MeshError,
    Unavailable,
)
from boltz_protocol.ids import ModelId
from boltz_protocol.statement import Statement
from boltz_protocol.v1 import aggregator_pb2, model_store_pb2

#: Chunks that the server may send ahead; half of them are given back at a time.
_CREDITS: Final = 16
#: Chunks written or read by one hand-over to a thread.
_BATCH_CHUNKS: Final = 4
_BATCH_BYTES: Final = _BATCH_CHUNKS * limits.CHUNK_CIPHER_BYTES

#: Chunks come and go as they stand on the wire (`link.Stubs`).
PullCall = Duplex[model_store_pb2.PullRequest, model_store_pb2.PullResponse | WireChunk]
UploadCall = Duplex[aggregator_pb2.SubmitUpdateRequest | bytes, aggregator_pb2.SubmitUpdateResponse]


@dataclass(frozen=True, slots=True)
class Header:
    """The first answer of a pull, verified."""

    statement: Statement
    manifest: m.ModelManifest


@dataclass(slots=True)
class Pull:
    """A model on its way in, over as many calls as it takes.

    Attributes:
        model_id, version: what was asked for; version 0 is the promoted one.
        verify: checks a manifest statement and parses it.
        place: where a model file of so many bytes is to grow; None for memory.
        header: set by the first call; later calls ask for its version.
        sink: set with the header.
    """

    model_id: ModelId
    version: int
    verify: Callable[[Statement], m.ModelManifest]
    place: Callable[[m.ModelManifest], Path | None]
    header: Header | None = None
    sink: ModelSink | None = None

    def close(self) -> None:
        """Let the file go."""
        if self.sink is not None:
            self.sink.close()

    async def run(self, method: Callable[..., Any], metadata: Metadata) -> None:
        """One call: fetch from where the sink stands to the end.

        Raises:
            Unavailable: cut off; call again.
            MeshError: anything else that the server, the verification or the bytes said.
        """
        while not await self._run_from(method, metadata, self.sink.offset if self.sink else 0):
            # A file that an earlier run left was found once the header named the model.
            assert self.sink is not None

    async def _run_from(self, method: Callable[..., Any], metadata: Metadata, offset: int) -> bool:
        call = PullCall(method, metadata)
        try:
            await call.write(
                model_store_pb2.PullRequest(
                    open=model_store_pb2.PullOpen(
                        model_id=self.model_id,
                        version=self.header.manifest.version if self.header else self.version,
                        offset=offset,
                        credits=_CREDITS,
                    )
                )
            )
            await self._take_header(await call.read())
            assert self.sink is not None
            if self.sink.offset == self.sink.size_bytes:
                return True
            if self.sink.offset != offset:
                return False
            await self._take_chunks(call, self.sink)
            return True
        finally:
            call.cancel()

    async def _take_header(self, response: model_store_pb2.PullResponse | WireChunk | None) -> None:
        if response is None:
            raise Unavailable("the mesh ended the pull before it began")
        if isinstance(response, WireChunk) or response.WhichOneof("message") != "header":
            raise MalformedMessage("a pull did not begin with a header", field="header")
        statement = codec.statement_from_proto(response.header.version.manifest)
        if self.header is not None and self.header.statement == statement:
            return
        manifest = self.verify(statement)
        if manifest.model_id != self.model_id or self.version not in (0, manifest.version):
            raise MalformedMessage(
                f"version {manifest.version} of {manifest.model_id} came; "
                f"{self.version} of {self.model_id} was asked for"
            )
        if self.header is not None and self.header.manifest != manifest:
            raise MalformedMessage("the mesh changed the manifest in the middle of a pull")
        self.header = Header(statement, manifest)
        if self.sink is None:
            path = self.place(manifest)
            if path is None:
                self.sink = ModelSink(None, manifest.size_bytes)
            else:
                self.sink = await asyncio.to_thread(ModelSink, path, manifest.size_bytes)

    async def _take_chunks(self, call: PullCall, sink: ModelSink) -> None:
        """Write what comes; a few chunks at once, while the next ones arrive."""
        expected, used = sink.offset, 0
        batch: list[memoryview] = []
        writing: asyncio.Task[None] | None = None
        try:
            while expected < sink.size_bytes:
                data = self._checked_chunk(await call.read(), expected, sink.size_bytes)
                batch.append(data)
                expected += len(data)
                used += 1
                if len(batch) == _BATCH_CHUNKS or expected == sink.size_bytes:
                    if writing is not None:
                        await writing
                    writing = asyncio.create_task(_write(sink, batch))
                    batch = []
                if used >= _CREDITS // 2 and expected < sink.size_bytes:
                    credit = model_store_pb2.PullCredit(chunks=used)
                    await call.write(model_store_pb2.PullRequest(credit=credit))
                    used = 0
        finally:
            # What has come is kept, whatever happened to the call.
            if writing is not None:
                await writing
            await _write(sink, batch)

    @staticmethod
    def _checked_chunk(
        response: model_store_pb2.PullResponse | WireChunk | None, expected: int, size_bytes: int
    ) -> memoryview:
        if response is None:
            raise Unavailable("the mesh ended the pull in the middle of the model")
        offset, data = _chunk_of(response)
        if offset != expected:
            raise ChunkOutOfOrder(f"a chunk at offset {offset}; {expected} was expected")
        if len(data) > min(limits.MODEL_CHUNK_BYTES, size_bytes - expected):
            raise LimitExceeded("the mesh sent more of the model than its manifest says")
        return data


async def _write(sink: ModelSink, batch: list[memoryview]) -> None:
    def work() -> None:
        for data in batch:
            sink.write(data)

    if sink.size_bytes <= limits.MAX_UNSPOOLED_MODEL_BYTES:
        work()
    else:
        await asyncio.to_thread(work)


def _chunk_of(response: model_store_pb2.PullResponse | WireChunk) -> tuple[int, memoryview]:
    """Offset and bytes of a chunk. Raises: MalformedMessage for any other answer."""
    if isinstance(response, WireChunk):
        return response.offset, response.data
    # Bound once: each access to a bytes field copies it.
    data = response.chunk.data
    if response.WhichOneof("message") != "chunk" or not data:
        raise MalformedMessage("a chunk of the model was expected", field="chunk")
    return response.chunk.offset, memoryview(data)


async def upload(
    method: Callable[..., Any],
    sealed: SealedUpdate,
    reader: UpdateReader,
    metadata: Metadata,
) -> Statement:
    """One call: announce the update, send what the server lacks, return its receipt (unverified).

    Raises:
        Unavailable: cut off; call again.
        MeshError: anything else that the server said.
    """
    call = UploadCall(method, metadata)
    sender: asyncio.Task[None] | None = None
    try:
        manifest = codec.statement_to_proto(sealed.statement)
        await call.write(aggregator_pb2.SubmitUpdateRequest(manifest=manifest))
        while True:
            response = await call.read()
            if response is None:
                raise Unavailable("the mesh ended the upload without a receipt")
            match response.WhichOneof("message"):
                case "receipt":
                    return codec.statement_from_proto(response.receipt)
                case "progress" if sender is None:
                    start = response.progress.committed_bytes
                    _check_start(start, sealed)
                    sender = asyncio.create_task(_send(call, sealed, reader, start))
                case "progress":
                    pass
                case _:
                    raise MalformedMessage("an empty answer to an upload")
    except asyncio.CancelledError:
        # A sender that failed has ended the call; its error is the reason, not a cancellation.
        if sender is not None and sender.done() and not sender.cancelled():
            sender.result()
        raise
    finally:
        call.cancel()
        if sender is not None:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)


def _check_start(start: int, sealed: SealedUpdate) -> None:
    whole = start == sealed.manifest.size_bytes
    if (start % limits.CHUNK_CIPHER_BYTES and not whole) or start > sealed.manifest.size_bytes:
        raise MalformedMessage(
            f"the mesh holds {start} bytes, which is no chunk's boundary", field="committed_bytes"
        )


async def _send(call: UploadCall, sealed: SealedUpdate, reader: UpdateReader, start: int) -> None:
    size_bytes = sealed.manifest.size_bytes
    loop = asyncio.get_running_loop()

    def read(offset: int) -> asyncio.Future[list[bytes]]:
        return loop.run_in_executor(None, _messages, reader, offset, size_bytes)

    reading: asyncio.Future[list[bytes]] | None = None
    try:
        if size_bytes - start > limits.CHUNK_CIPHER_BYTES:
            reading = read(start)
        for offset in range(start, size_bytes, _BATCH_BYTES):
            if reading is None:
                # One chunk, written a moment ago: it comes from memory.
                messages = _messages(reader, offset, size_bytes)
            else:
                messages = await reading
                if offset + _BATCH_BYTES < size_bytes:
                    reading = read(offset + _BATCH_BYTES)
            for message in messages:
                await call.write(message)
        await call.done_writing()
    except MeshError:
        # A call that has ended, or a spool file that lost bytes: let nobody wait on this call.
        call.cancel()
        raise
    finally:
        if reading is not None:
            # A thread cannot be stopped, and the file is closed when this returns.
            await asyncio.gather(reading, return_exceptions=True)


def _messages(reader: UpdateReader, start: int, size_bytes: int) -> list[bytes]:
    """The next few chunks as they go on the wire. Raises: as `UpdateReader.chunk`."""
    stop = min(start + _BATCH_BYTES, size_bytes)
    return [
        encode_chunk(offset, reader.chunk(offset))
        for offset in range(start, stop, limits.CHUNK_CIPHER_BYTES)
    ]
