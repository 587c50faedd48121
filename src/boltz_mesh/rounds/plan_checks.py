"""What a plan must satisfy beyond the types and ranges of its single settings.

Every refusal is an `InvalidPlan` that names the setting and a value that would do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Final

from boltz_mesh.privacy import accountant
from boltz_mesh.rounds.plan_clipping import check_adaptive_clipping, check_encodings
from boltz_mesh.rounds.plan_grouped import check_grouped
from boltz_mesh.rounds.plan_refusal import refuse
from boltz_mesh.rounds.plan_robust import check_robust
from boltz_mesh.rounds.plan_rule import check_calibration, check_rule
from boltz_mesh.rounds.plan_sealed import check_noise_share, check_sealed
from boltz_mesh.rounds.plan_types import OPTIMIZERS, OptimizerPlan, Plan
from boltz_protocol import ids, limits
from boltz_protocol.encoding import Encoding, plan_encoding
from boltz_protocol.errors import InvalidPlan, MeshError

#: Hyper-parameters travel in the signed round configuration.
MAX_HYPER_PARAMETERS: Final = 64
_INT64: Final = 1 << 63
#: Arguments of `plan_encoding` -> settings of the plan.
_ENCODING_SETTINGS: Final = {
    "clip_norm_l2": "clip_norm",
    "noise_multiplier": "noise_multiplier",
    "cohort_max": "cohort.max",
    "cohort_min": "cohort.min",
    "coordinates": "tensors",
}
#: Below one over any cohort, by a factor of ten.
_USUAL_DELTA: Final = 1e-5

assert 10 * _USUAL_DELTA <= 1 / limits.MAX_ROSTER


def validate_plan(plan: Plan) -> None:
    """Check what holds between settings (all but the encoding). Raises: InvalidPlan."""
    _check_names(plan)
    _check_tensors(plan)
    _check_cohort(plan)
    _check_numbers(plan)
    check_adaptive_clipping(plan)
    _check_privacy(plan)
    _check_mode(plan)
    check_rule(plan)
    check_robust(plan)
    _check_optimizer(plan.server_optimizer)
    _check_hyper_parameters(plan)


def validate_encoding(plan: Plan) -> Encoding:
    """The plan's fixed-point encoding: the sum of a full cohort and its noise fit the wire.

    With `client-dp` the noise multiplier is over the sensitivity that the plan's rule declares for
    this encoding's `bound_l2` (`plan_rule.calibration_of`), which is never more than that. The
    encoding leaves room for noise of sigma sqrt(n), n being a full cohort. That is enough where the
    noise comes in n shares too: each has a variance of at most sigma^2, since it is sigma^2 over
    the survivors that do not collude, of whom there is one at least.

    Raises: InvalidPlan.
    """
    try:
        encoding = plan_encoding(
            clip_norm_l2=plan.clip_norm,
            noise_multiplier=plan.noise_multiplier,
            cohort_max=plan.cohort.max,
            coordinates=plan.coordinates,
        )
        if plan.is_masked:
            check_noise_share(plan, encoding)
        if plan.adaptive_clipping is not None:
            check_encodings(plan, encoding)
    except InvalidPlan as error:
        # The encoding speaks of its own arguments; the plan's reader knows the plan's settings.
        setting = _ENCODING_SETTINGS[error.metadata["setting"]]
        raise InvalidPlan(
            f"{setting}: {error.message}", setting=setting, would_do=error.metadata["would_do"]
        ) from error
    check_calibration(plan, encoding)
    return encoding


def _check_names(plan: Plan) -> None:
    try:
        ids.parse_model_id(plan.model)
    except MeshError as error:
        raise refuse("model", error.message, "`volatility-linear` would do") from error
    for position, region in enumerate(plan.regions):
        try:
            ids.parse_name("region", region)
        except MeshError as error:
            raise refuse(f"regions[{position}]", error.message, "`eu` would do") from error
    for position, lane in enumerate(plan.lanes):
        try:
            ids.parse_name("lane", lane.name)
        except MeshError as error:
            # It travels in the signed configuration of every round, which has no other names.
            raise refuse(
                f"lanes[{position}].name", error.message, "`train-loss` would do"
            ) from error
    _unique("tensors", "name", (tensor.name for tensor in plan.tensors))
    _unique("lanes", "name", (lane.name for lane in plan.lanes))
    _unique("regions", "region", plan.regions)


def _unique(setting: str, what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise refuse(setting, f"{what} {name!r} comes twice", "give each its own")
        seen.add(name)


def _check_tensors(plan: Plan) -> None:
    for position, tensor in enumerate(plan.tensors):
        if not tensor.name.isprintable():
            raise refuse(
                f"tensors[{position}].name",
                f"{tensor.name!r} has characters that cannot be printed",
                "`weights` would do",
            )
    if plan.coordinates > limits.MAX_COORDINATES:
        raise refuse(
            "tensors",
            f"the model and its lanes have {plan.coordinates} coordinates",
            f"at most {limits.MAX_COORDINATES} would do",
        )


def _check_cohort(plan: Plan) -> None:
    cohort = plan.cohort
    if cohort.min > cohort.target:
        raise refuse(
            "cohort.min",
            f"{cohort.min} is above cohort.target {cohort.target}",
            f"at most {cohort.target} would do",
        )
    if cohort.target > cohort.max:
        raise refuse(
            "cohort.target",
            f"{cohort.target} is above cohort.max {cohort.max}",
            f"at most {cohort.max} would do",
        )
    # Clients of equal weight must be able to make the smallest cohort.
    if plan.weight_share_cap < 1 / cohort.min:
        raise refuse(
            "weight_share_cap",
            f"{plan.weight_share_cap} cannot be kept by cohort.min = {cohort.min} clients",
            f"at least {math.ceil(1000 / cohort.min) / 1000:.3f} would do",
        )


def _check_numbers(plan: Plan) -> None:
    numbers = {
        "clip_norm": plan.clip_norm,
        "noise_multiplier": plan.noise_multiplier,
        "cohort.over_selection": plan.cohort.over_selection,
        "centered_radius": 1.0 if plan.centered_radius is None else plan.centered_radius,
        "weight_share_cap": plan.weight_share_cap,
    }
    numbers |= {f"lanes[{i}].scale": lane.scale for i, lane in enumerate(plan.lanes)}
    for setting, value in numbers.items():
        if not math.isfinite(value):
            raise refuse(setting, f"{value} is not finite", "1.0 would do")


def _check_privacy(plan: Plan) -> None:
    if plan.privacy == "none":
        if plan.noise_multiplier != 0:
            raise refuse(
                "noise_multiplier",
                f'{plan.noise_multiplier} does not go with privacy = "none"',
                '0 would do, or privacy = "client-dp"',
            )
        if plan.budget is not None:
            raise refuse(
                "budget",
                'privacy = "none" has no epsilon to hold against it',
                'remove [budget], or set privacy = "client-dp"',
            )
        return
    budget = plan.budget
    if budget is None:
        raise refuse(
            "budget",
            'privacy = "client-dp" needs one',
            f"epsilon = 2.0 and delta = {_USUAL_DELTA:g} would do",
        )
    if budget.delta > 1 / plan.cohort.max:
        raise refuse(
            "budget.delta",
            f"{budget.delta:g} is above one over cohort.max = {plan.cohort.max}",
            f"{_USUAL_DELTA:g} would do",
        )
    # The first round must fit, or the plan could never run.
    distributed = plan.is_masked
    least = accountant.noise_multiplier_for(
        budget.epsilon, 1, budget.delta, distributed=distributed
    )
    if plan.noise_multiplier < least:
        raise refuse(
            "noise_multiplier",
            f"at {plan.noise_multiplier} one round already costs more than the budget, {budget}",
            f"{math.ceil(least * 1000) / 1000:.3f} would do for one round, and "
            f"{math.ceil(least * math.sqrt(10) * 1000) / 1000:.3f} for ten",
        )


def _check_mode(plan: Plan) -> None:
    if plan.mode != "grouped" and plan.grouping is not None:
        raise refuse(
            "grouping",
            f'mode = "{plan.mode}" has none',
            'remove [grouping], or set mode = "grouped"',
        )
    if plan.mode == "grouped":
        check_grouped(plan)
    elif plan.mode == "sealed":
        check_sealed(plan)
    elif plan.secure_aggregation is not None:
        raise refuse(
            "secure_aggregation",
            f'mode = "{plan.mode}" has none',
            'remove [secure_aggregation], or set mode = "sealed"',
        )


def _check_optimizer(settings: OptimizerPlan) -> None:
    kind = OPTIMIZERS[settings.name]
    known = {field.name for field in dataclasses.fields(kind)}
    for key, value in settings.given().items():
        setting = f"server_optimizer.{key}"
        if key not in known:
            raise refuse(
                setting,
                f"{settings.name} has no such setting",
                f"remove it ({settings.name} has: {', '.join(sorted(known))})",
            )
        unit_interval = key in {"momentum", "beta1", "beta2"}
        if unit_interval and not 0 <= value < 1:
            raise refuse(setting, f"{value} must be at least 0 and below 1", "0.9 would do")
        if not unit_interval and not (math.isfinite(value) and value > 0):
            remedy = "0.001 would do" if key == "tau" else "1.0 would do"
            raise refuse(setting, f"{value} must be a positive number", remedy)


def _check_hyper_parameters(plan: Plan) -> None:
    table = plan.hyper_parameters
    if len(table) > MAX_HYPER_PARAMETERS:
        raise refuse(
            "hyper_parameters",
            f"{len(table)} entries",
            f"at most {MAX_HYPER_PARAMETERS} would do",
        )
    for name, value in table.items():
        setting = f"hyper_parameters.{name}"
        if not (name.isidentifier() and name.isascii() and len(name) <= limits.MAX_NAME_CHARS):
            raise refuse(setting, "the name is not an ASCII identifier", "`local_epochs` would do")
        if isinstance(value, str) and len(value) > limits.MAX_NAME_CHARS:
            raise refuse(
                setting,
                f"{len(value)} characters",
                f"at most {limits.MAX_NAME_CHARS} would do",
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise refuse(setting, f"{value} is not finite", "0.1 would do")
        if isinstance(value, int) and not -_INT64 <= value < _INT64:
            raise refuse(setting, "does not fit 64 bits", "write it as a float or a string")
