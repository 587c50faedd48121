"""A small mesh in memory, for tests of the client: real gRPC, mutual TLS and cryptography.

It keeps to the contract where a client can see it, and misbehaves where a test asks it to
(`Faults`). Rounds are `open`, without noise; `finish_round` folds what came in and publishes.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import grpc
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from boltz_client.backoff import Clock
from boltz_mesh.services.identity.authority import Authority, new_root
from boltz_protocol import codec, limits, weights
from boltz_protocol import messages as m
from boltz_protocol.encoding import plan_encoding
from boltz_protocol.envelope import Opener, unwrap_as_recipient
from boltz_protocol.errors import (
    MeshError,
)
from boltz_protocol.ids import ClientId, ModelId, new_round_id
from boltz_protocol.join import JoinString, new_token
from boltz_protocol.keys import public_key_der, public_key_id
from boltz_protocol.model_file import Vector, encode_model, read_vector
from boltz_protocol.packing import add_packed24, decode_sum
from boltz_protocol.sealing import round_encoding, update_context, update_layout
from boltz_protocol.statement import Statement, digest, sign_ed25519
from boltz_protocol.update import chunk_slice
from boltz_protocol.v1 import aggregator_pb2, model_store_pb2
from tests.support import samples_sealed
from tests.support.keys import vector_rsa_key

MESH = "mini"
MODEL = ModelId("toy")
#: What a stream is to say; an error or None ends it.
Outbox = asyncio.Queue[aggregator_pb2.ParticipateResponse | MeshError | None]
Context = Any


@dataclass(slots=True)
class Faults:
    """What goes wrong; lists are used up from the front, one entry a call.

    Attributes:
        cut_uploads: end the call after so many chunks.
        cut_pulls: the same for pulls.
        refuse_uploads: errors instead of the first answer.
        refuse_participate: errors instead of a welcome.
        pull_script, upload_script: said instead of what is right, then the call ends in order.
        push_script: said instead of a welcome.
        pending: enrolments that are told to wait first.
        mangle_offer: changes an offer before it is sent.
        mangle_model: changes a model's bytes as they are sent.
        mangle_receipt: changes a receipt before it is signed.
    """

    cut_uploads: list[int] = field(default_factory=list)
    cut_pulls: list[int] = field(default_factory=list)
    refuse_uploads: list[MeshError] = field(default_factory=list)
    refuse_participate: list[MeshError] = field(default_factory=list)
    pull_script: list[model_store_pb2.PullResponse] | None = None
    upload_script: list[aggregator_pb2.SubmitUpdateResponse] | None = None
    push_script: list[aggregator_pb2.ParticipateResponse] = field(default_factory=list)
    pending: int = 0
    lose_enrol_replies: int = 0
    mangle_offer: Callable[[m.RoundOffer], m.RoundOffer] = lambda offer: offer
    mangle_model: Callable[[bytes], bytes] = lambda data: data
    mangle_receipt: Callable[[m.UpdateReceipt], m.UpdateReceipt] = lambda receipt: receipt


@dataclass(slots=True)
class Update:
    """What one client sent for the round."""

    manifest: m.UpdateManifest
    chunks: list[bytes] = field(default_factory=list)
    receipt: Statement | None = None

    @property
    def committed(self) -> int:
        return sum(map(len, self.chunks))


@dataclass(slots=True)
class Round:
    configuration: m.RoundConfiguration
    statement: Statement
    entries: dict[str, tuple[bytes, m.RosterEntry]]
    proofs: dict[ClientId, tuple[weights.SumNode, ...]]
    updates: dict[str, Update] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)
    ended_with: int | None = None


@dataclass(slots=True)
class Stream:
    check_in: m.CheckIn
    statement: Statement
    outbox: Outbox


class MiniMesh:
    """One mesh with one model. Make it with `running`."""

    def __init__(self, tensors: tuple[m.TensorSpec, ...], vector: Vector, clock: Clock) -> None:
        self.clock = clock
        now = clock.now()
        key, root = new_root(MESH, now=now, lifetime=timedelta(days=3650))
        self.authority = Authority(mesh=MESH, key=key, chain=[root], now=now)
        self.statement_key = Ed25519PrivateKey.generate()
        self.certificates = [self._certified(self.statement_key)]
        self.tensors = tensors
        self.models: dict[int, tuple[Statement, bytes]] = {}
        self.faults = Faults()
        self.tokens: dict[bytes, tuple[bytes, ClientId] | None] = {}
        self.clients: dict[str, RSAPublicKey] = {}
        self.streams: dict[str, Stream] = {}
        self.round: Round | None = None
        self.changed = asyncio.Condition()
        self.calls: list[str] = []
        self.metadata: list[dict[str, str]] = []
        self.server: grpc.aio.Server
        self.lanes: tuple[float, ...] = ()
        self.enroll_address = ""
        self.mesh_address = ""
        self.publish(vector)

    def _certified(self, key: Ed25519PrivateKey) -> bytes:
        issued = self.authority.certify_statement_key(key.public_key(), now=self.clock.now())
        return issued.chain_der[0]

    # --- what a test does -----------------------------------------------------------------------

    def join_string(self) -> str:
        token = new_token()
        self.tokens[token] = None
        return JoinString(
            MESH, self.enroll_address, self.mesh_address, self.authority.fingerprint, token
        ).encode()

    def sign(self, type: str, payload: bytes) -> Statement:
        return sign_ed25519(type=type, payload=payload, private_key=self.statement_key)

    def rotate_statement_key(self) -> None:
        self.statement_key = Ed25519PrivateKey.generate()
        self.certificates.append(self._certified(self.statement_key))

    def publish(self, vector: Vector, round_id: str = "") -> int:
        version = len(self.models) + 1
        content = encode_model(self.tensors, vector)
        parent = self.models[version - 1][1] if version > 1 else b""
        manifest = m.ModelManifest(
            mesh_id=MESH,
            model_id=MODEL,
            version=version,
            parent_version=version - 1,
            parent_sha256=hashlib.sha256(parent).digest() if parent else b"",
            round_id=new_round_id() if round_id else None,
            sha256=hashlib.sha256(content).digest(),
            size_bytes=len(content),
            tensors=self.tensors,
            optimizer_state_sha256=b"",
            plan_revision=1,
            created_at_ms=self.clock.now_ms(),
        )
        statement = self.sign(m.MODEL_MANIFEST, codec.encode_model_manifest(manifest))
        self.models[version] = (statement, content)
        return version

    @property
    def vector(self) -> Vector:
        return read_vector(self.models[len(self.models)][1], self.tensors)

    async def wait(self, condition: Callable[[], bool], timeout_s: float = 10) -> None:
        async with asyncio.timeout(timeout_s), self.changed:
            await self.changed.wait_for(condition)

    async def tell_all(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def start_round(
        self,
        clients: int = 1,
        *,
        deadline_ms: int = 20_000,
        change: Callable[[m.RoundConfiguration], m.RoundConfiguration] = lambda c: c,
        lanes: tuple[m.Lane, ...] = (),
        hyperparameters: dict[str, m.HyperValue] | None = None,
        clip_norm: float = 1.0,
    ) -> Round:
        """Offer a round to everyone who is checked in, once so many are."""
        await self.wait(lambda: len(self.streams) >= clients)
        now_ms = self.clock.now_ms()
        entries: dict[str, tuple[bytes, m.RosterEntry]] = {}
        for index, (client_id, stream) in enumerate(self.streams.items()):
            entry = m.RosterEntry(
                index=index,
                client_id=ClientId(client_id),
                session_id=stream.check_in.session_id,
                weight=min(255, 8 * (stream.check_in.sample_bucket + 1)),
                sample_bucket=stream.check_in.sample_bucket,
                quality_bucket=stream.check_in.quality_bucket,
                check_in=stream.statement,
            )
            entries[client_id] = (codec.encode_roster_entry(entry), entry)
        leaves = [
            weights.WeightLeaf(e.index, e.client_id, hashlib.sha256(raw).digest(), e.weight)
            for raw, e in entries.values()
        ]
        root = weights.root(leaves)
        coordinates = sum(spec.elements for spec in self.tensors) + len(lanes)
        encoding = plan_encoding(
            clip_norm_l2=clip_norm,
            noise_multiplier=0.0,
            cohort_max=len(entries),
            coordinates=coordinates,
        )
        base = len(self.models)
        encryption = m.EncryptionKey(
            mesh_id=MESH,
            key_id=public_key_id(vector_rsa_key().public_key()),
            public_key_spki=public_key_der(vector_rsa_key().public_key()),
            not_before_ms=now_ms - 1000,
            not_after_ms=now_ms + limits.SERVER_KEY_LIFETIME_MS - 1000,
        )
        configuration = change(
            m.RoundConfiguration(
                mesh_id=MESH,
                round_id=new_round_id(),
                attempt=1,
                model_id=MODEL,
                mode=m.RoundMode.OPEN,
                base_version=base,
                model_sha256=hashlib.sha256(self.models[base][1]).digest(),
                parameters=coordinates - len(lanes),
                lanes=lanes,
                clip_norm=clip_norm,
                scale=2.0**encoding.scale_log2,
                bound_l2=encoding.bound_l2,
                noise_multiplier=0.0,
                privacy=m.PRIVACY_NONE,
                epsilon_budget=0.0,
                delta=0.0,
                roster_root=root.hash,
                roster_size=len(entries),
                total_weight=root.total,
                max_weight=max(e.weight for _, e in entries.values()),
                min_survivors=1,
                deadline_ms=now_ms + deadline_ms,
                encryption_key=self.sign(m.ENCRYPTION_KEY, codec.encode_encryption_key(encryption)),
                hyperparameters=hyperparameters or {},
                plan_revision=1,
                optimizer_state_sha256=b"",
                created_at_ms=now_ms,
            )
        )
        statement = self.sign(
            m.ROUND_CONFIGURATION, codec.encode_round_configuration(configuration)
        )
        proofs = {leaf.client_id: weights.prove(leaves, leaf.index) for leaf in leaves}
        self.round = Round(configuration, statement, entries, proofs)
        for client_id in entries:
            self.offer(client_id)
        return self.round

    def offer(self, client_id: str, trace: m.TraceContext | None = None) -> None:
        round = self.round
        assert round is not None
        offer = self.faults.mangle_offer(
            m.RoundOffer(
                configuration=round.statement,
                roster_entry=round.entries[client_id][0],
                proof=tuple(
                    m.RosterSibling(n.hash, n.total) for n in round.proofs[ClientId(client_id)]
                ),
                trace=trace
                or m.TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            )
        )
        self.push(client_id, aggregator_pb2.ParticipateResponse(offer=codec.offer_to_proto(offer)))

    def push(self, client_id: str, message: aggregator_pb2.ParticipateResponse | MeshError) -> None:
        self.streams[client_id].outbox.put_nowait(message)

    async def finish_round(self) -> int:
        """Wait for every client's update or decline, fold, publish, tell the outcome."""
        round = self.round
        assert round is not None
        await self.wait(
            lambda: all(
                (name in round.updates and round.updates[name].receipt) or name in round.declined
                for name in round.entries
            )
        )
        received = {name: u for name, u in round.updates.items() if u.receipt is not None}
        version = self._fold(round, received) if received else 0
        round.ended_with = version
        for name in round.entries:
            self.tell_outcome(name, version, counted=name in received)
        return version

    def tell_outcome(self, client_id: str, version: int, *, counted: bool) -> None:
        assert self.round is not None
        outcome = m.RoundOutcome(
            round_id=self.round.configuration.round_id,
            attempt=1,
            phase=m.Phase.PUBLISHED if version else m.Phase.ABORTED,
            reason="" if version else "TOO_FEW_UPDATES",
            new_version=version,
            counted=counted,
        )
        if client_id in self.streams:
            self.push(
                client_id,
                aggregator_pb2.ParticipateResponse(outcome=codec.outcome_to_proto(outcome)),
            )

    def _fold(self, round: Round, received: dict[str, Update]) -> int:
        configuration = round.configuration
        coordinates, parameters = configuration.coordinates, configuration.parameters
        accumulator = np.zeros(coordinates, np.uint32)
        for update in received.values():
            opener = self.opener(round, update.manifest)
            for index, cipher in enumerate(update.chunks):
                plain = bytearray(opener.layout.plain_bytes(index))
                opener.open_into(index, cipher, plain)
                add_packed24(accumulator[chunk_slice(index, coordinates)], plain)
        limit = round_encoding(configuration).sum_limit(len(received), noised=False)
        weight = sum(round.entries[name][1].weight for name in received)
        unit = configuration.max_weight / (configuration.scale * weight)
        mean = decode_sum(accumulator, limit) * unit
        self.lanes = tuple(mean[parameters:].tolist())
        return self.publish((self.vector + mean[:parameters]).astype(np.float32), "made by a round")

    def opener(self, round: Round, manifest: m.UpdateManifest) -> Opener:
        key = unwrap_as_recipient(manifest.wrapped_content_key, vector_rsa_key())
        context = update_context(
            round.configuration,
            digest(round.statement),
            client_id=manifest.client_id,
            session_id=manifest.session_id,
            recipient_key_id=manifest.encryption_key_id,
        )
        layout = update_layout(round.configuration)
        return Opener(key, context, layout, manifest.key_commitment)


def with_mode(mode: m.RoundMode) -> Callable[[m.RoundConfiguration], m.RoundConfiguration]:
    asked = None if mode is m.RoundMode.OPEN else samples_sealed.secure_aggregation()
    return lambda configuration: replace(configuration, mode=mode, secure_aggregation=asked)
