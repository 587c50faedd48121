"""Whole rounds through the real coordinator, on real PostgreSQL with really sealed updates."""

from __future__ import annotations

import asyncio

import numpy as np

from boltz_mesh.rounds.state import Phase
from tests.integration.coordinator.world import World, plan_text


async def test_a_round_makes_the_weighted_mean_of_its_updates(world: World) -> None:
    start = np.arange(8, dtype=np.float32)
    plan = await world.declare(plan_text(), start)
    clients = await world.enrol(3)
    async with world.coordinating():
        round_id = await world.start(plan)
        # Two of the three have half as many samples as the cap counts: half the weight.
        await world.check_in(plan, clients[:1], sample_bucket=10)
        await world.check_in(plan, clients[1:], sample_bucket=9)
        await world.reached(round_id, Phase.COLLECTING)
        deltas = [np.full(8, value, np.float32) for value in (0.1, 0.2, -0.1)]
        for client, delta, loss in zip(clients, deltas, (1.0, 2.0, 3.0), strict=True):
            await world.upload(round_id, client, delta, loss=loss)
        found = await world.reached(round_id, Phase.PUBLISHED)
    assert found.new_version == 2
    assert await world.events(round_id) == [
        "RoundStarted",
        "CandidatesSeen",
        "RosterFixed",
        *["UpdatesStored"] * (len(await world.events(round_id)) - 5),
        "AggregateReady",
        "VersionPublished",
    ]
    mean = (128 * 0.1 + 64 * 0.2 - 64 * 0.1) / 256
    np.testing.assert_allclose(await world.vector(plan, 2), start + mean, atol=1e-4)
    version = await world.version(plan, 2)
    assert version.state == "promoted"
    assert version.metrics["loss"] == np.float64(version.metrics["loss"])
    assert abs(version.metrics["loss"] - (128 * 1 + 64 * 2 + 64 * 3) / 256) < 0.01
    assert await world.charged(plan) == sorted((c.client_id, round_id) for c in clients)
    assert await world.holds(plan) == 0


async def test_two_rounds_of_different_models_run_at_once(world: World) -> None:
    first = await world.declare(plan_text(model="first"))
    second = await world.declare(plan_text(model="second"))
    clients = await world.enrol(3)
    async with world.coordinating():
        rounds = [await world.start(first), await world.start(second)]
        for plan in (first, second):
            await world.check_in(plan, clients)
        for round_id in rounds:
            await world.reached(round_id, Phase.COLLECTING)
        await asyncio.gather(
            *(
                world.upload(round_id, client, np.zeros(8, np.float32))
                for round_id in rounds
                for client in clients
            )
        )
        for round_id in rounds:
            await world.reached(round_id, Phase.PUBLISHED)
