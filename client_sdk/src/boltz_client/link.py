"""One client's connection to its mesh, and what it has learnt over it: keys, peers, the time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from tenacity import AsyncRetrying, retry_if_exception

from boltz_client.backoff import Backoff, Clock, StopWithoutProgress
from boltz_client.connection import answered, is_passing, secure_channel
from boltz_client.keystore import KeyStore
from boltz_client.mesh_keys import MeshKeys
from boltz_client.peer_checks import PeerChecks, PeerMemory
from boltz_client.tracing import call_metadata
from boltz_protocol import limits
from boltz_protocol.chunk_wire import WireChunk, parse_chunk
from boltz_protocol.statement import Statement
from boltz_protocol.v1 import (
    aggregator_pb2,
    aggregator_pb2_grpc,
    model_store_pb2,
    model_store_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
)

#: A bidirectional method of grpc.aio, as `connection.Duplex` takes it.
BulkMethod = Callable[..., Any]


@dataclass(slots=True)
class Stubs:
    """The channel and what hangs on it.

    Attributes:
        pull, submit: ModelStore.Pull and Aggregator.SubmitUpdate, whose chunks pass without
            protobuf's copies (`boltz_protocol.chunk_wire`).
    """

    channel: grpc.aio.Channel
    registry: registry_pb2_grpc.RegistryAsyncStub = field(init=False)
    models: model_store_pb2_grpc.ModelStoreAsyncStub = field(init=False)
    aggregator: aggregator_pb2_grpc.AggregatorAsyncStub = field(init=False)
    pull: BulkMethod = field(init=False)
    submit: BulkMethod = field(init=False)

    def __post_init__(self) -> None:
        self.registry = registry_pb2_grpc.RegistryStub(self.channel)
        self.models = model_store_pb2_grpc.ModelStoreStub(self.channel)
        self.aggregator = aggregator_pb2_grpc.AggregatorStub(self.channel)
        self.pull = self.channel.stream_stream(
            "/boltz_mesh.v1.ModelStore/Pull",
            request_serializer=model_store_pb2.PullRequest.SerializeToString,
            response_deserializer=_chunk_or_response,
        )
        self.submit = self.channel.stream_stream(
            "/boltz_mesh.v1.Aggregator/SubmitUpdate",
            request_serializer=_request_or_bytes,
            response_deserializer=aggregator_pb2.SubmitUpdateResponse.FromString,
        )


def _chunk_or_response(message: bytes) -> WireChunk | model_store_pb2.PullResponse:
    return parse_chunk(message) or model_store_pb2.PullResponse.FromString(message)


def _request_or_bytes(request: aggregator_pb2.SubmitUpdateRequest | bytes) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


class MeshLink:
    """Made when the client is; connects when it is first used.

    Args:
        store: an enrolled key store.
        clock: this machine's.
        memory: what was verified of peers by other clients of this process; None for its own.
    """

    def __init__(self, store: KeyStore, clock: Clock, memory: PeerMemory | None = None) -> None:
        self.keys = MeshKeys(store.identity.mesh, store.root)
        self.peers = PeerChecks(store.identity.mesh, store.root, self.server_time_ms, memory)
        self._store = store
        self._clock = clock
        self._stubs: Stubs | None = None
        self._learning = asyncio.Lock()
        self._server_ahead_ms = 0

    @property
    def stubs(self) -> Stubs:
        """The services, on a channel under this client's certificate."""
        if self._stubs is None:
            store = self._store
            self._stubs = Stubs(
                secure_channel(
                    store.identity.mesh_address,
                    root_pem=store.root_pem,
                    key_pem=store.private_key_pem,
                    chain_pem=store.chain_pem,
                )
            )
        return self._stubs

    async def close(self) -> None:
        """Close the channel."""
        if self._stubs is not None:
            await self._stubs.channel.close(None)
            self._stubs = None

    def server_time_ms(self) -> int:
        """Unix time by the server's clock, as its last welcome showed it."""
        return self._clock.now_ms() + self._server_ahead_ms

    def saw_server_time(self, server_time_ms: int) -> None:
        """Remember how far the server's clock is ahead; more than any honest skew is ignored."""
        ahead_ms = server_time_ms - self._clock.now_ms()
        if abs(ahead_ms) <= limits.MAX_CLOCK_SKEW_MS:
            self._server_ahead_ms = ahead_ms

    async def verified(self, statement: Statement, expected_type: str) -> bytes:
        """The payload of a statement of the mesh; its keys are fetched where they are not known.

        Raises: as `MeshKeys.verify`; Unavailable where the keys cannot be fetched.
        """
        await self.learn_keys(fresh=not self.keys.knows(statement.key_id))
        return self.keys.verify(statement, expected_type, self.server_time_ms())

    async def learn_keys(self, *, fresh: bool = False) -> None:
        """Fetch the mesh's statement certificates, once or anew. Raises: Unavailable."""
        async with self._learning:
            if self.keys.empty or fresh:
                reply = await self._server_keys()
                self.keys.learn(reply.statement_certificates_der, self.server_time_ms())

    async def _server_keys(self) -> registry_pb2.GetServerKeysResponse:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(is_passing),
            wait=Backoff(),
            stop=StopWithoutProgress(lambda: 0),
            reraise=True,
        ):
            with attempt:
                return await answered(
                    self.stubs.registry.GetServerKeys(
                        registry_pb2.GetServerKeysRequest(),
                        timeout=limits.CALL_TIMEOUT_MS / 1000,
                        metadata=call_metadata(),
                    )
                )
        raise AssertionError("tenacity returns or raises")
