"""What a plan with adaptive clipping must satisfy, and the plan at another clip norm.

The encoding of a round follows its clip norm. `plan_encoding` takes the finest scale, a power of
two, at which the sums fit: with U the most units of the ring that a clip norm may have, that of any
clip norm has more than U / 2. So an encoding of half as many units as the plan's own is coarser
than all that may follow, and what holds for it holds for them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import msgspec

from boltz_mesh.privacy.adaptive_clip import AdaptiveClipping
from boltz_mesh.rounds.plan_refusal import refuse
from boltz_mesh.rounds.plan_sealed import check_noise_share
from boltz_mesh.rounds.plan_types import Plan
from boltz_protocol import clip_indicator, limits
from boltz_protocol.encoding import Encoding, integer_bound_l2, plan_encoding
from boltz_protocol.errors import InvalidPlan


def check_adaptive_clipping(plan: Plan) -> None:
    """Check all but the encodings. Raises: InvalidPlan."""
    settings = plan.adaptive_clipping
    if settings is None:
        return
    _check_finite(settings)
    _check_lanes(plan)
    bounds = settings.resolved(plan.clip_norm)
    assert bounds.min is not None
    assert bounds.max is not None
    if bounds.min > plan.clip_norm:
        raise refuse(
            "adaptive_clipping.min",
            f"{bounds.min:g} is above clip_norm = {plan.clip_norm:g}, where rounds start",
            f"at most {plan.clip_norm:g} would do",
        )
    if bounds.max < plan.clip_norm:
        raise refuse(
            "adaptive_clipping.max",
            f"{bounds.max:g} is below clip_norm = {plan.clip_norm:g}, where rounds start",
            f"at least {plan.clip_norm:g} would do",
        )


def check_encodings(plan: Plan, encoding: Encoding) -> None:
    """Check that whatever clip norm follows has an encoding.

    Args:
        encoding: of the plan's own clip norm.

    Raises: InvalidPlan in the encoding's words: `setting` and `would_do` in its metadata.
    """
    coarse = replace(encoding, **_halved(encoding))
    if not _fine_enough(coarse):
        enough = _cohort_that_fits(plan)
        raise InvalidPlan(
            f"adaptive clipping needs a scale that is fine enough at any clip norm; with "
            f"{plan.coordinates} coordinates there is none for {plan.cohort.max} clients; "
            f"cohort_max {enough} would do",
            setting="cohort_max",
            would_do=str(enough),
        )
    noise = plan.noise_multiplier
    if 0 < noise * coarse.bound_l2 < limits.MIN_SIGMA:
        least = math.ceil(limits.MIN_SIGMA / coarse.bound_l2 * 1e9) / 1e9
        raise InvalidPlan(
            f"noise_multiplier {noise} may become noise of less than {limits.MIN_SIGMA} ring units "
            f"as the clip norm moves; at least {least} would do",
            setting="noise_multiplier",
            would_do=str(least),
        )
    if plan.is_masked:
        check_noise_share(plan, coarse)


def at_clip_norm(plan: Plan, clip_norm: float) -> Plan:
    """The plan as a round at this clip norm goes by it.

    Args:
        plan: with adaptive clipping, and checked.
        clip_norm: between the plan's bounds.
    """
    return msgspec.structs.replace(plan, clip_norm=clip_norm)


def _check_finite(settings: AdaptiveClipping) -> None:
    for name, value in msgspec.structs.asdict(settings).items():
        if value is not None and not math.isfinite(value):
            raise refuse(f"adaptive_clipping.{name}", f"{value} is not finite", "0.5 would do")


def _check_lanes(plan: Plan) -> None:
    if len(plan.lanes) == limits.MAX_LANES:
        raise refuse(
            "lanes",
            f"{len(plan.lanes)} lanes leave none for the clip indicator",
            f"at most {limits.MAX_LANES - 1} would do, or no [adaptive_clipping]",
        )
    for position, lane in enumerate(plan.lanes):
        if lane.name == clip_indicator.LANE:
            raise refuse(
                f"lanes[{position}].name",
                f"{lane.name!r} is the lane that adaptive clipping adds by itself",
                "another name would do",
            )


def _halved(encoding: Encoding) -> dict[str, int]:
    """Scale and bound at half as many units."""
    bound = integer_bound_l2(encoding.clip_units / 2, encoding.coordinates)
    return {"scale_log2": encoding.scale_log2 - 1, "bound_l2": bound}


def _fine_enough(coarse: Encoding) -> bool:
    """Whether an encoding, and all of more units, lengthen an update by a quarter at most.

    The bound over the units falls as they grow, but for being a whole number: the one unit more.
    """
    return coarse.bound_l2 + 1 <= Fraction(5, 4) * coarse.clip_units


def _cohort_that_fits(plan: Plan) -> int:
    """The largest cohort below the plan's whose encodings are fine enough."""
    low, high = 1, plan.cohort.max
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _fits(plan, middle) else (low, middle)
    return low


def _fits(plan: Plan, cohort_max: int) -> bool:
    """For a cohort below the plan's own, which has an encoding, so that this one has one."""
    encoding = plan_encoding(
        clip_norm_l2=plan.clip_norm,
        noise_multiplier=plan.noise_multiplier,
        cohort_max=cohort_max,
        coordinates=plan.coordinates,
    )
    return _fine_enough(replace(encoding, **_halved(encoding)))
