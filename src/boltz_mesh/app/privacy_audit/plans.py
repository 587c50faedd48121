"""The plan of one trial: a model of its own, so that the ledger shows one release and no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import tomli_w

from boltz_mesh.app.privacy_audit.options import DELTA, AuditMode
from boltz_mesh.privacy.budget import Budget
from boltz_mesh.rounds.plan import (
    Cohort,
    Deadlines,
    Plan,
    SecureAggregationPlan,
    TensorSpec,
    plan_to_toml_table,
    validate_encoding,
    validate_plan,
)

#: C. Everything is measured in units of it.
CLIP_NORM: Final = 1.0
#: Long enough for a machine that does other things; a trial that is stuck longer is broken.
_DEADLINES: Final = Deadlines(
    selecting_ms=60_000,
    advertising_ms=60_000,
    sharing_ms=60_000,
    collecting_ms=120_000,
    checking_ms=60_000,
    unmasking_ms=60_000,
    aggregating_ms=60_000,
    releasing_ms=60_000,
)
#: Nobody colludes and nobody may be missing: the clients' shares then make just the noise that the
#: ledger counts with. Any other setting adds noise, and the bound would prove less.
_SEALING: Final = SecureAggregationPlan(
    corrupt_fraction=0.0, dropout_fraction=0.0, adversary="semi-malicious"
)


@dataclass(frozen=True, slots=True)
class Noise:
    """How much noise a plan adds, and what may be spent."""

    multiplier: float
    epsilon: float


def trial_plan(
    model_id: str,
    mode: AuditMode,
    tensors: tuple[TensorSpec, ...],
    clients: int,
    noise: Noise | None,
) -> str:
    """The text of a `plan.toml`, checked as the mesh will check it.

    Args:
        noise: None for a round without.

    Raises: InvalidPlan.
    """
    plan = Plan(
        model=model_id,
        mode=mode,
        secure_aggregation=_SEALING if mode == "sealed" else None,
        tensors=tensors,
        cohort=Cohort(min=clients, target=clients, max=clients, over_selection=1.0),
        clip_norm=CLIP_NORM,
        privacy="none" if noise is None else "client-dp",
        noise_multiplier=0.0 if noise is None else noise.multiplier,
        budget=None if noise is None else Budget(epsilon=noise.epsilon, delta=DELTA),
        promotion="automatic",
        deadlines=_DEADLINES,
    )
    validate_plan(plan)
    validate_encoding(plan)
    return tomli_w.dumps(plan_to_toml_table(plan))
