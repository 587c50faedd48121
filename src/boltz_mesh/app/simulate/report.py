"""What a simulation found, as data. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

#: No attack, at the head of every matrix: what the rule itself costs.
NO_ATTACK: Final = "none"
#: What a defence is to reach: an error at most so much above the clean run's ...
MOST_OVER: Final = 0.03
#: ... and at least so much of the clean run's gain over the EWMA.
LEAST_KEPT: Final = 0.85
#: An attack works where the plain mean keeps less than this of the gain.
BROKEN_KEPT: Final = 0.25
#: Errors are cut here: a model that is this far off is off by any amount.
MOST_ERROR: Final = 1e6


@dataclass(frozen=True, slots=True)
class Repetition:
    """Figures of one seed, means over the origins; errors are mean squared errors.

    Attributes:
        ewma: error of the EWMA.
        clean: error without attackers, under the mode's mean.
        attacked: error with attackers, under the rule.
        plain: error with attackers, under the plain mean.
        share: the attackers' part of the weight in the last round.
        most_share: and the most in any round.
        out: attackers that were put in quarantine at any time.
        honest_out: honest clients that were.
        marked: how much of what a backdoor wants it got: 0 nothing, 1 all; 0 for other attacks.
        plain_marked: the same under the plain mean.
    """

    ewma: float
    clean: float
    attacked: float
    plain: float
    share: float
    most_share: float
    out: float
    honest_out: float
    marked: float
    plain_marked: float

    def kept(self, error: float) -> float:
        """Share of the clean run's gain over the EWMA that is left at this error; 0 without one."""
        gain = self.ewma - self.clean
        return (self.ewma - error) / gain if gain > 0 else 0.0


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One attack under one rule: medians over the repetitions.

    Attributes:
        over_clean: attacked error over the clean one, less 1.
        kept, plain_kept: see `Repetition.kept`.
        The others: see `Repetition`.
    """

    attack: str
    rule: str
    ewma: float
    clean: float
    attacked: float
    plain: float
    over_clean: float
    kept: float
    plain_kept: float
    share: float
    most_share: float
    out: float
    honest_out: float
    marked: float
    plain_marked: float

    @property
    def held(self) -> bool:
        """Whether the rule reached both goals."""
        return self.over_clean <= MOST_OVER and self.kept >= LEAST_KEPT

    @property
    def breaks_plain(self) -> bool:
        """Whether the attack takes more than three quarters of the gain from the plain mean."""
        return self.plain_kept < BROKEN_KEPT


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The whole result.

    Attributes:
        command: that makes it again.
        date: of the run, YYYY-MM-DD.
        mode, model, clients, groups, attackers, rounds, clip_norm: of the simulation.
        sample_bucket_cap: of the plan.
        privacy: in words: none, or epsilon with delta, unit and relation.
        unit: what one client is, in words.
        origins: tested years.
        seeds: of the repetitions.
        source: of the prices.
        rules: in the order of the columns, the default first.
        attacks: in the order of the rows; `NO_ATTACK` first in a matrix.
        cells: rows by columns.
    """

    command: str
    date: str
    mode: str
    model: str
    clients: int
    groups: int
    attackers: int
    rounds: int
    clip_norm: float
    sample_bucket_cap: int
    privacy: str
    unit: str
    origins: tuple[int, ...]
    seeds: tuple[int, ...]
    source: str
    rules: tuple[str, ...]
    attacks: tuple[str, ...]
    cells: tuple[Cell, ...]

    def cell(self, attack: str, rule: str) -> Cell:
        """One of them."""
        return next(c for c in self.cells if (c.attack, c.rule) == (attack, rule))

    def broken(self) -> tuple[str, ...]:
        """Attacks that break the plain mean."""
        return tuple(
            attack
            for attack in self.attacks
            if attack != NO_ATTACK and self.cell(attack, self.rules[0]).breaks_plain
        )

    def missed(self, rule: str) -> tuple[str, ...]:
        """Attacks under which the rule missed a goal."""
        return tuple(a for a in self.attacks if a != NO_ATTACK and not self.cell(a, rule).held)


def cell_of(attack: str, rule: str, repetitions: Sequence[Repetition]) -> Cell:
    """Medians of the repetitions, ratios taken within each of them first."""

    def median(values: Sequence[float]) -> float:
        return round(float(np.median(values)), 6)

    def middle(name: str) -> float:
        return median([getattr(each, name) for each in repetitions])

    return Cell(
        attack=attack,
        rule=rule,
        over_clean=median([each.attacked / each.clean - 1 for each in repetitions]),
        kept=median([each.kept(each.attacked) for each in repetitions]),
        plain_kept=median([each.kept(each.plain) for each in repetitions]),
        **{name: middle(name) for name in Repetition.__slots__},
    )


def to_json(reports: Report | Sequence[Report]) -> bytes:
    """JSON for programs."""
    return msgspec.json.format(msgspec.json.encode(reports), indent=2) + b"\n"


def from_json(text: bytes) -> Report:
    """What `to_json` made of one report."""
    return msgspec.json.decode(text, type=Report)
