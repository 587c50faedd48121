"""Leaks planted in the client or its habits over real gRPC: the extractor must open what they open.

Each test also shows the moment before: one share fewer, one vector, fresh keys, and nothing is
found but the sum.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

from boltz_protocol import codec, codec_sealed
from boltz_protocol import messages as m
from boltz_protocol.errors import SecondDigest
from boltz_protocol.secagg import client_states, client_steps
from boltz_protocol.secagg.client import SecaggClient
from boltz_protocol.secagg.masks import MaskStream
from boltz_protocol.secagg.peers import VerifyPeer
from boltz_protocol.v1 import aggregator_pb2 as agg
from tests.integration.sealed.extractor import Combination, Extraction, Reading, extract
from tests.integration.sealed.players import (
    BUDGET,
    Player,
    Tapped,
    begin,
    check_noise,
    each,
    end,
    noise_in,
)
from tests.integration.sealed.reading import read
from tests.integration.sealed.view import View
from tests.support.calls import refused
from tests.support.clients import Sealed, Upload, published

COUNT, THRESHOLD = 4, 3
NOISED: dict[str, Any] = {"privacy": "client-dp", "noise": 1.0, "tables": BUDGET}
VICTIM = 1


async def up_to_masks(players: Collection[Player]) -> None:
    await each(players, Player.advertise)
    await each(players, Player.deal)
    await each(players, Player.take_shares)


async def to_the_end(tapped: Tapped, players: Collection[Player]) -> None:
    await each(players, Player.sign)
    await each(players, Player.release)
    await published(tapped.mesh, round_of(players))


def round_of(players: Collection[Player]) -> str:
    return next(iter(players)).offer.configuration.round_id


async def seen(tapped: Tapped, *rounds: Collection[Player]) -> View:
    view = read(await tapped.tap.transcript(), tapped.mesh.name)
    return view.within(*map(round_of, rounds))


def check(found: Combination, players: Collection[Player], *, vectors: int) -> None:
    """That it is a combination of so many true vectors and their noise."""
    configuration = next(iter(players)).offer.configuration
    assert len(found.weights) == vectors
    residue = noise_in(found, players)
    check_noise(configuration, residue, clients=vectors, protects=False)


def only_the_sum(extraction: Extraction, players: Collection[Player]) -> bool:
    whole = extraction.row(*(player.label() for player in players))
    return extraction.is_spanned_by([whole])


async def test_both_kinds_of_share_of_one_client(
    tapped: Tapped, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many holders as the threshold tell the other kind too; the server need not even want it,
    and passes it over."""
    slips: dict[int, agg.ParticipateRequest] = {}
    take_signatures = client_steps.take_signatures

    def generous(
        me: client_steps.Member,
        state: client_states.Signed,
        notice: m.SignaturesNotice,
        verify: VerifyPeer,
    ) -> tuple[client_states.State, m.SharesReleased]:
        after, answer = take_signatures(me, state, notice, verify)
        other = state.held[VICTIM].released(VICTIM, m.ShareKind.MASK_KEY)
        said = m.SharesReleased(answer.round_id, answer.attempt, (other,))
        slips[me.entry.index] = agg.ParticipateRequest(
            shares_released=codec_sealed.shares_released_to_proto(said)
        )
        return after, answer

    monkeypatch.setattr(client_steps, "take_signatures", generous)
    players = await begin(tapped, tapped.clients[:COUNT], model, **NOISED)
    await up_to_masks(players)
    await each(players, Player.upload)
    await to_the_end(tapped, players)
    *first, last = (player for player in players if player.position != VICTIM)

    async def slip(player: Player) -> None:
        message = slips[player.position]
        await player.sealed.say(message)
        await tapped.tap.heard(message.SerializeToString())

    assert len(first) == THRESHOLD - 1
    await each(first, slip)
    assert only_the_sum(extract(await seen(tapped, players)), players)
    await slip(last)
    extraction = extract(await seen(tapped, players))
    victim = extraction.row(players[VICTIM].label())
    whole = extraction.row(*(player.label() for player in players))
    assert extraction.is_spanned_by([victim, whole])
    assert len(extraction.found) == 2
    check(extraction.combine(victim), players, vectors=1)
    end(players)


async def test_a_mask_used_twice(
    tapped: Tapped, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that masks a second vector, after an error perhaps, gives the difference away; that
    the server refuses the second one comes too late."""
    kept: dict[int, tuple[MaskStream, ...]] = {}
    mask_streams = SecaggClient.mask_streams

    def again(client: SecaggClient) -> tuple[MaskStream, ...]:
        if id(client) not in kept:
            kept[id(client)] = mask_streams(client)
        return kept[id(client)]

    monkeypatch.setattr(SecaggClient, "mask_streams", again)
    players = await begin(tapped, tapped.clients[:COUNT], model, **NOISED)
    victim = players[VICTIM]
    await up_to_masks(players)
    await victim.upload()
    before = extract(await seen(tapped, players))
    assert (before.labels, before.found) == ((victim.label(),), [])
    await push(tapped, victim, victim.masked())
    await each([player for player in players if player is not victim], Player.upload)
    await to_the_end(tapped, players)
    for reading in Reading:
        extraction = extract(await seen(tapped, players), reading=reading)
        whole = extraction.row(*(player.label() for player in players))
        difference = [
            {victim.label(0): 1, victim.label(1): -1}.get(label, 0) for label in extraction.labels
        ]
        assert extraction.is_spanned_by([whole, difference])
        assert len(extraction.found) == 2
        check(extraction.combine(difference), players, vectors=2)
    end(players)


async def push(tapped: Tapped, player: Player, sealed: Sealed) -> None:
    """A whole second update at once, without waiting for what the server says to its manifest."""
    manifest = codec.statement_to_proto(player.announced(sealed))
    (chunk,) = sealed.messages()
    request = agg.SubmitUpdateRequest(chunk=chunk)
    # Whether the server has read on when it refuses the manifest is a matter of moments.
    while not tapped.tap.has(request.SerializeToString()):
        upload = Upload(player.sealed.client.stubs)
        await upload.call.write(agg.SubmitUpdateRequest(manifest=manifest))
        await upload.call.write(request)
        await upload.call.done_writing()
        with refused(SecondDigest):
            await upload.answer()


@pytest.mark.parametrize("kept", [True, False])
async def test_keys_kept_for_the_next_round(tapped: Tapped, model: str, kept: bool) -> None:
    """Where its mask key was given away as a dropout's, a client's next vector is open; where it
    makes fresh keys, two rounds say no more than their sums."""
    clients = tapped.clients[:COUNT]
    first = await begin(tapped, clients, model, **NOISED)
    gone = next(player for player in first if player.sealed.client is clients[0])
    others = [player for player in first if player is not gone]
    await up_to_masks(first)
    await gone.leave()
    await each(others, Player.upload)
    await to_the_end(tapped, others)
    end(first)

    # Its share key and its mask key, in the order in which a client draws.
    given = gone.tape.drawn[:2] if kept else []
    second = await begin(tapped, clients, model, [given], declared=True)
    back = next(player for player in second if player.sealed.client is clients[0])
    await up_to_masks(second)
    await each(second, Player.upload)
    await to_the_end(tapped, second)
    end(second)

    extraction = extract(await seen(tapped, first, second))
    sums = [
        extraction.row(*(player.label() for player in each_round))
        for each_round in (others, second)
    ]
    assert only_the_sum(extract(await seen(tapped, first)), others)
    if kept:
        victim = extraction.row(back.label())
        assert extraction.is_spanned_by([*sums, victim])
        check(extraction.combine(victim), second, vectors=1)
    else:
        assert extraction.is_spanned_by(sums)
    assert len(extraction.found) == 2 + kept
