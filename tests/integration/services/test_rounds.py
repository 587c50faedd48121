"""Whole rounds over real gRPC: sums, noise, budgets."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest

from boltz_protocol import messages as m
from boltz_protocol.errors import (
    BudgetExceeded,
    PermissionDenied,
)
from boltz_protocol.v1 import aggregator_pb2 as agg
from tests.integration.services.playing import all_in, budget, constant, leave, live
from tests.support.calls import answered, refused, typed
from tests.support.clients import (
    RawClient,
    aborted,
    published,
    seal,
    start_round,
    submit,
)
from tests.support.mesh import Mesh
from tests.support.models import LOSS, declare, plan_toml, pull

BUDGET = "[budget]\nepsilon = {epsilon}\ndelta = 1e-5\n"


# --- sums ---------------------------------------------------------------------------------------


async def test_a_round_adds_the_weighted_mean(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    start = np.arange(8, dtype=np.float32)
    await declare(mesh, model, start, tables=LOSS)
    buckets = (10, 9, 9)  # the cap is 10: half the samples are half the weight
    streams = [
        await client.participate(model, sample_bucket=bucket)
        for client, bucket in zip(clients, buckets, strict=False)
    ]
    started = await start_round(mesh, model)
    assert (started.phase, started.base_version) == (agg.PHASE_SELECTING, 1)
    offers = [await stream.offer() for stream in streams]
    deltas = [constant(value) for value in (0.1, 0.2, -0.1)]
    receipts = await asyncio.gather(
        *(
            submit(client, seal(offer, delta, lanes=[loss]))
            for client, offer, delta, loss in zip(
                clients, offers, deltas, (1.0, 2.0, 3.0), strict=False
            )
        )
    )
    assert [r.client_id for r in receipts] == [c.client_id for c in clients[:3]]
    ended = await published(mesh, started.round_id)
    assert (ended.new_version, ended.received, ended.selected, ended.dropped) == (2, 3, 3, 0)
    assert ended.bytes_up == 3 * (9 * 3 + 16)
    assert ended.started_by == "local"
    assert ended.metrics["loss"] == pytest.approx((2 * 1 + 2 + 3) / 4, abs=0.01)
    for stream in streams:
        outcome = await stream.outcome()
        assert outcome.phase is m.Phase.PUBLISHED
        assert outcome.counted
        assert (outcome.new_version, outcome.reason) == (2, "")
    assert [offer.entry.weight for offer in offers] == [255, 128, 128]
    mean = (255 * 0.1 + 128 * 0.2 - 128 * 0.1) / 511
    resolution = 1 / offers[0].configuration.scale
    np.testing.assert_allclose(await live(mesh, model), start + mean, atol=4 * resolution)
    # A second round starts from the new version.
    second = await start_round(mesh, model)
    offers = [await stream.offer() for stream in streams]
    assert {offer.configuration.base_version for offer in offers} == {2}
    for client, offer in zip(clients, offers, strict=False):
        await submit(client, seal(offer, constant(1 / 64), lanes=[0.0]))
    assert (await published(mesh, second.round_id)).new_version == 3
    np.testing.assert_allclose(await live(mesh, model), start + mean + 1 / 64, atol=8 * resolution)
    manifest = (await pull(mesh.operator, model)).version.manifest
    assert second.round_id.encode() in manifest.payload
    await leave(streams)


async def test_a_delta_that_is_too_long_is_clipped_by_its_owner(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model, clip_norm=0.5)
    streams = await all_in(clients[:3], model)
    started = await start_round(mesh, model)
    for client, stream in zip(clients, streams, strict=False):
        await submit(client, seal(await stream.offer(), constant(100.0)))
    await published(mesh, started.round_id)
    np.testing.assert_allclose(await live(mesh, model), 0.5 / math.sqrt(8), atol=1e-3)
    await leave(streams)


async def test_an_operator_promotes(mesh: Mesh, clients: list[RawClient], model: str) -> None:
    await declare(mesh, model, promotion="operator")
    streams = await all_in(clients[:3], model)
    started = await start_round(mesh, model)
    for client, stream in zip(clients, streams, strict=False):
        await submit(client, seal(await stream.offer(), constant(0.25)))
    assert (await published(mesh, started.round_id)).new_version == 2
    assert not (await live(mesh, model)).any()
    await leave(streams)


# --- noise and budgets --------------------------------------------------------------------------


async def test_noise_is_charged_once(mesh: Mesh, clients: list[RawClient], model: str) -> None:
    size = 4096
    await declare(
        mesh,
        model,
        np.zeros(size, np.float32),
        privacy="client-dp",
        noise=2.0,
        tables=BUDGET.format(epsilon=6.0),
    )
    before = await budget(mesh, model)
    assert (before.client_id, before.epsilon_spent, before.rounds_charged) == ("", 0.0, 0)
    assert (before.unit, before.relation) == ("client", "contribution-set-to-zero")
    assert before.rounds_left >= 1
    streams = await all_in(clients[:3], model)
    started = await start_round(mesh, model)
    offers = [await stream.offer() for stream in streams]
    held = await budget(mesh, model)
    assert held.epsilon_spent == 0
    assert 0 < held.epsilon_held <= held.epsilon_budget == 6.0
    for client, offer in zip(clients, offers, strict=False):
        await submit(client, seal(offer, constant(0.0, size)))
    ended = await published(mesh, started.round_id)
    assert ended.noise_multiplier == 2.0
    # The deltas were zero, so what the version holds is the noise, divided by the survivors.
    configuration = offers[0].configuration
    sigma = configuration.noise_multiplier * configuration.bound_l2 / configuration.scale / 3
    seen = (await live(mesh, model, size)).std()
    assert 0.9 * sigma < seen < 1.1 * sigma
    spent = await budget(mesh, model, clients[0].client_id)
    assert spent.rounds_charged == 1
    assert spent.epsilon_spent == pytest.approx(held.epsilon_held)
    assert spent.epsilon_held == spent.epsilon_spent
    assert spent.epsilon_replace_one > spent.epsilon_spent
    assert spent.rounds_left == before.rounds_left - 1
    rows = await mesh.fetch("SELECT client_id FROM privacy_events WHERE model_id = $1", model)
    assert sorted(r["client_id"] for r in rows) == sorted(c.client_id for c in clients[:3])
    assert not await mesh.fetch("SELECT * FROM privacy_holds WHERE model_id = $1", model)
    outsider = await budget(mesh, model, clients[3].client_id)
    assert (outsider.rounds_charged, outsider.epsilon_spent) == (0, 0.0)
    await leave(streams)


async def test_clients_see_their_own_budget(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model)
    mine = agg.GetPrivacyBudgetRequest(model_id=model, client_id=clients[0].client_id)
    assert await answered(clients[0].stubs.aggregator.GetPrivacyBudget(mine))
    for other in (clients[1].client_id, ""):
        theirs = agg.GetPrivacyBudgetRequest(model_id=model, client_id=other)
        with refused(PermissionDenied):
            await answered(clients[0].stubs.aggregator.GetPrivacyBudget(theirs))


async def test_rounds_without_noise_give_no_guarantee(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model)
    streams = await all_in(clients[:3], model)
    started = await start_round(mesh, model)
    for client, stream in zip(clients, streams, strict=False):
        await submit(client, seal(await stream.offer(), constant(0.1)))
    await published(mesh, started.round_id)
    answer = await budget(mesh, model)
    assert answer.rounds_charged == 1
    assert answer.epsilon_spent == math.inf
    # And noise later on does not bring it back: nobody can afford another round.
    text = plan_toml(
        model, privacy="client-dp", noise=4.0, tables=BUDGET.format(epsilon=2.0), min=3
    )
    await answered(mesh.operator.aggregator.ApplyPlan(agg.ApplyPlanRequest(plan_toml=text)))
    assert (await budget(mesh, model, clients[0].client_id)).rounds_left == 0
    await leave(streams)


async def test_a_round_that_would_overdraw(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    """Rounds go on while a cohort can afford them, and not one further."""
    await declare(
        mesh,
        model,
        privacy="client-dp",
        noise=2.0,
        target=4,
        min=4,
        selecting="1s",
        tables=BUDGET.format(epsilon=3.0),
    )
    allowed = (await budget(mesh, model)).rounds_left
    assert 1 <= allowed <= 4
    streams = await all_in(clients, model)
    for _ in range(allowed):
        started = await start_round(mesh, model)
        for client, stream in zip(clients, streams, strict=True):
            await submit(client, seal(await stream.offer(), constant(0.1)))
        await published(mesh, started.round_id)
        for stream in streams:
            assert (await stream.outcome()).counted
    after = await budget(mesh, model, clients[0].client_id)
    assert (after.rounds_charged, after.rounds_left) == (allowed, 0)
    assert after.epsilon_spent <= 3.0
    # Other clients of this mesh could pay, so the mesh starts, sees who is there, and ends it.
    try:
        with typed():
            started = await start_round(mesh, model)
    except BudgetExceeded:
        pass
    else:
        assert "budget" in (await aborted(mesh, started.round_id)).reason.lower()
    unchanged = await budget(mesh, model, clients[0].client_id)
    assert unchanged.rounds_charged == allowed
    await leave(streams)


async def test_a_session_that_was_away_hears_how_its_round_ended(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model)
    streams = await all_in(clients[:3], model)
    started = await start_round(mesh, model)
    offers = [await stream.offer() for stream in streams]
    await submit(clients[0], seal(offers[0], constant(0.1)))
    streams[0].cancel()
    for client, offer in zip(clients[1:3], offers[1:], strict=True):
        await submit(client, seal(offer, constant(0.1)))
    await published(mesh, started.round_id)
    again = await clients[0].participate(model)
    outcome = await again.outcome()
    assert (outcome.round_id, outcome.counted) == (started.round_id, True)
    await leave([again, *streams[1:]])
