"""Epsilon against rounds and error against cohort, for a few amounts of noise around an answer.

Both as the ledger would have them: no sampling, one client's contribution set to zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from boltz_mesh.privacy import accountant
from boltz_mesh.privacy.planning import MAX_PLANNED_ROUNDS, Error, Outlook, error_of_mean
from boltz_protocol import limits

# Noise multipliers that are shown, over the answer's.
_FACTORS: Final = (0.5, 0.7, 1.0, 1.5, 2.0)
# Rounds and cohorts of a table, over the answer's.
_ROUND_SHARES: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
_COHORT_SHARES: Final = (0.25, 0.5, 1.0, 2.0, 4.0)
#: Ends of the drawn lines, over the answer's rounds and cohort.
MOST_ROUNDS: Final = 2.0
COHORTS_DRAWN: Final = (1 / 3, 3.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tradeoff:
    """Two grids of figures.

    Args:
        noise_multipliers: ascending; the answer's is among them.
        rounds: ascending.
        epsilons: noise multiplier -> epsilon after each of `rounds`; infinite where it cannot be
            told.
        cohorts: clients in one sum, ascending.
        errors: noise multiplier -> what the noise adds to a mean over each of `cohorts`. The
            fewest survivors keep their share of the cohort.
    """

    noise_multipliers: tuple[float, ...]
    rounds: tuple[int, ...]
    epsilons: dict[float, tuple[float, ...]]
    cohorts: tuple[int, ...]
    errors: dict[float, tuple[Error, ...]]


def tradeoff(outlook: Outlook) -> Tradeoff:
    """A few figures for a table: rounds and cohorts around the answer's."""
    return _figures(
        outlook,
        [outlook.rounds * share for share in _ROUND_SHARES],
        [outlook.federation.clients * share for share in _COHORT_SHARES],
    )


def drawn_tradeoff(outlook: Outlook, points: int = 48) -> Tradeoff:
    """The same with about `points` rounds and cohorts, for lines."""
    steps = range(points + 1)
    low, high = COHORTS_DRAWN
    return _figures(
        outlook,
        [MOST_ROUNDS * outlook.rounds * step / points for step in steps],
        [outlook.federation.clients * (low + (high - low) * step / points) for step in steps],
    )


def _figures(outlook: Outlook, rounds: list[float], cohorts: list[float]) -> Tradeoff:
    federation = outlook.federation
    counts = _whole(rounds, 1, MAX_PLANNED_ROUNDS)
    # Of fewer contributions nobody would make a mean.
    sizes = _whole(cohorts, 2, limits.MAX_ROSTER)
    noises = _noises(outlook.noise_multiplier)
    return Tradeoff(
        noise_multipliers=noises,
        rounds=counts,
        epsilons={
            noise: tuple(
                accountant.epsilon(federation.accounted(noise), count, 1.0, federation.delta)
                for count in counts
            )
            for noise in noises
        },
        cohorts=sizes,
        errors={
            noise: tuple(_at(federation.clients / size, outlook, noise) for size in sizes)
            for noise in noises
        },
    )


def _at(growth: float, outlook: Outlook, noise_multiplier: float) -> Error:
    error = error_of_mean(outlook.federation, noise_multiplier)
    return Error(
        coordinate_std=error.coordinate_std * growth,
        l2_expected=error.l2_expected * growth,
        l2_over_clip=error.l2_over_clip * growth,
    )


def _noises(answer: float) -> tuple[float, ...]:
    others = {float(f"{answer * factor:.3g}") for factor in _FACTORS if factor != 1}
    possible = {noise for noise in others if noise <= limits.MAX_NOISE_MULTIPLIER}
    return tuple(sorted(possible | {answer}))


def _whole(values: list[float], least: int, most: int) -> tuple[int, ...]:
    return tuple(sorted({min(most, max(least, round(value))) for value in values}))
