"""Robust rules over real gRPC: liars in open rounds without noise, and in groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pytest
import pytest_asyncio

from boltz_mesh.storage.rows import from_json
from boltz_protocol.v1 import aggregator_pb2 as agg
from tests.integration.services.playing import all_in, constant, leave, live
from tests.integration.services.test_grouped import (
    charged,
    drawn,
    each,
    ids,
    join,
    release,
    sign,
    up_to_upload,
)
from tests.support.attacks.crafted import CRAFTED, crafted
from tests.support.attacks.wire import Falsified, flood, longest
from tests.support.clients import (
    RawClient,
    aborted,
    client_key,
    published,
    reached,
    seal,
    start_round,
    submit,
)
from tests.support.mesh import Mesh
from tests.support.models import Vector, declare
from tests.support.sealed_clients import SealedClient

LIARS: Final = 2
SEVEN: Final[dict[str, Any]] = {"min": 7, "target": 7, "max": 7}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def crowd(mesh: Mesh, clients: list[RawClient]) -> list[RawClient]:
    """Twenty clients."""
    more = [await RawClient.enrol(mesh, client_key(number)) for number in range(200, 216)]
    return [*clients, *more]


def honest(count: int) -> list[Vector]:
    """Deltas that differ a little, within the clip norm."""
    random = np.random.default_rng(5)
    return [(0.1 + random.normal(0, 0.01, 8)).astype(np.float32) for _ in range(count)]


async def events(mesh: Mesh, round_id: str) -> list[str]:
    rows = await mesh.fetch(
        "SELECT kind FROM security_events WHERE round_id = $1 ORDER BY id", round_id
    )
    return [row["kind"] for row in rows]


# --- open ---------------------------------------------------------------------------------------


async def play(
    mesh: Mesh, crowd: Sequence[RawClient], model: str, deltas: Sequence[Vector]
) -> tuple[Vector, str, float]:
    """One open round: the live parameters, the round, and a unit of its integers."""
    streams = await all_in(list(crowd[: len(deltas)]), model)
    started = await start_round(mesh, model)
    unit = 1.0
    for client, stream, delta in zip(crowd, streams, deltas, strict=False):
        offer = await stream.offer()
        unit = 1 / offer.configuration.scale
        # Beyond the clip norm a client's own library clips; a liar could not send more either way.
        await submit(client, seal(offer, delta))
    await published(mesh, started.round_id)
    await leave(streams)
    return await live(mesh, model), started.round_id, unit


@pytest.mark.parametrize("attack", CRAFTED)
async def test_liars_do_not_lead_an_open_round_out_of_the_range_of_the_honest(
    mesh: Mesh, crowd: list[RawClient], model: str, attack: str
) -> None:
    deltas = honest(7 - LIARS)
    lies = crafted(attack, deltas, LIARS)
    await declare(mesh, model, top=f"byzantine = {LIARS}", **SEVEN)
    result, _, unit = await play(mesh, crowd, model, [*deltas, *lies])
    assert (result >= np.min(deltas, axis=0) - unit).all()
    assert (result <= np.max(deltas, axis=0) + unit).all()


@pytest.mark.parametrize("byzantine", [0, LIARS])
async def test_one_huge_delta_leads_the_mean_and_not_the_rule(
    mesh: Mesh, crowd: list[RawClient], model: str, byzantine: int
) -> None:
    deltas = honest(6)
    await declare(mesh, model, top=f"byzantine = {byzantine}", **SEVEN)
    result, round_id, unit = await play(mesh, crowd, model, [*deltas, constant(-1e6)])
    away = float(np.linalg.norm(result - np.mean(deltas, axis=0)))
    spread = max(float(np.linalg.norm(each - np.mean(deltas, axis=0))) for each in deltas)
    if byzantine:
        assert away < spread + unit
    else:
        # It is clipped to a norm of 1, and keeps a seventh of the weight.
        assert away > 0.15
    rows = await mesh.fetch(
        "SELECT client_id, gain_256, loss_256 FROM trust_evidence"
        " WHERE round_id = $1 AND kind = 'outcome'",
        round_id,
    )
    found = {row["client_id"]: row for row in rows}
    liar = found.pop(str(crowd[6].client_id))
    assert liar["loss_256"] > 0
    assert len(found) == 6
    assert all(row["loss_256"] == 0 for row in found.values())
    assert await events(mesh, round_id) == ["outlier"]


async def test_with_noise_nothing_is_told_of_any_client(
    mesh: Mesh, crowd: list[RawClient], model: str
) -> None:
    tables = "[budget]\nepsilon = 50\ndelta = 1e-5\n"
    await declare(mesh, model, tables=tables, privacy="client-dp", noise=1.0, **SEVEN)
    _, round_id, _ = await play(mesh, crowd, model, [*honest(6), constant(-1e6)])
    rows = await mesh.fetch(
        "SELECT kind FROM trust_evidence WHERE round_id = $1 AND kind <> 'conduct'", round_id
    )
    assert rows == []
    assert await events(mesh, round_id) == []


# --- grouped ------------------------------------------------------------------------------------


async def four_groups(
    mesh: Mesh, crowd: list[RawClient], model: str, *, top: str = "byzantine = 1"
) -> tuple[list[SealedClient], str, list[list[SealedClient]]]:
    """Twenty clients up to their upload: members, round, members by group."""
    await declare(
        mesh,
        model,
        mode="grouped",
        min=5,
        target=20,
        max=20,
        top=top,
        tables="[grouping]\ncount = 4\n[secure_aggregation]\ncorrupt_fraction = 0.0\n",
    )
    members, round_id = await join(mesh, crowd, model)
    await up_to_upload(members)
    return members, round_id, await drawn(mesh, round_id, members)


async def upload(
    members: Sequence[SealedClient],
    deltas: Sequence[Vector],
    lies: Mapping[str, Falsified],
) -> None:
    """`lies`: client id -> what it makes of its integers."""
    for member, delta in zip(members, deltas, strict=True):
        falsify = lies.get(str(member.client.client_id), lambda values: None)
        await submit(member.client, member.masked(delta, falsify))


def means_of(
    groups: Sequence[Sequence[SealedClient]],
    members: Sequence[SealedClient],
    deltas: Sequence[Vector],
) -> Vector:
    """The weighted mean of each group: (groups, 8)."""
    by_id = {
        str(member.client.client_id): delta for member, delta in zip(members, deltas, strict=True)
    }
    return np.array(
        [
            np.average(
                [by_id[str(member.client.client_id)] for member in group],
                axis=0,
                weights=[member.offer.entry.weight for member in group],
            )
            for group in groups
        ],
        np.float32,
    )


async def to_the_end(mesh: Mesh, members: Sequence[SealedClient], round_id: str) -> None:
    await each(members, sign)
    await reached(mesh, round_id, agg.PHASE_UNMASKING)
    await each(members, release)


@pytest.mark.parametrize("top", ["byzantine = 1", ""])
async def test_a_liar_leads_its_group_and_the_mean_but_not_the_rule(
    mesh: Mesh, crowd: list[RawClient], model: str, top: str
) -> None:
    members, round_id, groups = await four_groups(mesh, crowd, model, top=top)
    deltas = honest(20)
    configuration = members[0].offer.configuration
    liar = groups[2][0]
    falsify = longest(configuration.bound_l2, -1.0)
    await upload(members, deltas, {str(liar.client.client_id): falsify})
    await to_the_end(mesh, members, round_id)
    await published(mesh, round_id)
    result = await live(mesh, model)
    others = np.delete(means_of(groups, members, deltas), 2, axis=0)
    unit = 255 / configuration.scale
    inside = bool(
        (result >= others.min(axis=0) - unit).all() and (result <= others.max(axis=0) + unit).all()
    )
    assert inside is bool(top)
    await leave([member.stream for member in members])


async def test_a_flooded_group_is_left_out_and_told_of(
    mesh: Mesh, crowd: list[RawClient], model: str
) -> None:
    members, round_id, groups = await four_groups(mesh, crowd, model)
    deltas = honest(20)
    await upload(members, deltas, {str(groups[1][3].client.client_id): flood})
    await to_the_end(mesh, members, round_id)
    await published(mesh, round_id)
    others = np.delete(means_of(groups, members, deltas), 1, axis=0)
    result = await live(mesh, model)
    unit = 255 / members[0].offer.configuration.scale
    assert (result >= others.min(axis=0) - unit).all()
    assert (result <= others.max(axis=0) + unit).all()
    assert "group_out_of_range" in await events(mesh, round_id)
    (row,) = await mesh.fetch(
        "SELECT detail FROM security_events WHERE round_id = $1 AND kind = 'group_out_of_range'",
        round_id,
    )
    detail = from_json(row["detail"])
    assert detail["group"] == 1
    assert set(detail["clients"]) == ids(groups[1])
    # Their shares are out, and their sum was seen.
    assert await charged(mesh, round_id) == ids(members)
    await leave([member.stream for member in members])


async def test_two_flooded_groups_of_four_reject_the_round(
    mesh: Mesh, crowd: list[RawClient], model: str
) -> None:
    members, round_id, groups = await four_groups(mesh, crowd, model)
    lies = {str(groups[place][0].client.client_id): flood for place in (0, 3)}
    await upload(members, honest(20), lies)
    await to_the_end(mesh, members, round_id)
    ended = await aborted(mesh, round_id)
    assert ended.reason == (
        'AGGREGATE_REJECTED: rule = "mixed-trimmed-mean" with byzantine = 1 takes at least 3 '
        "updates or groups, and 2 are left"
    )
    assert (await live(mesh, model)).tolist() == [0.0] * 8
    assert await charged(mesh, round_id) == ids(members)
    await leave([member.stream for member in members])


async def test_two_groups_that_are_too_small_end_the_round_before_anybody_is_charged(
    mesh: Mesh, crowd: list[RawClient], model: str
) -> None:
    members, round_id, groups = await four_groups(mesh, crowd, model)
    for place in (0, 3):
        member = groups[place][0]
        await member.stream.decline(member.offer, "CLIENT_LEFT")
    ended = await aborted(mesh, round_id)
    assert ended.reason == "TOO_FEW_UPDATES"
    assert await charged(mesh, round_id) == set()
    await leave([member.stream for member in members])
