"""The plan of a training run, as an operator would write it."""

from __future__ import annotations

from typing import Final

import tomli_w

from boltz_mesh.app.demo.desks import tensors_of
from boltz_mesh.app.demo.options import DemoTask, TrainingRun
from boltz_mesh.app.demo.settings import DELTA
from boltz_mesh.privacy.budget import Budget
from boltz_mesh.rounds.plan import (
    Cohort,
    Deadlines,
    HyperParameter,
    Plan,
    TensorSpec,
    plan_to_toml_table,
    validate_encoding,
    validate_plan,
)

#: Long enough for a laptop that does other things; a demo that is stuck longer is broken.
_DEADLINES: Final = Deadlines(
    selecting_ms=60_000, collecting_ms=300_000, aggregating_ms=60_000, releasing_ms=60_000
)


def plan_for(task: DemoTask, run: TrainingRun) -> Plan:
    """The plan, checked as the mesh will check it.

    Every desk takes part in every round, so that what is measured does not depend on who was
    selected. The trainer takes origin and ridge from the plan's hyper-parameters.

    Raises: InvalidPlan, such as for noise that the encoding has no room for.
    """
    preset = task.preset
    private = run.seed is not None
    hyper_parameters: dict[str, HyperParameter] = {"origin": run.origin}
    if preset.ridge > 0:
        hyper_parameters["ridge"] = preset.ridge
    plan = Plan(
        model=run.model_id,
        tensors=tuple(TensorSpec(name=n, shape=shape) for n, shape in tensors_of(task.kind)),
        cohort=Cohort(min=task.clients, target=task.clients, max=task.clients, over_selection=1.0),
        clip_norm=preset.clip_norm_l2,
        privacy="client-dp" if private else "none",
        noise_multiplier=preset.noise_multiplier if private else 0.0,
        budget=_budget(preset.epsilon) if private else None,
        promotion="automatic",
        deadlines=_DEADLINES,
        hyper_parameters=hyper_parameters,
    )
    validate_plan(plan)
    validate_encoding(plan)
    return plan


def plan_toml(plan: Plan) -> str:
    """The same as the text of a `plan.toml`."""
    return tomli_w.dumps(plan_to_toml_table(plan))


def _budget(epsilon: float | None) -> Budget:
    assert epsilon is not None, "noise without an epsilon"
    return Budget(epsilon=epsilon, delta=DELTA)
