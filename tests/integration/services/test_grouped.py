"""Grouped rounds over real gRPC, played message by message: twelve clients in two groups."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from boltz_mesh.storage.rows import from_json
from boltz_protocol import messages as m
from boltz_protocol.v1 import aggregator_pb2 as agg
from boltz_protocol.v1 import common_pb2
from tests.integration.services.playing import all_in, budget, constant, leave, live
from tests.support.clients import (
    RawClient,
    aborted,
    client_key,
    published,
    reached,
    start_round,
    submit,
)
from tests.support.mesh import Mesh
from tests.support.models import declare
from tests.support.sealed_clients import SealedClient

BUDGET = "[budget]\nepsilon = 50\ndelta = 1e-5\n"


def grouped(clients: int, *, tables: str = "", **changes: object) -> dict[str, Any]:
    """Settings of a plan with two groups and a quorum of one."""
    plan: dict[str, Any] = {
        "mode": "grouped",
        "min": 5,
        "target": clients,
        "max": clients,
        "tables": f"[grouping]\ncount = 2\n{tables}",
    }
    return plan | changes


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def crowd(mesh: Mesh, clients: list[RawClient]) -> list[RawClient]:
    """Twelve clients."""
    more = [await RawClient.enrol(mesh, client_key(number)) for number in range(60, 68)]
    return [*clients, *more]


async def each(
    members: Sequence[SealedClient], step: Callable[[SealedClient], Awaitable[object]]
) -> None:
    await asyncio.gather(*(step(member) for member in members))


async def join(mesh: Mesh, clients: list[RawClient], model: str) -> tuple[list[SealedClient], str]:
    """All clients in a round; every other one has a quarter of the data."""
    streams = [
        await client.participate(model, sample_bucket=10 - place % 2 * 2)
        for place, client in enumerate(clients)
    ]
    started = await start_round(mesh, model)
    assert started.mode == common_pb2.ROUND_MODE_GROUPED
    members = [
        await SealedClient.join(client, stream)
        for client, stream in zip(clients, streams, strict=True)
    ]
    assert members[0].offer.configuration.mode is m.RoundMode.GROUPED
    return members, started.round_id


async def advertise(member: SealedClient) -> None:
    await member.say(member.advertisement())


async def reveal(member: SealedClient) -> None:
    said = await member.key_roster()
    assert said is not None, "groups are drawn from nonces, however few the members"
    await member.say(said)


async def share(member: SealedClient) -> None:
    await member.say(await member.peers())


async def sign(member: SealedClient) -> None:
    await member.say(await member.survivors())


async def release(member: SealedClient) -> None:
    await member.say(await member.signatures())


async def up_to_upload(members: Sequence[SealedClient]) -> None:
    await each(members, advertise)
    await each(members, reveal)
    await each(members, share)
    await each(members, SealedClient.shares)


async def drawn(
    mesh: Mesh, round_id: str, members: Sequence[SealedClient]
) -> list[list[SealedClient]]:
    """The members by group."""
    rows = await mesh.fetch(
        "SELECT payload FROM round_events WHERE round_id = $1 AND kind = 'GroupsDrawn'", round_id
    )
    (row,) = rows
    by_id = {str(member.client.client_id): member for member in members}
    return [
        [by_id[client] for client in group["clients"]]
        for group in from_json(row["payload"])["groups"]
    ]


async def charged(mesh: Mesh, round_id: str) -> set[str]:
    rows = await mesh.fetch("SELECT client_id FROM privacy_events WHERE round_id = $1", round_id)
    return {row["client_id"] for row in rows}


def ids(members: Sequence[SealedClient]) -> set[str]:
    return {str(member.client.client_id) for member in members}


async def test_the_mean_is_over_all_groups(mesh: Mesh, crowd: list[RawClient], model: str) -> None:
    await declare(mesh, model, **grouped(12))
    members, round_id = await join(mesh, crowd, model)
    await up_to_upload(members)
    groups = await drawn(mesh, round_id, members)
    assert [len(group) for group in groups] == [6, 6]
    values = np.linspace(-0.2, 0.3, 12)
    for member, value in zip(members, values, strict=True):
        await submit(member.client, member.masked(constant(float(value))))
    await each(members, sign)
    await reached(mesh, round_id, agg.PHASE_UNMASKING)
    assert await charged(mesh, round_id) == ids(members)
    await each(members, release)
    ended = await published(mesh, round_id)
    assert (ended.new_version, ended.received) == (2, 12)
    weights = [member.offer.entry.weight for member in members]
    assert len(set(weights)) == 2
    np.testing.assert_allclose(
        await live(mesh, model),
        np.full(8, np.average(values, weights=weights)),
        atol=12 / members[0].offer.configuration.scale,
    )
    for member in members:
        assert (await member.stream.outcome()).counted
    await leave([member.stream for member in members])


async def test_a_group_that_loses_too_many_is_left_out_and_not_charged(
    mesh: Mesh, crowd: list[RawClient], model: str
) -> None:
    """Of one group two leave and the others upload; the sum is that of the other group."""
    await declare(mesh, model, **grouped(12))
    members, round_id = await join(mesh, crowd, model)
    await up_to_upload(members)
    whole, broken = await drawn(mesh, round_id, members)
    for member in broken[:2]:
        await member.stream.decline(member.offer, "CLIENT_LEFT")
    for member in broken[2:]:
        await submit(member.client, member.masked(constant(0.7)))
    for member in whole[1:]:
        await submit(member.client, member.masked(constant(0.25)))
    # One of the other group uploads last, and leaves after that: its update counts.
    await submit(whole[0].client, whole[0].masked(constant(0.25)))
    await reached(mesh, round_id, agg.PHASE_CHECKING_CONSISTENCY)
    await whole[0].stream.decline(whole[0].offer, "CLIENT_LEFT")
    await each(whole[1:], sign)
    await reached(mesh, round_id, agg.PHASE_UNMASKING)
    assert await charged(mesh, round_id) == ids(whole)
    await each(whole[1:], release)
    ended = await published(mesh, round_id)
    assert ended.new_version == 2
    np.testing.assert_allclose(await live(mesh, model), np.full(8, 0.25), atol=1e-5)
    # The group left out was asked nothing more, and hears that it did not count.
    for member in broken[2:]:
        outcome = await member.stream.outcome()
        assert (outcome.phase, outcome.counted) == (m.Phase.PUBLISHED, False)
    assert (await whole[1].stream.outcome()).counted
    await leave([member.stream for member in members])


async def test_a_round_whose_groups_have_all_become_too_small_is_aborted_uncharged(
    mesh: Mesh, crowd: list[RawClient], model: str
) -> None:
    await declare(mesh, model, **grouped(10))
    members, round_id = await join(mesh, crowd[:10], model)
    await each(members, advertise)
    await each(members, reveal)
    for member in members:
        said = await member.peers()
        assert len(said.shares_dealt.sealed_shares) == 5
    for group in await drawn(mesh, round_id, members):
        await group[0].stream.decline(group[0].offer, "CLIENT_LEFT")
    ended = await aborted(mesh, round_id)
    assert ended.reason == "TOO_FEW_SHARES"
    assert await charged(mesh, round_id) == set()
    await leave([member.stream for member in members])


async def test_each_group_carries_the_noise_of_a_whole_sum(
    mesh: Mesh, crowd: list[RawClient], model: str
) -> None:
    size = 4096
    await declare(
        mesh,
        model,
        np.zeros(size, np.float32),
        **grouped(10, tables=BUDGET, size=size, privacy="client-dp", noise=1.0),
    )
    members = crowd[:10]
    streams = await all_in(members, model)
    started = await start_round(mesh, model)
    players = [
        await SealedClient.join(client, stream)
        for client, stream in zip(members, streams, strict=True)
    ]
    await up_to_upload(players)
    for player in players:
        await submit(player.client, player.masked(constant(0.0, size)))
    await each(players, sign)
    await each(players, release)
    await published(mesh, started.round_id)
    configuration = players[0].offer.configuration
    sigma = configuration.bound_l2 / configuration.scale / 10
    noise = await live(mesh, model, size)
    assert np.var(noise) / sigma**2 == pytest.approx(2, rel=0.2)
    spent = await budget(mesh, model)
    assert (spent.rounds_charged, spent.unit) == (1, "client")
    rows = await mesh.fetch("SELECT * FROM privacy_events WHERE round_id = $1", started.round_id)
    # What a client pays for is the sum of its own group, with the noise that the plan names.
    assert [row["noise_multiplier"] for row in rows] == [pytest.approx(1.0)] * 10
    assert {row["mechanism"] for row in rows} == {"distributed-discrete-gaussian"}
    await leave(streams)
