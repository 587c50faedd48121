"""The rule that a plan names: what it needs of the plan, and the noise that is calibrated to it."""

from __future__ import annotations

import math
from typing import Final

from boltz_mesh.aggregation.calibration import Calibration, calibrate
from boltz_mesh.aggregation.centered_step import CenteredClipping
from boltz_mesh.aggregation.weighted_mean import WEIGHTED_MEAN, WeightedMean
from boltz_mesh.rounds.plan_refusal import refuse
from boltz_mesh.rounds.plan_types import Plan
from boltz_protocol import limits
from boltz_protocol.encoding import Encoding

#: tau over the clip norm where the plan is silent.
DEFAULT_RADIUS: Final = 0.5
# As for the clients' encoding: beyond this, the room for rounding is most of a term.
_MAX_INFLATION: Final = 1.25

SumRule = WeightedMean | CenteredClipping


def sum_rule_of(plan: Plan, encoding: Encoding) -> SumRule:
    """The rule of the sums that a round makes, in the units of an encoding: the plan's or a
    round's.

    Under a robust rule these are the groups' sums, or single updates that nobody noises.
    """
    if plan.rule == "centered-clipping":
        return CenteredClipping.of(encoding, radius_of(plan))
    return WEIGHTED_MEAN


def radius_of(plan: Plan) -> float:
    """tau over the clip norm."""
    return DEFAULT_RADIUS if plan.centered_radius is None else plan.centered_radius


def calibration_of(plan: Plan, encoding: Encoding) -> Calibration:
    """The noise of a sum under a plan, from the declaration of the sum's rule and nothing else.

    It is declared for the largest cohort at full weights, so that it is the same in the holds of a
    round, in the ledger and in the fold, whoever survives.

    Args:
        encoding: the plan's or a round's.

    Raises: InvalidPlan when the noise is too small or too large to be drawn.
    """
    return calibrate(
        sum_rule_of(plan, encoding),
        noise_multiplier=plan.noise_multiplier,
        clip=encoding.bound_l2,
        weights=(limits.MAX_WEIGHT,) * plan.cohort.max,
    )


def check_rule(plan: Plan) -> None:
    """Check the rule's settings (all but the encoding). Raises: InvalidPlan."""
    if plan.rule != "centered-clipping":
        if plan.centered_radius is not None:
            raise refuse(
                "centered_radius",
                f'rule = "{plan.rule}" has none',
                'remove it, or set rule = "centered-clipping"',
            )
        return
    if plan.is_masked:
        raise refuse(
            "rule",
            f'in mode = "{plan.mode}" the server sees no single update to clip',
            '"weighted-mean" would do, or mode = "open"',
        )
    if plan.server_optimizer.name != "fedavg":
        raise refuse(
            "server_optimizer.name",
            "the last published mean is read off two versions, which "
            f'"{plan.server_optimizer.name}" does not allow',
            '"fedavg" would do, or rule = "weighted-mean"',
        )
    if plan.adaptive_clipping is not None:
        raise refuse(
            "rule",
            "a term that is shortened takes the bit of adaptive clipping along, which would count "
            "for less",
            '"weighted-mean" would do, or no [adaptive_clipping]',
        )
    tau = radius_of(plan) * plan.clip_norm
    if tau < limits.MIN_CLIP_NORM:
        raise refuse(
            "centered_radius",
            f"of clip_norm {plan.clip_norm:g} it is {tau:g}, below {limits.MIN_CLIP_NORM:g}",
            "1.0 would do",
        )
    _check_centre(plan)


def check_calibration(plan: Plan, encoding: Encoding) -> None:
    """Check the rule against the plan's encoding. Raises: InvalidPlan."""
    rule = sum_rule_of(plan, encoding)
    if isinstance(rule, CenteredClipping):
        _check_inflation(plan, encoding, rule)
    calibration = calibration_of(plan, encoding)
    if plan.is_masked:
        assert calibration.sensitivity == encoding.bound_l2, "clients calibrate their shares to it"


def _check_centre(plan: Plan) -> None:
    """The centre carries the noise of the mean before: sigma / n = z tau / n in each coordinate,
    z tau sqrt(d) / n long. Longer than tau, it would clip every term in its own direction, and pile
    up from round to round.
    """
    length = plan.noise_multiplier * math.sqrt(plan.coordinates)
    if length <= plan.cohort.min:
        return
    raise refuse(
        "rule",
        f"with noise_multiplier {plan.noise_multiplier:g} on {plan.coordinates} coordinates, the "
        f"noise in the mean of {plan.cohort.min} clients is longer than a term, and is no centre",
        f'cohort.min = {math.ceil(length)} would do, or rule = "weighted-mean"',
    )


def _check_inflation(plan: Plan, encoding: Encoding, rule: CenteredClipping) -> None:
    terms = rule.terms
    if terms.bound_l2 <= _MAX_INFLATION * terms.clip_units:
        return
    # T^2 = u^2 + d/4 + u + sqrt(d)/2 <= (1.25 u)^2, solved for u.
    coordinates = encoding.coordinates
    rounding = coordinates / 4 + math.sqrt(coordinates) / 2
    slope = _MAX_INFLATION**2 - 1
    units = (1 + math.sqrt(1 + 4 * slope * rounding)) / (2 * slope)
    least = math.ceil(1000 * units / encoding.clip_units) / 1000
    raise refuse(
        "centered_radius",
        f"{radius_of(plan):g} leaves terms that are mostly rounding error on {coordinates} "
        "coordinates",
        f"{min(least + 0.001, 1.0):.3f} would do, or a smaller cohort.max",
    )
