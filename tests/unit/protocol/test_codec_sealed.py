"""Proto <-> types of sealed rounds: nothing is lost, and nothing malformed gets through."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_protocol import codec, limits
from boltz_protocol import codec_sealed as cs
from boltz_protocol import messages as m
from boltz_protocol.errors import LimitExceeded, MalformedMessage, MeshError, NotFinite
from boltz_protocol.v1 import aggregator_pb2 as pb
from boltz_protocol.v1 import common_pb2
from tests.support import samples
from tests.support import samples_sealed as sealed

MANY = limits.MAX_NEIGHBOURS + 1
ROSTER = limits.MAX_ROSTER

PAYLOADS: list[tuple[Callable[[Any], bytes], Callable[[bytes], Any], Callable[[], Any]]] = [
    (codec.encode_round_configuration, codec.parse_round_configuration, sealed.configuration),
    (cs.encode_key_advertisement, cs.parse_key_advertisement, sealed.key_advertisement),
    (cs.encode_key_roster, cs.parse_key_roster, sealed.key_roster),
    (cs.encode_dealt_shares, cs.parse_dealt_shares, sealed.dealt_shares),
    (cs.encode_survivors, cs.parse_survivors, sealed.survivors),
    (cs.encode_survivors_seen, cs.parse_survivors_seen, sealed.survivors_seen),
]
Pair = tuple[Callable[[Any], Message], Callable[[Any], Any], Callable[[], Any]]
INSIDE: list[Pair] = [
    (
        cs.secure_aggregation_to_proto,
        cs.secure_aggregation_from_proto,
        sealed.secure_aggregation,
    ),
    (cs.key_roster_notice_to_proto, cs.key_roster_notice_from_proto, sealed.key_roster_notice),
    (cs.nonce_reveal_to_proto, cs.nonce_reveal_from_proto, sealed.nonce_reveal),
    (cs.peers_notice_to_proto, cs.peers_notice_from_proto, sealed.peers_notice),
    (cs.shares_dealt_to_proto, cs.shares_dealt_from_proto, sealed.shares_dealt),
    (cs.shares_notice_to_proto, cs.shares_notice_from_proto, sealed.shares_notice),
    (cs.survivors_notice_to_proto, cs.survivors_notice_from_proto, sealed.survivors_notice),
    (cs.signatures_notice_to_proto, cs.signatures_notice_from_proto, sealed.signatures_notice),
    (cs.shares_released_to_proto, cs.shares_released_from_proto, sealed.shares_released),
]
PAYLOAD_IDS = [encode.__name__ for encode, _, _ in PAYLOADS]
INSIDE_IDS = [to_proto.__name__ for to_proto, _, _ in INSIDE]


def read(from_proto: Callable[[Any], Any], kind: type[Message], payload: bytes) -> Any:
    """What a receiver does with a message inside others: parse, then check."""
    message = kind()
    with contextlib.suppress(DecodeError):  # gRPC's part; whatever it leaves is checked
        message.ParseFromString(payload)
    return from_proto(message)


@pytest.mark.parametrize(("encode", "parse", "make"), PAYLOADS, ids=PAYLOAD_IDS)
def test_payloads_come_back_as_they_went(
    encode: Callable[[Any], bytes], parse: Callable[[bytes], Any], make: Callable[[], Any]
) -> None:
    assert parse(encode(make())) == make()


@pytest.mark.parametrize(("to_proto", "from_proto", "make"), INSIDE, ids=INSIDE_IDS)
def test_messages_inside_others_come_back(
    to_proto: Callable[[Any], Message], from_proto: Callable[[Any], Any], make: Callable[[], Any]
) -> None:
    message = to_proto(make())
    assert from_proto(message) == make()
    assert read(from_proto, type(message), message.SerializeToString()) == make()


@pytest.mark.parametrize(("encode", "parse", "make"), PAYLOADS, ids=PAYLOAD_IDS)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_damaged_payloads_raise_typed_errors_only(
    encode: Callable[[Any], bytes],
    parse: Callable[[bytes], Any],
    make: Callable[[], Any],
    data: st.DataObject,
) -> None:
    for damaged in damage(encode(make()), data):
        with contextlib.suppress(MeshError):
            parse(damaged)


@pytest.mark.parametrize(("to_proto", "from_proto", "make"), INSIDE, ids=INSIDE_IDS)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_damaged_messages_raise_typed_errors_only(
    to_proto: Callable[[Any], Message],
    from_proto: Callable[[Any], Any],
    make: Callable[[], Any],
    data: st.DataObject,
) -> None:
    message = to_proto(make())
    for damaged in damage(message.SerializeToString(), data):
        with contextlib.suppress(MeshError):
            read(from_proto, type(message), damaged)


def damage(whole: bytes, data: st.DataObject) -> tuple[bytes, bytes]:
    """Up to three bytes changed; and then cut."""
    payload = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    return bytes(payload), bytes(payload[:cut])


@pytest.mark.parametrize(("to_proto", "from_proto", "make"), INSIDE, ids=INSIDE_IDS)
def test_an_empty_message_is_refused(
    to_proto: Callable[[Any], Message], from_proto: Callable[[Any], Any], make: Callable[[], Any]
) -> None:
    with pytest.raises(MalformedMessage):
        from_proto(type(to_proto(make()))())


@pytest.mark.parametrize(("encode", "parse", "make"), PAYLOADS, ids=PAYLOAD_IDS)
def test_an_empty_payload_is_refused(
    encode: Callable[[Any], bytes], parse: Callable[[bytes], Any], make: Callable[[], Any]
) -> None:
    with pytest.raises(MalformedMessage):
        parse(b"")
    with pytest.raises(LimitExceeded):
        parse(b"\0" * (limits.MAX_STATEMENT_BYTES + 1))


def test_missing_parts_are_named() -> None:
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: cs.key_roster_notice_from_proto(pb.KeyRosterNotice()), "key_roster"),
        (lambda: cs.shares_dealt_from_proto(pb.SharesDealt()), "dealt"),
        (lambda: cs.survivors_notice_from_proto(pb.SurvivorsNotice()), "survivors"),
    ]
    for read_it, part in cases:
        with pytest.raises(MalformedMessage, match=part):
            read_it()
    peers = cs.peers_notice_to_proto(sealed.peers_notice())
    peers.peers[1].ClearField("advertisement")
    with pytest.raises(MalformedMessage, match="Peer has no advertisement"):
        cs.peers_notice_from_proto(peers)


def _key_roster(**fields: bytes) -> bytes:
    message = pb.KeyRoster.FromString(cs.encode_key_roster(sealed.key_roster()))
    for name, value in fields.items():
        setattr(message, name, value)
    return message.SerializeToString()


@pytest.mark.parametrize("field", ["advertisement_sha256s", "nonce_commitments"])
@pytest.mark.parametrize(
    ("size", "error"),
    [
        (0, MalformedMessage),
        (127, MalformedMessage),
        (129, MalformedMessage),
        (96, MalformedMessage),
        (160, MalformedMessage),
        (32 * (ROSTER + 1), LimitExceeded),
    ],
)
def test_a_key_roster_has_32_bytes_a_member(field: str, size: int, error: type[MeshError]) -> None:
    with pytest.raises(error, match=field):
        cs.parse_key_roster(_key_roster(**{field: bytes(size)}))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"leaf_hashes": bytes(319)}, MalformedMessage),
        ({"leaf_hashes": bytes(288)}, MalformedMessage),
        ({"leaf_hashes": bytes(32 * (ROSTER + 1))}, LimitExceeded),
        ({"weights": b""}, MalformedMessage),
        ({"weights": b"\1" * 11}, MalformedMessage),
        ({"weights": b"\1" * 9 + b"\0"}, MalformedMessage),
        ({"weights": b"\1" * (ROSTER + 1)}, LimitExceeded),
    ],
)
def test_a_key_roster_notice_shows_the_whole_roster(
    change: dict[str, bytes], error: type[MeshError]
) -> None:
    message = cs.key_roster_notice_to_proto(sealed.key_roster_notice())
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(error):
        cs.key_roster_notice_from_proto(message)


@pytest.mark.parametrize(
    ("size", "error"),
    [
        (127, MalformedMessage),
        (96, MalformedMessage),
        (160, MalformedMessage),
        (32 * (ROSTER + 1), LimitExceeded),
    ],
)
def test_a_peers_notice_has_32_bytes_a_graph_member(size: int, error: type[MeshError]) -> None:
    message = cs.peers_notice_to_proto(sealed.peers_notice())
    message.nonces = bytes(size)
    with pytest.raises(error):
        cs.peers_notice_from_proto(message)


@pytest.mark.parametrize(
    ("holders", "size", "error"),
    [
        ((1, 3, 9), 191, MalformedMessage),
        ((1, 3, 9), 128, MalformedMessage),
        ((1, 3, 9), 0, MalformedMessage),
        ((1, 3), 192, MalformedMessage),
        ((3, 1, 9), 192, MalformedMessage),
        ((1, 3, (1 << 32) - 1), 192, MalformedMessage),
        ((), 0, MalformedMessage),
        (range(MANY), 64 * MANY, LimitExceeded),
        ((1, 3, 9), 64 * MANY, LimitExceeded),
    ],
)
def test_dealt_shares_have_64_bytes_a_holder(
    holders: tuple[int, ...], size: int, error: type[MeshError]
) -> None:
    message = pb.DealtShares.FromString(cs.encode_dealt_shares(sealed.dealt_shares()))
    message.holders[:] = holders
    message.commitments = bytes(size)
    with pytest.raises(error):
        cs.parse_dealt_shares(message.SerializeToString())


def test_the_mask_keys_commitment_comes_first() -> None:
    message = pb.DealtShares.FromString(cs.encode_dealt_shares(sealed.dealt_shares()))
    assert message.commitments[:64] == bytes([0]) * 32 + bytes([3]) * 32


def _peers() -> pb.PeersNotice:
    notice = cs.peers_notice_to_proto(sealed.peers_notice())
    notice.peers.extend([notice.peers[0]] * MANY)
    return notice


def _dealt() -> pb.SharesDealt:
    dealt = cs.shares_dealt_to_proto(sealed.shares_dealt())
    dealt.sealed_shares.extend([sealed.SEALED] * MANY)
    return dealt


def _shares() -> pb.SharesNotice:
    return pb.SharesNotice(round_id=samples.ROUND, attempt=1, shares=[pb.DealtShare()] * MANY)


def _signatures() -> pb.SignaturesNotice:
    many = [common_pb2.SignedStatement()] * MANY
    return pb.SignaturesNotice(round_id=samples.ROUND, attempt=1, signatures=many)


def _released() -> pb.SharesReleased:
    many = [pb.ReleasedShare()] * MANY
    return pb.SharesReleased(round_id=samples.ROUND, attempt=1, shares=many)


@pytest.mark.parametrize(
    ("make", "from_proto"),
    [
        (_peers, cs.peers_notice_from_proto),
        (_dealt, cs.shares_dealt_from_proto),
        (_shares, cs.shares_notice_from_proto),
        (_signatures, cs.signatures_notice_from_proto),
        (_released, cs.shares_released_from_proto),
    ],
)
def test_counts_are_capped_before_anything_is_built(
    make: Callable[[], Message], from_proto: Callable[[Any], Any]
) -> None:
    with pytest.raises(LimitExceeded):
        from_proto(make())


@pytest.mark.parametrize("number", [0, 3, 99])
def test_unknown_kinds_of_share_are_refused(number: int) -> None:
    message = cs.shares_released_to_proto(sealed.shares_released())
    message.shares[1].kind = pb.ShareKind.ValueType(number)
    with pytest.raises(MalformedMessage, match="kind"):
        cs.shares_released_from_proto(message)


@pytest.mark.parametrize("number", [0, 3, 99])
def test_unknown_adversaries_are_refused(number: int) -> None:
    message = cs.secure_aggregation_to_proto(sealed.secure_aggregation())
    message.adversary = pb.Adversary.ValueType(number)
    with pytest.raises(MalformedMessage, match="adversary"):
        cs.secure_aggregation_from_proto(message)


@pytest.mark.parametrize("adversary", m.Adversary)
def test_every_adversary_has_a_number(adversary: m.Adversary) -> None:
    values = replace(sealed.secure_aggregation(), adversary=adversary)
    message = cs.secure_aggregation_to_proto(values)
    assert pb.Adversary.Name(message.adversary) == f"ADVERSARY_{adversary.name}"
    assert cs.secure_aggregation_from_proto(message) == values


def test_fractions_are_finite() -> None:
    message = cs.secure_aggregation_to_proto(sealed.secure_aggregation())
    message.corrupt_fraction = float("inf")
    with pytest.raises(NotFinite):
        cs.secure_aggregation_from_proto(message)


@pytest.mark.parametrize("mode", m.RoundMode)
def test_secure_aggregation_goes_with_every_mode_but_open(mode: m.RoundMode) -> None:
    grouped = mode is m.RoundMode.GROUPED
    configuration = sealed.grouped_configuration() if grouped else sealed.configuration()
    message = pb.RoundConfiguration.FromString(codec.encode_round_configuration(configuration))
    message.mode = common_pb2.RoundMode.ValueType(mode)
    given, without = message.SerializeToString(), pb.RoundConfiguration()
    without.CopyFrom(message)
    without.ClearField("secure_aggregation")
    refused, fine = given, without.SerializeToString()
    if mode is not m.RoundMode.OPEN:
        refused, fine = fine, refused
    assert codec.parse_round_configuration(fine).mode is mode
    with pytest.raises(MalformedMessage, match="secure_aggregation"):
        codec.parse_round_configuration(refused)


@pytest.mark.parametrize("mode", [m.RoundMode.SEALED, m.RoundMode.GROUPED])
def test_grouping_goes_with_grouped_alone(mode: m.RoundMode) -> None:
    configuration = sealed.grouped_configuration()
    payload = codec.encode_round_configuration(configuration)
    assert codec.parse_round_configuration(payload) == configuration
    message = pb.RoundConfiguration.FromString(payload)
    assert (message.grouping.groups, message.grouping.min_group_survivors) == (4, 5)
    message.mode = common_pb2.RoundMode.ValueType(mode)
    given = message.SerializeToString()
    message.ClearField("grouping")
    refused, fine = given, message.SerializeToString()
    if mode is m.RoundMode.GROUPED:
        refused, fine = fine, refused
    assert codec.parse_round_configuration(fine).mode is mode
    with pytest.raises(MalformedMessage, match="grouping does not go"):
        codec.parse_round_configuration(refused)


def test_an_open_configurations_bytes_are_those_of_before() -> None:
    payload = codec.encode_round_configuration(samples.configuration())
    assert not pb.RoundConfiguration.FromString(payload).HasField("secure_aggregation")


def test_the_largest_round_fits() -> None:
    """What the asserts of `limits` promise: 10,000 clients, 512 neighbours, real sizes."""
    digests = (b"d" * 32,) * ROSTER
    everybody = b"\xff" * limits.MAX_BITMAP_BYTES
    roster = replace(
        sealed.key_roster(),
        members=everybody,
        advertisement_sha256s=digests,
        nonce_commitments=digests,
    )
    payload = cs.encode_key_roster(roster)
    assert cs.parse_key_roster(payload) == roster
    statement = replace(samples.STATEMENT, payload=payload)
    notice = m.KeyRosterNotice(statement, digests, (255,) * ROSTER)
    signed = replace(samples.STATEMENT, payload=b"p" * 350, signature=b"s" * 512)
    # A chain of two certificates, a check-in, and what else stands in an entry.
    peer = m.Peer(b"e" * 4500, signed)
    peers = m.PeersNotice(samples.ROUND, 1, everybody, digests, (peer,) * limits.MAX_NEIGHBOURS)
    seen = replace(signed, payload=cs.encode_survivors_seen(sealed.survivors_seen()) + everybody)
    signatures = m.SignaturesNotice(samples.ROUND, 1, (seen,) * limits.MAX_NEIGHBOURS)
    sizes = [
        cs.key_roster_notice_to_proto(notice).ByteSize(),
        cs.peers_notice_to_proto(peers).ByteSize(),
        cs.signatures_notice_to_proto(signatures).ByteSize(),
    ]
    assert max(sizes) < limits.MAX_MESSAGE_BYTES, sizes
