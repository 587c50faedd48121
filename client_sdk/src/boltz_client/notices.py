"""What a participation tells its owner, and what it asks of its client."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from boltz_client.keystore import KeyStore
from boltz_client.models import PulledModel
from boltz_client.offers import AcceptedRound
from boltz_client.participant import RoundKey
from boltz_client.spool import SealedUpdate, Spool
from boltz_client.trainer import TrainResult
from boltz_protocol import messages as m
from boltz_protocol.errors import MeshError
from boltz_protocol.ids import ClientId, ModelId, SessionId
from boltz_protocol.v1 import aggregator_pb2_grpc


class NoticeKind(enum.Enum):
    """What happened."""

    CHECKED_IN = "checked in"
    OFFERED = "offered"
    DECLINED = "declined"
    TRAINED = "trained"
    SUBMITTED = "submitted"
    ENDED = "ended"
    DISCONNECTED = "disconnected"
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that the owner may want to see or log.

    Attributes:
        error: why, for DECLINED, DISCONNECTED and IGNORED (an offer that the mesh did not sign).
        outcome: for ENDED.
        receipt: for SUBMITTED.
        size_bytes: ciphertext bytes of the update, for SUBMITTED.
    """

    kind: NoticeKind
    model_id: ModelId
    key: RoundKey | None = None
    error: MeshError | None = None
    outcome: m.RoundOutcome | None = None
    receipt: m.UpdateReceipt | None = None
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """What came of a participation, in rounds."""

    published: int = 0
    aborted: int = 0
    counted: int = 0
    submitted: int = 0
    declined: int = 0


class Host(Protocol):
    """What a participation needs of its client (`client.MeshClient`)."""

    session_id: SessionId
    region: str
    spool: Spool

    @property
    def client_id(self) -> ClientId:
        """This client's id."""
        ...

    @property
    def mesh_id(self) -> str:
        """The mesh's name."""
        ...

    @property
    def store(self) -> KeyStore:
        """The open key store."""
        ...

    @property
    def aggregator(self) -> aggregator_pb2_grpc.AggregatorAsyncStub:
        """The stub on the client's connection."""
        ...

    def server_time_ms(self) -> int:
        """Unix time by the server's clock."""
        ...

    def saw_server_time(self, server_time_ms: int) -> None:
        """Take in the server's clock."""
        ...

    async def pull_model(self, model_id: str, version: int = 0) -> PulledModel:
        """Fetch and verify a version."""
        ...

    async def verified_configuration(self, offer: m.RoundOffer) -> m.RoundConfiguration:
        """The configuration of an offer that the mesh signed."""
        ...

    async def accept(self, offer: m.RoundOffer, model_id: ModelId) -> AcceptedRound:
        """Verify all of an offer."""
        ...

    async def seal_update(
        self, accepted: AcceptedRound, base: PulledModel, result: TrainResult
    ) -> SealedUpdate:
        """Fix an update's bytes."""
        ...

    async def upload(self, sealed: SealedUpdate, deadline_ms: int) -> m.UpdateReceipt:
        """Send a sealed update until there is a receipt."""
        ...
