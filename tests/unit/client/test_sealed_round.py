"""A client's part in a sealed round, with the others and the server in memory."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from boltz_client.sealed_round import NOTICES, Step, Taken
from boltz_protocol import codec, codec_sealed
from boltz_protocol import messages as m
from boltz_protocol.errors import (
    MalformedMessage,
    MeshError,
    RoundClosed,
    RoundRefused,
    SignatureInvalid,
    Unavailable,
)
from boltz_protocol.ids import RoundId
from boltz_protocol.secagg.client import Floors
from boltz_protocol.statement import sign_ed25519
from boltz_protocol.v1 import aggregator_pb2 as pb
from tests.support.secagg import World
from tests.unit.client.sealed_mesh import OTHERS, SIZE, Mesh, is_wiped

# --- what should happen -------------------------------------------------------------------------


async def test_an_attempt_gives_the_plain_sum_and_leaves_no_secret() -> None:
    mesh = await Mesh().until(Step.SIGNATURES)
    mesh.world.release(OTHERS)
    assert mesh.world.is_enough()
    np.testing.assert_array_equal(mesh.world.unmasked_sum(), np.sum(mesh.world.values, axis=0))
    assert is_wiped(mesh.part)
    assert {field.name for field in _response_fields() if field.number >= 4} == NOTICES


def _response_fields() -> list[Any]:
    return list(pb.ParticipateResponse.DESCRIPTOR.oneofs_by_name["message"].fields)


@pytest.mark.parametrize("last", Step)
async def test_a_repeated_notice_gets_the_same_bytes(last: Step) -> None:
    mesh = await Mesh().until(last)
    for _ in range(2):
        for step, message in mesh.sent.items():
            taken = await mesh.part.take(message)
            assert taken.passed_over is None
            done = mesh.part._done[step].answer
            assert (taken.answer is None) == (step in (Step.KEY_ROSTER, Step.SHARES))
            if taken.answer is not None:
                assert done is not None
                assert taken.answer.SerializeToString() == done.SerializeToString()


async def test_an_offer_that_comes_again_gets_the_same_keys_until_they_are_shown() -> None:
    mesh = Mesh()
    assert mesh.part.advertisement_again() is None
    first = await mesh.part.advertise()
    assert mesh.part.advertisement_again() is first
    mesh.heard(first)
    await mesh.show(Step.KEY_ROSTER)
    assert mesh.part.advertisement_again() is None


async def test_more_signatures_later_change_nothing_of_what_was_released() -> None:
    mesh = await Mesh().until(Step.SURVIVORS)
    mesh.change[Step.SIGNATURES] = lambda n: replace(n, signatures=n.signatures[:-1])
    first = await mesh.show(Step.SIGNATURES)
    mesh.change.clear()
    assert (await mesh.show(Step.SIGNATURES)).answer is first.answer
    assert first.answer is not None


async def test_nonces_are_revealed_in_a_large_round() -> None:
    world = World.of(60, corrupt_fraction=0.02, dropout_fraction=0.02)
    mesh = Mesh(world)
    mesh.heard(await mesh.part.advertise())
    answer = (await mesh.show(Step.KEY_ROSTER)).answer
    assert answer is not None
    reveal = codec_sealed.nonce_reveal_from_proto(answer.nonce_reveal)
    assert reveal.round_id == world.configuration.round_id


async def test_who_is_late_signs_and_releases_and_gets_no_masks() -> None:
    mesh = Mesh()
    mesh.heard(await mesh.part.advertise())
    for step in (Step.KEY_ROSTER, Step.PEERS, Step.SHARES):
        mesh.heard((await mesh.show(step)).answer)
    assert mesh.part.is_sharer
    assert not mesh.part.is_left_out
    mesh.heard((await mesh.show(Step.SURVIVORS)).answer)
    assert mesh.part.is_left_out
    with pytest.raises(RoundClosed):
        await mesh.part.masks()
    # Asking too late must not have cost the others this client's help.
    mesh.heard((await mesh.show(Step.SIGNATURES)).answer)
    mesh.world.release(OTHERS)
    expected = np.sum([mesh.world.values[index] for index in OTHERS], axis=0)
    np.testing.assert_array_equal(mesh.world.unmasked_sum(), expected)


async def test_masks_wait_for_the_shares() -> None:
    mesh = Mesh()
    waiting = asyncio.create_task(mesh.part.masks())
    mesh.heard(await mesh.part.advertise())
    for step in (Step.KEY_ROSTER, Step.PEERS):
        mesh.heard((await mesh.show(step)).answer)
    await asyncio.sleep(0)
    assert not waiting.done()
    await mesh.show(Step.SHARES)
    assert len(await waiting) == SIZE


# --- what should not happen ---------------------------------------------------------------------


@pytest.mark.parametrize("step", list(Step)[1:])
async def test_a_notice_out_of_its_turn_is_passed_over(step: Step) -> None:
    full = await Mesh().until(Step.SIGNATURES)
    mesh = Mesh()
    mesh.heard(await mesh.part.advertise())
    taken = await mesh.part.take(full.sent[step])
    assert taken.answer is None
    assert taken.passed_over is not None
    # It has cost nothing.
    taken = await mesh.show(Step.KEY_ROSTER)
    assert taken == Taken()
    assert not is_wiped(mesh.part)


async def test_notices_of_another_round_are_nobodys_business() -> None:
    other = RoundId("ab" * 16)
    for step in (Step.PEERS, Step.SHARES, Step.SURVIVORS, Step.SIGNATURES):
        mesh = Mesh()
        await mesh.until(list(Step)[list(Step).index(step) - 1])
        mesh.change[step] = lambda notice: replace(notice, round_id=other)
        assert await mesh.show(step) == Taken()
        assert not is_wiped(mesh.part)
        mesh.change.clear()
        assert (await mesh.part.take(mesh.notice(step))).passed_over is None


def _other_weights(notice: m.KeyRosterNotice) -> m.KeyRosterNotice:
    return replace(notice, weights=(notice.weights[0] + 1, *notice.weights[1:]))


REFUSED: dict[str, tuple[Step, Callable[[Any], Any], type[MeshError]]] = {
    "weights": (Step.KEY_ROSTER, _other_weights, RoundRefused),
    "a key roster the mesh did not sign": (
        Step.KEY_ROSTER,
        lambda n: replace(n, key_roster=replace(n.key_roster, signature=bytes(64))),
        SignatureInvalid,
    ),
    "another statement": (
        Step.KEY_ROSTER,
        lambda n: replace(n, key_roster=replace(n.key_roster, type=m.SURVIVORS)),
        SignatureInvalid,
    ),
    "a peer less": (Step.PEERS, lambda n: replace(n, peers=n.peers[:-1]), RoundRefused),
    "a peer's keys": (
        Step.PEERS,
        lambda n: replace(
            n, peers=(replace(n.peers[0], advertisement=n.peers[1].advertisement), *n.peers[1:])
        ),
        RoundRefused,
    ),
    "a peer's signature": (
        Step.PEERS,
        lambda n: replace(
            n,
            peers=(
                replace(
                    n.peers[0],
                    advertisement=replace(n.peers[0].advertisement, signature=bytes(32)),
                ),
                *n.peers[1:],
            ),
        ),
        SignatureInvalid,
    ),
    "too few sharers": (Step.SHARES, lambda n: replace(n, shares=n.shares[:1]), RoundRefused),
    "too few survivors": (
        Step.SURVIVORS,
        lambda s: replace(s, survivors=b"\x01"),
        RoundRefused,
    ),
    "survivors of another roster's size": (
        Step.SURVIVORS,
        lambda s: replace(s, survivors=s.survivors + b"\x01"),
        MalformedMessage,
    ),
    "too few signatures": (
        Step.SIGNATURES,
        lambda n: replace(n, signatures=n.signatures[:1]),
        RoundRefused,
    ),
    "a signature twice": (
        Step.SIGNATURES,
        lambda n: replace(n, signatures=n.signatures[:1] * 2),
        MalformedMessage,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_refusal_forgets_everything(name: str) -> None:
    step, change, error = REFUSED[name]
    mesh = Mesh()
    mesh.change[step] = change
    with pytest.raises(error) as caught:
        await mesh.until(step)
    assert type(caught.value) is error
    assert is_wiped(mesh.part)
    # Whoever keeps the error keeps no variable of the step that found it.
    frames = [
        frame.f_code.co_qualname for frame, _ in traceback.walk_tb(caught.value.__traceback__)
    ]
    assert not [name for name in frames if "_take" in name or "secagg" in name.lower()], frames
    assert mesh.part.advertisement_again() is None
    assert not mesh.part.is_sharer
    for message in mesh.sent.values():
        taken = await mesh.part.take(message)
        assert taken.answer is None
        assert taken.passed_over is not None


SECOND: dict[Step, Callable[[Any], Any]] = {
    Step.KEY_ROSTER: _other_weights,
    Step.PEERS: lambda n: replace(n, peers=n.peers[:-1]),
    Step.SHARES: lambda n: replace(n, shares=n.shares[:-1]),
    Step.SURVIVORS: lambda s: replace(s, survivors=b"\x0f"),
}


@pytest.mark.parametrize("step", SECOND)
async def test_a_second_different_notice_is_refused(step: Step) -> None:
    mesh = await Mesh().until(step)
    first = mesh.sent[step]
    message = pb.ParticipateResponse()
    message.CopyFrom(first)
    # The same world signs another one; the others are not asked again.
    match step:
        case Step.KEY_ROSTER:
            roster = codec_sealed.key_roster_notice_from_proto(first.key_roster)
            message.key_roster.CopyFrom(
                codec_sealed.key_roster_notice_to_proto(_other_weights(roster))
            )
        case Step.PEERS:
            del message.peers.peers[-1]
        case Step.SHARES:
            del message.shares.shares[-1]
        case _:
            payload = SECOND[step](mesh.world.survivors_payload())
            statement = mesh.world.sign(m.SURVIVORS, codec_sealed.encode_survivors(payload))
            message.survivors.survivors.CopyFrom(codec.statement_to_proto(statement))
    with pytest.raises(RoundRefused):
        await mesh.part.take(message)
    assert is_wiped(mesh.part)


async def test_a_survivor_that_uploaded_nothing_is_no_survivor() -> None:
    mesh = Mesh()
    await mesh.until(Step.SHARES)
    mesh.part.uploading = False
    with pytest.raises(RoundRefused, match="uploaded nothing"):
        await mesh.show(Step.SURVIVORS)
    assert is_wiped(mesh.part)


async def test_the_owners_floors_are_held() -> None:
    mesh = Mesh(World.of(SIZE, floors={0: Floors(least_survivors=SIZE + 1)}))
    with pytest.raises(RoundRefused, match="members"):
        await mesh.until(Step.KEY_ROSTER)


async def test_a_notice_that_does_not_parse_is_refused() -> None:
    mesh = await Mesh().until(Step.KEY_ROSTER)
    with pytest.raises(MalformedMessage):
        await mesh.part.take(pb.ParticipateResponse(peers=pb.PeersNotice(round_id="x")))
    assert is_wiped(mesh.part)


async def test_masks_are_given_out_once() -> None:
    mesh = await Mesh().until(Step.SHARES)
    with pytest.raises(RoundRefused):
        await mesh.part.masks()


async def test_keys_that_cannot_be_fetched_cost_nothing() -> None:
    mesh = Mesh()
    mesh.heard(await mesh.part.advertise())
    mesh.unreachable = True
    with pytest.raises(Unavailable):
        await mesh.show(Step.KEY_ROSTER)
    assert not is_wiped(mesh.part)
    mesh.unreachable = False
    assert await mesh.part.take(mesh.sent[Step.KEY_ROSTER]) == Taken()
    assert (await mesh.show(Step.PEERS)).answer is not None


async def test_what_was_wiped_in_the_middle_of_a_step_is_not_sent() -> None:
    mesh = await Mesh().until(Step.KEY_ROSTER)
    mesh.peers.leave.clear()
    taking = asyncio.create_task(mesh.show(Step.PEERS))
    await asyncio.to_thread(mesh.peers.entered.wait, 10)
    mesh.part.wipe()
    mesh.peers.leave.set()
    assert await taking == Taken()
    with pytest.raises(RoundClosed):
        await mesh.part.advertise()


async def test_secrets_do_not_wait_for_ever_for_the_end() -> None:
    mesh = await Mesh(lifetime_s=0.2).until(Step.SHARES)
    # A timer of the same loop that was set later.
    later = asyncio.Event()
    asyncio.get_running_loop().call_later(0.25, later.set)
    await later.wait()
    assert is_wiped(mesh.part)
    assert (await mesh.show(Step.SURVIVORS)).answer is None


async def test_secrets_hide() -> None:
    mesh = await Mesh().until(Step.SHARES)
    shown = repr(mesh.part)
    assert mesh.world.configuration.round_id in shown
    assert "key_roster, peers, shares" in shown
    assert "Secagg" not in shown


async def test_the_mesh_key_is_the_only_one() -> None:
    # The helper above verifies for real: a stranger's statement does not pass.
    world = World.of(3)
    stranger = sign_ed25519(type=m.SURVIVORS, payload=b"x", private_key=World.of(3).mesh_key)
    with pytest.raises(SignatureInvalid):
        await Mesh(world).verified(stranger, m.SURVIVORS)
