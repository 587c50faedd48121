"""Sealed rounds over real gRPC, played message by message."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from boltz_mesh.storage.postgres import Channel
from boltz_mesh.trust.reputation import LARGE_LOSS_256
from boltz_protocol import messages as m
from boltz_protocol.errors import (
    MalformedMessage,
    NotFound,
    NotInRoster,
    RoundClosed,
    SecondMessage,
    ShareRefused,
    SignatureInvalid,
)
from boltz_protocol.v1 import aggregator_pb2 as agg
from boltz_protocol.v1 import common_pb2
from tests.integration.services.playing import abort, all_in, budget, constant, leave, live
from tests.support.calls import refused
from tests.support.clients import (
    RawClient,
    aborted,
    published,
    reached,
    seal,
    start_round,
    submit,
)
from tests.support.mesh import Mesh
from tests.support.models import declare
from tests.support.sealed_clients import SealedClient

BUDGET = "[budget]\nepsilon = 50\ndelta = 1e-5\n"
SEALED: dict[str, Any] = {"mode": "sealed", "min": 3, "target": 4, "max": 4}


async def each(
    members: Sequence[SealedClient], step: Callable[[SealedClient], Awaitable[object]]
) -> None:
    await asyncio.gather(*(step(member) for member in members))


async def join(mesh: Mesh, clients: list[RawClient], model: str) -> tuple[list[SealedClient], str]:
    streams = await all_in(clients, model)
    started = await start_round(mesh, model)
    assert started.mode == common_pb2.ROUND_MODE_SEALED
    members = [
        await SealedClient.join(client, stream)
        for client, stream in zip(clients, streams, strict=True)
    ]
    return members, started.round_id


async def advertise(member: SealedClient) -> None:
    await member.say(member.advertisement())


async def share(member: SealedClient) -> None:
    assert await member.key_roster() is None
    await member.say(await member.peers())


async def sign(member: SealedClient) -> None:
    await member.say(await member.survivors())


async def release(member: SealedClient) -> None:
    await member.say(await member.signatures())


async def upload(member: SealedClient, value: float) -> None:
    await submit(member.client, member.masked(constant(value)))


async def up_to_upload(members: Sequence[SealedClient]) -> None:
    await each(members, advertise)
    await each(members, share)
    await each(members, SealedClient.shares)


async def conduct(mesh: Mesh, round_id: str, member: SealedClient) -> tuple[str, int]:
    """Why a client gained or lost trust by a round that has ended, and how much it lost."""
    (row,) = await mesh.fetch(
        "SELECT reason, loss_256 FROM trust_evidence WHERE round_id = $1 AND client_id = $2",
        round_id,
        member.client.client_id,
    )
    return str(row["reason"]), int(row["loss_256"])


async def test_the_survivors_sum_and_nothing_else(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    start = np.arange(8, dtype=np.float32)
    await declare(mesh, model, start, **SEALED)
    members, round_id = await join(mesh, clients, model)
    assert members[0].offer.configuration.mode is m.RoundMode.SEALED
    await up_to_upload(members)
    for member, value in zip(members, (0.1, 0.2, -0.1, 0.3), strict=True):
        await upload(member, value)
    await reached(mesh, round_id, agg.PHASE_CHECKING_CONSISTENCY)
    assert await charged(mesh, round_id) == 0
    await each(members, sign)
    await reached(mesh, round_id, agg.PHASE_UNMASKING)
    assert await charged(mesh, round_id) == 4
    await each(members, release)
    ended = await published(mesh, round_id)
    assert (ended.new_version, ended.received) == (2, 4)
    resolution = 1 / members[0].offer.configuration.scale
    np.testing.assert_allclose(
        await live(mesh, model), start + (0.1 + 0.2 - 0.1 + 0.3) / 4, atol=4 * resolution
    )
    for member in members:
        outcome = await member.stream.outcome()
        assert outcome.phase is m.Phase.PUBLISHED
        assert outcome.counted
    await leave([member.stream for member in members])


@pytest.mark.parametrize("last", ["advertise", "share", "upload", "sign"])
async def test_a_client_that_leaves_is_missing_from_the_sum_only(
    mesh: Mesh, clients: list[RawClient], model: str, last: str
) -> None:
    """The last client of four does no more after the step `last`."""
    await declare(mesh, model, sharing="2s", checking="2s", **SEALED)
    members, round_id = await join(mesh, clients, model)
    *others, gone = members
    survivors = others if last in {"advertise", "share"} else members

    async def goes() -> None:
        # Its stream ends and it declines: nobody waits for it.
        await gone.stream.decline(gone.offer, "CLIENT_LEFT")

    await each(members, advertise)
    if last == "advertise":
        await gone.key_roster()
        await gone.peers()
        await goes()
    await each(others if last == "advertise" else members, share)
    await each(others if last == "advertise" else members, SealedClient.shares)
    if last == "share":
        await goes()
    for member in survivors:
        await upload(member, 0.25)
    if last == "upload":
        await reached(mesh, round_id, agg.PHASE_CHECKING_CONSISTENCY)
        await goes()
    await each(members if last == "sign" else others, sign)
    await each(others, release)
    ended = await published(mesh, round_id)
    assert ended.received == len(survivors)
    np.testing.assert_allclose(await live(mesh, model), np.full(8, 0.25), atol=1e-5)
    await leave([member.stream for member in members])


async def test_a_late_client_is_no_survivor_and_helps_all_the_same(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model, **SEALED | {"target": 3, "over_selection": 1.3})
    members, round_id = await join(mesh, clients, model)
    await up_to_upload(members)
    for member in members[1:]:
        await upload(member, 0.25)
    await each(members, sign)
    # One of the survivors goes; the late one's shares are needed in its place.
    await members[3].stream.decline(members[3].offer, "CLIENT_LEFT")
    await each(members[:3], release)
    assert (await published(mesh, round_id)).received == 3
    np.testing.assert_allclose(await live(mesh, model), np.full(8, 0.25), atol=1e-5)
    outcome = await members[0].stream.outcome()
    assert not outcome.counted
    await leave([member.stream for member in members])


async def test_noise_comes_from_the_clients_and_is_charged_before_anything_is_released(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    size = 4096
    await declare(
        mesh,
        model,
        np.zeros(size, np.float32),
        size=size,
        privacy="client-dp",
        noise=1.0,
        tables=BUDGET,
        **SEALED,
    )
    members, round_id = await join(mesh, clients, model)
    await up_to_upload(members)
    for member in members:
        await submit(member.client, member.masked(constant(0.0, size)))
    await each(members, sign)
    await reached(mesh, round_id, agg.PHASE_UNMASKING)
    spent = await budget(mesh, model)
    assert (spent.rounds_charged, spent.unit) == (1, "client")
    rows = await mesh.fetch("SELECT * FROM privacy_events WHERE round_id = $1", round_id)
    assert {row["mechanism"] for row in rows} == {"distributed-discrete-gaussian"}
    assert len(rows) == 4
    await each(members, release)
    await published(mesh, round_id)
    configuration = members[0].offer.configuration
    # Four shares of a sigma that three make up: the sum has 4/3 of the target's variance.
    sigma = configuration.bound_l2 / configuration.scale / 4
    noise = await live(mesh, model, size)
    assert np.var(noise) / sigma**2 == pytest.approx(4 / 3, rel=0.2)
    assert (await budget(mesh, model)).rounds_charged == 1
    await leave([member.stream for member in members])


# --- what is kept -------------------------------------------------------------------------------


async def test_released_shares_are_encrypted_at_rest_and_an_abort_keeps_the_charge(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model, unmasking="60s", **SEALED)
    members, round_id = await join(mesh, clients, model)
    await up_to_upload(members)
    for member in members:
        await upload(member, 0.1)
    await each(members, sign)
    said = await members[0].signatures()
    await members[0].say(said)
    await stored(mesh, round_id, "released-shares", 1)
    rows = await mesh.fetch(
        "SELECT payload FROM round_messages WHERE round_id = $1 AND kind = 'released-shares'",
        round_id,
    )
    assert all(share.share not in rows[0]["payload"] for share in said.shares_released.shares)
    await abort(mesh, round_id)
    ended = await aborted(mesh, round_id)
    assert ended.reason == "wrong data"
    assert await charged(mesh, round_id) == 4
    await leave([member.stream for member in members])


# --- refusals -----------------------------------------------------------------------------------


async def test_a_second_advertisement_is_refused(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model, **SEALED)
    members, round_id = await join(mesh, clients, model)
    first = members[0].advertisement()
    await members[0].say(first)
    await members[0].say(first)
    await stored(mesh, round_id, "key-advertisement", 1)
    other = SealedClient(
        members[0].client,
        members[0].stream,
        members[0].offer,
        SealedClient.session(members[0].client, members[0].offer),
    )
    await other.say(other.advertisement())
    with refused(SecondMessage):
        await other.stream.next()
    await end(mesh, round_id, members)
    assert await conduct(mesh, round_id, members[0]) == ("second-message", LARGE_LOSS_256)


async def test_keys_of_another_client_are_refused(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model, **SEALED)
    members, round_id = await join(mesh, clients, model)
    await members[0].say(members[1].advertisement())
    with refused(SignatureInvalid):
        await members[0].stream.next()
    await end(mesh, round_id, members)


async def test_a_round_that_nobody_knows(mesh: Mesh, clients: list[RawClient], model: str) -> None:
    await declare(mesh, model, **SEALED)
    (stream,) = await all_in(clients[:1], model)
    reveal = agg.NonceReveal(round_id="ab" * 16, attempt=1, nonce=bytes(32))
    await stream.call.write(agg.ParticipateRequest(nonce_reveal=reveal))
    with refused(NotFound):
        await stream.next()


async def test_a_client_that_was_not_selected(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model, **SEALED | {"target": 3, "max": 3})
    members, round_id = await join(mesh, clients[:3], model)
    (stream,) = await all_in(clients[3:], model)
    reveal = agg.NonceReveal(round_id=round_id, attempt=1, nonce=bytes(32))
    await stream.call.write(agg.ParticipateRequest(nonce_reveal=reveal))
    with refused(NotInRoster):
        await stream.next()
    await end(mesh, round_id, members)


async def test_what_comes_before_or_after_its_time_changes_nothing(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model, **SEALED)
    members, round_id = await join(mesh, clients, model)
    reveal = agg.NonceReveal(round_id=round_id, attempt=1, nonce=bytes(32))
    await members[0].say(agg.ParticipateRequest(nonce_reveal=reveal))
    await up_to_upload(members)
    await members[0].say(members[0].advertisement())
    await play_out(members)
    await published(mesh, round_id)
    await leave([member.stream for member in members])


async def test_a_lying_releaser_is_refused_and_the_round_goes_on(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model, **SEALED)
    members, round_id = await join(mesh, clients, model)
    await up_to_upload(members)
    for member in members:
        await upload(member, 0.25)
    await each(members, sign)
    said = await members[0].signatures()
    share = said.shares_released.shares[1]
    share.share = bytes(32) + bytes([share.share[-1] ^ 1])
    await members[0].say(said)
    with refused(ShareRefused):
        await members[0].stream.next()
    await each(members[1:], release)
    await published(mesh, round_id)
    assert await conduct(mesh, round_id, members[0]) == ("share-refused", LARGE_LOSS_256)
    assert await conduct(mesh, round_id, members[1]) == ("counted", 0)
    np.testing.assert_allclose(await live(mesh, model), np.full(8, 0.25), atol=1e-5)
    await leave([member.stream for member in members])


async def test_shares_for_others_than_the_graph_says(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model, **SEALED)
    members, round_id = await join(mesh, clients, model)
    await each(members, advertise)
    await members[0].key_roster()
    said = await members[0].peers()
    del said.shares_dealt.sealed_shares[-1]
    await members[0].say(said)
    with refused(MalformedMessage):
        await members[0].stream.next()
    await end(mesh, round_id, members)


async def test_a_vector_of_a_client_that_dealt_no_shares_is_not_taken(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model, sharing="500ms", **SEALED)
    members, round_id = await join(mesh, clients, model)
    await each(members, advertise)
    await each(members[:3], share)
    await each(members[:3], SealedClient.shares)
    stranger = seal(members[3].offer, constant(0.1))
    with refused(RoundClosed):
        await submit(members[3].client, stranger)
    await play_out(members[:3])
    assert (await published(mesh, round_id)).received == 3
    await leave([member.stream for member in members])


# --- helpers ------------------------------------------------------------------------------------


async def play_out(members: Sequence[SealedClient]) -> None:
    """From the masks to the released shares."""
    for member in members:
        await upload(member, 0.1)
    await each(members, sign)
    await each(members, release)


async def end(mesh: Mesh, round_id: str, members: Sequence[SealedClient]) -> None:
    await abort(mesh, round_id)
    await aborted(mesh, round_id)
    await leave([member.stream for member in members])


async def charged(mesh: Mesh, round_id: str) -> int:
    rows = await mesh.fetch(
        "SELECT count(*) AS n FROM privacy_events WHERE round_id = $1", round_id
    )
    return int(rows[0]["n"])


async def stored(mesh: Mesh, round_id: str, kind: str, count: int) -> None:
    """Until so many messages of a kind are kept."""

    async def there() -> bool:
        rows = await mesh.fetch(
            "SELECT count(*) AS n FROM round_messages WHERE round_id = $1 AND kind = $2",
            round_id,
            kind,
        )
        return int(rows[0]["n"]) == count

    await mesh.wait(Channel.ROUND_INBOX, there)
