"""Proto <-> types: nothing is lost, and nothing malformed gets through."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_protocol import codec, limits
from boltz_protocol import messages as m
from boltz_protocol.errors import LimitExceeded, MalformedMessage, MeshError
from boltz_protocol.v1 import aggregator_pb2, common_pb2, model_store_pb2
from tests.support import samples

PAYLOADS: list[tuple[Callable[[Any], bytes], Callable[[bytes], Any], Callable[[], Any]]] = [
    (codec.encode_statement, codec.parse_statement, lambda: samples.STATEMENT),
    (codec.encode_check_in, codec.parse_check_in, samples.check_in),
    (codec.encode_encryption_key, codec.parse_encryption_key, samples.encryption_key),
    (codec.encode_model_manifest, codec.parse_model_manifest, samples.manifest),
    (
        codec.encode_round_configuration,
        codec.parse_round_configuration,
        samples.configuration,
    ),
    (
        codec.encode_round_configuration,
        codec.parse_round_configuration,
        lambda: replace(samples.configuration(), clip_indicator="loss"),
    ),
    (
        codec.encode_round_configuration,
        codec.parse_round_configuration,
        lambda: replace(samples.configuration(), weight_terms=m.WeightTerms(0, 54)),
    ),
    (codec.encode_roster_entry, codec.parse_roster_entry, samples.roster_entry),
    (
        codec.encode_roster_entry,
        codec.parse_roster_entry,
        lambda: replace(samples.roster_entry(), trust_256=54),
    ),
    (codec.encode_update_manifest, codec.parse_update_manifest, samples.update_manifest),
    (codec.encode_update_receipt, codec.parse_update_receipt, samples.receipt),
]
IDS = [encode.__name__ for encode, _, _ in PAYLOADS]


@pytest.mark.parametrize(("encode", "parse", "make"), PAYLOADS, ids=IDS)
def test_payloads_come_back_as_they_went(
    encode: Callable[[Any], bytes], parse: Callable[[bytes], Any], make: Callable[[], Any]
) -> None:
    value = make()
    assert parse(encode(value)) == value
    assert encode(parse(encode(value))) == encode(value)


@pytest.mark.parametrize(("encode", "parse", "make"), PAYLOADS, ids=IDS)
@settings(deadline=None)
@given(data=st.data())
def test_damaged_payloads_raise_typed_errors_only(
    encode: Callable[[Any], bytes],
    parse: Callable[[bytes], Any],
    make: Callable[[], Any],
    data: st.DataObject,
) -> None:
    payload = bytearray(encode(make()))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    for damaged in (bytes(payload), bytes(payload[:cut])):
        with contextlib.suppress(MeshError):
            parse(damaged)


@pytest.mark.parametrize(("encode", "parse", "make"), PAYLOADS, ids=IDS)
def test_oversize_payloads_are_refused_unparsed(
    encode: Callable[[Any], bytes], parse: Callable[[bytes], Any], make: Callable[[], Any]
) -> None:
    with pytest.raises(LimitExceeded):
        parse(b"\0" * (limits.MAX_STATEMENT_BYTES + 1))


def test_messages_inside_others_come_back() -> None:
    assert codec.offer_from_proto(codec.offer_to_proto(samples.offer())) == samples.offer()
    assert codec.outcome_from_proto(codec.outcome_to_proto(samples.outcome())) == samples.outcome()
    decline = m.RoundDecline(samples.ROUND, 2, "ROUND_REFUSED")
    assert codec.decline_from_proto(codec.decline_to_proto(decline)) == decline
    welcome = m.Welcome(samples.NOW_MS, 1)
    assert codec.welcome_from_proto(codec.welcome_to_proto(welcome)) == welcome
    assert codec.protocol_from_proto(codec.protocol_to_proto(m.ProtocolRange(1, 3))).newest == 3


def test_optional_fields_may_be_absent() -> None:
    receipt = replace(samples.receipt(), log_position=None)
    assert codec.parse_update_receipt(codec.encode_update_receipt(receipt)) == receipt
    first = replace(samples.manifest(), parent_version=0, parent_sha256=b"", round_id=None)
    assert codec.parse_model_manifest(codec.encode_model_manifest(first)) == first


def test_missing_parts_are_named() -> None:
    with pytest.raises(MalformedMessage, match="encryption_key"):
        codec.parse_round_configuration(aggregator_pb2.RoundConfiguration().SerializeToString())
    with pytest.raises(MalformedMessage, match="check_in"):
        codec.parse_roster_entry(aggregator_pb2.RosterEntry().SerializeToString())
    with pytest.raises(MalformedMessage, match="configuration"):
        codec.offer_from_proto(aggregator_pb2.RoundOffer())
    with pytest.raises(MalformedMessage, match="protocol"):
        codec.parse_check_in(aggregator_pb2.CheckIn().SerializeToString())


def _changed_configuration(**fields: Any) -> bytes:
    message = aggregator_pb2.RoundConfiguration.FromString(
        codec.encode_round_configuration(samples.configuration())
    )
    hyperparameters = fields.pop("hyperparameters_json", None)
    for name, value in fields.items():
        setattr(message, name, value)
    if hyperparameters is not None:
        message.hyperparameters_json.clear()
        message.hyperparameters_json.update(hyperparameters)
    return message.SerializeToString()


@pytest.mark.parametrize("field", ["mode", "suite"])
@pytest.mark.parametrize("value", [0, 99])
def test_unknown_enum_values_are_refused(field: str, value: int) -> None:
    with pytest.raises(MalformedMessage, match=field):
        codec.parse_round_configuration(_changed_configuration(**{field: value}))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("NaN", MalformedMessage),
        ("-Infinity", MalformedMessage),
        ("1e999", MalformedMessage),
        ("[1]", MalformedMessage),
        ("null", MalformedMessage),
        ("{", MalformedMessage),
        ("[" * 2000, MalformedMessage),
        ("1" * 1500, MalformedMessage),
        ('"' + "x" * 1500 + '"', LimitExceeded),
        ('"' + "x" * 5000 + '"', LimitExceeded),
    ],
)
def test_hyperparameters_are_plain_json_values(text: str, error: type[MeshError]) -> None:
    with pytest.raises(error):
        codec.parse_round_configuration(_changed_configuration(hyperparameters_json={"a": text}))


def test_hyperparameters_are_capped_in_number() -> None:
    many = {str(i): "1" for i in range(limits.MAX_HYPERPARAMETERS + 1)}
    with pytest.raises(LimitExceeded):
        codec.parse_round_configuration(_changed_configuration(hyperparameters_json=many))


def test_hyperparameters_cannot_be_changed_after_parsing() -> None:
    parsed = codec.parse_round_configuration(_changed_configuration())
    with pytest.raises(TypeError):
        parsed.hyperparameters["rate"] = 1.0  # type: ignore[index]


def test_a_newer_client_may_name_suites_unknown_here() -> None:
    message = aggregator_pb2.CheckIn.FromString(codec.encode_check_in(samples.check_in()))
    message.suites.append(common_pb2.Suite.ValueType(77))
    assert codec.parse_check_in(message.SerializeToString()).suites == (m.Suite.V1,)
    message.suites.extend([common_pb2.SUITE_V1] * limits.MAX_SUITES)
    with pytest.raises(LimitExceeded):
        codec.parse_check_in(message.SerializeToString())


def test_unknown_fields_are_passed_over() -> None:
    # Field 500, a varint: what a newer peer might add.
    payload = codec.encode_check_in(samples.check_in()) + b"\xa0\x1f\x01"
    assert codec.parse_check_in(payload) == samples.check_in()


def test_too_many_tensors_are_refused_before_they_are_built() -> None:
    message = model_store_pb2.ModelManifest(
        tensors=[common_pb2.TensorSpec()] * (limits.MAX_TENSORS + 1)
    )
    with pytest.raises(LimitExceeded):
        codec.parse_model_manifest(message.SerializeToString())


def test_text_that_is_not_unicode_cannot_be_encoded() -> None:
    statement = replace(samples.STATEMENT, type="\ud800")
    with pytest.raises((MalformedMessage, UnicodeEncodeError)):
        codec.encode_statement(statement)


def test_oversize_payloads_are_not_made_either() -> None:
    with pytest.raises(LimitExceeded):
        codec.encode_statement(replace(samples.STATEMENT, payload=bytes(2 << 20)))
