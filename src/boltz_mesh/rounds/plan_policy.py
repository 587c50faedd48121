"""What a mesh demands of every plan, whatever the plan says: noise, and a budget for each client.

A client that takes part in two models spends in both, and no plan knows of the other. So what one
client may spend over all models together is a setting of the mesh, and so is whether rounds without
noise may run at all. Both are asked when a plan is applied, and again when a round starts, since a
plan may be older than the settings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from boltz_mesh.privacy import accountant
from boltz_mesh.privacy.budget import Budget
from boltz_mesh.rounds.plan_refusal import refuse
from boltz_mesh.rounds.plan_types import Plan
from boltz_protocol import limits
from boltz_protocol.errors import ConfigurationError

_OTHER_MESH: Final = "a mesh for experiments"


@dataclass(frozen=True, slots=True)
class PrivacyPolicy:
    """Settings of the mesh.

    Attributes:
        production: rounds without noise are refused.
        client_budget: the most that one client may spend over all models and for ever; its unit is
            `client`. None where each model's own budget is all there is.
    """

    production: bool = False
    client_budget: Budget | None = None


def privacy_policy(
    *, production: bool, client_epsilon: float | None, client_delta: float
) -> PrivacyPolicy:
    """The policy of a mesh's settings.

    Raises: ConfigurationError, naming the setting and a value that would do.
    """
    if not limits.MIN_DELTA <= client_delta <= 1 / limits.MAX_ROSTER:
        raise ConfigurationError(
            f"privacy.client_delta {client_delta} must be at least {limits.MIN_DELTA:g} and at "
            f"most one over the {limits.MAX_ROSTER} clients that a round may have; 1e-6 would do",
            setting="privacy.client_delta",
        )
    if client_epsilon is None:
        return PrivacyPolicy(production)
    if not (math.isfinite(client_epsilon) and client_epsilon > 0):
        raise ConfigurationError(
            f"privacy.client_epsilon {client_epsilon} must be a positive number; 8.0 would do, or "
            "leave it out",
            setting="privacy.client_epsilon",
        )
    return PrivacyPolicy(production, Budget(client_epsilon, client_delta))


def check_policy(plan: Plan, policy: PrivacyPolicy) -> None:
    """Check a plan that is sound in itself. Raises: InvalidPlan."""
    if plan.privacy == "none":
        if policy.production:
            raise refuse(
                "privacy",
                '"none" is refused by a mesh in production (its setting privacy.production)',
                f'"client-dp" with a noise_multiplier would do, or {_OTHER_MESH}',
            )
        if policy.client_budget is not None:
            raise refuse(
                "privacy",
                '"none" promises nothing, and this mesh keeps every client within a budget over '
                "all models (its setting privacy.client_epsilon)",
                f'"client-dp" with a noise_multiplier would do, or {_OTHER_MESH}',
            )
        return
    budget = policy.client_budget
    if budget is None:
        return
    least = accountant.noise_multiplier_for(
        budget.epsilon, 1, budget.delta, distributed=plan.is_masked
    )
    if plan.noise_multiplier < least:
        raise refuse(
            "noise_multiplier",
            f"at {plan.noise_multiplier} one round already costs more than this mesh lets a client "
            f"spend over all models, {budget}",
            f"{math.ceil(least * 1000) / 1000:.3f} would do for one round",
        )


def check_not_past(plan: Plan, today: date) -> None:
    """Refuse a plan whose budget has ended. Raises: InvalidPlan."""
    budget = plan.budget
    if budget is not None and budget.end is not None and budget.end <= today:
        raise refuse(
            "budget.end",
            f"{budget.end} is past: no round could start (today is {today}, UTC)",
            f"{today + timedelta(days=365)} would do",
        )
