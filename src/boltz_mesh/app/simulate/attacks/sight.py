"""What attackers know, and what an attack is made of.

Attackers collude, and are omniscient: before they send anything they know the model, every honest
delta of the round as it will be sent, and what was published last. Real ones know less (in sealed
and grouped rounds no client sees another's update), so what a rule withstands here it withstands.

What is random comes from a seeded generator: it protects nobody, and a run can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from boltz_mesh.app.demo.data import FloatArray
from boltz_mesh.app.demo.task import Rows


@dataclass(frozen=True, slots=True)
class Sight:
    """What the attackers of one round see before they send.

    Attributes:
        number: the round's, from 0.
        rounds: of the whole run.
        honest: float64 (h, d), h at least 2: the deltas that honest clients send.
        own: float64 (f, d), f at least 1: what the attackers' own training gave, on poisoned rows
            where the attack poisons; unclipped.
        last: float64 (d,), the mean delta that was published last; zero in the first round.
        chance: seeded.
    """

    number: int
    rounds: int
    honest: FloatArray
    own: FloatArray
    last: FloatArray
    chance: np.random.Generator

    def __post_init__(self) -> None:
        assert self.honest.ndim == self.own.ndim == 2
        assert len(self.honest) >= 2
        assert len(self.own) >= 1
        assert self.honest.shape[1:] == self.own.shape[1:] == self.last.shape

    @property
    def attackers(self) -> int:
        """f."""
        return len(self.own)

    @property
    def clients(self) -> int:
        """n, honest clients and attackers."""
        return len(self.honest) + len(self.own)

    def together(self, vector: FloatArray) -> FloatArray:
        """The same vector (d,) from each of the attackers: (f, d)."""
        return np.tile(vector, (self.attackers, 1))


#: From what is seen to what the attackers send, float64 (f, d), finite and unclipped.
Craft = Callable[[Sight], FloatArray]


def honestly(sight: Sight) -> FloatArray:
    """What the attackers' own training gave: all that an attack on data alone sends."""
    return sight.own


@dataclass(frozen=True, slots=True)
class Trigger:
    """A mark in the inputs that a backdoor answers to.

    Attributes:
        columns: inputs that carry the mark.
        value: what they are set to.
        target: what the model is to forecast for a marked row, a log volatility over the EWMA's.
    """

    columns: tuple[int, ...]
    value: float
    target: float

    def marked(self, inputs: FloatArray) -> FloatArray:
        """A copy of inputs (m, k) with the mark on every row."""
        copy = inputs.copy()
        copy[:, list(self.columns)] = self.value
        return copy


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack.

    Attributes:
        name: as the command takes it.
        line: what attackers do, in one line.
        source: paper.
        craft: what they send.
        poison: what they do to their own rows before they train; None leaves them as they are.
        stated_rows: the sample count that they state; None for the true one.
        renewed_every: rounds after which each attacker enrols anew as somebody else; 0 for never.
        trigger: of a backdoor.
    """

    name: str
    line: str
    source: str
    craft: Craft
    poison: Callable[[Rows], Rows] | None = None
    stated_rows: int | None = None
    renewed_every: int = 0
    trigger: Trigger | None = None
