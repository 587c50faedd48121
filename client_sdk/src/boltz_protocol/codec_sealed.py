"""Proto <-> the types of `messages_sealed`, in the manner of `codec` (see there).

On the wire, values of one size stand concatenated in one field: digests and nonces (32 bytes
each), weights (one byte each), pairs of commitments (64 bytes each). A field that is no whole
number of them is refused, and so is one with more of them than any round has.
"""

from __future__ import annotations

from collections.abc import Iterable

from boltz_protocol import ids, limits
from boltz_protocol import messages_sealed as m
from boltz_protocol.codec_parts import (
    known_enum,
    parsed,
    require,
    serialised,
    statement_from_proto,
    statement_to_proto,
)
from boltz_protocol.errors import LimitExceeded, MalformedMessage
from boltz_protocol.v1 import aggregator_pb2 as pb

__all__ = [
    "encode_dealt_shares",
    "encode_key_advertisement",
    "encode_key_roster",
    "encode_survivors",
    "encode_survivors_seen",
    "key_roster_notice_from_proto",
    "key_roster_notice_to_proto",
    "nonce_reveal_from_proto",
    "nonce_reveal_to_proto",
    "parse_dealt_shares",
    "parse_key_advertisement",
    "parse_key_roster",
    "parse_survivors",
    "parse_survivors_seen",
    "peers_notice_from_proto",
    "peers_notice_to_proto",
    "secure_aggregation_from_proto",
    "secure_aggregation_to_proto",
    "shares_dealt_from_proto",
    "shares_dealt_to_proto",
    "shares_notice_from_proto",
    "shares_notice_to_proto",
    "shares_released_from_proto",
    "shares_released_to_proto",
    "signatures_notice_from_proto",
    "signatures_notice_to_proto",
    "survivors_notice_from_proto",
    "survivors_notice_to_proto",
]


def _pieces(field: str, joined: bytes, size: int, most: int) -> tuple[bytes, ...]:
    """Cut concatenated values of `size` bytes. Raises: MalformedMessage, LimitExceeded."""
    if len(joined) % size:
        raise MalformedMessage(
            f"{field} has {len(joined)} bytes, no multiple of {size}", field=field
        )
    _cap(field, len(joined) // size, most)
    return tuple(joined[start : start + size] for start in range(0, len(joined), size))


def _cap(field: str, count: int, most: int) -> None:
    """Before anything is built for each of them. Raises: LimitExceeded."""
    if count > most:
        raise LimitExceeded(f"{field} has {count} entries; the cap is {most}", field=field)


# --- the configuration's part -------------------------------------------------------------------

_ADVERSARIES = (
    (m.Adversary.SEMI_HONEST, pb.ADVERSARY_SEMI_HONEST),
    (m.Adversary.SEMI_MALICIOUS, pb.ADVERSARY_SEMI_MALICIOUS),
)


def secure_aggregation_to_proto(values: m.SecureAggregation) -> pb.SecureAggregation:
    """What a round's secure aggregation is dimensioned for, in wire form."""
    return pb.SecureAggregation(
        corrupt_fraction=values.corrupt_fraction,
        dropout_fraction=values.dropout_fraction,
        adversary=dict(_ADVERSARIES)[values.adversary],
    )


def secure_aggregation_from_proto(message: pb.SecureAggregation) -> m.SecureAggregation:
    """The same, checked. Raises: MalformedMessage, NotFinite."""
    for adversary, number in _ADVERSARIES:
        if message.adversary == number:
            return m.SecureAggregation(
                message.corrupt_fraction, message.dropout_fraction, adversary
            )
    raise MalformedMessage(
        f"adversary is {message.adversary}, which is not known", field="adversary"
    )


# --- keys ---------------------------------------------------------------------------------------


def encode_key_advertisement(advertisement: m.KeyAdvertisement) -> bytes:
    """Payload of a KeyAdvertisement statement."""
    return serialised(
        pb.KeyAdvertisement(
            round_id=advertisement.round_id,
            attempt=advertisement.attempt,
            client_id=advertisement.client_id,
            session_id=advertisement.session_id,
            configuration_sha256=advertisement.configuration_sha256,
            share_public_key=advertisement.share_public_key,
            mask_public_key=advertisement.mask_public_key,
            nonce_commitment=advertisement.nonce_commitment,
        )
    )


def parse_key_advertisement(payload: bytes) -> m.KeyAdvertisement:
    """A checked KeyAdvertisement. Raises: MalformedMessage, LimitExceeded."""
    message = parsed(pb.KeyAdvertisement, payload)
    return m.KeyAdvertisement(
        round_id=ids.RoundId(message.round_id),
        attempt=message.attempt,
        client_id=ids.ClientId(message.client_id),
        session_id=ids.SessionId(message.session_id),
        configuration_sha256=message.configuration_sha256,
        share_public_key=message.share_public_key,
        mask_public_key=message.mask_public_key,
        nonce_commitment=message.nonce_commitment,
    )


def encode_key_roster(roster: m.KeyRoster) -> bytes:
    """Payload of a KeyRoster statement."""
    return serialised(
        pb.KeyRoster(
            mesh_id=roster.mesh_id,
            round_id=roster.round_id,
            attempt=roster.attempt,
            configuration_sha256=roster.configuration_sha256,
            members=roster.members,
            advertisement_sha256s=b"".join(roster.advertisement_sha256s),
            nonce_commitments=b"".join(roster.nonce_commitments),
        )
    )


def parse_key_roster(payload: bytes) -> m.KeyRoster:
    """A checked KeyRoster. Raises: MalformedMessage, LimitExceeded."""
    message = parsed(pb.KeyRoster, payload)
    return m.KeyRoster(
        mesh_id=message.mesh_id,
        round_id=ids.RoundId(message.round_id),
        attempt=message.attempt,
        configuration_sha256=message.configuration_sha256,
        members=message.members,
        advertisement_sha256s=_pieces(
            "advertisement_sha256s", message.advertisement_sha256s, 32, limits.MAX_ROSTER
        ),
        nonce_commitments=_pieces(
            "nonce_commitments", message.nonce_commitments, 32, limits.MAX_ROSTER
        ),
    )


def key_roster_notice_to_proto(notice: m.KeyRosterNotice) -> pb.KeyRosterNotice:
    """A notice of the key roster in wire form."""
    return pb.KeyRosterNotice(
        key_roster=statement_to_proto(notice.key_roster),
        leaf_hashes=b"".join(notice.leaf_hashes),
        weights=bytes(notice.weights),
    )


def key_roster_notice_from_proto(message: pb.KeyRosterNotice) -> m.KeyRosterNotice:
    """The same with checked form; its statement is unverified. Raises: MalformedMessage,
    LimitExceeded.
    """
    require(message, "key_roster")
    return m.KeyRosterNotice(
        key_roster=statement_from_proto(message.key_roster),
        leaf_hashes=_pieces("leaf_hashes", message.leaf_hashes, 32, limits.MAX_ROSTER),
        weights=tuple(message.weights),
    )


def nonce_reveal_to_proto(reveal: m.NonceReveal) -> pb.NonceReveal:
    """A revealed nonce in wire form."""
    return pb.NonceReveal(round_id=reveal.round_id, attempt=reveal.attempt, nonce=reveal.nonce)


def nonce_reveal_from_proto(message: pb.NonceReveal) -> m.NonceReveal:
    """A checked NonceReveal. Raises: MalformedMessage."""
    return m.NonceReveal(ids.RoundId(message.round_id), message.attempt, message.nonce)


def peers_notice_to_proto(notice: m.PeersNotice) -> pb.PeersNotice:
    """A notice of the neighbours in wire form."""
    return pb.PeersNotice(
        round_id=notice.round_id,
        attempt=notice.attempt,
        revealed=notice.revealed,
        nonces=b"".join(notice.nonces),
        peers=[
            pb.Peer(
                roster_entry=peer.roster_entry,
                advertisement=statement_to_proto(peer.advertisement),
            )
            for peer in notice.peers
        ],
    )


def peers_notice_from_proto(message: pb.PeersNotice) -> m.PeersNotice:
    """The same with checked form; entries and statements are unverified. Raises:
    MalformedMessage, LimitExceeded.
    """
    _cap("peers", len(message.peers), limits.MAX_NEIGHBOURS)
    return m.PeersNotice(
        round_id=ids.RoundId(message.round_id),
        attempt=message.attempt,
        revealed=message.revealed,
        nonces=_pieces("nonces", message.nonces, 32, limits.MAX_ROSTER),
        peers=tuple(_peer(peer) for peer in message.peers),
    )


def _peer(message: pb.Peer) -> m.Peer:
    require(message, "advertisement")
    return m.Peer(message.roster_entry, statement_from_proto(message.advertisement))


# --- shares -------------------------------------------------------------------------------------


def encode_dealt_shares(dealt: m.DealtShares) -> bytes:
    """Payload of a DealtShares statement."""
    return serialised(
        pb.DealtShares(
            round_id=dealt.round_id,
            attempt=dealt.attempt,
            client_id=dealt.client_id,
            session_id=dealt.session_id,
            key_roster_sha256=dealt.key_roster_sha256,
            seed_commitment=dealt.seed_commitment,
            holders=dealt.holders,
            commitments=b"".join(mask_key + seed for mask_key, seed in dealt.commitments),
        )
    )


def parse_dealt_shares(payload: bytes) -> m.DealtShares:
    """A checked DealtShares. Raises: MalformedMessage, LimitExceeded."""
    message = parsed(pb.DealtShares, payload)
    _cap("holders", len(message.holders), limits.MAX_NEIGHBOURS)
    pairs = _pieces("commitments", message.commitments, 64, limits.MAX_NEIGHBOURS)
    return m.DealtShares(
        round_id=ids.RoundId(message.round_id),
        attempt=message.attempt,
        client_id=ids.ClientId(message.client_id),
        session_id=ids.SessionId(message.session_id),
        key_roster_sha256=message.key_roster_sha256,
        seed_commitment=message.seed_commitment,
        holders=tuple(message.holders),
        commitments=tuple((pair[:32], pair[32:]) for pair in pairs),
    )


def shares_dealt_to_proto(shares: m.SharesDealt) -> pb.SharesDealt:
    """Dealt shares in wire form."""
    return pb.SharesDealt(
        dealt=statement_to_proto(shares.dealt), sealed_shares=shares.sealed_shares
    )


def shares_dealt_from_proto(message: pb.SharesDealt) -> m.SharesDealt:
    """The same with checked form; the statement is unverified. Raises: MalformedMessage,
    LimitExceeded.
    """
    require(message, "dealt")
    return m.SharesDealt(statement_from_proto(message.dealt), tuple(message.sealed_shares))


def shares_notice_to_proto(notice: m.SharesNotice) -> pb.SharesNotice:
    """A notice of dealt shares in wire form."""
    return pb.SharesNotice(
        round_id=notice.round_id,
        attempt=notice.attempt,
        shares=[
            pb.DealtShare(
                dealer=share.dealer,
                sealed_share=share.sealed_share,
                mask_key_commitment=share.mask_key_commitment,
                seed_commitment=share.seed_commitment,
            )
            for share in notice.shares
        ],
    )


def shares_notice_from_proto(message: pb.SharesNotice) -> m.SharesNotice:
    """A checked SharesNotice. Raises: MalformedMessage, LimitExceeded."""
    _cap("shares", len(message.shares), limits.MAX_NEIGHBOURS)
    return m.SharesNotice(
        round_id=ids.RoundId(message.round_id),
        attempt=message.attempt,
        shares=tuple(
            m.DealtShare(
                share.dealer, share.sealed_share, share.mask_key_commitment, share.seed_commitment
            )
            for share in message.shares
        ),
    )


# --- survivors ----------------------------------------------------------------------------------


def encode_survivors(survivors: m.Survivors) -> bytes:
    """Payload of a Survivors statement."""
    return serialised(
        pb.Survivors(
            mesh_id=survivors.mesh_id,
            round_id=survivors.round_id,
            attempt=survivors.attempt,
            key_roster_sha256=survivors.key_roster_sha256,
            survivors=survivors.survivors,
        )
    )


def parse_survivors(payload: bytes) -> m.Survivors:
    """A checked Survivors. Raises: MalformedMessage, LimitExceeded."""
    message = parsed(pb.Survivors, payload)
    return m.Survivors(
        mesh_id=message.mesh_id,
        round_id=ids.RoundId(message.round_id),
        attempt=message.attempt,
        key_roster_sha256=message.key_roster_sha256,
        survivors=message.survivors,
    )


def survivors_notice_to_proto(notice: m.SurvivorsNotice) -> pb.SurvivorsNotice:
    """A notice of the survivors in wire form."""
    return pb.SurvivorsNotice(survivors=statement_to_proto(notice.survivors))


def survivors_notice_from_proto(message: pb.SurvivorsNotice) -> m.SurvivorsNotice:
    """The same; its statement is unverified. Raises: MalformedMessage."""
    require(message, "survivors")
    return m.SurvivorsNotice(statement_from_proto(message.survivors))


def encode_survivors_seen(seen: m.SurvivorsSeen) -> bytes:
    """Payload of a SurvivorsSeen statement."""
    return serialised(
        pb.SurvivorsSeen(
            round_id=seen.round_id,
            attempt=seen.attempt,
            client_id=seen.client_id,
            session_id=seen.session_id,
            key_roster_sha256=seen.key_roster_sha256,
            survivors=seen.survivors,
        )
    )


def parse_survivors_seen(payload: bytes) -> m.SurvivorsSeen:
    """A checked SurvivorsSeen. Raises: MalformedMessage, LimitExceeded."""
    message = parsed(pb.SurvivorsSeen, payload)
    return m.SurvivorsSeen(
        round_id=ids.RoundId(message.round_id),
        attempt=message.attempt,
        client_id=ids.ClientId(message.client_id),
        session_id=ids.SessionId(message.session_id),
        key_roster_sha256=message.key_roster_sha256,
        survivors=message.survivors,
    )


def signatures_notice_to_proto(notice: m.SignaturesNotice) -> pb.SignaturesNotice:
    """A notice of the neighbours' signatures in wire form."""
    return pb.SignaturesNotice(
        round_id=notice.round_id,
        attempt=notice.attempt,
        signatures=[statement_to_proto(statement) for statement in notice.signatures],
    )


def signatures_notice_from_proto(message: pb.SignaturesNotice) -> m.SignaturesNotice:
    """The same with checked form; its statements are unverified. Raises: MalformedMessage,
    LimitExceeded.
    """
    _cap("signatures", len(message.signatures), limits.MAX_NEIGHBOURS)
    return m.SignaturesNotice(
        round_id=ids.RoundId(message.round_id),
        attempt=message.attempt,
        signatures=tuple(statement_from_proto(statement) for statement in message.signatures),
    )


def shares_released_to_proto(released: m.SharesReleased) -> pb.SharesReleased:
    """Released shares in wire form."""
    return pb.SharesReleased(
        round_id=released.round_id,
        attempt=released.attempt,
        shares=_released_to_proto(released.shares),
    )


def _released_to_proto(shares: Iterable[m.ReleasedShare]) -> list[pb.ReleasedShare]:
    return [
        pb.ReleasedShare(
            dealer=share.dealer,
            kind=pb.ShareKind.ValueType(share.kind),
            share=share.share,
            salt=share.salt,
        )
        for share in shares
    ]


def shares_released_from_proto(message: pb.SharesReleased) -> m.SharesReleased:
    """A checked SharesReleased. Raises: MalformedMessage, LimitExceeded."""
    _cap("shares", len(message.shares), limits.MAX_NEIGHBOURS)
    return m.SharesReleased(
        round_id=ids.RoundId(message.round_id),
        attempt=message.attempt,
        shares=tuple(
            m.ReleasedShare(
                share.dealer, known_enum(m.ShareKind, "kind", share.kind), share.share, share.salt
            )
            for share in message.shares
        ),
    )
