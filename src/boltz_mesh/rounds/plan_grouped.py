"""What a plan of grouped rounds must satisfy beside what holds for all plans.

A round's roster may have any size from `least_roster` to `cohort.max`, and so may its groups have
any size that follows. How many corrupt clients a group may hold is a matter of chance
(`secagg.groups`); it never falls as the roster grows, so that the largest roster with groups of a
size is the hardest for that size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from boltz_mesh.rounds.plan_refusal import refuse
from boltz_mesh.rounds.plan_sealed import check_deadlines, check_pair, group_colluders, least_roster
from boltz_mesh.rounds.plan_types import GroupingPlan, Plan
from boltz_protocol.errors import InvalidPlan
from boltz_protocol.limits import MAX_COMPLETE_GRAPH, MIN_GROUP
from boltz_protocol.secagg.graph import GraphParameters
from boltz_protocol.secagg.groups import group_parameters


def check_grouped(plan: Plan) -> None:
    """Check all but the noise share, which needs the encoding. Raises: InvalidPlan."""
    grouping = plan.grouping
    if grouping is None:
        count = max(2, math.ceil(plan.cohort.max / MAX_COMPLETE_GRAPH))
        raise refuse("grouping", 'mode = "grouped" needs one', f"count = {count} would do")
    _check_sizes(plan, grouping)
    _check_graphs(plan, grouping)
    most = math.ceil(plan.cohort.max / grouping.count)
    check_pair(plan, _group_parameters(plan, plan.cohort.max, most), f"groups of {most} clients")
    corrupt = group_colluders(plan, plan.cohort.max)
    if grouping.min_survivors <= corrupt:
        raise refuse(
            "grouping.min_survivors",
            f"of a group of {most} clients {corrupt} may collude, so that of "
            f"{grouping.min_survivors} survivors nobody's noise need protect anyone",
            f"at least {corrupt + 1} would do, or a smaller corrupt_fraction",
        )
    check_deadlines(plan)


def _check_sizes(plan: Plan, grouping: GroupingPlan) -> None:
    cohort, count = plan.cohort, grouping.count
    if cohort.max > MAX_COMPLETE_GRAPH * count:
        raise refuse(
            "grouping.count",
            f"{count} groups of at most {MAX_COMPLETE_GRAPH} clients are too few for cohort.max = "
            f"{cohort.max}",
            f"at least {math.ceil(cohort.max / MAX_COMPLETE_GRAPH)} would do",
        )
    least = max(MIN_GROUP, grouping.min_survivors)
    if cohort.target < least * count:
        raise refuse(
            "cohort.target",
            f"{cohort.target} updates cannot come from {count} groups of at least {least}",
            f"at least {least * count} would do, or fewer groups",
        )
    if cohort.min < grouping.min_survivors:
        raise refuse(
            "cohort.min",
            f"{cohort.min} is below grouping.min_survivors = {grouping.min_survivors}, the fewest "
            "updates of one group",
            f"at least {grouping.min_survivors} would do",
        )


def _check_graphs(plan: Plan, grouping: GroupingPlan) -> None:
    """Check that the groups of each roster withstand what the plan says, if nobody has left."""
    refused: InvalidPlan | None = None
    worst = hardest = 0
    for size, roster in _hardest_rosters(plan, grouping):
        hardest = size
        try:
            _group_parameters(plan, roster, size)
        except InvalidPlan as error:
            worst, refused = size, error
    if refused is None:
        return
    corrupt = group_colluders(plan, min(plan.cohort.max, (worst + 1) * grouping.count - 1))
    settings = plan.sealing
    problem = (
        f"a group of {worst} clients, of whom {corrupt} may collude by chance, does not withstand "
        f"dropout_fraction {settings.dropout_fraction:g} ({settings.adversary})"
    )
    if worst < hardest:
        # Small groups are the ones that chance can fill with corrupt clients.
        remedy = f"at least {(worst + 1) * grouping.count} would do, or fewer groups"
        raise refuse("cohort.min", problem, remedy) from refused
    remedy = "fewer groups, a smaller corrupt_fraction or a smaller dropout_fraction would do"
    raise refuse("grouping.count", problem, remedy) from refused


def _hardest_rosters(plan: Plan, grouping: GroupingPlan) -> Iterator[tuple[int, int]]:
    """Each size that a group may have, with the largest roster that makes such a group."""
    least, most, count = least_roster(plan), plan.cohort.max, grouping.count
    for size in range(least // count, math.ceil(most / count) + 1):
        # Groups of one size stand in rosters of up to (size + 1) * count - 1 clients.
        yield size, min(most, (size + 1) * count - 1)


def _group_parameters(plan: Plan, roster: int, size: int) -> GraphParameters:
    settings = plan.sealing
    return group_parameters(
        size, group_colluders(plan, roster), settings.dropout_fraction, settings.adversary
    )
