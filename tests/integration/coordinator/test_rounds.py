"""Whole rounds through the real coordinator, on real PostgreSQL with really sealed updates."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from boltz_mesh.coordinator import record
from boltz_mesh.coordinator.commit import settle
from boltz_mesh.coordinator.fold import NoisedSum
from boltz_mesh.coordinator.publish import NewVersionFiles
from boltz_mesh.coordinator.record import Position
from boltz_mesh.coordinator.work import Failed, Folded, Made
from boltz_mesh.rounds.fact import LEFT, FactKind
from boltz_mesh.rounds.state import Aborted, Phase
from boltz_mesh.storage import ledger
from boltz_mesh.storage.lease import CoordinatorLease
from boltz_mesh.storage.models import StoredBlob
from boltz_mesh.storage.postgres import Connection
from boltz_mesh.storage.rounds import get_round
from boltz_protocol import limits
from boltz_protocol.errors import RoundClosed, StateConflict
from boltz_protocol.ids import ModelId
from tests.integration.coordinator.plan_text import plan_text
from tests.integration.coordinator.world import World, collecting, upload_all
from tests.unit.rounds import rounds

BUDGET = "[budget]\nepsilon = 8.0\ndelta = 1e-6\n"


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


async def test_noise_is_charged_and_the_operator_promotes(world: World) -> None:
    text = plan_text(privacy="client-dp", noise=2.0, promotion="operator", tables=BUDGET)
    plan = await world.declare(text)
    clients = await world.enrol(3)
    async with world.coordinating():
        round_id = await collecting(world, plan, clients)
        assert await world.holds(plan) == 3
        await upload_all(world, round_id, clients)
        await world.reached(round_id, Phase.PUBLISHED)
    assert (await world.version(plan, 2)).state == "candidate"
    assert (await world.version(plan, 1)).state == "promoted"
    # The noise's deviation on the mean is 2 C / 3, far above rounding; the mean is 0.1.
    noise = await world.vector(plan, 2) - 0.1
    assert 0.05 < float(np.std(noise)) < 3
    events = await world.tx(lambda c: ledger.list_privacy_events(c, ModelId(plan.model)))
    assert {(e.mechanism, e.noise_multiplier, e.attempt) for e in events} == {
        ("discrete-gaussian", 2.0, 1)
    }
    assert await world.holds(plan) == 0


async def test_clients_without_budget_are_left_out_and_named(world: World) -> None:
    once = "[budget]\nepsilon = 5.0\ndelta = 1e-6\n"
    text = plan_text(privacy="client-dp", noise=1.0, selecting="300ms", tables=once)
    plan = await world.declare(text)
    clients = await world.enrol(3)
    async with world.coordinating():
        round_id = await collecting(world, plan, clients)
        await upload_all(world, round_id, clients)
        await world.reached(round_id, Phase.PUBLISHED)
        second = await world.start(plan)
        found = await world.reached(second, Phase.ABORTED)
    assert found.reason == "BUDGET_EXCEEDED"
    assert len(await world.charged(plan)) == 3


async def test_too_few_clients_end_the_selection(world: World) -> None:
    plan = await world.declare(plan_text(selecting="200ms", top='regions = ["eu"]'))
    clients = await world.enrol(3)
    async with world.coordinating():
        await world.check_in(plan, clients[:1])
        await world.check_in(plan, clients[1:], region="us")
        found = await world.reached(await world.start(plan), Phase.ABORTED)
    assert (found.reason, found.outcome) == ("TOO_FEW_CLIENTS", "aborted")


async def test_the_selection_deadline_takes_those_who_are_there(world: World) -> None:
    plan = await world.declare(plan_text(selecting="200ms"))
    clients = await world.enrol(2)
    async with world.coordinating():
        round_id = await collecting(world, plan, clients)
        await upload_all(world, round_id, clients)
        await world.reached(round_id, Phase.PUBLISHED)


async def test_the_collection_deadline_takes_the_updates_that_are_there(world: World) -> None:
    plan = await world.declare(plan_text(collecting="700ms"))
    clients = await world.enrol(3)
    async with world.coordinating():
        round_id = await collecting(world, plan, clients)
        await upload_all(world, round_id, clients[:2])
        await world.reached(round_id, Phase.PUBLISHED)
        with pytest.raises(RoundClosed):
            await upload_all(world, round_id, clients[2:])
    assert len(await world.charged(plan)) == 2


async def test_dropouts_end_the_collection_early(world: World) -> None:
    plan = await world.declare(plan_text())
    clients = await world.enrol(3)
    async with world.coordinating():
        round_id = await collecting(world, plan, clients)
        await upload_all(world, round_id, clients[:2])
        await world.put_fact(round_id, FactKind.CLIENT_DROPPED, clients[2], reason=LEFT)
        await world.reached(round_id, Phase.PUBLISHED)
        second = await collecting(world, plan, clients)
        for client in clients[:2]:
            await world.put_fact(second, FactKind.CLIENT_DROPPED, client, reason=LEFT)
        found = await world.reached(second, Phase.ABORTED)
        assert found.reason == "TOO_FEW_UPDATES"


async def test_an_abort_charges_nothing_and_leaves_nothing(world: World) -> None:
    plan = await world.declare(plan_text())
    clients = await world.enrol(3)
    async with world.coordinating() as task:
        round_id = await collecting(world, plan, clients)
        await upload_all(world, round_id, clients[:1])
        await world.put_fact(
            round_id, FactKind.ABORT_REQUESTED, None, by="operator/ann", reason="a wrong plan"
        )
        found = await world.reached(round_id, Phase.ABORTED)
        await world.settled(task)
    assert found.reason == "a wrong plan"
    assert await world.charged(plan) == []
    assert await world.holds(plan) == 0
    await world.cleaned(round_id)
    assert list(world.parts.blobs.digests()) == [(await world.version(plan, 1)).weights.blob_digest]


async def test_a_damaged_update_ends_the_round_uncharged(world: World) -> None:
    plan = await world.declare(plan_text())
    clients = await world.enrol(3)
    async with world.coordinating():
        round_id = await collecting(world, plan, clients)
        for client in clients:
            await world.upload(
                round_id, client, np.zeros(8, np.float32), damage=client is clients[0]
            )
        found = await world.reached(round_id, Phase.ABORTED)
    assert str(found.reason).startswith("UPDATE_UNREADABLE")
    assert await world.charged(plan) == []


async def test_an_update_that_is_gone_ends_the_round_uncharged(world: World) -> None:
    plan = await world.declare(plan_text())
    clients = await world.enrol(3)

    async def lose(connection: Connection) -> None:
        await connection.execute(
            "UPDATE federated_updates SET blob_digest = NULL, wrapped_content_key = NULL"
        )

    async with world.coordinating():
        round_id = await collecting(world, plan, clients)
        await upload_all(world, round_id, clients[:2])
        await world.tx(lose)
        await upload_all(world, round_id, clients[2:])
        found = await world.reached(round_id, Phase.ABORTED)
    assert str(found.reason).startswith("UPDATE_UNREADABLE")
    assert await world.charged(plan) == []


async def test_a_flood_of_facts_hides_no_update(world: World) -> None:
    plan = await world.declare(plan_text())
    clients = await world.enrol(3)
    async with world.coordinating():
        round_id = await collecting(world, plan, clients)

    async def flood(connection: Connection) -> None:
        await connection.execute(
            "INSERT INTO round_inbox (round_id, attempt, kind, client_id, payload, inserted_at_ms)"
            " SELECT $1, 1, $2, $3, $4, 1 FROM generate_series(1, $5)",
            round_id,
            FactKind.CLIENT_DROPPED.value,
            clients[0].client_id,
            '{"reason": "LEFT"}',
            3 * limits.MAX_INBOX_BATCH,
        )

    await world.tx(flood)
    await upload_all(world, round_id, clients)
    async with world.coordinating():
        await world.reached(round_id, Phase.PUBLISHED)
    assert len(await world.charged(plan)) == 3


async def test_work_for_a_round_that_went_on_is_not_used(world: World) -> None:
    parameters = rounds.parameters()
    ended = Aborted(parameters=parameters, reason="stop", by="ann")
    stored = StoredBlob(b"d" * 32, b"b" * 32, b"key")
    files = NewVersionFiles(2, stored, 1, None)
    plan = await world.declare(plan_text())
    base = await world.version(plan, 1)
    round_id = await world.start(plan)
    found = await world.tx(lambda c: get_round(c, round_id))
    for outcome, unused in (
        (Folded(NoisedSum(stored, 3, 9, {})), (b"b" * 32,)),
        (Made(files, plan, 1, base), (b"b" * 32,)),
        (Failed("too late"), ()),
        (None, ()),
    ):
        settled = await world.tx(
            lambda c, o=outcome: settle(c, found, ended, o, world.parts, now_ms=1)  # type: ignore[misc]
        )
        assert (settled.events, settled.unused) == ((), unused)


async def test_a_stale_position_is_refused(world: World) -> None:
    plan = await world.declare(plan_text())
    round_id = await world.start(plan)
    async with await CoordinatorLease.acquire(world.database.url, "test") as lease:
        with pytest.raises(StateConflict):
            await world.tx(
                lambda c: record.lock(c, round_id, Position(None, 7), fencing_token=lease.token)
            )
        with pytest.raises(StateConflict):
            await world.tx(
                lambda c: record.lock(c, round_id, Position(None, 0), fencing_token=lease.token - 1)
            )


async def test_a_sum_out_of_range_is_charged_and_rejected(world: World) -> None:
    plan = await world.declare(plan_text())
    clients = await world.enrol(3)
    async with world.coordinating():
        round_id = await collecting(world, plan, clients)
        for client in clients:
            await world.upload(
                round_id, client, np.zeros(8, np.float32), poison=client is clients[0]
            )
        found = await world.reached(round_id, Phase.ABORTED)
    assert str(found.reason).startswith("AGGREGATE_REJECTED")
    assert found.outcome == "rejected"
    assert len(await world.charged(plan)) == 3
    assert await world.holds(plan) == 0


async def test_an_aggregate_that_makes_no_model_stays_charged(world: World) -> None:
    rate = "[server_optimizer]\nname = 'fedavg'\nlearning_rate = 1e30\n"
    plan = await world.declare(plan_text(tables=rate), np.full(8, 3e38, np.float32))
    clients = await world.enrol(3)
    async with world.coordinating():
        round_id = await collecting(world, plan, clients)
        await upload_all(world, round_id, clients)
        # 1e29 is lost beside 3e38; 1e38 more is beyond float32.
        await world.reached(round_id, Phase.PUBLISHED)
        await world.reapply(plan_text(tables=rate.replace("1e30", "1e39")))
        second = await collecting(world, plan, clients)
        await upload_all(world, second, clients)
        found = await world.reached(second, Phase.ABORTED)
    assert str(found.reason).startswith("PUBLISH_REJECTED")
    assert len(await world.charged(plan)) == 6


async def test_moments_go_from_version_to_version(world: World) -> None:
    adam = "[server_optimizer]\nname = 'fedadam'\nlearning_rate = 0.1\n"
    plan = await world.declare(plan_text(tables=adam))
    clients = await world.enrol(3)

    async def one_round(value: float) -> None:
        round_id = await collecting(world, plan, clients)
        for client in clients:
            await world.upload(round_id, client, np.full(8, value, np.float32))
        await world.reached(round_id, Phase.PUBLISHED)

    async with world.coordinating():
        await one_round(0.2)
        await one_round(-0.1)
        # Another optimizer starts anew.
        await world.reapply(plan_text(tables=adam.replace("fedadam", "fedyogi")))
        await one_round(0.1)
    for number in (2, 3, 4):
        assert (await world.version(plan, number)).optimizer is not None
    x, m, v = 0.0, 0.0, 1e-6
    for number, delta in ((2, 0.2), (3, -0.1)):
        m = 0.9 * m + 0.1 * delta
        v = 0.99 * v + 0.01 * delta**2
        x += 0.1 * m / (np.sqrt(v) + 1e-3)
        np.testing.assert_allclose(await world.vector(plan, number), x, rtol=1e-3)
    m, v = 0.1 * 0.1, 1e-6 - 0.01 * 0.01 * np.sign(1e-6 - 0.01)
    x += 0.1 * m / (np.sqrt(v) + 1e-3)
    np.testing.assert_allclose(await world.vector(plan, 4), x, rtol=1e-3)


async def test_one_trace_holds_the_round(world: World) -> None:
    plan = await world.declare(plan_text())
    clients = await world.enrol(3)
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    async with world.coordinating() as task:
        round_id = await world.start(plan, trace_context=f"00-{trace_id}-b7ad6b7169203331-01")
        await world.check_in(plan, clients)
        await world.reached(round_id, Phase.COLLECTING)
        await upload_all(world, round_id, clients)
        await world.reached(round_id, Phase.PUBLISHED)
        await world.settled(task)
    spans = world.spans.get_finished_spans()
    assert {span.name for span in spans} == {
        f"boltz.round.{name}"
        for name in ("select", "configure", "collect", "aggregate", "fold", "release", "publish")
    }
    assert {f"{span.context.trace_id:032x}" for span in spans if span.context} == {trace_id}
    shown = repr([dict(span.attributes or {}) for span in spans])
    assert not any(client.client_id in shown for client in clients)


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
