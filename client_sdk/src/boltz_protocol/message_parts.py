"""What several messages share: enums, checks, tensors; keys, model manifests, updates.

See `messages`, which has all of these names too and is what to import.
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

# W3C trace context, section 3.2: version 00 and later ones that extend it.
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}[ -~]{0,64})?")
MAX_U32: Final = (1 << 32) - 1
MAX_U64: Final = (1 << 64) - 1
#: Full trust: it is counted in 1/256.
MAX_TRUST_256: Final = 256
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


def check_range(field: str, value: int, low: int, high: int) -> None:
    """Refuse an integer outside `low` to `high`. Raises: MalformedMessage."""
    if not low <= value <= high:
        raise MalformedMessage(f"{field} is {value}; {low} to {high} is allowed", field=field)


def check_time(field: str, value: int) -> None:
    """Refuse what is no Unix time in milliseconds. Raises: MalformedMessage."""
    check_range(field, value, 1, _MAX_TIME_MS)


def check_digest(field: str, value: bytes, *, optional: bool = False) -> None:
    """Refuse what is no SHA-256 digest (or, where optional, empty). Raises: MalformedMessage."""
    if len(value) != 32 and not (optional and not value):
        raise MalformedMessage(f"{field} has {len(value)} bytes, not 32", field=field)


def check_positive(field: str, value: float) -> None:
    """Refuse what is not finite or not above zero. Raises: NotFinite, MalformedMessage."""
    if not math.isfinite(value):
        raise NotFinite(f"{field} is not a finite number", field=field)
    if value <= 0:
        raise MalformedMessage(f"{field} is {value}; it must be above zero", field=field)


def check_pattern(field: str, value: str, pattern: re.Pattern[str]) -> None:
    """Refuse a text of another form. Raises: MalformedMessage."""
    if pattern.fullmatch(value) is None:
        raise MalformedMessage(f"{field} is {value[:80]!r}, not {pattern.pattern}", field=field)


def check_count(field: str, count: int, low: int, high: int) -> None:
    """Refuse too many or too few entries. Raises: LimitExceeded, MalformedMessage."""
    if count > high:
        raise LimitExceeded(f"{field} has {count} entries; the cap is {high}", field=field)
    check_range(f"number of {field}", count, low, high)


def check_hyperparameters(values: Mapping[str, HyperValue]) -> None:
    """Check names, count and values. Raises: MalformedMessage, LimitExceeded, NotFinite."""
    check_count("hyperparameters", len(values), 0, limits.MAX_HYPERPARAMETERS)
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


# --- shared parts -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProtocolRange:
    """Versions that a peer speaks, both ends included."""

    oldest: int = PROTOCOL_VERSION
    newest: int = PROTOCOL_VERSION

    def __post_init__(self) -> None:
        check_range("protocol.min", self.oldest, 1, MAX_U32)
        check_range("protocol.max", self.newest, self.oldest, MAX_U32)


#: What this code speaks.
THIS_VERSION: Final = ProtocolRange()


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
        check_count("shape", len(self.shape), 0, limits.MAX_TENSOR_RANK)
        for extent in self.shape:
            check_range(f"extent of {self.name}", extent, 1, limits.MAX_COORDINATES)
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
    check_count("tensors", len(tensors), 1, limits.MAX_TENSORS)
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
        check_positive("lane.scale", self.scale)


@dataclass(frozen=True, slots=True)
class RosterSibling:
    """One step of a path in the roster's Merkle sum tree."""

    hash: bytes
    sum: int

    def __post_init__(self) -> None:
        check_digest("sibling.hash", self.hash)
        check_range("sibling.sum", self.sum, 1, limits.MAX_ROSTER * limits.MAX_WEIGHT)


@dataclass(frozen=True, slots=True)
class WeightTerms:
    """What a roster's weights are computed with, beside each client's buckets and trust.

    Attributes:
        sample_bucket_cap: buckets above it count like it, 0 to 31.
        top_trust_256: the largest trust in the roster, in 1/256, 1 to 256.
    """

    sample_bucket_cap: int
    top_trust_256: int

    def __post_init__(self) -> None:
        check_range("sample_bucket_cap", self.sample_bucket_cap, 0, limits.MAX_SAMPLE_BUCKET)
        check_range("top_trust_256", self.top_trust_256, 1, MAX_TRUST_256)


@dataclass(frozen=True, slots=True)
class TraceContext:
    """W3C trace context; empty texts where there is no trace."""

    traceparent: str = ""
    tracestate: str = ""

    def __post_init__(self) -> None:
        check_pattern("traceparent", self.traceparent, _TRACEPARENT)
        if len(self.tracestate) > limits.MAX_TRACESTATE_CHARS:
            raise LimitExceeded(
                f"tracestate has {len(self.tracestate)} characters; "
                f"the cap is {limits.MAX_TRACESTATE_CHARS}"
            )


#: Where there is no trace.
NO_TRACE: Final = TraceContext()


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
        check_range("size of public_key_spki", len(self.public_key_spki), 1, 1024)
        check_time("not_before_ms", self.not_before_ms)
        latest = self.not_before_ms + limits.SERVER_KEY_LIFETIME_MS
        check_range("not_after_ms", self.not_after_ms, self.not_before_ms + 1, latest)
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
        check_range("version", self.version, 1, MAX_U32)
        check_range("parent_version", self.parent_version, 0, self.version - 1)
        check_digest("parent_sha256", self.parent_sha256, optional=True)
        if bool(self.parent_sha256) != bool(self.parent_version):
            raise MalformedMessage(
                "parent_version and parent_sha256 go together", field="parent_sha256"
            )
        if self.round_id is not None:
            ids.parse_round_id(self.round_id)
        check_digest("sha256", self.sha256)
        check_range("size_bytes", self.size_bytes, 1, limits.MAX_MODEL_FILE_BYTES)
        check_tensors(self.tensors)
        check_digest("optimizer_state_sha256", self.optimizer_state_sha256, optional=True)
        check_range("plan_revision", self.plan_revision, 0, MAX_U32)
        check_time("created_at_ms", self.created_at_ms)

    @property
    def parameters(self) -> int:
        """Number of coordinates, without lanes."""
        return sum(spec.elements for spec in self.tensors)


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
        check_range("attempt", self.attempt, 1, limits.MAX_ATTEMPTS)
        ids.parse_client_id(self.client_id)
        ids.parse_session_id(self.session_id)
        check_digest("configuration_sha256", self.configuration_sha256)
        ids.parse_key_id(self.encryption_key_id)
        # RSA of 3072 to 4096 bits gives 384 to 512 bytes.
        check_range("size of wrapped_content_key", len(self.wrapped_content_key), 384, 512)
        check_digest("key_commitment", self.key_commitment)
        check_digest("sha256", self.sha256)
        check_range("size_bytes", self.size_bytes, 1, limits.MAX_UPDATE_BYTES)
        check_range("weight", self.weight, 1, limits.MAX_WEIGHT)
        check_time("at_ms", self.at_ms)


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
        check_range("attempt", self.attempt, 1, limits.MAX_ATTEMPTS)
        ids.parse_client_id(self.client_id)
        check_digest("sha256", self.sha256)
        check_time("received_at_ms", self.received_at_ms)
        if self.log_position is not None:
            check_range("log_position", self.log_position, 0, MAX_U64)
