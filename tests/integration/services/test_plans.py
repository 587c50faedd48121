"""Plans: applied once, in revisions, and refused with a value that would do."""

from __future__ import annotations

import numpy as np
import pytest

from boltz_protocol.errors import (
    InvalidPlan,
    NotFound,
    StateConflict,
)
from boltz_protocol.v1 import aggregator_pb2 as agg
from tests.support.calls import answered, refused
from tests.support.mesh import Mesh
from tests.support.models import (
    LOSS,
    declare,
    plan_toml,
)


async def apply(mesh: Mesh, text: str, *, dry_run: bool = False) -> agg.ApplyPlanResponse:
    request = agg.ApplyPlanRequest(plan_toml=text, dry_run=dry_run)
    return await answered(mesh.operator.aggregator.ApplyPlan(request))


async def test_a_plan_is_applied_once(mesh: Mesh, model: str) -> None:
    text = plan_toml(model, tables=LOSS)
    would = await apply(mesh, text, dry_run=True)
    assert (would.changed, would.plan.revision) == (True, 0)
    with refused(NotFound):
        await answered(mesh.operator.aggregator.GetPlan(agg.GetPlanRequest(model_id=model)))
    first = await apply(mesh, text)
    assert (first.changed, first.plan.revision, first.plan.applied_by) == (True, 1, "local")
    assert first.plan.scale == would.plan.scale > 0
    assert first.plan.rounds_allowed == 0
    again = await apply(mesh, text)
    assert (again.changed, again.plan.revision) == (False, 1)
    # What is shown says the same plan in full.
    assert not (await apply(mesh, first.plan.plan_toml)).changed
    second = await apply(mesh, plan_toml(model, tables=LOSS, min=1))
    assert (second.changed, second.plan.revision) == (True, 2)
    shown = await answered(mesh.operator.aggregator.GetPlan(agg.GetPlanRequest(model_id=model)))
    assert shown.plan == second.plan


async def test_a_budget_says_how_many_rounds_fit(mesh: Mesh, model: str) -> None:
    text = plan_toml(
        model,
        privacy="client-dp",
        noise=4.0,
        tables="[budget]\nepsilon = 2.0\ndelta = 1e-5\n",
    )
    plan = (await apply(mesh, text, dry_run=True)).plan
    assert 1 <= plan.rounds_allowed < 20


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "model"),
        ("this is not TOML", "TOML"),
        (plan_toml("m", clip_norm=-1.0), "clip_norm"),
        (plan_toml("m", mode="secret"), "mode"),
        (plan_toml("m", mode="sealed"), "cohort.min"),
        (plan_toml("m", top='regions = ["nul \\u0000 byte"]'), "region"),
        (plan_toml("m", tables='[hyper_parameters]\nx = "nul \\u0000 byte"'), "zero byte"),
        (plan_toml("m", min=4), "cohort"),
        (plan_toml("Not a name!"), "model"),
        (plan_toml("m", top="unknown_setting = 1"), "unknown_setting"),
        ("#" * (300 << 10), "bytes"),
    ],
)
async def test_plans_that_cannot_work(mesh: Mesh, text: str, match: str) -> None:
    for dry_run in (True, False):
        with refused(InvalidPlan, match):
            await apply(mesh, text, dry_run=dry_run)


async def test_tensors_do_not_change(mesh: Mesh, model: str) -> None:
    await apply(mesh, plan_toml(model, size=8))
    assert (await apply(mesh, plan_toml(model, size=9))).changed  # nothing was published yet
    await declare(mesh, model, np.arange(9, dtype=np.float32))
    with refused(StateConflict, "tensors"):
        await apply(mesh, plan_toml(model, size=8))
    assert (await apply(mesh, plan_toml(model, size=9, min=1))).changed
