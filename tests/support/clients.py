"""Raw clients made from the generated stubs and `boltz_protocol`, which misbehave on request.

Nothing of `boltz_client` decides anything here; only its typed wrapper of a call is used.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from boltz_client.connection import Duplex
from boltz_client.keystore import certificate_request
from boltz_mesh.services.clock import system_clock
from boltz_protocol import codec
from boltz_protocol import messages as m
from boltz_protocol.certificates import load_certificate, pem_chain
from boltz_protocol.context import UpdateContext
from boltz_protocol.envelope import seal_update
from boltz_protocol.ids import ClientId, ModelId, new_session_id
from boltz_protocol.join import parse_join_string
from boltz_protocol.keys import generate_rsa_key, load_rsa_public_key
from boltz_protocol.masked_update import MaskedUpdate
from boltz_protocol.sealing import round_encoding, update_context, update_layout
from boltz_protocol.statement import Statement, digest, sign_rsa_pss
from boltz_protocol.update import (
    EncodedDelta,
    LocalDelta,
    OpenUpdate,
    clip,
    encode,
    open_update,
    weigh,
)
from boltz_protocol.v1 import aggregator_pb2 as agg
from boltz_protocol.v1 import registry_pb2 as reg
from tests.support.calls import answered, typed
from tests.support.mesh import Identity, Mesh, Stubs
from tests.support.models import Vector

# --- clients ------------------------------------------------------------------------------------


@cache
def client_key(number: int) -> RSAPrivateKey:
    """The process's test keys: making one takes up to half a second."""
    assert number >= 0
    return generate_rsa_key()


def key_pem(key: RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


async def join_token(mesh: Mesh, **fields: Any) -> reg.CreateEnrollmentTokenResponse:
    request = reg.CreateEnrollmentTokenRequest(**fields)
    return await answered(mesh.operator.registry.CreateEnrollmentToken(request))


def enrol_request(join: str, key: RSAPrivateKey, **changes: Any) -> reg.EnrollRequest:
    fields: dict[str, Any] = {
        "token": parse_join_string(join).token,
        "csr_der": certificate_request(key),
        "request_key": secrets.token_bytes(32),
        "region": "eu-west",
    }
    return reg.EnrollRequest(**(fields | changes))


@dataclass(slots=True)
class RawClient:
    """An enrolled client: certificate, key, one session."""

    mesh: Mesh
    client_id: ClientId
    key: RSAPrivateKey = field(repr=False)
    identity: Identity
    stubs: Stubs
    session_id: Any = field(default_factory=new_session_id)

    @classmethod
    async def enrol(cls, mesh: Mesh, key: RSAPrivateKey) -> RawClient:
        join = await join_token(mesh)
        request = enrol_request(join.join_string, key)
        answer = await answered(mesh.enrolment.registry.Enroll(request))
        return cls.of(mesh, key, answer)

    @classmethod
    def of(cls, mesh: Mesh, key: RSAPrivateKey, answer: reg.EnrollResponse) -> RawClient:
        chain = pem_chain([load_certificate(der) for der in answer.certificate_chain_der])
        identity = Identity(key_pem(key), chain)
        return cls(mesh, ClientId(answer.client_id), key, identity, mesh.connect(identity))

    def on(self, mesh: Mesh) -> RawClient:
        """The same client and session on a server that was started again."""
        return replace(self, mesh=mesh, stubs=mesh.connect(self.identity))

    def sign(self, type: str, payload: bytes) -> Statement:
        return sign_rsa_pss(type=type, payload=payload, private_key=self.key)

    def check_in(self, model: str, **changes: Any) -> Statement:
        """A signed check-in."""
        fields: dict[str, Any] = {
            "mesh_id": self.mesh.name,
            "client_id": self.client_id,
            "session_id": self.session_id,
            "model_id": ModelId(model),
            "sample_bucket": 10,
            "quality_bucket": 3,
            "region": "eu-west",
            "at_ms": system_clock(),
        }
        return self.sign(m.CHECK_IN, codec.encode_check_in(m.CheckIn(**(fields | changes))))

    async def participate(self, model: str, **changes: Any) -> ControlStream:
        """Open the control stream and wait for the welcome."""
        stream = ControlStream(self.stubs)
        await stream.check_in(self.check_in(model, **changes))
        await stream.welcome()
        return stream


class ControlStream:
    """One Participate call."""

    def __init__(self, stubs: Stubs) -> None:
        self.call: Duplex[agg.ParticipateRequest, agg.ParticipateResponse] = Duplex(
            stubs.aggregator.Participate, ()
        )

    async def check_in(self, statement: Statement) -> None:
        message = agg.ParticipateRequest(check_in=codec.statement_to_proto(statement))
        await self.call.write(message)

    async def decline(self, offer: Offer, reason: str = "TRAINING_FAILED") -> None:
        decline = agg.RoundDecline(
            round_id=offer.configuration.round_id,
            attempt=offer.configuration.attempt,
            reason=reason,
        )
        await self.call.write(agg.ParticipateRequest(decline=decline))

    async def next(self) -> agg.ParticipateResponse:
        async with asyncio.timeout(30):
            response = await self.call.read()
        assert response is not None, "the stream has ended in peace"
        return response

    async def welcome(self) -> m.Welcome:
        return codec.welcome_from_proto((await self.next()).welcome)

    async def offer(self) -> Offer:
        """The next offer. A session that came back may be told again how its last round ended."""
        while (response := await self.next()).WhichOneof("message") == "outcome":
            pass
        assert response.WhichOneof("message") == "offer", response
        return Offer.of(codec.offer_from_proto(response.offer))

    async def outcome(self) -> m.RoundOutcome:
        response = await self.next()
        assert response.WhichOneof("message") == "outcome", response
        return codec.outcome_from_proto(response.outcome)

    def cancel(self) -> None:
        self.call.cancel()


@dataclass(frozen=True, slots=True)
class Offer:
    """An offer, parsed."""

    message: m.RoundOffer
    configuration: m.RoundConfiguration
    digest: bytes
    entry: m.RosterEntry
    key: m.EncryptionKey

    @classmethod
    def of(cls, message: m.RoundOffer) -> Offer:
        statement = message.configuration
        configuration = codec.parse_round_configuration(statement.payload)
        return cls(
            message,
            configuration,
            digest(statement),
            codec.parse_roster_entry(message.roster_entry),
            codec.parse_encryption_key(configuration.encryption_key.payload),
        )


# --- updates ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sealed:
    """An encrypted update and what its manifest says of it."""

    manifest: m.UpdateManifest
    chunks: tuple[bytes, ...] = field(repr=False)

    def statement(self, client: RawClient, **changes: Any) -> Statement:
        """The signed manifest."""
        payload = codec.encode_update_manifest(replace(self.manifest, **changes))
        return client.sign(m.UPDATE_MANIFEST, payload)

    def messages(self, start: int = 0) -> list[agg.UpdateChunk]:
        """Chunks from an offset on."""
        made: list[agg.UpdateChunk] = []
        offset = 0
        for data in self.chunks:
            if offset >= start:
                made.append(agg.UpdateChunk(offset=offset, data=data))
            offset += len(data)
        return made


def seal(
    offer: Offer,
    delta: Vector,
    *,
    lanes: Sequence[float] = (),
    integers: Callable[[npt.NDArray[np.int32]], None] = lambda values: None,
    context: Callable[[UpdateContext], UpdateContext] = lambda context: context,
    wire: Callable[[EncodedDelta], OpenUpdate | MaskedUpdate] = open_update,
) -> Sealed:
    """Encode and encrypt one update for an offer; `integers` and `context` may falsify it.

    `wire` masks it in a sealed round.
    """
    configuration, entry = offer.configuration, offer.entry
    scaled = tuple(
        value * lane.scale for value, lane in zip(lanes, configuration.metric_lanes, strict=True)
    )
    clipped = clip(
        LocalDelta(delta, scaled),
        clip_norm_l2=configuration.clip_norm,
        indicator_scale=configuration.indicator_scale,
    )
    weighted = weigh(clipped, weight=entry.weight, max_weight=configuration.max_weight)
    encoded = encode(weighted, round_encoding(configuration))
    integers(encoded.values)
    bound = update_context(
        configuration,
        offer.digest,
        client_id=entry.client_id,
        session_id=entry.session_id,
        recipient_key_id=offer.key.key_id,
    )
    layout = update_layout(configuration)
    recipient = load_rsa_public_key(offer.key.public_key_spki)
    sealer, wrapped = seal_update(context(bound), recipient, layout)
    update = wire(encoded)
    chunks: list[bytes] = []
    for index in range(layout.count):
        buffer = bytearray(layout.cipher_bytes(index))
        sealer.seal_into(index, update.chunk(index), buffer)
        chunks.append(bytes(buffer))
    hashed = hashlib.sha256()
    for chunk in chunks:
        hashed.update(chunk)
    manifest = m.UpdateManifest(
        round_id=configuration.round_id,
        attempt=configuration.attempt,
        client_id=entry.client_id,
        session_id=entry.session_id,
        configuration_sha256=offer.digest,
        encryption_key_id=offer.key.key_id,
        wrapped_content_key=wrapped,
        key_commitment=sealer.commitment,
        sha256=hashed.digest(),
        size_bytes=layout.cipher_size_bytes,
        weight=entry.weight,
        at_ms=max(system_clock(), configuration.created_at_ms),
    )
    return Sealed(manifest, tuple(chunks))


UploadCall = Duplex[agg.SubmitUpdateRequest, agg.SubmitUpdateResponse]


class Upload:
    """One SubmitUpdate call, step by step."""

    def __init__(self, stubs: Stubs) -> None:
        self.call: UploadCall = UploadCall(stubs.aggregator.SubmitUpdate, ())
        self.acknowledged: list[int] = []

    async def announce(self, statement: Statement) -> int | Statement:
        """Send the manifest. Returns the bytes that the server holds, or the receipt."""
        manifest = codec.statement_to_proto(statement)
        await self.call.write(agg.SubmitUpdateRequest(manifest=manifest))
        return await self.answer()

    async def send(self, chunks: Iterable[agg.UpdateChunk]) -> None:
        for chunk in chunks:
            await self.call.write(agg.SubmitUpdateRequest(chunk=chunk))

    async def answer(self) -> int | Statement:
        async with asyncio.timeout(30):
            response = await self.call.read()
        assert response is not None, "the upload has ended without a receipt"
        if response.WhichOneof("message") == "receipt":
            return codec.statement_from_proto(response.receipt)
        self.acknowledged.append(response.progress.committed_bytes)
        return response.progress.committed_bytes

    async def receipt(self) -> Statement:
        while not isinstance(answer := await self.answer(), Statement):
            pass
        return answer


async def submit(
    client: RawClient,
    sealed: Sealed,
    *,
    statement: Statement | None = None,
    chunks: Iterable[agg.UpdateChunk] | None = None,
) -> m.UpdateReceipt:
    """A whole upload, from where the server says; returns its receipt."""
    upload = Upload(client.stubs)
    start = await upload.announce(statement or sealed.statement(client))
    if isinstance(start, Statement):
        return codec.parse_update_receipt(start.payload)

    async def send() -> None:
        await upload.send(sealed.messages(start) if chunks is None else chunks)
        await upload.call.done_writing()

    sending = asyncio.create_task(send())
    try:
        return codec.parse_update_receipt((await upload.receipt()).payload)
    finally:
        # What the server says about a refused call is what its reader is told.
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


# --- rounds -------------------------------------------------------------------------------------


async def start_round(mesh: Mesh, model: str) -> agg.Round:
    request = agg.StartRoundRequest(model_id=model)
    return (await answered(mesh.operator.aggregator.StartRound(request))).round


async def reached(mesh: Mesh, round_id: str, *phases: agg.Phase.ValueType) -> agg.Round:
    """The round once it is in one of these phases, told by WatchRound."""
    request = agg.WatchRoundRequest(round_id=round_id)
    with typed():
        async with asyncio.timeout(60):
            async for answer in mesh.operator.aggregator.WatchRound(request):
                if answer.round.phase in phases:
                    return answer.round
                last = answer.round
    raise AssertionError(f"the round ended as {agg.Phase.Name(last.phase)}: {last.reason}")


async def published(mesh: Mesh, round_id: str) -> agg.Round:
    return await reached(mesh, round_id, agg.PHASE_PUBLISHED)


async def aborted(mesh: Mesh, round_id: str) -> agg.Round:
    return await reached(mesh, round_id, agg.PHASE_ABORTED)
