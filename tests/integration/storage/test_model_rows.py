"""Plans and model versions."""

from __future__ import annotations

import asyncio

import pytest

from boltz_mesh.storage import models, plans
from boltz_mesh.storage.models import ModelState
from boltz_mesh.storage.postgres import Connection, Database
from boltz_protocol.errors import AlreadyExists, NotFound, StateConflict
from boltz_protocol.ids import ModelId
from tests.support.rows import MODEL, call, new_version, round_id, tx


async def apply(database: Database, plan: dict[str, object]) -> tuple[plans.Plan, bool]:
    return await tx(
        database, lambda c: plans.apply_plan(c, MODEL, plan, applied_by="ann", applied_at_ms=5)
    )


async def test_each_changed_plan_is_a_revision(database: Database) -> None:
    first, changed = await apply(database, {"mode": "open", "clip": 1.0})
    assert (first.revision, changed) == (1, True)
    assert await apply(database, {"clip": 1.0, "mode": "open"}) == (first, False)
    second, _ = await apply(database, {"mode": "open", "clip": 2.0})
    assert second.revision == 2
    assert await tx(database, lambda c: plans.get_plan(c, MODEL)) == second
    assert await tx(database, lambda c: plans.get_plan(c, MODEL, 1)) == first
    with pytest.raises(NotFound, match="revision 3"):
        await tx(database, lambda c: plans.get_plan(c, MODEL, 3))
    with pytest.raises(NotFound):
        await tx(database, lambda c: plans.get_plan(c, ModelId("other")))


async def test_plans_applied_at_once_get_numbers_of_their_own(database: Database) -> None:
    applied = await asyncio.gather(*(apply(database, {"clip": n}) for n in range(5)))
    assert sorted(plan.revision for plan, _ in applied) == [1, 2, 3, 4, 5]


async def test_a_plan_with_a_nan_is_refused(database: Database) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        await apply(database, {"clip": float("nan")})


async def test_versions_are_candidates_then_live_then_retired(database: Database) -> None:
    async def publish(connection: Connection) -> models.ModelVersion:
        number = await models.next_model_version(connection, MODEL)
        parent = number - 1 or None
        return await models.insert_model_version(connection, new_version(number, parent=parent))

    assert await tx(database, lambda c: models.find_promoted(c, MODEL)) is None
    assert await tx(database, lambda c: models.find_latest(c, MODEL)) is None
    first, second = await tx(database, publish), await tx(database, publish)
    assert (first.version, second.version, second.parent_version) == (1, 2, 1)
    assert first.state is ModelState.CANDIDATE
    assert first.weights == new_version(1).weights
    assert first.optimizer == new_version(1).optimizer
    assert first.metrics == {"loss": 0.25}

    async def promote(version: int) -> models.ModelVersion:
        return await tx(
            database, lambda c: models.promote_model(c, MODEL, version, by="ann", at_ms=version)
        )

    async def rollback(version: int) -> models.ModelVersion:
        return await tx(
            database, lambda c: models.rollback_model(c, MODEL, version, by="bob", at_ms=9)
        )

    live = await promote(1)
    assert (live.state, live.promoted_by, live.promoted_at_ms) == (ModelState.PROMOTED, "ann", 1)
    assert await promote(1) == live
    with pytest.raises(StateConflict, match="candidate, not retired"):
        await rollback(2)
    await promote(2)
    assert await tx(database, lambda c: models.find_latest(c, MODEL)) == await tx(
        database, lambda c: models.find_promoted(c, MODEL)
    )
    with pytest.raises(StateConflict, match="retired, not candidate"):
        await promote(1)
    assert (await rollback(1)).promoted_by == "bob"
    states = await tx(database, lambda c: models.list_model_versions(c, MODEL, limit=9))
    assert [(row.version, row.state.value) for row in states] == [(2, "retired"), (1, "promoted")]
    older = await tx(database, lambda c: models.list_model_versions(c, MODEL, limit=9, before=2))
    assert [row.version for row in older] == [1]
    with pytest.raises(NotFound):
        await promote(7)
    (newest,) = await call(database, models.list_newest_versions, limit=9)
    assert newest.version == 2
    assert await call(database, models.list_newest_versions, limit=9, after=MODEL) == []


async def test_a_round_publishes_once(database: Database) -> None:
    made = new_version(1, made_by=round_id(1))
    stored = await tx(database, lambda c: models.insert_model_version(c, made))
    assert await tx(database, lambda c: models.find_model_of_round(c, round_id(1))) == stored
    assert await tx(database, lambda c: models.find_model_of_round(c, round_id(2))) is None
    for again in (new_version(1), new_version(2, made_by=round_id(1))):
        with pytest.raises(AlreadyExists):
            await call(database, models.insert_model_version, again)


async def test_numbers_are_given_one_at_a_time(database: Database) -> None:
    async def publish(connection: Connection) -> int:
        number = await models.next_model_version(connection, MODEL)
        await asyncio.sleep(0)
        await models.insert_model_version(connection, new_version(number))
        return number

    numbers = await asyncio.gather(*(tx(database, publish) for _ in range(5)))
    assert sorted(numbers) == [1, 2, 3, 4, 5]
