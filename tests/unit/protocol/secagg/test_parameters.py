from __future__ import annotations

import itertools
import math
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_protocol.errors import InvalidPlan
from boltz_protocol.limits import MAX_COMPLETE_GRAPH, MAX_NEIGHBOURS, MAX_ROSTER
from boltz_protocol.secagg.graph import (
    Adversary,
    CompleteGraphParameters,
    GraphParameters,
    colluders,
    parameters,
    parameters_among,
    tolerated_dropouts,
)
from boltz_protocol.secagg.tails import Quantile, is_connected, smallest
from tests.support.keys import load_vectors

FRACTIONS = st.integers(0, 99).map(lambda percent: percent / 100)
ADVERSARIES = st.sampled_from(list(Adversary))


@pytest.mark.parametrize(
    ("clients", "fraction", "adversary", "expected"),
    [
        (100, 0.05, "semi-honest", (12, 6)),
        (100, 0.05, "semi-malicious", (16, 11)),
        (1000, 0.1, "semi-honest", (48, 27)),
        (1000, 0.1, "semi-malicious", (96, 67)),
    ],
)
def test_golden_values(
    clients: int, fraction: float, adversary: str, expected: tuple[int, int]
) -> None:
    assert parameters(clients, fraction, fraction, adversary) == expected
    assert parameters(clients, fraction, fraction, Adversary(adversary)) == expected


def test_the_careful_adversary_is_the_default() -> None:
    assert parameters(100, 0.05, 0.05) == GraphParameters(neighbours=16, threshold=11)


def test_vectors() -> None:
    for case in load_vectors("secagg_graph")["parameters"]:
        fractions = case["corrupt_fraction"], case["dropout_fraction"]
        found = parameters(case["clients"], *fractions, case["adversary"])
        assert found == (case["neighbours"], case["threshold"]), case
        assert colluders(case["clients"], fractions[0]) == case["colluders"]
        assert tolerated_dropouts(case["clients"], fractions[1]) == case["tolerated_dropouts"]


# --- the arithmetic ----------------------------------------------------------------------------


@pytest.mark.parametrize(("population", "marked"), [(7, 0), (7, 3), (9, 4), (9, 9)])
def test_quantiles_agree_with_every_draw_written_down(population: int, marked: int) -> None:
    for bits, events in itertools.product((1, 2, 5), (1, 3)):
        quantile = Quantile(population, marked, bits=bits, events=events)
        for drawn in range(1, population):
            hands = list(itertools.combinations(range(population), drawn))
            counts = [sum(card < marked for card in hand) for hand in hands]
            expected = next(
                q
                for q in range(population + 1)
                if sum(count > q for count in counts) * (events << bits) <= len(hands)
            )
            assert quantile.draw() == expected


@given(st.integers(60, 400), st.data())
@settings(max_examples=30, deadline=None)
def test_quantiles_agree_with_the_tails_of_the_law(population: int, data: st.DataObject) -> None:
    marked = data.draw(st.integers(0, population))
    quantile = Quantile(population, marked, bits=41, events=population)
    for drawn in range(1, data.draw(st.integers(2, 40)) + 1):
        value = quantile.draw()

        def tail(least: int, drawn: int = drawn) -> Fraction:
            ways = sum(
                math.comb(marked, x) * math.comb(population - marked, drawn - x)
                for x in range(least, drawn + 1)
            )
            return Fraction(ways, math.comb(population, drawn))

        assert tail(value + 1) <= Fraction(1, population << 41)
        assert value == 0 or tail(value) > Fraction(1, population << 41)


@pytest.mark.parametrize(("clients", "neighbours", "bad"), [(8, 2, 4), (9, 4, 6), (10, 4, 5)])
def test_the_bound_on_connectivity_holds_for_every_set(
    clients: int, neighbours: int, bad: int
) -> None:
    reach = neighbours // 2
    apart = 0
    sets = list(itertools.combinations(range(clients), bad))
    for removed in sets:
        left = [place for place in range(clients) if place not in removed]
        gaps = [
            (after - before) % clients > reach
            for before, after in zip(left, left[1:] + left[:1], strict=True)
        ]
        apart += sum(gaps) > 1
    pairs = Fraction(clients * (clients - neighbours - 1), 2)
    bound = pairs * Fraction(math.perm(bad, neighbours), math.perm(clients, neighbours))
    assert 0 < Fraction(apart, len(sets)) <= bound
    assert not is_connected(clients, neighbours, bad)
    assert is_connected(clients, neighbours, neighbours - 1)


@pytest.mark.parametrize("clients", [51, 111, 240, 402])
def test_connectivity_is_held_to_the_bound_exactly(clients: int) -> None:
    decided = set()
    for neighbours in range(6, 26, 2):
        for bad in range(neighbours - 1, min(clients, 4 * neighbours)):
            outcomes = Fraction(math.perm(bad, neighbours), math.perm(clients, neighbours))
            chance = Fraction(clients * (clients - neighbours - 1), 2) * outcomes
            holds = chance <= Fraction(1, clients << 41)
            assert is_connected(clients, neighbours, bad) == holds
            decided.add(holds)
    assert decided == {True, False}


@given(
    st.integers(51, 160),
    st.integers(0, 30),
    st.integers(0, 30),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_pair_is_safe_and_the_smallest(
    clients: int, corrupt: int, dropped: int, semi_malicious: bool
) -> None:
    def most(marked: int, drawn: int, bits: int) -> int:
        quantile = Quantile(clients - 1, marked, bits=bits, events=clients)
        return [quantile.draw() for _ in range(drawn)][-1]

    def is_safe(neighbours: int, threshold: int) -> bool:
        shares = most(corrupt, neighbours, 41)
        kept = neighbours - most(dropped, neighbours, 20)
        secret = 2 * threshold > neighbours + shares if semi_malicious else threshold > shares
        return (
            2 <= threshold <= kept
            and secret
            and is_connected(clients, neighbours, corrupt + dropped)
        )

    found = smallest(clients, corrupt, dropped, semi_malicious=semi_malicious)
    if found is None:
        neighbours, threshold = clients, clients
    else:
        neighbours, threshold = found
        assert is_safe(neighbours, threshold)
        assert not is_safe(neighbours, threshold - 1)
    for fewer in range(2, min(neighbours, clients - 1), 2):
        assert not any(is_safe(fewer, t) for t in range(2, fewer + 1))


@given(st.integers(51, 120), st.integers(0, 30), st.integers(0, 25), st.booleans())
@settings(max_examples=60, deadline=None)
def test_more_to_withstand_never_takes_less(
    clients: int, corrupt: int, dropped: int, semi_malicious: bool
) -> None:
    def neighbours(corrupt: int, dropped: int, semi_malicious: bool) -> int:
        found = smallest(clients, corrupt, dropped, semi_malicious=semi_malicious)
        return found[0] if found else clients

    here = neighbours(corrupt, dropped, semi_malicious)
    assert here <= neighbours(corrupt + 1, dropped, semi_malicious)
    assert here <= neighbours(corrupt, dropped + 1, semi_malicious)
    assert here <= neighbours(corrupt, dropped, semi_malicious=True)


# --- small cohorts -----------------------------------------------------------------------------


@given(st.integers(3, MAX_COMPLETE_GRAPH), FRACTIONS, FRACTIONS, ADVERSARIES)
def test_up_to_fifty_everybody_holds(
    clients: int, corrupt: float, dropout: float, adversary: Adversary
) -> None:
    c, d = colluders(clients, corrupt), tolerated_dropouts(clients, dropout)
    try:
        neighbours, threshold = parameters(clients, corrupt, dropout, adversary)
    except InvalidPlan:
        twice = 2 if adversary is Adversary.SEMI_MALICIOUS else 1
        assert corrupt + twice * dropout > 0.9 - 1e-9 or clients - d < 2
        return
    assert neighbours == clients - 1
    assert threshold <= clients - d
    if adversary is Adversary.SEMI_MALICIOUS:
        assert 2 * threshold > clients + c >= 2 * (threshold - 1)
    else:
        assert threshold == max(2, c + 1)


@pytest.mark.parametrize("clients", [3, 4, 5])
@pytest.mark.parametrize("corrupt", [0.0, 0.05])
def test_one_may_leave_the_smallest_cohorts(clients: int, corrupt: float) -> None:
    found = parameters(clients, corrupt, 1 / clients)
    assert isinstance(found, CompleteGraphParameters)
    assert found.threshold <= clients - 1
    assert tolerated_dropouts(clients, 1 / clients) in (0, 1)
    assert found == parameters(clients, corrupt, 0.0)


def test_fractions_are_decimals() -> None:
    assert colluders(30, 0.1) == 3
    assert colluders(10, 0.7) == 7
    assert colluders(1000, 0.29) == 290  # 0.29 * 1000 is 289.99999999999994 in floats
    assert tolerated_dropouts(1000, 0.57) == 570
    assert tolerated_dropouts(3, 0.05) == 0


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [-0.01, 1.0, 1.5, math.nan, math.inf, -math.inf])
def test_fractions_outside_are_refused(fraction: float) -> None:
    for setting, pair in (
        ("corrupt_fraction", (fraction, 0.05)),
        ("dropout_fraction", (0.05, fraction)),
    ):
        with pytest.raises(InvalidPlan, match=setting) as refusal:
            parameters(100, *pair)
        assert refusal.value.metadata["setting"] == setting
    with pytest.raises(InvalidPlan):
        colluders(100, fraction)
    with pytest.raises(InvalidPlan):
        tolerated_dropouts(100, fraction)


@pytest.mark.parametrize(
    ("clients", "would_do"), [(-1, "3"), (0, "3"), (2, "3"), (MAX_ROSTER + 1, str(MAX_ROSTER))]
)
def test_too_few_and_too_many_are_refused(clients: int, would_do: str) -> None:
    with pytest.raises(InvalidPlan) as refusal:
        parameters(clients, 0.0, 0.0)
    assert refusal.value.metadata == {"setting": "clients", "would_do": would_do}


def test_an_unknown_adversary_is_refused() -> None:
    with pytest.raises(InvalidPlan) as refusal:
        parameters(100, 0.05, 0.05, "malicious")
    assert refusal.value.metadata == {"setting": "adversary", "would_do": "semi-malicious"}


@pytest.mark.parametrize("clients", [20, 50, 51, 100])
@pytest.mark.parametrize(
    ("adversary", "corrupt", "dropout"),
    [
        ("semi-honest", 0.45, 0.46),
        ("semi-honest", 0.0, 0.91),
        ("semi-malicious", 0.3, 0.31),
        ("semi-malicious", 0.91, 0.0),
        ("semi-malicious", 0.1, 0.4000001),
        ("semi-honest", 0.95, 0.95),
    ],
)
def test_too_much_to_withstand_is_refused(
    clients: int, adversary: str, corrupt: float, dropout: float
) -> None:
    with pytest.raises(InvalidPlan, match=r"is above 0\.9") as refusal:
        parameters(clients, corrupt, dropout, adversary)
    wrong = {"corrupt_fraction": corrupt, "dropout_fraction": dropout}
    setting = refusal.value.metadata["setting"]
    better = {**wrong, setting: float(refusal.value.metadata["would_do"])}
    if "with dropout_fraction" in refusal.value.message:
        better = {"corrupt_fraction": 0.05, "dropout_fraction": 0.05}
    assert parameters(clients, **better, adversary=adversary).threshold >= 2


@pytest.mark.parametrize(
    ("clients", "corrupt", "dropout", "adversary"),
    [
        (100, 0.45, 0.45, "semi-honest"),
        (100, 0.3, 0.3, "semi-malicious"),
        (100, 0.7, 0.1, "semi-malicious"),
        (20, 0.3, 0.3, "semi-malicious"),
    ],
)
def test_exactly_nine_tenths_are_accepted(
    clients: int, corrupt: float, dropout: float, adversary: str
) -> None:
    assert parameters(clients, corrupt, dropout, adversary)


def test_what_takes_too_many_neighbours_is_refused() -> None:
    with pytest.raises(InvalidPlan, match=f"at most {MAX_NEIGHBOURS} neighbours") as refusal:
        parameters(10_000, 0.3, 0.3)
    assert refusal.value.metadata["setting"] == "dropout_fraction"
    would_do = float(refusal.value.metadata["would_do"])
    assert parameters(10_000, 0.3, would_do).neighbours <= MAX_NEIGHBOURS
    with pytest.raises(InvalidPlan):
        parameters(10_000, 0.3, would_do + 0.01)


def test_three_of_whom_two_may_leave_are_refused() -> None:
    with pytest.raises(InvalidPlan) as refusal:
        parameters(3, 0.0, 0.7, "semi-honest")
    assert refusal.value.metadata == {"setting": "dropout_fraction", "would_do": "0.66"}
    assert parameters(3, 0.0, 0.66, "semi-honest") == (2, 2)


def test_it_is_quick() -> None:
    smallest.cache_clear()
    start = time.perf_counter()
    for corrupt in (0.1, 0.2):
        parameters(1000, corrupt, 0.1)
        parameters(10_000, corrupt, 0.1)
    assert time.perf_counter() - start < 2


@given(st.integers(3, 120), st.data(), st.sampled_from(list(Adversary)))
def test_colluders_do_not_fall_with_the_members(
    roster: int, data: st.DataObject, adversary: Adversary
) -> None:
    """Whoever misses the key roster may be honest: the threshold holds for all of its colluders."""
    members = data.draw(st.integers(3, roster))
    corrupt = colluders(roster, 0.1)
    try:
        found = parameters_among(
            members,
            roster_size=roster,
            corrupt_fraction=0.1,
            dropout_fraction=0.1,
            adversary=adversary,
        )
    except InvalidPlan:
        return
    assert found.threshold > min(corrupt, found.neighbours) or members > MAX_COMPLETE_GRAPH
    if members <= MAX_COMPLETE_GRAPH and adversary is Adversary.SEMI_MALICIOUS:
        assert 2 * found.threshold > members + corrupt
    if members == roster:
        assert found == parameters(roster, 0.1, 0.1, adversary)


def test_fewer_members_with_the_same_colluders() -> None:
    few = parameters_among(30, roster_size=50, corrupt_fraction=0.1, dropout_fraction=0.1)
    assert few == (29, 18)
    assert parameters(30, 0.1, 0.1).threshold == 17
    for members in (2, 6):
        with pytest.raises(InvalidPlan, match=f"{members} of 50 clients are left"):
            parameters_among(members, roster_size=50, corrupt_fraction=0.1, dropout_fraction=0.1)
