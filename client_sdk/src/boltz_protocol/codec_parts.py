"""Proto <-> types for what several messages share, for keys and for model manifests.

See `codec`, which has all of these functions too and is what to import.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import DecodeError, EncodeError, Message

from boltz_protocol import ids, limits
from boltz_protocol import message_parts as m
from boltz_protocol.errors import LimitExceeded, MalformedMessage
from boltz_protocol.statement import Statement
from boltz_protocol.v1 import aggregator_pb2, common_pb2, model_store_pb2, registry_pb2

_M = TypeVar("_M", bound=Message)
_E = TypeVar("_E", bound=enum.IntEnum)


def parsed(kind: type[_M], payload: bytes) -> _M:
    """Parse a payload of at most MAX_STATEMENT_BYTES. Raises: MalformedMessage, LimitExceeded."""
    if len(payload) > limits.MAX_STATEMENT_BYTES:
        raise LimitExceeded(
            f"a {kind.DESCRIPTOR.name} of {len(payload)} bytes; "
            f"the cap is {limits.MAX_STATEMENT_BYTES}"
        )
    message = kind()
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        raise MalformedMessage(f"these bytes are not a {kind.DESCRIPTOR.name}") from error
    return message


def serialised(message: Message) -> bytes:
    """The bytes of a message. Raises: MalformedMessage, LimitExceeded."""
    try:
        payload = message.SerializeToString(deterministic=True)
    except EncodeError as error:
        raise MalformedMessage(f"{message.DESCRIPTOR.name} cannot be serialised") from error
    if len(payload) > limits.MAX_STATEMENT_BYTES:
        raise LimitExceeded(
            f"a {message.DESCRIPTOR.name} of {len(payload)} bytes; "
            f"the cap is {limits.MAX_STATEMENT_BYTES}"
        )
    return payload


def known_enum(kind: type[_E], field: str, value: int) -> _E:
    """An enum value that this version knows. Raises: MalformedMessage."""
    try:
        return kind(value)
    except ValueError as error:
        raise MalformedMessage(f"{field} is {value}, which is not known", field=field) from error


def require(message: Message, field: str) -> None:
    """Refuse a message without a part. Raises: MalformedMessage."""
    if not message.HasField(field):
        raise MalformedMessage(f"{message.DESCRIPTOR.name} has no {field}", field=field)


# --- statements and other shared parts ----------------------------------------------------------


def statement_to_proto(statement: Statement) -> common_pb2.SignedStatement:
    """A statement in wire form."""
    return common_pb2.SignedStatement(
        type=statement.type,
        payload=statement.payload,
        key_id=statement.key_id,
        algorithm=statement.algorithm,
        signature=statement.signature,
    )


def statement_from_proto(message: common_pb2.SignedStatement) -> Statement:
    """A statement as it came, unverified. `statement.verify` checks caps, key and signature."""
    return Statement(
        type=message.type,
        payload=message.payload,
        key_id=message.key_id,
        algorithm=message.algorithm,
        signature=message.signature,
    )


def encode_statement(statement: Statement) -> bytes:
    """A statement as bytes, to be stored. Raises: LimitExceeded."""
    return serialised(statement_to_proto(statement))


def parse_statement(payload: bytes) -> Statement:
    """A stored statement, unverified. Raises: MalformedMessage, LimitExceeded."""
    return statement_from_proto(parsed(common_pb2.SignedStatement, payload))


def tensors_to_proto(tensors: Iterable[m.TensorSpec]) -> list[common_pb2.TensorSpec]:
    """Tensor specs in wire form."""
    return [
        common_pb2.TensorSpec(name=spec.name, shape=spec.shape, dtype=_dtype(spec.dtype))
        for spec in tensors
    ]


def tensors_from_proto(messages: Iterable[common_pb2.TensorSpec]) -> tuple[m.TensorSpec, ...]:
    """Checked tensor specs. Raises: MalformedMessage, LimitExceeded."""
    return tuple(
        m.TensorSpec(
            message.name, tuple(message.shape), known_enum(m.Dtype, "dtype", message.dtype)
        )
        for message in messages
    )


def _dtype(dtype: m.Dtype) -> common_pb2.Dtype.ValueType:
    return common_pb2.Dtype.ValueType(dtype)


def protocol_to_proto(protocol: m.ProtocolRange) -> common_pb2.ProtocolRange:
    """A range of protocol versions in wire form."""
    return common_pb2.ProtocolRange(min=protocol.oldest, max=protocol.newest)


def protocol_from_proto(message: common_pb2.ProtocolRange) -> m.ProtocolRange:
    """A checked range of protocol versions. Raises: MalformedMessage."""
    return m.ProtocolRange(message.min, message.max)


def trace_to_proto(trace: m.TraceContext) -> common_pb2.TraceContext:
    """A trace context in wire form."""
    return common_pb2.TraceContext(traceparent=trace.traceparent, tracestate=trace.tracestate)


def trace_from_proto(message: common_pb2.TraceContext) -> m.TraceContext:
    """A checked trace context. Raises: MalformedMessage, LimitExceeded."""
    return m.TraceContext(message.traceparent, message.tracestate)


# --- registry -----------------------------------------------------------------------------------


def weight_terms_to_proto(terms: m.WeightTerms | None) -> aggregator_pb2.WeightTerms | None:
    """Weight terms in wire form, where they are told."""
    if terms is None:
        return None
    return aggregator_pb2.WeightTerms(
        sample_bucket_cap=terms.sample_bucket_cap, top_trust_256=terms.top_trust_256
    )


def weight_terms_from_proto(message: aggregator_pb2.RoundConfiguration) -> m.WeightTerms | None:
    """A configuration's checked weight terms, where it has them. Raises: MalformedMessage."""
    if not message.HasField("weight_terms"):
        return None
    terms = message.weight_terms
    return m.WeightTerms(terms.sample_bucket_cap, terms.top_trust_256)


def encode_encryption_key(key: m.EncryptionKey) -> bytes:
    """Payload of an EncryptionKey statement."""
    return serialised(
        registry_pb2.EncryptionKey(
            mesh_id=key.mesh_id,
            key_id=key.key_id,
            algorithm=key.algorithm,
            public_key_spki=key.public_key_spki,
            not_before_ms=key.not_before_ms,
            not_after_ms=key.not_after_ms,
        )
    )


def parse_encryption_key(payload: bytes) -> m.EncryptionKey:
    """A checked EncryptionKey. Raises: MalformedMessage, LimitExceeded."""
    message = parsed(registry_pb2.EncryptionKey, payload)
    return m.EncryptionKey(
        mesh_id=message.mesh_id,
        key_id=ids.KeyId(message.key_id),
        public_key_spki=message.public_key_spki,
        not_before_ms=message.not_before_ms,
        not_after_ms=message.not_after_ms,
        algorithm=message.algorithm,
    )


# --- model store --------------------------------------------------------------------------------


def encode_model_manifest(manifest: m.ModelManifest) -> bytes:
    """Payload of a ModelManifest statement."""
    return serialised(
        model_store_pb2.ModelManifest(
            mesh_id=manifest.mesh_id,
            model_id=manifest.model_id,
            version=manifest.version,
            parent_version=manifest.parent_version,
            parent_sha256=manifest.parent_sha256,
            round_id=manifest.round_id or "",
            sha256=manifest.sha256,
            size_bytes=manifest.size_bytes,
            tensors=tensors_to_proto(manifest.tensors),
            optimizer_state_sha256=manifest.optimizer_state_sha256,
            plan_revision=manifest.plan_revision,
            created_at_ms=manifest.created_at_ms,
        )
    )


def parse_model_manifest(payload: bytes) -> m.ModelManifest:
    """A checked ModelManifest. Raises: MalformedMessage, LimitExceeded."""
    message = parsed(model_store_pb2.ModelManifest, payload)
    # Before anything is built for each of them.
    if len(message.tensors) > limits.MAX_TENSORS:
        raise LimitExceeded(f"{len(message.tensors)} tensors; the cap is {limits.MAX_TENSORS}")
    return m.ModelManifest(
        mesh_id=message.mesh_id,
        model_id=ids.ModelId(message.model_id),
        version=message.version,
        parent_version=message.parent_version,
        parent_sha256=message.parent_sha256,
        round_id=ids.RoundId(message.round_id) if message.round_id else None,
        sha256=message.sha256,
        size_bytes=message.size_bytes,
        tensors=tensors_from_proto(message.tensors),
        optimizer_state_sha256=message.optimizer_state_sha256,
        plan_revision=message.plan_revision,
        created_at_ms=message.created_at_ms,
    )
