"""The plan of a training run, as an operator would write it.

All rounds are sealed: those without noise as well, so that both rows take the same way and differ
in the noise alone.
"""

from __future__ import annotations

import math
from fractions import Fraction
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
    SecureAggregationPlan,
    TensorSpec,
    plan_to_toml_table,
    validate_encoding,
    validate_plan,
)

#: Long enough for 300 desks on a laptop that does other things; a demo that is stuck longer is
#: broken.
_DEADLINES: Final = Deadlines(
    selecting_ms=60_000,
    advertising_ms=120_000,
    sharing_ms=120_000,
    collecting_ms=300_000,
    checking_ms=120_000,
    unmasking_ms=120_000,
    aggregating_ms=60_000,
    releasing_ms=60_000,
)
#: What a round withstands: of 60 desks, that the three of one broker collude with the server, and
#: that as many are lost. Plans take a tenth of dropouts unless told otherwise; here all desks are
#: on one machine, and fewer dropouts need fewer neighbours and less noise.
SEALING: Final = SecureAggregationPlan(
    corrupt_fraction=0.05, dropout_fraction=0.05, adversary="semi-malicious"
)


def least_survivors(clients: int) -> int:
    """`cohort.min`: all but those that the graph of neighbours may lose as well.

    A desk's share of the noise is made so that these are enough, less the colluders: with all of 60
    there is 5.4% more noise than epsilon needs. Asking for all 60 would save half of that surplus,
    and lose a round with the first desk that drops out.
    """
    return math.ceil(clients * (1 - Fraction(str(SEALING.dropout_fraction))))


def plan_for(task: DemoTask, run: TrainingRun) -> Plan:
    """The plan, checked as the mesh will check it.

    Every desk is wanted in every round, so that what is measured does not depend on who was
    selected: a round goes on without one only where it is lost, or far too late. The trainer takes
    origin and ridge from the plan's hyper-parameters.

    Raises: InvalidPlan, such as for noise that the encoding has no room for.
    """
    preset = task.preset
    private = run.seed is not None
    hyper_parameters: dict[str, HyperParameter] = {"origin": run.origin}
    if preset.ridge > 0:
        hyper_parameters["ridge"] = preset.ridge
    plan = Plan(
        model=run.model_id,
        mode="sealed",
        secure_aggregation=SEALING,
        tensors=tuple(TensorSpec(name=n, shape=shape) for n, shape in tensors_of(task.kind)),
        cohort=Cohort(
            min=least_survivors(task.clients),
            target=task.clients,
            max=task.clients,
            over_selection=1.0,
        ),
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
