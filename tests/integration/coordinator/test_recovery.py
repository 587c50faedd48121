"""Coordinators that end, databases that fail, disks that stutter: at any moment of a round."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from dataclasses import replace

import numpy as np
import pytest

from boltz_mesh.coordinator.clean_up import rounds_to_clean
from boltz_mesh.coordinator.driver import coordinate
from boltz_mesh.coordinator.housekeeping import clean_up_after_crashes, keep_house
from boltz_mesh.rounds.fact import FactKind
from boltz_mesh.rounds.plan import Plan
from boltz_mesh.rounds.state import Phase
from boltz_mesh.storage import check_ins, inbox, models
from boltz_mesh.storage.blobs import BlobReader, put_bytes
from boltz_mesh.storage.directory_blobs import DirectoryBlobs
from boltz_mesh.storage.lease import CoordinatorLease
from boltz_mesh.storage.postgres import Connection
from boltz_protocol import limits
from boltz_protocol.errors import Unavailable
from boltz_protocol.ids import ModelId, RoundId
from tests.integration.coordinator.faults import Crash, Fault, Moment, raising
from tests.integration.coordinator.plan_text import plan_text
from tests.integration.coordinator.world import TestClient, World, collecting, upload_all

MOMENTS: tuple[Moment, ...] = ("before commit", "after commit")
#: Every transaction that a healthy round of three clients makes, by name and number.
TRANSACTIONS = (
    ("step_round", 0),  # RoundStarted
    ("step_round", 1),  # nothing yet, or CandidatesSeen
    ("fix_roster", 0),
    ("step_round", 3),
    ("step_round", 4),
    ("step_round", 5),
    ("step_round", 6),
    ("read_updates", 0),
    ("read_release", 0),
    ("clean_up_round", 0),
)


async def exactly_once(world: World, plan: Plan, round_id: RoundId, who: list[TestClient]) -> None:
    """A published round: each update counted and charged once, nothing left over."""
    found = await world.round(round_id)
    assert found.phase == Phase.PUBLISHED, found.reason
    assert found.new_version is not None
    np.testing.assert_allclose(
        await world.vector(plan, found.new_version),
        await world.vector(plan, found.new_version - 1) + 0.1,
        atol=1e-4,
    )
    mine = [client for client, charged in await world.charged(plan) if charged == round_id]
    assert mine == sorted(client.client_id for client in who)
    assert await world.holds(plan) == 0
    await world.cleaned(round_id)
    kinds = await world.events(round_id)
    for once in ("RoundStarted", "RosterFixed", "AggregateReady", "VersionPublished"):
        assert kinds.count(once) == 1


async def play(world: World, plan: Plan, who: list[TestClient]) -> RoundId:
    """A whole round, with a new coordinator whenever one has crashed."""
    round_id = await world.start(plan)
    await world.check_in(plan, who)
    uploaded = False
    while True:
        async with world.coordinating() as coordinator:
            with contextlib.suppress(Crash):
                if not uploaded:
                    await reached_or_crash(world, round_id, Phase.COLLECTING)
                    await upload_all(world, round_id, who)
                    uploaded = True
                await reached_or_crash(world, round_id, Phase.PUBLISHED)
                await world.settled(coordinator)
                return round_id
            world.crashed.clear()


async def reached_or_crash(world: World, round_id: RoundId, phase: Phase) -> None:
    reaching = asyncio.create_task(world.reached(round_id, phase))
    crashing = asyncio.create_task(world.crashed.wait())
    try:
        await asyncio.wait({reaching, crashing}, return_when=asyncio.FIRST_COMPLETED)
        if reaching.done():
            reaching.result()
        else:
            raise Crash
    finally:
        reaching.cancel()
        crashing.cancel()


async def test_a_crash_at_any_transaction_counts_and_charges_once(world: World) -> None:
    plan = await world.declare(plan_text())
    clients = await world.enrol(3)
    struck: set[tuple[str, int]] = set()
    for moment in MOMENTS:
        for name, number in TRANSACTIONS:
            world.database.faults = [Fault(name, moment, world.crash, number)]
            round_id = await play(world, plan, clients)
            if not world.database.faults:
                struck.add((name, number))
            await finish_old(world)
            await exactly_once(world, plan, round_id, clients)
    # How many turns the uploads take is up to the moment: the last may never come.
    assert set(TRANSACTIONS) - struck <= {("step_round", 6)}


async def finish_old(world: World) -> None:
    """What a crash in the clean-up left is done by the next coordinator."""
    if not await world.tx(rounds_to_clean):
        return
    cleaned = asyncio.Event()

    async def note() -> None:
        cleaned.set()

    world.database.faults = [Fault("clean_up_round", "after commit", note)]
    async with world.coordinating():
        await asyncio.wait_for(cleaned.wait(), 10)


async def test_a_failing_database_only_costs_time(world: World) -> None:
    plan = await world.declare(plan_text())
    clients = await world.enrol(3)
    failing = raising(Unavailable("injected"))
    for moment in MOMENTS:
        world.database.faults = [Fault(name, moment, failing, n) for name, n in TRANSACTIONS]
        world.database.faults.append(Fault("take_over_round", moment, failing))
        world.database.faults.append(Fault("load_round", moment, failing))
        round_id = await play(world, plan, clients)
        await exactly_once(world, plan, round_id, clients)
        assert len(world.database.faults) <= 2


async def test_a_stuttering_disk_only_costs_time(world: World) -> None:
    class Stuttering(DirectoryBlobs):
        failures = 4

        def open(self, digest: bytes) -> BlobReader:
            if self.failures:
                self.failures -= 1
                raise OSError("injected")
            return super().open(digest)

    blobs = world.parts.blobs
    assert isinstance(blobs, DirectoryBlobs)
    plan = await world.declare(plan_text())
    clients = await world.enrol(3)
    world.parts = replace(world.parts, blobs=Stuttering(blobs._root))
    await exactly_once(world, plan, await play(world, plan, clients), clients)


async def test_a_client_that_leaves_during_the_drawing_is_waited_for(world: World) -> None:
    plan = await world.declare(plan_text())
    clients = await world.enrol(3)

    async def leave() -> None:
        await world.check_out(plan, clients[0])

    noticed = asyncio.Event()

    async def notice() -> None:
        noticed.set()

    world.database.faults = [
        Fault("step_round", "after commit", leave, 1),
        Fault("fix_roster", "after commit", notice),
    ]
    async with world.coordinating():
        await world.check_in(plan, clients)
        round_id = await world.start(plan)
        await asyncio.wait_for(noticed.wait(), 10)
        assert (await world.events(round_id))[1:] == ["CandidatesSeen", "CandidatesSeen"]
        assert (await world.round(round_id)).phase == Phase.SELECTING
        await world.check_in(plan, clients)
        await world.reached(round_id, Phase.COLLECTING)


async def test_a_version_published_meanwhile_moves_the_number(world: World) -> None:
    plan = await world.declare(plan_text())
    clients = await world.enrol(3)

    async def publish() -> None:
        async def body(connection: Connection) -> None:
            first = await models.get_model_version(connection, ModelId(plan.model), 1)
            await models.insert_model_version(
                connection,
                models.NewModelVersion(
                    model_id=first.model_id,
                    version=2,
                    parent_version=1,
                    round_id=None,
                    weights=first.weights,
                    size_bytes=first.size_bytes,
                    kek_id=first.kek_id,
                    manifest=first.manifest,
                    optimizer=None,
                    metrics={},
                    created_at_ms=1,
                ),
            )

        await world.tx(body)

    world.database.faults = [Fault("read_release", "after commit", publish)]
    round_id = await play(world, plan, clients)
    found = await world.round(round_id)
    assert (found.base_version, found.new_version) == (1, 3)
    np.testing.assert_allclose(await world.vector(plan, 3), 0.1, atol=1e-4)


async def test_an_abort_beats_a_fold_that_is_under_way(world: World) -> None:
    plan = await world.declare(plan_text())
    clients = await world.enrol(3)
    rounds: list[RoundId] = []

    async def abort() -> None:
        await world.put_fact(
            rounds[0], FactKind.ABORT_REQUESTED, None, by="operator/ann", reason="wait"
        )

    world.database.faults = [Fault("read_updates", "after commit", abort)]
    async with world.coordinating() as coordinator:
        rounds.append(await collecting(world, plan, clients))
        await upload_all(world, rounds[0], clients)
        found = await world.reached(rounds[0], Phase.ABORTED)
        await world.settled(coordinator)
    assert found.reason == "wait"
    assert await world.charged(plan) == []
    assert await world.holds(plan) == 0


async def test_a_lost_lease_moves_the_round_to_the_next_holder(world: World) -> None:
    plan = await world.declare(plan_text())
    clients = await world.enrol(3)
    task = asyncio.create_task(coordinate(world.parts))
    try:
        round_id = await collecting(world, plan, clients)
        await world.tx(_end_the_lease)
        await upload_all(world, round_id, clients)
        await world.reached(round_id, Phase.PUBLISHED)
    finally:
        task.cancel()
        await asyncio.wait({task})
    fencing = await world.tx(_fencing_tokens)
    assert len(fencing) == 2
    assert "Recovered" in await world.events(round_id)


async def _end_the_lease(connection: Connection) -> None:
    ended = await connection.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'boltz-mesh coordinator lease'"
        " AND datname = current_database()"
    )
    assert len(ended) == 1


async def _fencing_tokens(connection: Connection) -> set[int]:
    rows = await connection.fetch("SELECT DISTINCT fencing FROM round_events")
    return {int(row["fencing"]) for row in rows}


async def test_a_defect_in_one_round_leaves_the_others_alone(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    broken = await world.declare(plan_text(model="broken"))
    sound = await world.declare(plan_text(model="sound"))
    clients = await world.enrol(3)

    async def body(connection: Connection) -> None:
        await inbox.put(
            connection,
            round_id=round_id,
            attempt=1,
            kind="never-heard-of",
            client_id=None,
            payload={},
            at_ms=1,
        )

    async with world.coordinating():
        round_id = await collecting(world, broken, clients)
        await world.tx(body)
        other = await collecting(world, sound, clients)
        await upload_all(world, other, clients)
        await world.reached(other, Phase.PUBLISHED)
    assert (await world.round(round_id)).phase == Phase.COLLECTING
    assert "stopped on a defect" in caplog.text


async def test_check_ins_of_a_dead_replica_are_not_selected(world: World) -> None:
    plan = await world.declare(plan_text(selecting="300ms"))
    clients = await world.enrol(3)
    await world.check_in(plan, clients)

    async def move(connection: Connection) -> None:
        for row in await check_ins.list_check_ins(connection, ModelId(plan.model)):
            await check_ins.put_check_in(connection, replace(row, replica_id="dead"))

    await world.tx(move)
    async with world.coordinating():
        found = await world.reached(await world.start(plan), Phase.ABORTED)
    assert found.reason == "TOO_FEW_CLIENTS"


async def test_housekeeping_takes_orphans_and_leaves_the_rest(world: World) -> None:
    plan = await world.declare(plan_text())
    clients = await world.enrol(3)
    await play(world, plan, clients)
    orphan, fresh = (put_bytes(world.parts.blobs, text).digest for text in (b"old", b"new"))
    blobs = world.parts.blobs
    assert isinstance(blobs, DirectoryBlobs)
    long_ago = time.time() - limits.MAX_ORPHAN_AGE_MS / 1000 - 60
    for digest in blobs.digests():
        if digest != fresh:
            os.utime(blobs._path(digest), (long_ago, long_ago))
    async with await CoordinatorLease.acquire(world.database.url, "test") as lease:
        await clean_up_after_crashes(world.parts, fencing_token=lease.token)

        async def fail() -> None:
            lease.lost.set()
            raise Unavailable("injected")

        world.database.faults = [Fault("keep_house", "before commit", fail)]
        await keep_house(world.parts, lease)
    assert not blobs.exists(orphan)
    assert blobs.exists(fresh)
    for number in (1, 2):
        await world.vector(plan, number)
