"""Canaries: clients whose whole contribution is known to the attacker, but for one coin. Pure.

In each trial client i either contributes along d_i, as much as the clip norm C lets through, or
nothing at all (the relation of the ledger: its contribution set to zero), by a fair coin. The d_i
are orthonormal, so that what the published sum says along d_i is about client i alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from boltz_mesh.app.privacy_audit.bounds import Errors

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

#: Half of what a canary adds to its own score.
MIDDLE = 0.5


def directions(count: int, parameters: int) -> Float64Array:
    """Orthonormal rows that are spread over all parameters, float64 (count, parameters).

    Rows of Sylvester's Hadamard matrix: entry (i, j) is negative where i and j share an odd number
    of binary ones. Row 0 is left out, since a constant shift is what other defects cause too.

    Args:
        count: below `parameters`.
        parameters: a power of two.
    """
    assert 0 < count < parameters
    assert parameters & (parameters - 1) == 0
    rows = np.arange(1, count + 1)[:, None] & np.arange(parameters)[None, :]
    odd = np.bitwise_count(rows) % 2
    return np.asarray((1.0 - 2.0 * odd) / np.sqrt(parameters), dtype=np.float64)


def toss(count: int) -> tuple[bool, ...]:
    """Fair coins, from the operating system."""
    bits = secrets.randbits(count)
    return tuple(bool(bits >> place & 1) for place in range(count))


def scores(
    sum_of_contributions: Float64Array, rows: Float64Array, clip_norm: float
) -> Float64Array:
    """What a published sum says about each canary: 1 where it is in, 0 where it is out, and noise.

    Args:
        sum_of_contributions: the aggregate, float64 (parameters,).
        rows: from `directions`.
        clip_norm: C.

    Returns: float64 (count,).
    """
    return np.asarray(rows @ sum_of_contributions / clip_norm, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What all trials of one kind came to.

    Attributes:
        scores: float64 (trials, canaries).
        coins: of the same shape; True where the canary was in.
    """

    scores: Float64Array
    coins: BoolArray

    @classmethod
    def of(cls, trials: Sequence[tuple[Float64Array, tuple[bool, ...]]]) -> Outcome:
        """From each trial's scores and coins."""
        return cls(
            np.array([found for found, _ in trials], dtype=np.float64),
            np.array([coins for _, coins in trials], dtype=np.bool_),
        )

    @property
    def pairs(self) -> int:
        """Trials times canaries: so many coins were tossed."""
        return self.coins.size

    def errors(self) -> Errors:
        """Guess every coin: in where the score is past the middle."""
        guessed = self.scores > MIDDLE
        return Errors(
            out=int((~self.coins).sum()),
            false_in=int((guessed & ~self.coins).sum()),
            inside=int(self.coins.sum()),
            missed=int((~guessed & self.coins).sum()),
        )

    def surest_right(self, guesses: int) -> int:
        """Guess the coins of the scores that are furthest from the middle; how many are right."""
        distances = (self.scores - MIDDLE).ravel()
        chosen = np.argsort(-np.abs(distances), kind="stable")[:guesses]
        return int(((distances > 0) == self.coins.ravel())[chosen].sum())
