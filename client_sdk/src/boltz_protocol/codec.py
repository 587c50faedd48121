"""Proto <-> the types of `messages` and `statement`. Nothing else here knows protobuf.

`encode_x` gives the bytes of a payload (to be signed, hashed or sent as they are); `parse_x` takes
the bytes that came and were already verified, and gives the checked type. `x_to_proto` and
`x_from_proto` do the same for messages that travel inside others. Everything that comes in is
refused with a typed error when a field is missing, out of range or of an unknown kind; protobuf's
own exceptions do not get out. Fields that this version does not know are passed over, so that a
newer peer may add some (protobuf, "Updating a message type").
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Iterable
from types import MappingProxyType
from typing import NoReturn, TypeVar

from google.protobuf.message import DecodeError, EncodeError, Message

from boltz_protocol import ids, limits
from boltz_protocol import messages as m
from boltz_protocol.errors import LimitExceeded, MalformedMessage
from boltz_protocol.statement import Statement
from boltz_protocol.v1 import aggregator_pb2, common_pb2, model_store_pb2, registry_pb2

_M = TypeVar("_M", bound=Message)
_E = TypeVar("_E", bound=enum.IntEnum)


def _parsed(kind: type[_M], payload: bytes) -> _M:
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


def _serialised(message: Message) -> bytes:
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


def _enum(kind: type[_E], field: str, value: int) -> _E:
    try:
        return kind(value)
    except ValueError as error:
        raise MalformedMessage(f"{field} is {value}, which is not known", field=field) from error


def _present(message: Message, field: str) -> None:
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
    return _serialised(statement_to_proto(statement))


def parse_statement(payload: bytes) -> Statement:
    """A stored statement, unverified. Raises: MalformedMessage, LimitExceeded."""
    return statement_from_proto(_parsed(common_pb2.SignedStatement, payload))


def tensors_to_proto(tensors: Iterable[m.TensorSpec]) -> list[common_pb2.TensorSpec]:
    """Tensor specs in wire form."""
    return [
        common_pb2.TensorSpec(name=spec.name, shape=spec.shape, dtype=_dtype(spec.dtype))
        for spec in tensors
    ]


def tensors_from_proto(messages: Iterable[common_pb2.TensorSpec]) -> tuple[m.TensorSpec, ...]:
    """Checked tensor specs. Raises: MalformedMessage, LimitExceeded."""
    return tuple(
        m.TensorSpec(message.name, tuple(message.shape), _enum(m.Dtype, "dtype", message.dtype))
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


def encode_encryption_key(key: m.EncryptionKey) -> bytes:
    """Payload of an EncryptionKey statement."""
    return _serialised(
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
    message = _parsed(registry_pb2.EncryptionKey, payload)
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
    return _serialised(
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
    message = _parsed(model_store_pb2.ModelManifest, payload)
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


# --- participation ------------------------------------------------------------------------------


def encode_check_in(check_in: m.CheckIn) -> bytes:
    """Payload of a CheckIn statement."""
    return _serialised(
        aggregator_pb2.CheckIn(
            mesh_id=check_in.mesh_id,
            client_id=check_in.client_id,
            session_id=check_in.session_id,
            model_id=check_in.model_id,
            sample_bucket=check_in.sample_bucket,
            quality_bucket=check_in.quality_bucket,
            region=check_in.region,
            protocol=protocol_to_proto(check_in.protocol),
            suites=[common_pb2.Suite.ValueType(suite) for suite in check_in.suites],
            at_ms=check_in.at_ms,
        )
    )


def parse_check_in(payload: bytes) -> m.CheckIn:
    """A checked CheckIn. Suites that this version does not know are left out: a newer client may
    name some. Raises: MalformedMessage, LimitExceeded.
    """
    message = _parsed(aggregator_pb2.CheckIn, payload)
    if len(message.suites) > limits.MAX_SUITES:
        raise LimitExceeded(f"{len(message.suites)} suites; the cap is {limits.MAX_SUITES}")
    known = {int(suite) for suite in m.Suite}
    _present(message, "protocol")
    return m.CheckIn(
        mesh_id=message.mesh_id,
        client_id=ids.ClientId(message.client_id),
        session_id=ids.SessionId(message.session_id),
        model_id=ids.ModelId(message.model_id),
        sample_bucket=message.sample_bucket,
        quality_bucket=message.quality_bucket,
        region=message.region,
        protocol=protocol_from_proto(message.protocol),
        suites=tuple(m.Suite(suite) for suite in message.suites if suite in known),
        at_ms=message.at_ms,
    )


def decline_to_proto(decline: m.RoundDecline) -> aggregator_pb2.RoundDecline:
    """A decline in wire form."""
    return aggregator_pb2.RoundDecline(
        round_id=decline.round_id, attempt=decline.attempt, reason=decline.reason
    )


def decline_from_proto(message: aggregator_pb2.RoundDecline) -> m.RoundDecline:
    """A checked decline. Raises: MalformedMessage."""
    return m.RoundDecline(ids.RoundId(message.round_id), message.attempt, message.reason)


def welcome_to_proto(welcome: m.Welcome) -> aggregator_pb2.Welcome:
    """A welcome in wire form."""
    return aggregator_pb2.Welcome(
        server_time_ms=welcome.server_time_ms, protocol_version=welcome.protocol_version
    )


def welcome_from_proto(message: aggregator_pb2.Welcome) -> m.Welcome:
    """A checked welcome. Raises: MalformedMessage."""
    return m.Welcome(message.server_time_ms, message.protocol_version)


def encode_round_configuration(configuration: m.RoundConfiguration) -> bytes:
    """Payload of a RoundConfiguration statement."""
    c = configuration
    return _serialised(
        aggregator_pb2.RoundConfiguration(
            mesh_id=c.mesh_id,
            round_id=c.round_id,
            attempt=c.attempt,
            model_id=c.model_id,
            mode=common_pb2.RoundMode.ValueType(c.mode),
            suite=common_pb2.Suite.ValueType(c.suite),
            base_version=c.base_version,
            model_sha256=c.model_sha256,
            parameters=c.parameters,
            lanes=[common_pb2.Lane(name=lane.name, scale=lane.scale) for lane in c.lanes],
            clip_norm=c.clip_norm,
            scale=c.scale,
            bound_l2=c.bound_l2,
            noise_multiplier=c.noise_multiplier,
            privacy=c.privacy,
            epsilon_budget=c.epsilon_budget,
            delta=c.delta,
            roster_root=c.roster_root,
            roster_size=c.roster_size,
            total_weight=c.total_weight,
            max_weight=c.max_weight,
            min_survivors=c.min_survivors,
            deadline_ms=c.deadline_ms,
            encryption_key=statement_to_proto(c.encryption_key),
            chunk_coordinates=c.chunk_coordinates,
            hyperparameters_json={
                name: json.dumps(value, allow_nan=False)
                for name, value in c.hyperparameters.items()
            },
            plan_revision=c.plan_revision,
            optimizer_state_sha256=c.optimizer_state_sha256,
            created_at_ms=c.created_at_ms,
            protocol_version=c.protocol_version,
        )
    )


def parse_round_configuration(payload: bytes) -> m.RoundConfiguration:
    """A checked RoundConfiguration. Raises: MalformedMessage, LimitExceeded, NotFinite."""
    message = _parsed(aggregator_pb2.RoundConfiguration, payload)
    if len(message.hyperparameters_json) > limits.MAX_HYPERPARAMETERS:
        raise LimitExceeded(
            f"{len(message.hyperparameters_json)} hyper-parameters; "
            f"the cap is {limits.MAX_HYPERPARAMETERS}"
        )
    _present(message, "encryption_key")
    return m.RoundConfiguration(
        mesh_id=message.mesh_id,
        round_id=ids.RoundId(message.round_id),
        attempt=message.attempt,
        model_id=ids.ModelId(message.model_id),
        mode=_enum(m.RoundMode, "mode", message.mode),
        suite=_enum(m.Suite, "suite", message.suite),
        base_version=message.base_version,
        model_sha256=message.model_sha256,
        parameters=message.parameters,
        lanes=tuple(m.Lane(lane.name, lane.scale) for lane in message.lanes),
        clip_norm=message.clip_norm,
        scale=message.scale,
        bound_l2=message.bound_l2,
        noise_multiplier=message.noise_multiplier,
        privacy=message.privacy,
        epsilon_budget=message.epsilon_budget,
        delta=message.delta,
        roster_root=message.roster_root,
        roster_size=message.roster_size,
        total_weight=message.total_weight,
        max_weight=message.max_weight,
        min_survivors=message.min_survivors,
        deadline_ms=message.deadline_ms,
        encryption_key=statement_from_proto(message.encryption_key),
        chunk_coordinates=message.chunk_coordinates,
        hyperparameters=MappingProxyType(
            {
                name: _hyperparameter(name, text)
                for name, text in message.hyperparameters_json.items()
            }
        ),
        plan_revision=message.plan_revision,
        optimizer_state_sha256=message.optimizer_state_sha256,
        created_at_ms=message.created_at_ms,
        protocol_version=message.protocol_version,
    )


def _hyperparameter(name: str, text: str) -> m.HyperValue:
    if len(text) > 2 * limits.MAX_HYPERPARAMETER_CHARS:
        raise LimitExceeded(f"hyper-parameter {name[:80]} has {len(text)} characters")

    def refuse(constant: str) -> NoReturn:
        raise MalformedMessage(
            f"hyper-parameter {name[:80]} is {constant}", field="hyperparameters"
        )

    try:
        value = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"hyper-parameter {name[:80]} is not JSON") from error
    if isinstance(value, float) and not math.isfinite(value):  # 1e999
        refuse("out of range")
    if not isinstance(value, bool | int | float | str):
        raise MalformedMessage(f"hyper-parameter {name[:80]} is not a number, text or boolean")
    return value


def encode_roster_entry(entry: m.RosterEntry) -> bytes:
    """A roster entry as the bytes that its leaf is computed from."""
    return _serialised(
        aggregator_pb2.RosterEntry(
            index=entry.index,
            client_id=entry.client_id,
            session_id=entry.session_id,
            weight=entry.weight,
            sample_bucket=entry.sample_bucket,
            quality_bucket=entry.quality_bucket,
            group_id=entry.group_id,
            certificate_chain_der=entry.certificate_chain_der,
            check_in=statement_to_proto(entry.check_in),
        )
    )


def parse_roster_entry(payload: bytes) -> m.RosterEntry:
    """A checked roster entry. Raises: MalformedMessage, LimitExceeded."""
    message = _parsed(aggregator_pb2.RosterEntry, payload)
    _present(message, "check_in")
    return m.RosterEntry(
        index=message.index,
        client_id=ids.ClientId(message.client_id),
        session_id=ids.SessionId(message.session_id),
        weight=message.weight,
        sample_bucket=message.sample_bucket,
        quality_bucket=message.quality_bucket,
        group_id=message.group_id,
        certificate_chain_der=tuple(message.certificate_chain_der),
        check_in=statement_from_proto(message.check_in),
    )


def offer_to_proto(offer: m.RoundOffer) -> aggregator_pb2.RoundOffer:
    """An offer in wire form."""
    return aggregator_pb2.RoundOffer(
        configuration=statement_to_proto(offer.configuration),
        roster_entry=offer.roster_entry,
        proof=aggregator_pb2.RosterProof(
            siblings=[
                aggregator_pb2.RosterSibling(hash=sibling.hash, sum=sibling.sum)
                for sibling in offer.proof
            ]
        ),
        trace=trace_to_proto(offer.trace),
    )


def offer_from_proto(message: aggregator_pb2.RoundOffer) -> m.RoundOffer:
    """An offer with checked form; its contents are unverified. Raises: MalformedMessage,
    LimitExceeded.
    """
    _present(message, "configuration")
    return m.RoundOffer(
        configuration=statement_from_proto(message.configuration),
        roster_entry=message.roster_entry,
        proof=tuple(
            m.RosterSibling(sibling.hash, sibling.sum) for sibling in message.proof.siblings
        ),
        trace=trace_from_proto(message.trace),
    )


def outcome_to_proto(outcome: m.RoundOutcome) -> aggregator_pb2.RoundOutcome:
    """An outcome in wire form."""
    return aggregator_pb2.RoundOutcome(
        round_id=outcome.round_id,
        attempt=outcome.attempt,
        phase=aggregator_pb2.Phase.ValueType(outcome.phase),
        reason=outcome.reason,
        new_version=outcome.new_version,
        counted=outcome.counted,
    )


def outcome_from_proto(message: aggregator_pb2.RoundOutcome) -> m.RoundOutcome:
    """A checked outcome. Raises: MalformedMessage, LimitExceeded."""
    return m.RoundOutcome(
        round_id=ids.RoundId(message.round_id),
        attempt=message.attempt,
        phase=_enum(m.Phase, "phase", message.phase),
        reason=message.reason,
        new_version=message.new_version,
        counted=message.counted,
    )


# --- updates ------------------------------------------------------------------------------------


def encode_update_manifest(manifest: m.UpdateManifest) -> bytes:
    """Payload of an UpdateManifest statement."""
    return _serialised(
        aggregator_pb2.UpdateManifest(
            round_id=manifest.round_id,
            attempt=manifest.attempt,
            client_id=manifest.client_id,
            session_id=manifest.session_id,
            configuration_sha256=manifest.configuration_sha256,
            encryption_key_id=manifest.encryption_key_id,
            wrapped_content_key=manifest.wrapped_content_key,
            key_commitment=manifest.key_commitment,
            sha256=manifest.sha256,
            size_bytes=manifest.size_bytes,
            weight=manifest.weight,
            at_ms=manifest.at_ms,
        )
    )


def parse_update_manifest(payload: bytes) -> m.UpdateManifest:
    """A checked UpdateManifest. Raises: MalformedMessage, LimitExceeded."""
    message = _parsed(aggregator_pb2.UpdateManifest, payload)
    return m.UpdateManifest(
        round_id=ids.RoundId(message.round_id),
        attempt=message.attempt,
        client_id=ids.ClientId(message.client_id),
        session_id=ids.SessionId(message.session_id),
        configuration_sha256=message.configuration_sha256,
        encryption_key_id=ids.KeyId(message.encryption_key_id),
        wrapped_content_key=message.wrapped_content_key,
        key_commitment=message.key_commitment,
        sha256=message.sha256,
        size_bytes=message.size_bytes,
        weight=message.weight,
        at_ms=message.at_ms,
    )


def encode_update_receipt(receipt: m.UpdateReceipt) -> bytes:
    """Payload of an UpdateReceipt statement."""
    return _serialised(
        aggregator_pb2.UpdateReceipt(
            mesh_id=receipt.mesh_id,
            round_id=receipt.round_id,
            attempt=receipt.attempt,
            client_id=receipt.client_id,
            sha256=receipt.sha256,
            received_at_ms=receipt.received_at_ms,
            log_position=receipt.log_position,
        )
    )


def parse_update_receipt(payload: bytes) -> m.UpdateReceipt:
    """A checked UpdateReceipt. Raises: MalformedMessage, LimitExceeded."""
    message = _parsed(aggregator_pb2.UpdateReceipt, payload)
    return m.UpdateReceipt(
        mesh_id=message.mesh_id,
        round_id=ids.RoundId(message.round_id),
        attempt=message.attempt,
        client_id=ids.ClientId(message.client_id),
        sha256=message.sha256,
        received_at_ms=message.received_at_ms,
        log_position=message.log_position if message.HasField("log_position") else None,
    )
