"""Robust rules in a plan: how many liars they withstand, and where they may run.

A robust rule compares rows and holds back those that do not fit the others. It proves no bound on
what one client can change, so that it never runs where noise is to cover a client: its rows are
single clients' deltas in `open` rounds without noise alone, and in `grouped` rounds the sums of the
groups, whose noise is in them before anybody compares anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeGuard, get_args

from boltz_mesh.aggregation.robust import (
    CoordinateMedian,
    GeometricMedian,
    MixedTrimmedMean,
    MultiKrum,
    RobustRule,
    TrimmedMean,
)
from boltz_mesh.rounds.plan_refusal import refuse
from boltz_mesh.rounds.plan_types import MAX_BYZANTINE, Plan, RobustRuleName, Rule
from boltz_protocol import limits
from boltz_protocol.errors import TooFewClients

#: The rule of a plan that says `byzantine` and names none.
DEFAULT_ROBUST: Final[Rule] = "mixed-trimmed-mean"
#: Rules that are the same however many liars there are.
_WITHOUT_COUNT: Final = frozenset({"coordinate-median", "geometric-median"})

_SEALED_IS_ALL: Final = (
    "the server sees one sum: the clip in each client, the integer bound and the range check of "
    "the sum are all that stands against a client that lies"
)


def is_robust(rule: str) -> TypeGuard[RobustRuleName]:
    """Whether a plan's word names a robust rule."""
    return rule in get_args(RobustRuleName)


@dataclass(frozen=True, slots=True)
class RobustChoice:
    """The robust rule of a plan, before it is known how many rows a round has.

    Attributes:
        name: the plan's word.
        byzantine: liars that it withstands.
    """

    name: RobustRuleName
    byzantine: int

    @property
    def fewest_rows(self) -> int:
        """Rows that a round must have: more than half of them are honest, and Krum also needs a
        neighbour beyond (Blanchard et al. 2017, proposition 4.2).
        """
        return 2 * self.byzantine + (3 if self.name == "multi-krum" else 1)

    def of(self, rows: int) -> RobustRule:
        """The rule for so many rows. Raises: TooFewClients."""
        if rows < self.fewest_rows:
            raise TooFewClients(
                f'rule = "{self.name}" with byzantine = {self.byzantine} takes at least '
                f"{self.fewest_rows} updates or groups, and {rows} are left",
                setting="byzantine",
                rule=self.name,
                minimum=self.fewest_rows,
            )
        match self.name:
            case "mixed-trimmed-mean":
                return MixedTrimmedMean(self.byzantine)
            case "trimmed-mean":
                return TrimmedMean(self.byzantine)
            case "coordinate-median":
                return CoordinateMedian()
            case "multi-krum":
                # As many as may be honest (Blanchard et al. 2017, section 4).
                return MultiKrum(self.byzantine, select=rows - self.byzantine)
            case "geometric-median":
                return GeometricMedian()


def robust_choice(plan: Plan) -> RobustChoice | None:
    """A plan's robust rule; None where it has another."""
    return RobustChoice(plan.rule, plan.byzantine) if is_robust(plan.rule) else None


def with_default_rule(raw: dict[str, Any]) -> dict[str, Any]:
    """The plan's table, its rule named where `byzantine` asks for one and may have it.

    Args:
        raw: unchecked, by the plan's words.
    """
    byzantine, mode = raw.get("byzantine"), raw.get("mode")
    wanted = isinstance(byzantine, int) and byzantine > 0 and "rule" not in raw
    if wanted and (mode == "grouped" or (mode == "open" and raw.get("privacy") == "none")):
        return {**raw, "rule": DEFAULT_ROBUST}
    return raw


def fewest_groups(plan: Plan) -> int:
    """Groups of a grouped round that must be left; 0 where the plan's rule compares none."""
    choice = robust_choice(plan)
    return 0 if choice is None or plan.grouping is None else choice.fewest_rows


def defence(mode: str, rule: str) -> str:
    """What stands against clients that lie, in one sentence: by a plan's words."""
    if mode == "sealed":
        return f"in sealed rounds {_SEALED_IS_ALL}"
    if is_robust(rule):
        rows = "the groups' sums" if mode == "grouped" else "the clients' updates"
        return f"the rule {rule} compares {rows} and holds back what does not fit the others"
    if mode == "grouped":
        return (
            f"in grouped rounds under {rule} the clip in each client, the integer bound and the "
            "range check of each group's sum are all that stands against a client that lies"
        )
    return (
        f"in open rounds under {rule} the norm of each update is checked, and a client that lies "
        "keeps its weight"
    )


def check_robust(plan: Plan) -> None:
    """Check `byzantine` and a robust rule. Raises: InvalidPlan."""
    choice = robust_choice(plan)
    if choice is None:
        _check_no_liars(plan)
        return
    _check_place(plan)
    if plan.adaptive_clipping is not None:
        raise refuse(
            "rule",
            f'"{plan.rule}" makes no mean of the bit that adaptive clipping goes by: one that is '
            "in the minority may count for nothing",
            '"weighted-mean" would do, or no [adaptive_clipping]',
        )
    if plan.byzantine == 0 and plan.rule not in _WITHOUT_COUNT:
        raise refuse(
            "byzantine",
            f'rule = "{plan.rule}" leaves out as many as are said to lie, and 0 leaves out nobody',
            '1 would do, or rule = "coordinate-median"',
        )
    _check_rows(plan, choice.fewest_rows)


def _check_no_liars(plan: Plan) -> None:
    if plan.byzantine == 0:
        return
    if plan.mode == "sealed":
        raise refuse(
            "byzantine",
            f'in mode = "sealed" {_SEALED_IS_ALL}',
            '0 would do, or mode = "grouped"',
        )
    if plan.mode == "open" and plan.privacy != "none":
        raise refuse(
            "byzantine",
            f'with privacy = "{plan.privacy}" an open round takes rules whose sensitivity is '
            "proven, and they leave nobody out",
            '0 would do, or privacy = "none", or mode = "grouped"',
        )
    raise refuse(
        "byzantine",
        f'rule = "{plan.rule}" leaves nobody out, however many are said to lie',
        f'0 would do, or rule = "{DEFAULT_ROBUST}"',
    )


def _check_place(plan: Plan) -> None:
    if plan.mode == "sealed":
        raise refuse(
            "rule",
            f'in mode = "sealed" {_SEALED_IS_ALL}',
            '"weighted-mean" would do, or mode = "grouped"',
        )
    if plan.mode == "open" and plan.privacy != "none":
        raise refuse(
            "rule",
            f'"{plan.rule}" proves no bound on what one client can change, so that no noise makes '
            "it private",
            '"weighted-mean" or "centered-clipping" would do, or privacy = "none"',
        )


def _check_rows(plan: Plan, fewest: int) -> None:
    """Hold the number of rows against the rule: updates, or groups."""
    if plan.grouping is None:
        setting, least, most, what = "cohort.min", plan.cohort.min, plan.cohort.max, "updates"
    else:
        least = most = plan.grouping.count
        setting, what = "grouping.count", "groups"
    if least < fewest:
        raise refuse(
            setting,
            f'{least} {what} are too few for rule = "{plan.rule}" to withstand '
            f"byzantine = {plan.byzantine}",
            f"at least {fewest} would do, or a smaller byzantine",
        )
    if most > limits.MAX_ROBUST_ROWS:
        raise refuse(
            "cohort.max" if plan.grouping is None else setting,
            f'rule = "{plan.rule}" compares every one of {most} {what} with every other',
            f"at most {limits.MAX_ROBUST_ROWS} would do",
        )


assert 2 * MAX_BYZANTINE + 1 <= limits.MAX_ROBUST_ROWS
