"""What the two ends say to each other, as frozen types that cannot hold a value out of range.

One type for each message of the contract that somebody decides by (`codec` turns them into the
wire form and back). The constructor checks every range that the field comments in
`proto/boltz_mesh/v1` state, so the same check runs when a message is written and when it is read
back; it raises MalformedMessage (or LimitExceeded, NotFinite) naming the field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from boltz_protocol import ids, limits
from boltz_protocol.clip_indicator import check_indicator, inner_clip_norm
from boltz_protocol.errors import LimitExceeded, MalformedMessage
from boltz_protocol.message_parts import (
    CHECK_IN,
    ENCRYPTION_KEY,
    MAX_TRUST_256,
    MAX_U32,
    MAX_U64,
    MODEL_MANIFEST,
    NO_TRACE,
    PRIVACY_CLIENT_DP,
    PRIVACY_NONE,
    PROTOCOL_VERSION,
    ROUND_CONFIGURATION,
    RSA_OAEP_SHA256,
    THIS_VERSION,
    UPDATE_MANIFEST,
    UPDATE_RECEIPT,
    Dtype,
    EncryptionKey,
    HyperValue,
    Lane,
    ModelManifest,
    Phase,
    ProtocolRange,
    RosterSibling,
    RoundMode,
    Suite,
    TensorSpec,
    TraceContext,
    UpdateManifest,
    UpdateReceipt,
    WeightTerms,
    check_count,
    check_digest,
    check_hyperparameters,
    check_pattern,
    check_positive,
    check_range,
    check_tensors,
    check_time,
)
from boltz_protocol.messages_sealed import (
    DEALT_SHARES,
    KEY_ADVERTISEMENT,
    KEY_ROSTER,
    SURVIVORS,
    SURVIVORS_SEEN,
    Adversary,
    DealtShare,
    DealtShares,
    Grouping,
    KeyAdvertisement,
    KeyRoster,
    KeyRosterNotice,
    NonceReveal,
    Peer,
    PeersNotice,
    ReleasedShare,
    SecureAggregation,
    ShareKind,
    SharesDealt,
    SharesNotice,
    SharesReleased,
    SignaturesNotice,
    Survivors,
    SurvivorsNotice,
    SurvivorsSeen,
)
from boltz_protocol.statement import Statement

__all__ = [
    "CHECK_IN",
    "DEALT_SHARES",
    "ENCRYPTION_KEY",
    "KEY_ADVERTISEMENT",
    "KEY_ROSTER",
    "MODEL_MANIFEST",
    "PRIVACY_CLIENT_DP",
    "PRIVACY_NONE",
    "PROTOCOL_VERSION",
    "ROUND_CONFIGURATION",
    "RSA_OAEP_SHA256",
    "SURVIVORS",
    "SURVIVORS_SEEN",
    "UPDATE_MANIFEST",
    "UPDATE_RECEIPT",
    "Adversary",
    "CheckIn",
    "DealtShare",
    "DealtShares",
    "Dtype",
    "EncryptionKey",
    "Grouping",
    "HyperValue",
    "KeyAdvertisement",
    "KeyRoster",
    "KeyRosterNotice",
    "Lane",
    "ModelManifest",
    "NonceReveal",
    "Peer",
    "PeersNotice",
    "Phase",
    "ProtocolRange",
    "ReleasedShare",
    "RosterEntry",
    "RosterSibling",
    "RoundConfiguration",
    "RoundDecline",
    "RoundMode",
    "RoundOffer",
    "RoundOutcome",
    "SecureAggregation",
    "ShareKind",
    "SharesDealt",
    "SharesNotice",
    "SharesReleased",
    "SignaturesNotice",
    "Suite",
    "Survivors",
    "SurvivorsNotice",
    "SurvivorsSeen",
    "TensorSpec",
    "TraceContext",
    "UpdateManifest",
    "UpdateReceipt",
    "WeightTerms",
    "Welcome",
    "check_hyperparameters",
    "check_region",
    "check_tensors",
]

_REGION: Final = re.compile(r"([a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?)?")
_REASON: Final = re.compile(r"[A-Z_]{1,63}")

# --- participation ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CheckIn:
    """ "I am here, with this much data": payload of a statement that the client signs."""

    mesh_id: str
    client_id: ids.ClientId
    session_id: ids.SessionId
    model_id: ids.ModelId
    sample_bucket: int
    quality_bucket: int
    region: str
    at_ms: int
    protocol: ProtocolRange = THIS_VERSION
    suites: tuple[Suite, ...] = (Suite.V1,)

    def __post_init__(self) -> None:
        ids.parse_name("mesh_id", self.mesh_id)
        ids.parse_client_id(self.client_id)
        ids.parse_session_id(self.session_id)
        ids.parse_model_id(self.model_id)
        check_range("sample_bucket", self.sample_bucket, 0, limits.MAX_SAMPLE_BUCKET)
        check_range("quality_bucket", self.quality_bucket, 0, limits.MAX_QUALITY_BUCKET)
        check_region(self.region)
        check_time("at_ms", self.at_ms)


def check_region(region: str) -> None:
    """A region's name: at most 63 of `a-z 0-9 . -`, or empty. Raises: MalformedMessage."""
    check_pattern("region", region, _REGION)


@dataclass(frozen=True, slots=True)
class RoundDecline:
    """A client's refusal of a round; `reason` is machine-readable, such as "ROUND_REFUSED"."""

    round_id: ids.RoundId
    attempt: int
    reason: str

    def __post_init__(self) -> None:
        ids.parse_round_id(self.round_id)
        check_range("attempt", self.attempt, 1, limits.MAX_ATTEMPTS)
        check_pattern("reason", self.reason, _REASON)


@dataclass(frozen=True, slots=True)
class Welcome:
    """Answer to a check-in: the server's clock (Unix ms) and the version it chose."""

    server_time_ms: int
    protocol_version: int

    def __post_init__(self) -> None:
        check_time("server_time_ms", self.server_time_ms)
        check_range("protocol_version", self.protocol_version, 1, MAX_U32)


@dataclass(frozen=True, slots=True)
class RoundConfiguration:
    """What a round is: payload of a statement of the mesh, the same bytes for every client.

    Attributes:
        scale: integer units per 1.0, a power of two.
        bound_l2: largest L2 norm of an encoded update, in integer units.
        noise_multiplier: standard deviation of the noise over the sensitivity of the sum.
        hyperparameters: for the client's trainer, by name; finite numbers, texts, booleans.
        min_survivors: in all groups together.
        secure_aggregation: given in every mode but OPEN.
        grouping: given in GROUPED alone.
        clip_indicator: name of the last lane where it is the clip indicator; empty otherwise.
        weight_terms: None from a server that does not tell them.
    """

    mesh_id: str
    round_id: ids.RoundId
    attempt: int
    model_id: ids.ModelId
    mode: RoundMode
    base_version: int
    model_sha256: bytes
    parameters: int
    lanes: tuple[Lane, ...]
    clip_norm: float
    scale: float
    bound_l2: int
    noise_multiplier: float
    privacy: str
    epsilon_budget: float
    delta: float
    roster_root: bytes
    roster_size: int
    total_weight: int
    max_weight: int
    min_survivors: int
    deadline_ms: int
    encryption_key: Statement
    hyperparameters: Mapping[str, HyperValue]
    plan_revision: int
    optimizer_state_sha256: bytes
    created_at_ms: int
    suite: Suite = Suite.V1
    chunk_coordinates: int = limits.CHUNK_PARAMETERS
    protocol_version: int = PROTOCOL_VERSION
    secure_aggregation: SecureAggregation | None = None
    grouping: Grouping | None = None
    clip_indicator: str = ""
    weight_terms: WeightTerms | None = None

    def __post_init__(self) -> None:
        ids.parse_name("mesh_id", self.mesh_id)
        ids.parse_round_id(self.round_id)
        check_range("attempt", self.attempt, 1, limits.MAX_ATTEMPTS)
        ids.parse_model_id(self.model_id)
        check_range("base_version", self.base_version, 1, MAX_U32)
        check_digest("model_sha256", self.model_sha256)
        check_count("lanes", len(self.lanes), 0, limits.MAX_LANES)
        if len({lane.name for lane in self.lanes}) != len(self.lanes):
            raise MalformedMessage("two lanes have the same name", field="lanes")
        most = limits.MAX_COORDINATES - len(self.lanes)
        check_range("parameters", self.parameters, 1, most)
        self._check_numbers()
        self._check_roster()
        check_time("created_at_ms", self.created_at_ms)
        latest = self.created_at_ms + limits.MAX_PHASE_MS
        check_range("deadline_ms", self.deadline_ms, self.created_at_ms + 1, latest)
        # One size for everybody: it is the unit in which the server reads stored updates.
        check_range(
            "chunk_coordinates",
            self.chunk_coordinates,
            limits.CHUNK_PARAMETERS,
            limits.CHUNK_PARAMETERS,
        )
        check_hyperparameters(self.hyperparameters)
        check_range("plan_revision", self.plan_revision, 0, MAX_U32)
        check_digest("optimizer_state_sha256", self.optimizer_state_sha256, optional=True)
        check_range("protocol_version", self.protocol_version, 1, MAX_U32)
        if (self.secure_aggregation is None) != (self.mode is RoundMode.OPEN):
            raise MalformedMessage(
                f"secure_aggregation does not go with mode {self.mode.name}",
                field="secure_aggregation",
            )
        self._check_groups()

    def _check_numbers(self) -> None:
        check_positive("clip_norm", self.clip_norm)
        check_indicator(self.clip_indicator, self.lanes, self.clip_norm)
        check_positive("scale", self.scale)
        if math.frexp(self.scale)[0] != 0.5:
            raise MalformedMessage(f"scale is {self.scale}, not a power of two", field="scale")
        check_range("bound_l2", self.bound_l2, 1, MAX_U64)
        if self.privacy == PRIVACY_NONE:
            if self.noise_multiplier != 0.0:
                raise MalformedMessage(
                    f"noise_multiplier is {self.noise_multiplier} where privacy is 'none'",
                    field="noise_multiplier",
                )
        elif self.privacy == PRIVACY_CLIENT_DP:
            check_positive("noise_multiplier", self.noise_multiplier)
            check_positive("epsilon_budget", self.epsilon_budget)
            check_positive("delta", self.delta)
            if self.delta >= 1:
                raise MalformedMessage(f"delta is {self.delta}, not below one", field="delta")
        else:
            raise MalformedMessage(f"privacy {self.privacy[:40]!r} is not known", field="privacy")

    def _check_roster(self) -> None:
        check_digest("roster_root", self.roster_root)
        check_range("roster_size", self.roster_size, 1, limits.MAX_ROSTER)
        check_range("max_weight", self.max_weight, 1, limits.MAX_WEIGHT)
        lowest = self.max_weight + self.roster_size - 1
        highest = self.max_weight * self.roster_size
        check_range("total_weight", self.total_weight, lowest, highest)
        check_range("min_survivors", self.min_survivors, 1, self.roster_size)

    def _check_groups(self) -> None:
        if (self.grouping is not None) != (self.mode is RoundMode.GROUPED):
            raise MalformedMessage(
                f"grouping does not go with mode {self.mode.name}", field="grouping"
            )
        if self.grouping is None:
            return
        groups = self.grouping.groups
        least, most = groups * limits.MIN_GROUP, groups * limits.MAX_COMPLETE_GRAPH
        if not least <= self.roster_size <= most:
            raise MalformedMessage(
                f"a roster of {self.roster_size} for {groups} groups; {least} to {most} make "
                f"groups of {limits.MIN_GROUP} to {limits.MAX_COMPLETE_GRAPH}",
                field="grouping",
            )

    @property
    def coordinates(self) -> int:
        """Parameters and lanes."""
        return self.parameters + len(self.lanes)

    @property
    def metric_lanes(self) -> tuple[Lane, ...]:
        """The lanes that a trainer's metrics fill: all but the clip indicator."""
        return self.lanes[:-1] if self.clip_indicator else self.lanes

    @property
    def indicator_scale(self) -> float:
        """Scale of the clip indicator's lane; 0 where the round has none."""
        return self.lanes[-1].scale if self.clip_indicator else 0.0

    @property
    def delta_clip_norm(self) -> float:
        """L2 bound of the delta and its metric lanes: C, or C' with a clip indicator."""
        scale = self.indicator_scale
        return inner_clip_norm(self.clip_norm, scale) if scale else self.clip_norm


@dataclass(frozen=True, slots=True)
class RosterEntry:
    """One client's place in a round; its serialised bytes are hashed into the roster tree.

    Attributes:
        group_id: 0; reserved, since the groups of a round are drawn in the attempt.
        trust_256: in 1/256; 0 from a server that does not tell it.
    """

    index: int
    client_id: ids.ClientId
    session_id: ids.SessionId
    weight: int
    sample_bucket: int
    quality_bucket: int
    check_in: Statement
    group_id: int = 0
    certificate_chain_der: tuple[bytes, ...] = ()
    trust_256: int = 0

    def __post_init__(self) -> None:
        check_range("index", self.index, 0, limits.MAX_ROSTER - 1)
        check_range("trust_256", self.trust_256, 0, MAX_TRUST_256)
        ids.parse_client_id(self.client_id)
        ids.parse_session_id(self.session_id)
        check_range("weight", self.weight, 1, limits.MAX_WEIGHT)
        check_range("sample_bucket", self.sample_bucket, 0, limits.MAX_SAMPLE_BUCKET)
        check_range("quality_bucket", self.quality_bucket, 0, limits.MAX_QUALITY_BUCKET)
        check_range("group_id", self.group_id, 0, limits.MAX_ROSTER - 1)
        if sum(map(len, self.certificate_chain_der)) > limits.MAX_CERTIFICATE_CHAIN_BYTES:
            raise LimitExceeded(
                "a roster entry's certificate chain is over "
                f"{limits.MAX_CERTIFICATE_CHAIN_BYTES} bytes"
            )


@dataclass(frozen=True, slots=True)
class RoundOffer:
    """An invitation to train; nothing in it is verified yet.

    `roster_entry` stays serialised: the client's leaf is computed from these very bytes.
    """

    configuration: Statement
    roster_entry: bytes
    proof: tuple[RosterSibling, ...]
    trace: TraceContext = NO_TRACE

    def __post_init__(self) -> None:
        if not 1 <= len(self.roster_entry) <= limits.MAX_STATEMENT_BYTES:
            raise LimitExceeded(f"roster_entry has {len(self.roster_entry)} bytes")
        # The deepest tree of MAX_ROSTER leaves.
        check_count("proof", len(self.proof), 0, limits.MAX_ROSTER.bit_length())


@dataclass(frozen=True, slots=True)
class RoundOutcome:
    """How a round ended for a selected client. `new_version` is 0 where none was made."""

    round_id: ids.RoundId
    attempt: int
    phase: Phase
    reason: str
    new_version: int
    counted: bool

    def __post_init__(self) -> None:
        ids.parse_round_id(self.round_id)
        check_range("attempt", self.attempt, 1, limits.MAX_ATTEMPTS)
        if self.phase not in (Phase.PUBLISHED, Phase.ABORTED):
            raise MalformedMessage(f"a round does not end in {self.phase.name}", field="phase")
        if len(self.reason) > limits.MAX_NAME_CHARS:
            raise LimitExceeded(f"reason has {len(self.reason)} characters")
        check_range("new_version", self.new_version, 0, MAX_U32)
