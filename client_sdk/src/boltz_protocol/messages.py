"""What the two ends say to each other, as frozen types that cannot hold a value out of range.

One type for each message of the contract that somebody decides by (`codec` turns them into the
wire form and back). The constructor checks every range that the field comments in
`proto/boltz_mesh/v1` state, so the same check runs when a message is written and when it is read
back; it raises MalformedMessage (or LimitExceeded, NotFinite) naming the field.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from boltz_protocol import ids, limits
from boltz_protocol.errors import LimitExceeded, MalformedMessage, NotFinite
from boltz_protocol.statement import Statement

# --- statement types: the full protobuf name of the payload -------------------------------------

CHECK_IN: Final = "boltz_mesh.v1.CheckIn"
ROUND_CONFIGURATION: Final = "boltz_mesh.v1.RoundConfiguration"
UPDATE_MANIFEST: Final = "boltz_mesh.v1.UpdateManifest"
UPDATE_RECEIPT: Final = "boltz_mesh.v1.UpdateReceipt"
MODEL_MANIFEST: Final = "boltz_mesh.v1.ModelManifest"
ENCRYPTION_KEY: Final = "boltz_mesh.v1.EncryptionKey"

#: The only version of the protocol that this code speaks.
PROTOCOL_VERSION: Final = 1
PRIVACY_CLIENT_DP: Final = "client-dp"
PRIVACY_NONE: Final = "none"
RSA_OAEP_SHA256: Final = "rsa-oaep-sha256"

#: What a hyper-parameter may be.
HyperValue = bool | int | float | str

_REGION: Final = re.compile(r"([a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?)?")
_REASON: Final = re.compile(r"[A-Z_]{1,63}")
# W3C trace context, section 3.2: version 00 and later ones that extend it.
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}[ -~]{0,64})?")
_MAX_U32: Final = (1 << 32) - 1
_MAX_U64: Final = (1 << 64) - 1
# The last moment of the year 9999: what every language's calendar can show.
_MAX_TIME_MS: Final = 253_402_300_799_999


class RoundMode(enum.IntEnum):
    """What the server can see of one client's delta (numbers as in the contract)."""

    OPEN = 1
    SEALED = 2
    GROUPED = 3


class Suite(enum.IntEnum):
    """Algorithms of an update's encoding and encryption, named as a whole."""

    V1 = 1


class Dtype(enum.IntEnum):
    """Element type of a tensor."""

    FLOAT32 = 1


class Phase(enum.IntEnum):
    """Where a round stands (numbers as in the contract)."""

    SELECTING = 1
    ADVERTISING_KEYS = 2
    SHARING_KEYS = 3
    COLLECTING = 4
    CHECKING_CONSISTENCY = 5
    UNMASKING = 6
    AGGREGATING = 7
    RELEASING = 8
    PUBLISHED = 9
    ABORTED = 10


# --- checks -------------------------------------------------------------------------------------


def _check_range(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise MalformedMessage(f"{field} is {value}; {low} to {high} is allowed", field=field)


def _check_time(field: str, value: int) -> None:
    _check_range(field, value, 1, _MAX_TIME_MS)


def _check_digest(field: str, value: bytes, *, optional: bool = False) -> None:
    if len(value) != 32 and not (optional and not value):
        raise MalformedMessage(f"{field} has {len(value)} bytes, not 32", field=field)


def _check_positive(field: str, value: float) -> None:
    if not math.isfinite(value):
        raise NotFinite(f"{field} is not a finite number", field=field)
    if value <= 0:
        raise MalformedMessage(f"{field} is {value}; it must be above zero", field=field)


def _check_pattern(field: str, value: str, pattern: re.Pattern[str]) -> None:
    if pattern.fullmatch(value) is None:
        raise MalformedMessage(f"{field} is {value[:80]!r}, not {pattern.pattern}", field=field)


def _check_count(field: str, count: int, low: int, high: int) -> None:
    if count > high:
        raise LimitExceeded(f"{field} has {count} entries; the cap is {high}", field=field)
    _check_range(f"number of {field}", count, low, high)


# --- shared parts -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProtocolRange:
    """Versions that a peer speaks, both ends included."""

    oldest: int = PROTOCOL_VERSION
    newest: int = PROTOCOL_VERSION

    def __post_init__(self) -> None:
        _check_range("protocol.min", self.oldest, 1, _MAX_U32)
        _check_range("protocol.max", self.newest, self.oldest, _MAX_U32)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor: its name in the file, extents (empty for a scalar), element type."""

    name: str
    shape: tuple[int, ...]
    dtype: Dtype = Dtype.FLOAT32

    def __post_init__(self) -> None:
        # "__metadata__" is safetensors' own key; control characters would only confuse people.
        if not 1 <= len(self.name) <= limits.MAX_NAME_CHARS or not self.name.isprintable():
            raise MalformedMessage(f"{self.name[:80]!r} is not a tensor name", field="name")
        if self.name == "__metadata__":
            raise MalformedMessage("'__metadata__' is not free as a tensor name", field="name")
        _check_count("shape", len(self.shape), 0, limits.MAX_TENSOR_RANK)
        for extent in self.shape:
            _check_range(f"extent of {self.name}", extent, 1, limits.MAX_COORDINATES)
        if self.elements > limits.MAX_COORDINATES:
            raise LimitExceeded(
                f"tensor {self.name} has {self.elements} elements; "
                f"the cap is {limits.MAX_COORDINATES}"
            )

    @property
    def elements(self) -> int:
        """Number of coordinates."""
        return math.prod(self.shape)


def check_tensors(tensors: tuple[TensorSpec, ...]) -> None:
    """Check a model's list of tensors as a whole. Raises: MalformedMessage, LimitExceeded."""
    _check_count("tensors", len(tensors), 1, limits.MAX_TENSORS)
    names = {spec.name for spec in tensors}
    if len(names) != len(tensors):
        raise MalformedMessage("two tensors have the same name", field="tensors")
    total = sum(spec.elements for spec in tensors)
    if total > limits.MAX_COORDINATES:
        raise LimitExceeded(
            f"the model has {total} parameters; the cap is {limits.MAX_COORDINATES}"
        )


@dataclass(frozen=True, slots=True)
class Lane:
    """A metric that rides behind the parameters; `scale` is applied before it is clipped."""

    name: str
    scale: float

    def __post_init__(self) -> None:
        ids.parse_name("lane", self.name)
        _check_positive("lane.scale", self.scale)


@dataclass(frozen=True, slots=True)
class TraceContext:
    """W3C trace context; empty texts where there is no trace."""

    traceparent: str = ""
    tracestate: str = ""

    def __post_init__(self) -> None:
        _check_pattern("traceparent", self.traceparent, _TRACEPARENT)
        if len(self.tracestate) > limits.MAX_TRACESTATE_CHARS:
            raise LimitExceeded(
                f"tracestate has {len(self.tracestate)} characters; "
                f"the cap is {limits.MAX_TRACESTATE_CHARS}"
            )


# --- registry -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EncryptionKey:
    """A key that updates are encrypted for. `public_key_spki` is DER; times are Unix ms."""

    mesh_id: str
    key_id: ids.KeyId
    public_key_spki: bytes
    not_before_ms: int
    not_after_ms: int
    algorithm: str = RSA_OAEP_SHA256

    def __post_init__(self) -> None:
        ids.parse_name("mesh_id", self.mesh_id)
        ids.parse_key_id(self.key_id)
        _check_range("size of public_key_spki", len(self.public_key_spki), 1, 1024)
        _check_time("not_before_ms", self.not_before_ms)
        latest = self.not_before_ms + limits.SERVER_KEY_LIFETIME_MS
        _check_range("not_after_ms", self.not_after_ms, self.not_before_ms + 1, latest)
        if self.algorithm != RSA_OAEP_SHA256:
            raise MalformedMessage(
                f"encryption algorithm {self.algorithm[:40]!r} is not known", field="algorithm"
            )


# --- model store --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """What a version of a model is. Digests are SHA-256; `b""` and 0 stand for "none"."""

    mesh_id: str
    model_id: ids.ModelId
    version: int
    parent_version: int
    parent_sha256: bytes
    round_id: ids.RoundId | None
    sha256: bytes
    size_bytes: int
    tensors: tuple[TensorSpec, ...]
    optimizer_state_sha256: bytes
    plan_revision: int
    created_at_ms: int

    def __post_init__(self) -> None:
        ids.parse_name("mesh_id", self.mesh_id)
        ids.parse_model_id(self.model_id)
        _check_range("version", self.version, 1, _MAX_U32)
        _check_range("parent_version", self.parent_version, 0, self.version - 1)
        _check_digest("parent_sha256", self.parent_sha256, optional=True)
        if bool(self.parent_sha256) != bool(self.parent_version):
            raise MalformedMessage(
                "parent_version and parent_sha256 go together", field="parent_sha256"
            )
        if self.round_id is not None:
            ids.parse_round_id(self.round_id)
        _check_digest("sha256", self.sha256)
        _check_range("size_bytes", self.size_bytes, 1, limits.MAX_MODEL_FILE_BYTES)
        check_tensors(self.tensors)
        _check_digest("optimizer_state_sha256", self.optimizer_state_sha256, optional=True)
        _check_range("plan_revision", self.plan_revision, 0, _MAX_U32)
        _check_time("created_at_ms", self.created_at_ms)

    @property
    def parameters(self) -> int:
        """Number of coordinates, without lanes."""
        return sum(spec.elements for spec in self.tensors)


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
    protocol: ProtocolRange = ProtocolRange()
    suites: tuple[Suite, ...] = (Suite.V1,)

    def __post_init__(self) -> None:
        ids.parse_name("mesh_id", self.mesh_id)
        ids.parse_client_id(self.client_id)
        ids.parse_session_id(self.session_id)
        ids.parse_model_id(self.model_id)
        _check_range("sample_bucket", self.sample_bucket, 0, limits.MAX_SAMPLE_BUCKET)
        _check_range("quality_bucket", self.quality_bucket, 0, limits.MAX_QUALITY_BUCKET)
        check_region(self.region)
        _check_time("at_ms", self.at_ms)


def check_region(region: str) -> None:
    """A region's name: at most 63 of `a-z 0-9 . -`, or empty. Raises: MalformedMessage."""
    _check_pattern("region", region, _REGION)


@dataclass(frozen=True, slots=True)
class RoundDecline:
    """A client's refusal of a round; `reason` is machine-readable, such as "ROUND_REFUSED"."""

    round_id: ids.RoundId
    attempt: int
    reason: str

    def __post_init__(self) -> None:
        ids.parse_round_id(self.round_id)
        _check_range("attempt", self.attempt, 1, limits.MAX_ATTEMPTS)
        _check_pattern("reason", self.reason, _REASON)


@dataclass(frozen=True, slots=True)
class Welcome:
    """Answer to a check-in: the server's clock (Unix ms) and the version it chose."""

    server_time_ms: int
    protocol_version: int

    def __post_init__(self) -> None:
        _check_time("server_time_ms", self.server_time_ms)
        _check_range("protocol_version", self.protocol_version, 1, _MAX_U32)


@dataclass(frozen=True, slots=True)
class RoundConfiguration:
    """What a round is: payload of a statement of the mesh, the same bytes for every client.

    Attributes:
        scale: integer units per 1.0, a power of two.
        bound_l2: largest L2 norm of an encoded update, in integer units.
        noise_multiplier: standard deviation of the noise over the sensitivity of the sum.
        hyperparameters: for the client's trainer, by name; finite numbers, texts, booleans.
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

    def __post_init__(self) -> None:
        ids.parse_name("mesh_id", self.mesh_id)
        ids.parse_round_id(self.round_id)
        _check_range("attempt", self.attempt, 1, limits.MAX_ATTEMPTS)
        ids.parse_model_id(self.model_id)
        _check_range("base_version", self.base_version, 1, _MAX_U32)
        _check_digest("model_sha256", self.model_sha256)
        _check_count("lanes", len(self.lanes), 0, limits.MAX_LANES)
        if len({lane.name for lane in self.lanes}) != len(self.lanes):
            raise MalformedMessage("two lanes have the same name", field="lanes")
        most = limits.MAX_COORDINATES - len(self.lanes)
        _check_range("parameters", self.parameters, 1, most)
        self._check_numbers()
        self._check_roster()
        _check_time("created_at_ms", self.created_at_ms)
        latest = self.created_at_ms + limits.MAX_PHASE_MS
        _check_range("deadline_ms", self.deadline_ms, self.created_at_ms + 1, latest)
        # One size for everybody: it is the unit in which the server reads stored updates.
        _check_range(
            "chunk_coordinates",
            self.chunk_coordinates,
            limits.CHUNK_PARAMETERS,
            limits.CHUNK_PARAMETERS,
        )
        check_hyperparameters(self.hyperparameters)
        _check_range("plan_revision", self.plan_revision, 0, _MAX_U32)
        _check_digest("optimizer_state_sha256", self.optimizer_state_sha256, optional=True)
        _check_range("protocol_version", self.protocol_version, 1, _MAX_U32)

    def _check_numbers(self) -> None:
        _check_positive("clip_norm", self.clip_norm)
        _check_positive("scale", self.scale)
        if math.frexp(self.scale)[0] != 0.5:
            raise MalformedMessage(f"scale is {self.scale}, not a power of two", field="scale")
        _check_range("bound_l2", self.bound_l2, 1, _MAX_U64)
        if self.privacy == PRIVACY_NONE:
            if self.noise_multiplier != 0.0:
                raise MalformedMessage(
                    f"noise_multiplier is {self.noise_multiplier} where privacy is 'none'",
                    field="noise_multiplier",
                )
        elif self.privacy == PRIVACY_CLIENT_DP:
            _check_positive("noise_multiplier", self.noise_multiplier)
            _check_positive("epsilon_budget", self.epsilon_budget)
            _check_positive("delta", self.delta)
            if self.delta >= 1:
                raise MalformedMessage(f"delta is {self.delta}, not below one", field="delta")
        else:
            raise MalformedMessage(f"privacy {self.privacy[:40]!r} is not known", field="privacy")

    def _check_roster(self) -> None:
        _check_digest("roster_root", self.roster_root)
        _check_range("roster_size", self.roster_size, 1, limits.MAX_ROSTER)
        _check_range("max_weight", self.max_weight, 1, limits.MAX_WEIGHT)
        lowest = self.max_weight + self.roster_size - 1
        highest = self.max_weight * self.roster_size
        _check_range("total_weight", self.total_weight, lowest, highest)
        _check_range("min_survivors", self.min_survivors, 1, self.roster_size)

    @property
    def coordinates(self) -> int:
        """Parameters and lanes."""
        return self.parameters + len(self.lanes)


def check_hyperparameters(values: Mapping[str, HyperValue]) -> None:
    """Check names, count and values. Raises: MalformedMessage, LimitExceeded, NotFinite."""
    _check_count("hyperparameters", len(values), 0, limits.MAX_HYPERPARAMETERS)
    for name, value in values.items():
        if not 1 <= len(name) <= 63 or not name.isprintable():
            raise MalformedMessage(f"{name[:80]!r} is not the name of a hyper-parameter")
        if isinstance(value, float) and not math.isfinite(value):
            raise NotFinite(f"hyper-parameter {name} is not finite", field=name)
        # Beyond 2^53 languages disagree on what a JSON number is (RFC 8259, section 6).
        if isinstance(value, int) and abs(value) > 1 << 53:
            raise MalformedMessage(f"hyper-parameter {name} is an integer beyond 2^53", field=name)
        if isinstance(value, str) and len(value) > limits.MAX_HYPERPARAMETER_CHARS:
            raise LimitExceeded(
                f"hyper-parameter {name} has {len(value)} characters; "
                f"the cap is {limits.MAX_HYPERPARAMETER_CHARS}"
            )


@dataclass(frozen=True, slots=True)
class RosterEntry:
    """One client's place in a round; its serialised bytes are hashed into the roster tree."""

    index: int
    client_id: ids.ClientId
    session_id: ids.SessionId
    weight: int
    sample_bucket: int
    quality_bucket: int
    check_in: Statement
    group_id: int = 0
    certificate_chain_der: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        _check_range("index", self.index, 0, limits.MAX_ROSTER - 1)
        ids.parse_client_id(self.client_id)
        ids.parse_session_id(self.session_id)
        _check_range("weight", self.weight, 1, limits.MAX_WEIGHT)
        _check_range("sample_bucket", self.sample_bucket, 0, limits.MAX_SAMPLE_BUCKET)
        _check_range("quality_bucket", self.quality_bucket, 0, limits.MAX_QUALITY_BUCKET)
        _check_range("group_id", self.group_id, 0, limits.MAX_ROSTER - 1)
        if sum(map(len, self.certificate_chain_der)) > limits.MAX_CERTIFICATE_CHAIN_BYTES:
            raise LimitExceeded(
                "a roster entry's certificate chain is over "
                f"{limits.MAX_CERTIFICATE_CHAIN_BYTES} bytes"
            )


@dataclass(frozen=True, slots=True)
class RosterSibling:
    """One step of a path in the roster's Merkle sum tree."""

    hash: bytes
    sum: int

    def __post_init__(self) -> None:
        _check_digest("sibling.hash", self.hash)
        _check_range("sibling.sum", self.sum, 1, limits.MAX_ROSTER * limits.MAX_WEIGHT)


@dataclass(frozen=True, slots=True)
class RoundOffer:
    """An invitation to train; nothing in it is verified yet.

    `roster_entry` stays serialised: the client's leaf is computed from these very bytes.
    """

    configuration: Statement
    roster_entry: bytes
    proof: tuple[RosterSibling, ...]
    trace: TraceContext = TraceContext()

    def __post_init__(self) -> None:
        if not 1 <= len(self.roster_entry) <= limits.MAX_STATEMENT_BYTES:
            raise LimitExceeded(f"roster_entry has {len(self.roster_entry)} bytes")
        # The deepest tree of MAX_ROSTER leaves.
        _check_count("proof", len(self.proof), 0, limits.MAX_ROSTER.bit_length())


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
        _check_range("attempt", self.attempt, 1, limits.MAX_ATTEMPTS)
        if self.phase not in (Phase.PUBLISHED, Phase.ABORTED):
            raise MalformedMessage(f"a round does not end in {self.phase.name}", field="phase")
        if len(self.reason) > limits.MAX_NAME_CHARS:
            raise LimitExceeded(f"reason has {len(self.reason)} characters")
        _check_range("new_version", self.new_version, 0, _MAX_U32)


# --- updates ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UpdateManifest:
    """What is about to be uploaded: payload of a statement that the client signs."""

    round_id: ids.RoundId
    attempt: int
    client_id: ids.ClientId
    session_id: ids.SessionId
    configuration_sha256: bytes
    encryption_key_id: ids.KeyId
    wrapped_content_key: bytes
    key_commitment: bytes
    sha256: bytes
    size_bytes: int
    weight: int
    at_ms: int

    def __post_init__(self) -> None:
        ids.parse_round_id(self.round_id)
        _check_range("attempt", self.attempt, 1, limits.MAX_ATTEMPTS)
        ids.parse_client_id(self.client_id)
        ids.parse_session_id(self.session_id)
        _check_digest("configuration_sha256", self.configuration_sha256)
        ids.parse_key_id(self.encryption_key_id)
        # RSA of 3072 to 4096 bits gives 384 to 512 bytes.
        _check_range("size of wrapped_content_key", len(self.wrapped_content_key), 384, 512)
        _check_digest("key_commitment", self.key_commitment)
        _check_digest("sha256", self.sha256)
        _check_range("size_bytes", self.size_bytes, 1, limits.MAX_UPDATE_BYTES)
        _check_range("weight", self.weight, 1, limits.MAX_WEIGHT)
        _check_time("at_ms", self.at_ms)


@dataclass(frozen=True, slots=True)
class UpdateReceipt:
    """ "Checked, durable, will count": payload of a statement of the mesh."""

    mesh_id: str
    round_id: ids.RoundId
    attempt: int
    client_id: ids.ClientId
    sha256: bytes
    received_at_ms: int
    log_position: int | None = None

    def __post_init__(self) -> None:
        ids.parse_name("mesh_id", self.mesh_id)
        ids.parse_round_id(self.round_id)
        _check_range("attempt", self.attempt, 1, limits.MAX_ATTEMPTS)
        ids.parse_client_id(self.client_id)
        _check_digest("sha256", self.sha256)
        _check_time("received_at_ms", self.received_at_ms)
        if self.log_position is not None:
            _check_range("log_position", self.log_position, 0, _MAX_U64)
