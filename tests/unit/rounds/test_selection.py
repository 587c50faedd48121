"""Selection: how many, and each as likely as the other."""

from __future__ import annotations

from collections import Counter
from random import Random
from secrets import SystemRandom

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boltz_mesh.rounds.selection import sample_roster, wanted_count


@pytest.mark.parametrize(
    ("target", "maximum", "factor", "wanted"),
    [(10, 20, 1.3, 13), (10, 20, 1.1, 11), (10, 12, 1.3, 12), (3, 20, 1.3, 4), (5, 5, 1.0, 5)],
)
def test_wanted_count(target: int, maximum: int, factor: float, wanted: int) -> None:
    assert wanted_count(target, maximum, factor) == wanted


@given(st.sets(st.text(min_size=1, max_size=4), max_size=12), st.data())
def test_a_sample_is_of_the_candidates_without_repeats(
    candidates: set[str], data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, len(candidates)))
    roster = sample_roster(candidates, count, SystemRandom())
    assert len(set(roster)) == len(roster) == count
    assert set(roster) <= candidates


def test_a_sample_depends_on_the_set_and_the_source_alone() -> None:
    forwards = sample_roster(["a", "b", "c", "d"], 3, Random(7))
    assert sample_roster(["d", "c", "b", "a"], 3, Random(7)) == forwards


def test_every_order_of_every_subset_is_equally_likely() -> None:
    random = Random(20261124)
    draws = 6_000
    counts = Counter(sample_roster("abc", 2, random) for _ in range(draws))
    assert len(counts) == 6
    # Chi-square with 5 degrees of freedom: 20.5 is passed with probability 0.001.
    expected = draws / 6
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 20.5


def test_more_than_there_are_is_a_defect() -> None:
    with pytest.raises(AssertionError):
        sample_roster(["a"], 2, SystemRandom())
    with pytest.raises(AssertionError):
        sample_roster(["a", "a"], 1, SystemRandom())
