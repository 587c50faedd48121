"""Who takes part: a uniform random sample of those that checked in."""

from __future__ import annotations

import math
from collections.abc import Collection
from fractions import Fraction
from random import Random

from boltz_protocol import limits


def wanted_count(target: int, maximum: int, over_selection: float) -> int:
    """How many clients to select: `min(maximum, ceil(target * over_selection))`.

    The factor is taken as the decimal number that the plan shows, so that 10 x 1.1 is 11 and not
    the 12 that binary floating point makes of it.
    """
    assert 1 <= target <= maximum <= limits.MAX_ROSTER
    assert over_selection >= 1
    return min(maximum, math.ceil(target * Fraction(repr(over_selection))))


def sample_roster(candidates: Collection[str], count: int, random: Random) -> tuple[str, ...]:
    """`count` of the candidates, each subset and each order equally likely.

    Args:
        candidates: client ids, all different.
        count: at most their number.
        random: `secrets.SystemRandom()`; tests hand over a seeded one. Candidates are sorted
            first, so that the result is a function of the set and of the random source.
    """
    assert 0 <= count <= len(candidates)
    assert len(set(candidates)) == len(candidates)
    return tuple(random.sample(sorted(candidates), count))
