"""What a plan of sealed rounds must satisfy, and what a release under any plan costs.

A round's graph and each client's share of the noise follow from the roster, which may have any size
from `cohort.min` to `cohort.max`; the least number of survivors is always `cohort.min`. So what is
checked here is checked for every roster that the plan can have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from boltz_mesh.privacy.mechanisms import PrivacyEvent, release_event
from boltz_mesh.rounds.plan_refusal import refuse
from boltz_mesh.rounds.plan_types import Plan, SecureAggregationPlan
from boltz_protocol import limits
from boltz_protocol.encoding import Encoding
from boltz_protocol.errors import InvalidPlan
from boltz_protocol.noise_share import effective_noise_multiplier, share_variance
from boltz_protocol.secagg.graph import GraphParameters, colluders, parameters
from boltz_protocol.secagg.groups import colluders_of_group


@dataclass(frozen=True, slots=True)
class ReleaseTerms:
    """What one release under a plan costs each client in it.

    Attributes:
        noise_multiplier: to account for; 0 without noise. In sealed rounds it is what holds at the
            fewest survivors with the tolerated colluders among them; in grouped ones, at the fewest
            of a group: a client is in the sum of its own group alone.
        sensitivity: of a sum, in integer units.
        distributed: the noise comes in shares of the clients.
        period: whose data goes in, where the budget's unit is `client-period`; else empty.
    """

    noise_multiplier: float
    sensitivity: int
    distributed: bool
    period: str = ""

    def event(self, *, model: str, round: str, attempt: int, client: str) -> PrivacyEvent:
        """The event of one client."""
        return release_event(
            noise_multiplier=self.noise_multiplier,
            sensitivity=self.sensitivity,
            model=model,
            round=round,
            attempt=attempt,
            client=client,
            distributed=self.distributed,
            period=self.period,
        )


def release_terms(plan: Plan, encoding: Encoding) -> ReleaseTerms:
    """What a release costs, whatever the roster.

    Args:
        plan: one that was validated.
        encoding: of that plan, from `validate_encoding`.
    """
    noise_multiplier = plan.noise_multiplier
    distributed = plan.is_masked
    if distributed and noise_multiplier > 0:
        honest, variance = _smallest_share(plan, encoding)
        noise_multiplier = effective_noise_multiplier(
            noise_multiplier,
            share_sigma=math.sqrt(variance),
            contributors=honest,
            coordinates=plan.coordinates,
        )
    period = "" if plan.budget is None else plan.budget.period
    return ReleaseTerms(noise_multiplier, encoding.bound_l2, distributed, period)


def graph_of(settings: SecureAggregationPlan, roster_size: int) -> GraphParameters:
    """Neighbours and threshold for a roster. Raises: InvalidPlan where there are none."""
    return parameters(
        roster_size, settings.corrupt_fraction, settings.dropout_fraction, settings.adversary
    )


def check_sealed(plan: Plan) -> None:
    """Check all but the noise share, which needs the encoding. Raises: InvalidPlan."""
    cohort, settings = plan.cohort, plan.sealing
    if cohort.min < limits.MIN_SEALED_COHORT:
        raise refuse(
            "cohort.min",
            f"{cohort.min} clients are no crowd to hide in: of two, each learns the other's update "
            "by taking its own off",
            f'{limits.MIN_SEALED_COHORT} would do, or mode = "open"',
        )
    _check_graphs(settings, cohort.min, cohort.max)
    check_pair(plan, graph_of(settings, cohort.max), f"{cohort.max} clients")
    if plan.noise_multiplier > 0:
        corrupt = colluders(cohort.max, settings.corrupt_fraction)
        if cohort.min <= corrupt:
            raise refuse(
                "cohort.min",
                f"of {cohort.max} clients {corrupt} may collude, so that of {cohort.min} survivors "
                "nobody's noise need protect anyone",
                f"at least {corrupt + 1} would do, or a smaller corrupt_fraction",
            )
    check_deadlines(plan)


def check_noise_share(plan: Plan, encoding: Encoding) -> None:
    """Check that each client's share of the noise can be drawn, for every roster.

    Raises: InvalidPlan in the encoding's words: `setting` and `would_do` in its metadata.
    """
    _smallest_share(plan, encoding)


def least_roster(plan: Plan) -> int:
    """Clients of the smallest roster that a round under a plan may have."""
    groups = 0 if plan.grouping is None else plan.grouping.count
    return max(plan.cohort.min, limits.MIN_GROUP * groups)


def group_colluders(plan: Plan, roster_size: int) -> int:
    """The most colluding clients that any group of a grouped round's roster may hold."""
    assert plan.grouping is not None, "a grouped round"
    return colluders_of_group(roster_size, plan.grouping.count, plan.sealing.corrupt_fraction)


def _smallest_share(plan: Plan, encoding: Encoding) -> tuple[int, float]:
    """Shares that protect a sum, and the variance of each, where it is smallest.

    That is in the smallest roster, whose fewest colluders leave most survivors to share the noise.
    In a grouped round each group has a sum, which carries all of the noise by itself.
    """
    roster = least_roster(plan)
    if plan.grouping is None:
        survivors = plan.cohort.min
        corrupt = colluders(roster, plan.sealing.corrupt_fraction)
    else:
        survivors = plan.grouping.min_survivors
        corrupt = group_colluders(plan, roster)
    variance = share_variance(encoding, least_survivors=survivors, colluders=corrupt)
    return survivors - corrupt, float(variance)


def _roster_sizes(least: int, most: int) -> Iterator[int]:
    """Rosters to try: all that have a complete graph, where rounding decides, and the ends of the
    others, whose thresholds are a matter of proportion."""
    yield from range(least, min(most, limits.MAX_COMPLETE_GRAPH) + 1)
    if most > limits.MAX_COMPLETE_GRAPH:
        first = max(least, limits.MAX_COMPLETE_GRAPH + 1)
        yield first
        if most > first:
            yield most


def _check_graphs(settings: SecureAggregationPlan, least: int, most: int) -> None:
    refusals = []
    for size in _roster_sizes(least, most):
        try:
            graph_of(settings, size)
        except InvalidPlan as error:
            refusals.append(error)
    if not refusals:
        return
    # One piece of advice that does for all sizes: that of the most demanding.
    worst = min(refusals, key=lambda each: (each.metadata["setting"], each.metadata["would_do"]))
    setting = f"secure_aggregation.{worst.metadata['setting']}"
    raise InvalidPlan(
        f"{setting}: {worst.message}", setting=setting, would_do=worst.metadata["would_do"]
    ) from worst


def check_pair(plan: Plan, safe: GraphParameters, whose: str) -> None:
    """Hold a pair that the plan names against the safe one; both ends compute it by themselves.

    Raises: InvalidPlan.
    """
    settings = plan.sealing
    for name, value in (("neighbours", settings.neighbours), ("threshold", settings.threshold)):
        wanted = getattr(safe, name)
        if value is None or value == wanted:
            continue
        reason = (
            "is not safe: with fewer, corrupt clients or dropouts would too often give the server "
            "a client's secrets, or lose the round"
            if value < wanted
            else "is more than it takes, and every client computes the pair by itself"
        )
        raise refuse(
            f"secure_aggregation.{name}",
            f"{value} {reason} (corrupt_fraction {settings.corrupt_fraction:g}, dropout_fraction "
            f"{settings.dropout_fraction:g}, {settings.adversary}, {whose})",
            f"{wanted} would do, or leave it out",
        )


def check_deadlines(plan: Plan) -> None:
    """Check the key phases and COLLECTING together: the signed configuration has one deadline, the
    end of COLLECTING, made with the offer. Raises: InvalidPlan.
    """
    deadlines = plan.deadlines
    # Beyond 50 clients, and in groups, keys and nonces take the advertising deadline once each.
    before_ms = 2 * deadlines.advertising_ms + deadlines.sharing_ms
    if before_ms + deadlines.collecting_ms > limits.MAX_PHASE_MS:
        rest_ms = limits.MAX_PHASE_MS - before_ms
        raise refuse(
            "deadlines.collecting",
            f"{deadlines.collecting_ms} ms, twice advertising and sharing before it come to more "
            f"than {limits.MAX_PHASE_MS} ms",
            f'"{rest_ms}ms" would do' if rest_ms >= 100 else "shorter key phases would do",
        )
