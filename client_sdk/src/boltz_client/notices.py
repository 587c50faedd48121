"""What a participation tells its owner, and what it asks of its client."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from boltz_client.keystore import KeyStore
from boltz_client.models import PulledModel
from boltz_client.offers import AcceptedRound
from boltz_client.owner import OwnerLimits, is_own_refusal
from boltz_client.participant import RoundKey
from boltz_client.peer_checks import PeerChecks
from boltz_client.spool import SealedUpdate, Spool
from boltz_client.trainer import TrainResult
from boltz_protocol import messages as m
from boltz_protocol.errors import MeshError
from boltz_protocol.ids import ClientId, ModelId, SessionId
from boltz_protocol.secagg.masks import MaskStream
from boltz_protocol.statement import Statement
from boltz_protocol.v1 import aggregator_pb2_grpc


class NoticeKind(enum.Enum):
    """What happened.

    LATE: the mesh stopped collecting first; this client's update is in no sum. WITHHELD: after its
    upload to a sealed round, this client would not help to open the sum.
    """

    CHECKED_IN = "checked in"
    OFFERED = "offered"
    DECLINED = "declined"
    TRAINED = "trained"
    SUBMITTED = "submitted"
    LATE = "late"
    WITHHELD = "withheld"
    ENDED = "ended"
    DISCONNECTED = "disconnected"
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that the owner may want to see or log.

    Attributes:
        error: why, for DECLINED, WITHHELD, DISCONNECTED and IGNORED (an offer that the mesh did not
            sign, or a notice of a sealed round out of its turn).
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
    """What came of a participation, in rounds.

    Attributes:
        refused: declined (or not helped to open) for the owner's sake: limits, checks, budget.
    """

    published: int = 0
    aborted: int = 0
    counted: int = 0
    submitted: int = 0
    declined: int = 0
    refused: int = 0


class Tally:
    """Counts what came of a participation's rounds, and tells its owner.

    Args:
        model_id: of all notices.
        notify: called with each; None for nobody.
    """

    __slots__ = ("_counts", "_model_id", "_notify")

    def __init__(self, model_id: ModelId, notify: Callable[[Notice], None] | None) -> None:
        self._model_id = model_id
        self._notify = notify
        self._counts = dict.fromkeys(Summary.__slots__, 0)

    def count(self, name: str) -> None:
        """One more; `name` is a field of `Summary`."""
        self._counts[name] += 1

    def leave(self, kind: NoticeKind, key: RoundKey, error: MeshError) -> None:
        """The round is over for this client: `kind` is DECLINED or WITHHELD."""
        if kind is NoticeKind.DECLINED:
            self.count("declined")
        if is_own_refusal(error):
            self.count("refused")
        self.tell(kind, key, error=error)

    def summary(self) -> Summary:
        """All of them."""
        return Summary(**self._counts)

    def tell(
        self,
        kind: NoticeKind,
        key: RoundKey | None = None,
        *,
        error: MeshError | None = None,
        outcome: m.RoundOutcome | None = None,
        receipt: m.UpdateReceipt | None = None,
        size_bytes: int = 0,
    ) -> None:
        """One notice; arguments as `Notice` has them."""
        if self._notify is not None:
            self._notify(Notice(kind, self._model_id, key, error, outcome, receipt, size_bytes))


class Host(Protocol):
    """What a participation needs of its client (`client.MeshClient`)."""

    owner: OwnerLimits
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

    @property
    def peers(self) -> PeerChecks:
        """Checks of other clients, with what was verified before."""
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

    async def verified(self, statement: Statement, expected_type: str) -> bytes:
        """The payload of a statement of the mesh."""
        ...

    async def accept(self, offer: m.RoundOffer, model_id: ModelId) -> AcceptedRound:
        """Verify all of an offer."""
        ...

    async def seal_update(
        self,
        accepted: AcceptedRound,
        base: PulledModel,
        result: TrainResult,
        masks: Sequence[MaskStream] | None = None,
    ) -> SealedUpdate:
        """Fix an update's bytes; with masks in a sealed round, and in no other."""
        ...

    async def upload(self, sealed: SealedUpdate, deadline_ms: int) -> m.UpdateReceipt:
        """Send a sealed update until there is a receipt."""
        ...
