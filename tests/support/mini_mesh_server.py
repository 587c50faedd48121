"""What `MiniMesh` serves: the methods that the client calls, over gRPC with mutual TLS."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from boltz_client.backoff import Clock
from boltz_protocol import codec, limits
from boltz_protocol import messages as m
from boltz_protocol.errors import (
    ApprovalPending,
    ChunkOutOfOrder,
    DigestMismatch,
    MeshError,
    NotFound,
    RoundClosed,
    SecondDigest,
    TokenRefused,
    Unavailable,
)
from boltz_protocol.ids import new_client_id
from boltz_protocol.model_file import Vector, canonical_layout
from boltz_protocol.names import parse_peer_uri
from boltz_protocol.packing import norm_squared_packed24
from boltz_protocol.sealing import round_encoding
from boltz_protocol.statement import CLIENT_ALGORITHMS, digest, verify
from boltz_protocol.status import to_grpc_status
from boltz_protocol.v1 import aggregator_pb2, model_store_pb2, registry_pb2
from tests.support.mini_mesh import MESH, MODEL, MiniMesh, Outbox, Stream, Update

Context = Any


class _Calls:
    """What each method does."""

    def __init__(self, mesh: MiniMesh) -> None:
        self.mesh = mesh

    def enroll(self, request: registry_pb2.EnrollRequest) -> registry_pb2.EnrollResponse:
        if request.token not in self.mesh.tokens:
            raise TokenRefused("this token is not known")
        known = self.mesh.tokens[request.token]
        if known is not None and known[0] != request.request_key:
            raise TokenRefused("this token was used")
        client_id = known[1] if known is not None else new_client_id()
        self.mesh.tokens[request.token] = (request.request_key, client_id)
        if self.mesh.faults.pending:
            self.mesh.faults.pending -= 1
            raise ApprovalPending("an operator has yet to approve", retry_after_ms=1)
        issued = self.mesh.authority.issue_client(
            request.csr_der, client_id, now=self.mesh.clock.now()
        )
        key = issued.certificate.public_key()
        assert isinstance(key, RSAPublicKey)
        self.mesh.clients[client_id] = key
        if self.mesh.faults.lose_enrol_replies:
            self.mesh.faults.lose_enrol_replies -= 1
            raise Unavailable("the reply was lost")
        return registry_pb2.EnrollResponse(
            client_id=client_id,
            certificate_chain_der=issued.chain_der,
            authority_certificate_der=self.mesh.authority.root_der,
            mesh_id=MESH,
        )

    async def participate(
        self, client_id: str, requests: AsyncIterator[aggregator_pb2.ParticipateRequest]
    ) -> AsyncIterator[aggregator_pb2.ParticipateResponse]:
        if self.mesh.faults.refuse_participate:
            raise self.mesh.faults.refuse_participate.pop(0)
        first = await anext(requests)
        outbox: Outbox = asyncio.Queue()
        self._check_in(client_id, first, outbox)
        reader = asyncio.create_task(self._read(client_id, requests, outbox))
        try:
            while self.mesh.faults.push_script:
                yield self.mesh.faults.push_script.pop(0)
            welcome = m.Welcome(self.mesh.clock.now_ms(), m.PROTOCOL_VERSION)
            yield aggregator_pb2.ParticipateResponse(welcome=codec.welcome_to_proto(welcome))
            await self.mesh.tell_all()
            round = self.mesh.round
            session = self.mesh.streams[client_id].check_in.session_id
            if (
                round is not None
                and client_id in round.entries
                and round.entries[client_id][1].session_id == session
            ):
                if round.ended_with is None:
                    self.mesh.offer(client_id)
                else:
                    counted = client_id in round.updates
                    self.mesh.tell_outcome(client_id, round.ended_with, counted=counted)
            while True:
                message = await outbox.get()
                if message is None:
                    return
                if isinstance(message, MeshError):
                    raise message
                yield message
        finally:
            reader.cancel()
            if client_id in self.mesh.streams and self.mesh.streams[client_id].outbox is outbox:
                del self.mesh.streams[client_id]
                await self.mesh.tell_all()

    def _check_in(
        self,
        client_id: str,
        request: aggregator_pb2.ParticipateRequest,
        outbox: Outbox,
    ) -> None:
        statement = codec.statement_from_proto(request.check_in)
        payload = verify(
            statement,
            expected_type=m.CHECK_IN,
            public_key=self.mesh.clients[client_id],
            allowed_algorithms=CLIENT_ALGORITHMS,
        )
        check_in = codec.parse_check_in(payload)
        assert (check_in.client_id, check_in.model_id) == (client_id, MODEL)
        self.mesh.streams[client_id] = Stream(check_in, statement, outbox)

    async def _read(
        self,
        client_id: str,
        requests: AsyncIterator[aggregator_pb2.ParticipateRequest],
        outbox: Outbox,
    ) -> None:
        async for request in requests:
            if request.WhichOneof("message") == "check_in":
                self._check_in(client_id, request, outbox)
            else:
                decline = codec.decline_from_proto(request.decline)
                if self.mesh.round is not None:
                    self.mesh.round.declined[client_id] = decline.reason
            await self.mesh.tell_all()
        outbox.put_nowait(None)

    async def submit(
        self, client_id: str, requests: AsyncIterator[aggregator_pb2.SubmitUpdateRequest]
    ) -> AsyncIterator[aggregator_pb2.SubmitUpdateResponse]:
        self.mesh.calls.append("submit")
        await self.mesh.tell_all()
        if self.mesh.faults.refuse_uploads:
            raise self.mesh.faults.refuse_uploads.pop(0)
        if self.mesh.faults.upload_script is not None:
            for answer in self.mesh.faults.upload_script:
                yield answer
            return
        cut_after = self.mesh.faults.cut_uploads.pop(0) if self.mesh.faults.cut_uploads else None
        statement = codec.statement_from_proto((await anext(requests)).manifest)
        payload = verify(
            statement,
            expected_type=m.UPDATE_MANIFEST,
            public_key=self.mesh.clients[client_id],
            allowed_algorithms=CLIENT_ALGORITHMS,
        )
        manifest = codec.parse_update_manifest(payload)
        round = self.mesh.round
        if round is None or round.configuration.round_id != manifest.round_id:
            raise RoundClosed("there is no such round")
        assert manifest.session_id == round.entries[client_id][1].session_id
        assert manifest.configuration_sha256 == digest(round.statement)
        update = round.updates.setdefault(client_id, Update(manifest))
        if update.manifest.sha256 != manifest.sha256:
            raise SecondDigest("another digest came first")
        if update.receipt is None:
            yield _progress(update.committed)
            opener = self.mesh.opener(round, manifest)
            norm_squared = 0
            taken = 0
            while update.committed < manifest.size_bytes:
                if taken == cut_after:
                    raise Unavailable("cut")
                request = await anext(requests, None)
                if request is None:
                    raise ChunkOutOfOrder("the stream ended early")
                data = request.chunk.data
                assert request.chunk.offset == update.committed
                plain = bytearray(opener.layout.plain_bytes(len(update.chunks)))
                opener.open_into(len(update.chunks), data, plain)
                norm_squared += norm_squared_packed24(plain)
                update.chunks.append(data)
                taken += 1
                yield _progress(update.committed)
            round_encoding(round.configuration).check_norm(norm_squared)
            if hashlib.sha256(b"".join(update.chunks)).digest() != manifest.sha256:
                raise DigestMismatch("other bytes")
            receipt = self.mesh.faults.mangle_receipt(
                m.UpdateReceipt(
                    mesh_id=MESH,
                    round_id=manifest.round_id,
                    attempt=manifest.attempt,
                    client_id=manifest.client_id,
                    sha256=manifest.sha256,
                    received_at_ms=self.mesh.clock.now_ms(),
                )
            )
            update.receipt = self.mesh.sign(m.UPDATE_RECEIPT, codec.encode_update_receipt(receipt))
            if taken == cut_after:
                raise Unavailable("cut before the receipt")
        await self.mesh.tell_all()
        yield aggregator_pb2.SubmitUpdateResponse(receipt=codec.statement_to_proto(update.receipt))

    async def pull(
        self, requests: AsyncIterator[model_store_pb2.PullRequest]
    ) -> AsyncIterator[model_store_pb2.PullResponse]:
        opened = (await anext(requests)).open
        if self.mesh.faults.pull_script is not None:
            for response in self.mesh.faults.pull_script:
                yield response
            return
        version = opened.version or len(self.mesh.models)
        if opened.model_id != MODEL or version not in self.mesh.models:
            raise NotFound(f"no version {version} of {opened.model_id}")
        statement, content = self.mesh.models[version]
        content = self.mesh.faults.mangle_model(content)
        cut_after = self.mesh.faults.cut_pulls.pop(0) if self.mesh.faults.cut_pulls else None
        self.mesh.calls.append(f"pull from {opened.offset}")
        yield model_store_pb2.PullResponse(
            header=model_store_pb2.PullHeader(
                version=model_store_pb2.ModelVersion(
                    manifest=codec.statement_to_proto(statement),
                    state=model_store_pb2.VERSION_STATE_PROMOTED,
                )
            )
        )
        credits_left = opened.credits
        offsets = range(opened.offset, len(content), limits.MODEL_CHUNK_BYTES)
        for sent, offset in enumerate(offsets):
            if sent == cut_after:
                raise Unavailable("cut")
            if not credits_left:
                credits_left += (await anext(requests)).credit.chunks
            data = content[offset : offset + limits.MODEL_CHUNK_BYTES]
            chunk = model_store_pb2.ModelChunk(offset=offset, data=data)
            yield model_store_pb2.PullResponse(chunk=chunk)
            credits_left -= 1


def _progress(committed: int) -> aggregator_pb2.SubmitUpdateResponse:
    return aggregator_pb2.SubmitUpdateResponse(
        progress=aggregator_pb2.UploadProgress(committed_bytes=committed)
    )


def _caller(context: Context) -> str:
    (uri,) = context.auth_context()["peer_spiffe_id"]
    return parse_peer_uri(uri.decode()).name


class _Services:
    """The methods that the client calls, each a handler of grpc.aio."""

    def __init__(self, mesh: MiniMesh) -> None:
        self.mesh = mesh
        self.calls = _Calls(mesh)

    async def enroll(self, request: registry_pb2.EnrollRequest, context: Context) -> Any:
        try:
            return self.calls.enroll(request)
        except MeshError as error:
            await context.abort_with_status(to_grpc_status(error))

    async def keys(self, request: registry_pb2.GetServerKeysRequest, context: Context) -> Any:
        self.mesh.calls.append("keys")
        return registry_pb2.GetServerKeysResponse(
            mesh_id=MESH,
            statement_certificates_der=self.mesh.certificates,
            authority_certificate_der=self.mesh.authority.root_der,
        )

    async def client(self, request: registry_pb2.GetClientRequest, context: Context) -> Any:
        return registry_pb2.GetClientResponse(
            client=registry_pb2.Client(
                client_id=_caller(context), status=registry_pb2.CLIENT_STATUS_ACTIVE
            )
        )

    async def budget(
        self, request: aggregator_pb2.GetPrivacyBudgetRequest, context: Context
    ) -> Any:
        return aggregator_pb2.GetPrivacyBudgetResponse(
            model_id=request.model_id,
            client_id=request.client_id,
            epsilon_spent=1.5,
            epsilon_budget=2.0,
            delta=1e-5,
            unit="client-period",
            period="2026-10-01/2027-01-01",
            relation="contribution-set-to-zero",
            rounds_left=3,
            epsilon_lifetime=1.75,
            rounds_lifetime=3,
            chain_length=7,
            chain_head=b"\xab" * 32,
        )

    async def participate(self, requests: Any, context: Context) -> AsyncIterator[Any]:
        async for message in self._stream(
            context, self.calls.participate(_caller(context), requests)
        ):
            yield message

    async def submit(self, requests: Any, context: Context) -> AsyncIterator[Any]:
        async for message in self._stream(context, self.calls.submit(_caller(context), requests)):
            yield message

    async def pull(self, requests: Any, context: Context) -> AsyncIterator[Any]:
        async for message in self._stream(context, self.calls.pull(requests)):
            yield message

    async def _stream(self, context: Context, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        self.mesh.metadata.append({k: str(v) for k, v in context.invocation_metadata()})
        try:
            async for message in messages:
                yield message
        except MeshError as error:
            await context.abort_with_status(to_grpc_status(error))
        finally:
            await messages.aclose()  # type: ignore[attr-defined]

    def handlers(self, *, enrolment: bool) -> Any:
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        methods: dict[str, dict[str, tuple[Any, Any]]]
        if enrolment:
            methods = {"Registry": {"Enroll": (unary, self.enroll)}}
        else:
            methods = {
                "Registry": {
                    "GetServerKeys": (unary, self.keys),
                    "GetClient": (unary, self.client),
                },
                "ModelStore": {"Pull": (stream, self.pull)},
                "Aggregator": {
                    "Participate": (stream, self.participate),
                    "SubmitUpdate": (stream, self.submit),
                    "GetPrivacyBudget": (unary, self.budget),
                },
            }
        modules = (registry_pb2, model_store_pb2, aggregator_pb2)
        return tuple(
            grpc.method_handlers_generic_handler(
                f"boltz_mesh.v1.{service}",
                {
                    name: kind(handler, _message(modules, f"{name}Request").FromString, _bytes)
                    for name, (kind, handler) in found.items()
                },
            )
            for service, found in methods.items()
        )


def _message(modules: tuple[Any, ...], name: str) -> Any:
    return next(getattr(module, name) for module in modules if hasattr(module, name))


def _bytes(message: Any) -> bytes:
    serialised: bytes = message.SerializeToString()
    return serialised


async def _serve(mesh: MiniMesh, address: str) -> tuple[grpc.aio.Server, int]:
    credential = mesh.authority.issue_server("one", ["127.0.0.1"], now=mesh.clock.now())
    key, chain = credential.private_key_pem, credential.issued.chain_pem + mesh.authority.root_pem
    if address == "enrol":
        credentials = grpc.ssl_server_credentials([(key, chain)])
    else:
        credentials = grpc.ssl_server_credentials([(key, chain)], mesh.authority.root_pem, True)
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", limits.MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),
        ]
    )
    enrolment = address == "enrol"
    server.add_generic_rpc_handlers(_Services(mesh).handlers(enrolment=enrolment))
    port = server.add_secure_port("127.0.0.1:0" if enrolment else address, credentials)
    await server.start()
    return server, port


@asynccontextmanager
async def running(
    tensors: tuple[m.TensorSpec, ...] | None = None,
    vector: Vector | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[MiniMesh]:
    """A mesh that serves on two ports of 127.0.0.1."""
    tensors = tensors or (m.TensorSpec("w", (3, 2)), m.TensorSpec("b", (2,)))
    size = sum(spec.elements for spec in tensors)
    start = vector if vector is not None else np.zeros(size, dtype=np.float32)
    assert canonical_layout(tensors).coordinates == start.size
    mesh = MiniMesh(tensors, start, clock or Clock())
    enrolment, enrol_port = await _serve(mesh, "enrol")
    mesh.enroll_address = f"127.0.0.1:{enrol_port}"
    main, port = await _serve(mesh, "127.0.0.1:0")
    mesh.mesh_address = f"127.0.0.1:{port}"
    mesh.server = main
    try:
        yield mesh
    finally:
        await enrolment.stop(None)
        await mesh.server.stop(None)


async def restart(mesh: MiniMesh) -> None:
    """Stop the server at once, cutting every call, and serve on the same port again."""
    await mesh.server.stop(None)
    mesh.server, _ = await _serve(mesh, mesh.mesh_address)
