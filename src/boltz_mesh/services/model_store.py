"""The ModelStore service: versions in, versions out."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from typing import Final, TypeVar

import numpy as np

from boltz_mesh.rounds.plan import Plan
from boltz_mesh.services.clock import Clock
from boltz_mesh.services.credits import Credits
from boltz_mesh.services.files import EncryptedReader, EncryptedWriter, model_context
from boltz_mesh.services.guard import Context, caller_of
from boltz_mesh.services.keyring import KeyRing
from boltz_mesh.services.paging import decode_token, encode_token, page_size
from boltz_mesh.services.plans import plan_of
from boltz_mesh.services.shared_reads import SharedReads
from boltz_mesh.services.threads import in_thread, to_its_end
from boltz_mesh.storage import models, plans
from boltz_mesh.storage.blobs import BlobStore
from boltz_mesh.storage.models import ModelState, ModelVersion, NewModelVersion, StoredBlob
from boltz_mesh.storage.postgres import Connection, Database
from boltz_protocol import codec, limits
from boltz_protocol import messages as m
from boltz_protocol.chunk_wire import WireChunk, encode_chunk
from boltz_protocol.errors import (
    ChunkOutOfOrder,
    DigestMismatch,
    LimitExceeded,
    MalformedMessage,
    NotFound,
    ShapeMismatch,
    StateConflict,
)
from boltz_protocol.ids import ModelId, parse_model_id
from boltz_protocol.model_file import Layout, canonical_layout, check_finite
from boltz_protocol.v1 import model_store_pb2 as pb
from boltz_protocol.v1 import model_store_pb2_grpc

T = TypeVar("T")
#: What fits the database's 32-bit integers, and how many digits certainly do.
_MAX_VERSION: Final = 2**31 - 1
_MAX_VERSION_DIGITS: Final = 9


def tensors_of(plan: Plan) -> tuple[m.TensorSpec, ...]:
    """A plan's tensors as they stand in a manifest."""
    return tuple(
        m.TensorSpec(spec.name, tuple(spec.shape), m.Dtype.FLOAT32) for spec in plan.tensors
    )


class ModelStoreService(model_store_pb2_grpc.ModelStoreServicer):
    """One instance a server."""

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
        self._blobs = blobs
        self._keyring = keyring
        self._executor = executor
        self._clock = clock
        self._reads = SharedReads(executor)

    async def _run(self, call: Callable[[], T]) -> T:
        return await in_thread(self._executor, call)

    # --- in -------------------------------------------------------------------------------------

    async def Publish(
        self, request_iterator: AsyncIterator[pb.PublishRequest], context: Context
    ) -> pb.PublishResponse:
        """See the contract."""
        by = caller_of(context, self._keyring.mesh_id).name
        # The guard hands over chunks in the usual form as they stand on the wire.
        requests: AsyncIterator[pb.PublishRequest | WireChunk] = aiter(request_iterator)
        first = await anext(requests, None)
        if first is None or isinstance(first, WireChunk) or first.WhichOneof("message") != "header":
            raise MalformedMessage("a Publish stream starts with a header")
        header = first.header
        model_id = parse_model_id(header.model_id)
        plan_row, parent, version = await self._prepare(model_id, header.parent_version)
        layout = canonical_layout(tensors_of(plan_of(plan_row)))
        _check_header(header, layout)
        writer = await self._run(
            lambda: EncryptedWriter(
                self._blobs,
                self._keyring.kek,
                model_context(self._keyring.mesh_id, model_id, version),
                layout.size_bytes,
            )
        )
        with writer:
            async for request in requests:
                chunk = _chunk_of(request)
                _check_chunk(chunk, writer.offset, layout)
                await self._run(lambda chunk=chunk: _take(chunk, writer, layout))  # type: ignore[misc]
            if writer.offset != layout.size_bytes:
                raise ChunkOutOfOrder(
                    f"the stream ended at {writer.offset} of {layout.size_bytes} bytes"
                )
            stored = await self._run(writer.commit)
        if stored.digest != header.sha256:
            await self._run(lambda: self._blobs.delete(stored.blob_digest))
            raise DigestMismatch("the bytes that came do not have the digest of the header")
        made = await self._insert(
            model_id,
            version,
            plan=plan_row,
            parent=parent,
            stored=stored,
            layout=layout,
            promote_by=by if header.promote else None,
        )
        return pb.PublishResponse(version=as_proto(made))

    async def _prepare(
        self, model_id: ModelId, parent_version: int
    ) -> tuple[plans.Plan, ModelVersion | None, int]:
        async def body(
            connection: Connection,
        ) -> tuple[plans.Plan, ModelVersion | None, int]:
            plan = await plans.get_plan(connection, model_id)
            parent = None
            if parent_version:
                try:
                    parent = await _version(connection, model_id, parent_version)
                except NotFound as error:
                    raise StateConflict(
                        f"the parent, version {parent_version}, is not a version of {model_id}"
                    ) from error
            return plan, parent, await models.next_model_version(connection, model_id)

        return await self._database.run_tx("prepare_publish", body)

    async def _insert(
        self,
        model_id: ModelId,
        version: int,
        *,
        plan: plans.Plan,
        parent: ModelVersion | None,
        stored: StoredBlob,
        layout: Layout,
        promote_by: str | None,
    ) -> ModelVersion:
        now_ms = self._clock()
        manifest = m.ModelManifest(
            mesh_id=self._keyring.mesh_id,
            model_id=model_id,
            version=version,
            parent_version=parent.version if parent else 0,
            parent_sha256=parent.weights.digest if parent else b"",
            round_id=None,
            sha256=stored.digest,
            size_bytes=layout.size_bytes,
            tensors=layout.tensors,
            optimizer_state_sha256=b"",
            plan_revision=plan.revision,
            created_at_ms=now_ms,
        )
        statement = self._keyring.sign_statement(
            m.MODEL_MANIFEST, codec.encode_model_manifest(manifest)
        )

        async def body(connection: Connection) -> ModelVersion:
            # The file is bound to its number; where a round was quicker, the caller tries again.
            if await models.next_model_version(connection, model_id) != version:
                raise StateConflict(
                    f"another version {version} of {model_id} was made meanwhile; publish again"
                )
            made = await models.insert_model_version(
                connection,
                NewModelVersion(
                    model_id=model_id,
                    version=version,
                    parent_version=parent.version if parent else None,
                    round_id=None,
                    weights=stored,
                    size_bytes=layout.size_bytes,
                    kek_id=self._keyring.kek.key_id,
                    manifest=codec.encode_statement(statement),
                    optimizer=None,
                    metrics={},
                    created_at_ms=now_ms,
                ),
            )
            if promote_by is None:
                return made
            return await models.promote_model(
                connection, model_id, version, by=promote_by, at_ms=now_ms
            )

        return await self._database.run_tx("publish", body)

    # --- out ------------------------------------------------------------------------------------

    async def Pull(  # type: ignore[override]  # the guard sends bytes as they are
        self, request_iterator: AsyncIterator[pb.PullRequest], context: Context
    ) -> AsyncIterator[pb.PullResponse | bytes]:
        """See the contract. Chunks are yielded as the bytes that go on the wire."""
        requests = aiter(request_iterator)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("message") != "open":
            raise MalformedMessage("a Pull stream starts with an opening")
        opening = first.open
        found = await self._find(parse_model_id(opening.model_id), opening.version)
        if opening.offset > found.size_bytes:
            raise MalformedMessage(
                f"offset {opening.offset} lies behind the file's end at {found.size_bytes}",
                field="offset",
            )
        credits = Credits(opening.credits)
        yield pb.PullResponse(header=pb.PullHeader(version=as_proto(found)))
        offset = opening.offset
        if offset == found.size_bytes:
            return
        if found.size_bytes - offset <= limits.MODEL_CHUNK_BYTES:
            # The first credit is enough: one thread hand-over, no task that waits for more.
            yield await self._run(lambda: self._read_rest(found, offset))
            return
        digest = found.weights.blob_digest
        async with self._reads.opened(digest, lambda: self._reader(found)) as file:
            adding = asyncio.create_task(credits.add_from(requests))
            try:
                reading = file.message(offset)
                while offset < found.size_bytes:
                    await credits.spend(adding)
                    message = reading.result() if reading.done() else await to_its_end(reading)
                    offset += limits.MODEL_CHUNK_BYTES - offset % limits.MODEL_CHUNK_BYTES
                    if offset < found.size_bytes:
                        reading = file.message(offset)  # while this chunk is sent
                    yield message
            finally:
                adding.cancel()
                await asyncio.gather(adding, return_exceptions=True)

    def _read_rest(self, found: ModelVersion, offset: int) -> bytes:
        data = bytearray(found.size_bytes - offset)
        with self._reader(found) as reader:
            reader.read_into(data, offset)
        return encode_chunk(offset, data)

    def _reader(self, found: ModelVersion) -> EncryptedReader:
        return EncryptedReader(
            self._blobs,
            self._keyring.kek,
            model_context(self._keyring.mesh_id, found.model_id, found.version),
            found.weights,
            found.size_bytes,
        )

    async def _find(self, model_id: ModelId, version: int) -> ModelVersion:
        async def body(connection: Connection) -> ModelVersion:
            if version:
                return await _version(connection, model_id, version)
            found = await models.find_promoted(connection, model_id)
            if found is None:
                raise NotFound(f"{model_id} has no promoted version", model_id=model_id)
            return found

        return await self._database.read("find_version", body)

    async def GetManifest(
        self, request: pb.GetManifestRequest, context: Context
    ) -> pb.GetManifestResponse:
        """See the contract."""
        found = await self._find(parse_model_id(request.model_id), request.version)
        return pb.GetManifestResponse(version=as_proto(found))

    async def ListVersions(
        self, request: pb.ListVersionsRequest, context: Context
    ) -> pb.ListVersionsResponse:
        """See the contract."""
        size, after = page_size(request.page), decode_token(request.page)
        model_id = parse_model_id(request.model_id) if request.model_id else None

        async def body(connection: Connection) -> tuple[list[ModelVersion], str]:
            if model_id is None:
                newest = await models.list_newest_versions(connection, limit=size, after=after)
                return newest, newest[-1].model_id if len(newest) == size else ""
            before = _version_in(after) if after else None
            found = await models.list_model_versions(
                connection, model_id, limit=size, before=before
            )
            return found, str(found[-1].version) if len(found) == size else ""

        found, last = await self._database.read("list_versions", body)
        return pb.ListVersionsResponse(
            versions=[as_proto(version) for version in found],
            next_page_token=encode_token(last) if last else "",
        )

    async def Promote(self, request: pb.PromoteRequest, context: Context) -> pb.PromoteResponse:
        """See the contract."""
        model_id = parse_model_id(request.model_id)
        by = caller_of(context, self._keyring.mesh_id).name

        async def body(connection: Connection) -> ModelVersion:
            found = await _version(connection, model_id, request.version)
            move = (
                models.rollback_model if found.state is ModelState.RETIRED else models.promote_model
            )
            return await move(connection, model_id, found.version, by=by, at_ms=self._clock())

        return pb.PromoteResponse(version=as_proto(await self._database.run_tx("promote", body)))


async def _version(connection: Connection, model_id: ModelId, version: int) -> ModelVersion:
    """One version. Raises: NotFound, also for numbers that the database could not even look for."""
    if version > _MAX_VERSION:
        raise NotFound(f"model {model_id} has no version {version}", version=version)
    return await models.get_model_version(connection, model_id, version)


def _version_in(token: str) -> int:
    if not token.isdecimal() or len(token) > _MAX_VERSION_DIGITS:
        raise MalformedMessage("this is not a page token", field="page.token")
    return int(token)


def _chunk_of(request: pb.PublishRequest | WireChunk) -> WireChunk:
    if isinstance(request, WireChunk):
        return request
    if request.WhichOneof("message") != "chunk":
        raise MalformedMessage("only chunks may follow the header")
    return WireChunk(request.chunk.offset, memoryview(request.chunk.data))


def _check_header(header: pb.PublishHeader, layout: Layout) -> None:
    if len(header.sha256) != hashlib.sha256().digest_size:
        raise MalformedMessage(f"sha256 has {len(header.sha256)} bytes, not 32", field="sha256")
    if header.size_bytes != layout.size_bytes:
        raise ShapeMismatch(
            f"the file has {header.size_bytes} bytes; with the plan's tensors, in the plan's order "
            f"and without metadata, it has {layout.size_bytes}",
            size_bytes=layout.size_bytes,
        )


def _check_chunk(chunk: WireChunk, offset: int, layout: Layout) -> None:
    size = len(chunk.data)
    if size > limits.MODEL_CHUNK_BYTES:
        raise LimitExceeded(f"a chunk of {size} bytes; the cap is {limits.MODEL_CHUNK_BYTES}")
    if size == 0 or chunk.offset != offset or offset + size > layout.size_bytes:
        raise ChunkOutOfOrder(
            f"a chunk of {size} bytes at offset {chunk.offset}; the next one is at {offset}",
            committed_bytes=offset,
        )
    if size % 4 and offset + size < layout.size_bytes:
        raise MalformedMessage(f"a chunk of {size} bytes cuts a number in two; send whole ones")


def _take(chunk: WireChunk, writer: EncryptedWriter, layout: Layout) -> None:
    """Check that the bytes are the canonical header or finite numbers, and write them."""
    data = chunk.data
    start, end = writer.offset, writer.offset + len(data)
    in_header = min(end, layout.data_offset)
    if start < in_header and data[: in_header - start] != layout.header[start:in_header]:
        raise ShapeMismatch(
            "the file's header is not the one that follows from the plan's tensors: same names, "
            "shapes and order, no metadata, padded with spaces to a multiple of 8"
        )
    first = max(start, layout.data_offset)
    count = (end - first) // 4
    if count > 0:
        values = np.frombuffer(data[first - start :], dtype="<f4", count=count)
        check_finite(layout.tensors, values, (first - layout.data_offset) // 4)
    writer.write(data)


def as_proto(version: ModelVersion) -> pb.ModelVersion:
    """A stored version as the contract shows it."""
    return pb.ModelVersion(
        manifest=codec.statement_to_proto(codec.parse_statement(version.manifest)),
        state=pb.VersionState.Value(f"VERSION_STATE_{version.state.upper()}"),
        promoted_at_ms=version.promoted_at_ms or 0,
        promoted_by=version.promoted_by or "",
    )
