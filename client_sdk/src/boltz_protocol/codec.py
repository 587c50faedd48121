"""Proto <-> the types of `messages` and `statement`. With `codec_sealed` all that knows protobuf.

`encode_x` gives the bytes of a payload (to be signed, hashed or sent as they are); `parse_x` takes
the bytes that came and were already verified, and gives the checked type. `x_to_proto` and
`x_from_proto` do the same for messages that travel inside others. Everything that comes in is
refused with a typed error when a field is missing, out of range or of an unknown kind; protobuf's
own exceptions do not get out. Fields that this version does not know are passed over, so that a
newer peer may add some (protobuf, "Updating a message type").
"""

from __future__ import annotations

import json
import math
from types import MappingProxyType
from typing import NoReturn

from boltz_protocol import ids, limits
from boltz_protocol import messages as m
from boltz_protocol.codec_parts import (
    encode_encryption_key,
    encode_model_manifest,
    encode_statement,
    known_enum,
    parse_encryption_key,
    parse_model_manifest,
    parse_statement,
    parsed,
    protocol_from_proto,
    protocol_to_proto,
    require,
    serialised,
    statement_from_proto,
    statement_to_proto,
    tensors_from_proto,
    tensors_to_proto,
    trace_from_proto,
    trace_to_proto,
    weight_terms_from_proto,
    weight_terms_to_proto,
)
from boltz_protocol.codec_sealed import secure_aggregation_from_proto, secure_aggregation_to_proto
from boltz_protocol.errors import LimitExceeded, MalformedMessage
from boltz_protocol.v1 import aggregator_pb2, common_pb2

__all__ = [
    "decline_from_proto",
    "decline_to_proto",
    "encode_check_in",
    "encode_encryption_key",
    "encode_model_manifest",
    "encode_roster_entry",
    "encode_round_configuration",
    "encode_statement",
    "encode_update_manifest",
    "encode_update_receipt",
    "offer_from_proto",
    "offer_to_proto",
    "outcome_from_proto",
    "outcome_to_proto",
    "parse_check_in",
    "parse_encryption_key",
    "parse_model_manifest",
    "parse_roster_entry",
    "parse_round_configuration",
    "parse_statement",
    "parse_update_manifest",
    "parse_update_receipt",
    "protocol_from_proto",
    "protocol_to_proto",
    "statement_from_proto",
    "statement_to_proto",
    "tensors_from_proto",
    "tensors_to_proto",
    "trace_from_proto",
    "trace_to_proto",
    "welcome_from_proto",
    "welcome_to_proto",
]

# --- participation ------------------------------------------------------------------------------


def encode_check_in(check_in: m.CheckIn) -> bytes:
    """Payload of a CheckIn statement."""
    return serialised(
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
    message = parsed(aggregator_pb2.CheckIn, payload)
    if len(message.suites) > limits.MAX_SUITES:
        raise LimitExceeded(f"{len(message.suites)} suites; the cap is {limits.MAX_SUITES}")
    known = {int(suite) for suite in m.Suite}
    require(message, "protocol")
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
    return serialised(
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
            secure_aggregation=None
            if c.secure_aggregation is None
            else secure_aggregation_to_proto(c.secure_aggregation),
            grouping=None
            if c.grouping is None
            else aggregator_pb2.Grouping(
                groups=c.grouping.groups, min_group_survivors=c.grouping.min_group_survivors
            ),
            clip_indicator=c.clip_indicator,
            weight_terms=weight_terms_to_proto(c.weight_terms),
        )
    )


def parse_round_configuration(payload: bytes) -> m.RoundConfiguration:
    """A checked RoundConfiguration. Raises: MalformedMessage, LimitExceeded, NotFinite."""
    message = parsed(aggregator_pb2.RoundConfiguration, payload)
    if len(message.hyperparameters_json) > limits.MAX_HYPERPARAMETERS:
        raise LimitExceeded(
            f"{len(message.hyperparameters_json)} hyper-parameters; "
            f"the cap is {limits.MAX_HYPERPARAMETERS}"
        )
    require(message, "encryption_key")
    return m.RoundConfiguration(
        mesh_id=message.mesh_id,
        round_id=ids.RoundId(message.round_id),
        attempt=message.attempt,
        model_id=ids.ModelId(message.model_id),
        mode=known_enum(m.RoundMode, "mode", message.mode),
        suite=known_enum(m.Suite, "suite", message.suite),
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
        secure_aggregation=secure_aggregation_from_proto(message.secure_aggregation)
        if message.HasField("secure_aggregation")
        else None,
        grouping=m.Grouping(message.grouping.groups, message.grouping.min_group_survivors)
        if message.HasField("grouping")
        else None,
        clip_indicator=message.clip_indicator,
        weight_terms=weight_terms_from_proto(message),
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
    return serialised(
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
            trust_256=entry.trust_256,
        )
    )


def parse_roster_entry(payload: bytes) -> m.RosterEntry:
    """A checked roster entry. Raises: MalformedMessage, LimitExceeded."""
    message = parsed(aggregator_pb2.RosterEntry, payload)
    require(message, "check_in")
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
        trust_256=message.trust_256,
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
    require(message, "configuration")
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
        phase=known_enum(m.Phase, "phase", message.phase),
        reason=message.reason,
        new_version=message.new_version,
        counted=message.counted,
    )


# --- updates ------------------------------------------------------------------------------------


def encode_update_manifest(manifest: m.UpdateManifest) -> bytes:
    """Payload of an UpdateManifest statement."""
    return serialised(
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
    message = parsed(aggregator_pb2.UpdateManifest, payload)
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
    return serialised(
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
    message = parsed(aggregator_pb2.UpdateReceipt, payload)
    return m.UpdateReceipt(
        mesh_id=message.mesh_id,
        round_id=ids.RoundId(message.round_id),
        attempt=message.attempt,
        client_id=ids.ClientId(message.client_id),
        sha256=message.sha256,
        received_at_ms=message.received_at_ms,
        log_position=message.log_position if message.HasField("log_position") else None,
    )
