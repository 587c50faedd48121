"""Drawing a roster while a round of another model spends from the same clients' budget."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from boltz_mesh.privacy.accountant import epsilon
from boltz_mesh.privacy.budget import Budget
from boltz_mesh.rounds.plan_policy import PrivacyPolicy
from boltz_mesh.rounds.state import Phase
from boltz_mesh.services.budgets import cost_of, hold_releases
from boltz_mesh.storage import ledger
from boltz_mesh.storage.postgres import LOCK_CLASS, Connection, LockName
from boltz_protocol.ids import RoundId
from tests.integration.coordinator.plan_text import plan_text
from tests.integration.coordinator.world import World

BUDGET = "[budget]\nepsilon = 50.0\ndelta = 1e-6\n"
#: One release over all models.
ONCE = PrivacyPolicy(client_budget=Budget(epsilon(2.0, 1, 1.0, 1e-6), 1e-6))


async def until_somebody_waits(connection: Connection) -> None:
    """Until another session waits for the lock that this one holds."""
    async with asyncio.timeout(30):
        while not await connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            " AND classid = $1::integer::oid AND objid = $2::integer::oid)",
            LOCK_CLASS,
            LockName.LEDGER.value,
        ):
            pass


async def test_who_was_taken_meanwhile_is_not_drawn(world: World) -> None:
    world.parts = replace(world.parts, policy=ONCE)
    one, two = [
        await world.declare(
            plan_text(
                model=model, privacy="client-dp", noise=2.0, selecting=selecting, tables=BUDGET
            )
        )
        for model, selecting in (("one", "2s"), ("two", "30s"))
    ]
    clients = await world.enrol(3)
    async with world.coordinating():
        other = await world.start(two)
        cost = cost_of(two, ONCE)
        taken = [
            cost.terms.event(model="two", round=other, attempt=1, client=client.client_id)
            for client in clients
        ]

        async def meanwhile(connection: Connection) -> RoundId:
            """The round of the other model takes them between the look and the holds."""
            await ledger.lock_all_models(connection)
            started = await world.start(one)
            await world.check_in(one, clients)
            await until_somebody_waits(connection)
            await hold_releases(connection, taken, cost)
            return started

        started = await world.tx(meanwhile)
        found = await world.reached(started, Phase.ABORTED)
    assert found.reason == "BUDGET_EXCEEDED"
    assert (await world.holds(one), await world.holds(two)) == (0, 3)
