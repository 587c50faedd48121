"""What a client refuses before it releases; order, repetition, secrecy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from boltz_protocol import codec_sealed
from boltz_protocol import messages as m
from boltz_protocol.errors import (
    MalformedMessage,
    MeshError,
    RoundRefused,
    SignatureInvalid,
)
from boltz_protocol.secagg import client_states as states
from boltz_protocol.secagg.bitmap import bitmap
from boltz_protocol.secagg.keys import KeyPair, commit_nonce
from boltz_protocol.statement import Statement
from tests.support.secagg import (
    World,
    cheap_sign,
    cheap_verify,
    client_id,
    session_id,
)
from tests.unit.protocol.secagg.refusals import (
    SIZE,
    graphed,
    refused,
    rostered,
    sparse,
)

# --- signatures ---------------------------------------------------------------------------------


def signed_by(world: World, index: int, **change: object) -> Statement:
    payload = codec_sealed.parse_survivors_seen(world.seen[index].payload)
    changed = replace(payload, **change)  # type: ignore[arg-type]
    return cheap_sign(
        client_id(index), m.SURVIVORS_SEEN, codec_sealed.encode_survivors_seen(changed)
    )


def offer_signatures(
    world: World, index: int, *signatures: Statement, attempt: int = 1
) -> Callable[[], object]:
    notice = m.SignaturesNotice(world.configuration.round_id, attempt, signatures)
    return lambda: world.clients[index].take_signatures(notice, cheap_verify)


def test_too_few_signatures() -> None:
    world = World.of(SIZE).until_seen()
    assert world.attempt.graph_of(0).threshold == 3
    refused(world.clients[0], offer_signatures(world, 0, world.seen[1]), "2 signatures")
    offer_signatures(world, 1, world.seen[0], world.seen[2])()


def test_in_a_sparse_graph_its_own_signature_does_not_count() -> None:
    world = sparse().until_seen()
    threshold = world.attempt.graph_of(0).threshold
    near = [world.seen[index] for index in world.attempt.graph_of(0).neighbours(0)]
    refused(
        world.clients[0],
        offer_signatures(world, 0, *near[: threshold - 1]),
        f"{threshold - 1} signatures",
    )
    near = [world.seen[index] for index in world.attempt.graph_of(1).neighbours(1)]
    offer_signatures(world, 1, *near[:threshold])()


def test_signatures_that_are_not_for_these_survivors() -> None:
    world = World.of(8).until_seen(gone={7})
    other = bitmap(range(8), 8)
    good = (world.seen[5], world.seen[6])
    wrong_type = replace(world.seen[7], type=m.DEALT_SHARES)
    changes: list[tuple[Statement, type[MeshError], str]] = [
        (signed_by(world, 7, survivors=other), RoundRefused, "other survivors"),
        (signed_by(world, 7, key_roster_sha256=b"x" * 32), RoundRefused, "other survivors"),
        (signed_by(world, 7, session_id=session_id(1)), RoundRefused, "other survivors"),
        (wrong_type, SignatureInvalid, "not about survivors"),
        (replace(world.seen[7], signature=b"x" * 32), SignatureInvalid, "not this client"),
    ]
    for index, (statement, error, match) in enumerate(changes):
        refused(
            world.clients[index], offer_signatures(world, index, *good, statement), match, error
        )
    refused(
        world.clients[5],
        offer_signatures(world, 5, world.seen[0], world.seen[0]),
        "twice",
        MalformedMessage,
    )
    refused(world.clients[6], offer_signatures(world, 6, world.seen[6]), "twice", MalformedMessage)
    refused(world.clients[7], offer_signatures(world, 7, *good, attempt=2), "another round")


# --- order, repetition, secrecy -----------------------------------------------------------------


def test_steps_out_of_order() -> None:
    world = World.of(SIZE).until_uploaded()
    early = World.of(SIZE).clients
    calls: list[Callable[[], object]] = [
        partial(early[0].take_peers, world.peers_of(0), cheap_verify),
        partial(early[1].take_shares, world.shares_for(0)),
        partial(early[2].take_survivors, world.survivors_payload()),
        partial(early[3].take_signatures, world.signatures_for(0), cheap_verify),
    ]
    for client, call in zip(early, calls, strict=False):
        refused(client, call, "does not follow on Fresh")


def test_the_same_notice_again_gives_the_same_answer() -> None:
    world = World.of(SIZE)
    client = world.clients[0]
    assert client.advertise() == client.advertise()
    notice = rostered(world)
    world.show_roster(range(SIZE), notice)
    world.show_roster([0], notice)
    world.fix_graph()
    peers = world.peers_of(0)
    assert client.take_peers(peers, cheap_verify) is client.take_peers(peers, cheap_verify)
    world.deal(range(1, SIZE))
    world.take_dealt(0, client.take_peers(peers, cheap_verify))
    world.share(range(SIZE))
    world.share([0])
    world.upload(range(SIZE))
    world.show_survivors(range(SIZE))
    signatures = world.signatures_for(0)
    first = client.take_signatures(signatures, cheap_verify)
    assert client.take_signatures(signatures, cheap_verify) is first
    assert not client.is_dead


def test_one_kind_of_share_for_each_dealer() -> None:
    world = World.of(9).until_seen(gone={2, 5})
    for index in range(9):
        released = world.clients[index].take_signatures(world.signatures_for(index), cheap_verify)
        kinds = {share.dealer: share.kind for share in released.shares}
        assert kinds == {
            dealer: m.ShareKind.MASK_KEY if dealer in {2, 5} else m.ShareKind.SEED
            for dealer in range(9)
        }
        assert isinstance(world.clients[index]._state, states.Released)


def test_secrets_are_not_in_any_representation() -> None:
    drawn: list[bytes] = []

    def recorded(size: int) -> bytes:
        value = hashlib.sha256(b"%d" % len(drawn)).digest()[:size]
        drawn.append(value)
        return value

    world = World.of(SIZE)
    client = world.clients[0] = world.new_client(0, recorded)
    shown = [repr(client)]

    def look() -> None:
        shown.extend((repr(client), repr(client._state), repr(client._member)))

    world.advertise(range(SIZE))
    look()
    world.show_roster(range(SIZE), world.fix_roster())
    look()
    world.fix_graph()
    world.deal(range(SIZE))
    look()
    world.share(range(SIZE))
    look()
    world.upload(range(SIZE))
    world.show_survivors(range(SIZE))
    look()
    released = client.take_signatures(world.signatures_for(0), cheap_verify)
    look()
    shown.append(repr(released))
    text = "\n".join(shown)
    assert "Ready" in text
    private = [KeyPair(drawn[0]).private_bytes(), *drawn]
    for secret in private:
        assert secret.hex() not in text
        assert repr(secret)[2:-1] not in text
    assert commit_nonce(drawn[2])


def test_whatever_a_callback_raises_ends_the_session() -> None:
    world = graphed(World.of(SIZE))
    client = world.clients[0]

    def broken(entry: m.RosterEntry, statement: Statement) -> bytes:
        raise LookupError(entry.client_id)

    with pytest.raises(LookupError):
        client.take_peers(world.peers_of(0), broken)
    with pytest.raises(RoundRefused, match="has ended: LookupError"):
        client.take_peers(world.peers_of(0), cheap_verify)
