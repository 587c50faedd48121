"""The groups of grouped rounds: how they are drawn, and what each is made for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_protocol import messages as m
from boltz_protocol.errors import InvalidPlan
from boltz_protocol.sealing import round_encoding, round_share_variance
from boltz_protocol.secagg.agreement import Agreement, nonces_needed
from boltz_protocol.secagg.graph import Graph, colluders, graph_seed, parameters
from boltz_protocol.secagg.groups import colluders_of_group, draw_groups, group_parameters
from tests.support import samples_sealed
from tests.support.keys import load_vectors
from tests.support.secagg import make_configuration, make_roster

SEED = bytes(range(32))
VECTORS = load_vectors("secagg_graph")

# --- the draw ------------------------------------------------------------------------------------


@given(st.data(), st.integers(2, 12), st.binary(min_size=32, max_size=32))
def test_everybody_is_in_one_group_and_no_group_is_larger_by_two(
    data: st.DataObject, groups: int, seed: bytes
) -> None:
    size = data.draw(st.integers(5 * groups, min(50 * groups, 120)))
    members = sorted(data.draw(st.permutations(range(150)))[:size])
    drawn = draw_groups(members, groups, seed=seed)
    assert len(drawn) == groups
    assert sorted(index for group in drawn for index in group) == members
    assert all(list(group) == sorted(group) for group in drawn)
    sizes = [len(group) for group in drawn]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
    assert drawn == draw_groups(members, groups, seed=seed)


def test_two_members_meet_as_often_as_chance_says() -> None:
    """600 draws of 20 in two groups: a pair meets with probability 9 / 19."""
    met: Counter[tuple[int, int]] = Counter()
    for number in range(600):
        seed = graph_seed(SEED, [number.to_bytes(32, "big")])
        for group in draw_groups(range(20), 2, seed=seed):
            met.update((a, b) for a in group for b in group if a < b)
    assert len(met) == 190
    # Six standard deviations for each of 190 pairs.
    expected, deviation = 600 * 9 / 19, (600 * 9 / 19 * 10 / 19) ** 0.5
    assert all(abs(count - expected) < 6 * deviation for count in met.values())


@pytest.mark.parametrize(("members", "groups", "would_do"), [(9, 2, "1"), (101, 2, "3")])
def test_too_few_or_too_many_for_the_groups(members: int, groups: int, would_do: str) -> None:
    with pytest.raises(InvalidPlan, match="10 to 100 would do") as refusal:
        draw_groups(range(members), groups, seed=SEED)
    assert refusal.value.metadata["would_do"] == would_do


def test_vectors() -> None:
    for case in VECTORS["groups"]:
        nonces = [bytes.fromhex(nonce) for nonce in case["nonces"]]
        seed = graph_seed(bytes.fromhex(case["mask_context"]), nonces)
        assert seed.hex() == case["graph_seed"]
        groups = case["groups"]
        drawn = draw_groups(case["graph_members"], len(groups), seed=seed)
        assert [list(group) for group in drawn] == groups
        corrupt = colluders_of_group(case["roster_size"], len(groups), case["corrupt_fraction"])
        assert corrupt == case["colluders"]
        for group, threshold in zip(groups, case["thresholds"], strict=True):
            found = group_parameters(len(group), corrupt, 0.0, case["adversary"])
            assert found == (len(group) - 1, threshold)


# --- what a group withstands ---------------------------------------------------------------------


def test_vectors_of_colluders() -> None:
    for case in VECTORS["group_colluders"]:
        asked = (case["roster_size"], case["groups"], case["corrupt_fraction"])
        assert colluders_of_group(*asked) == case["colluders"]


def more_than(bound: int, members: int, marked: int, drawn: int) -> Fraction:
    ways = sum(
        comb(marked, x) * comb(members - marked, drawn - x) for x in range(bound + 1, drawn + 1)
    )
    return Fraction(ways, comb(members, drawn))


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(2, 12), st.sampled_from([0.01, 0.05, 0.1, 0.2]))
def test_no_group_holds_more_colluders_whoever_leaves(
    data: st.DataObject, groups: int, fraction: float
) -> None:
    roster = data.draw(st.integers(5 * groups, min(50 * groups, 300)))
    members = data.draw(st.integers(5 * groups, roster))
    bound = colluders_of_group(roster, groups, fraction)
    corrupt = min(colluders(roster, fraction), members)
    exceeds = more_than(bound, members, corrupt, -(-members // groups))
    assert groups * exceeds <= Fraction(1, 1 << 40)
    assert bound <= corrupt or corrupt == members
    assert bound * groups >= corrupt


def test_the_bound_is_the_smallest() -> None:
    """600 clients, 60 of them corrupt, in twelve groups of 50: one less would be too little."""
    bound = colluders_of_group(600, 12, 0.1)
    worst = max(more_than(bound - 1, members, 60, -(-members // 12)) for members in range(60, 601))
    assert 12 * worst > Fraction(1, 1 << 40)


def test_thresholds_of_a_group() -> None:
    assert group_parameters(15, 3, 0.1) == (14, 10)
    assert group_parameters(15, 3, 0.1, m.Adversary.SEMI_HONEST) == (14, 4)
    assert group_parameters(5, 0, 0.0, "semi-honest") == (4, 2)
    # With as many colluders as its part of the mesh's, a group is a mesh of its own.
    for size in range(5, 51):
        assert group_parameters(size, size // 20, 0.1) == parameters(size, 0.05, 0.1)


@pytest.mark.parametrize(
    ("size", "colluding", "dropout", "match"),
    [
        (4, 0, 0.0, "a group of 4 clients; 5 to 50"),
        (51, 0, 0.0, "a group of 51 clients; 5 to 50"),
        (10, 10, 0.0, "of whom 10 may collude"),
        (20, 2, 0.45, "dropout_fraction 0.45"),
        (20, 2, 1.0, "dropout_fraction is 1.0"),
    ],
)
def test_what_a_group_does_not_withstand(
    size: int, colluding: int, dropout: float, match: str
) -> None:
    with pytest.raises(InvalidPlan, match=match):
        group_parameters(size, colluding, dropout)
    with pytest.raises(InvalidPlan, match="adversary 'evil'"):
        group_parameters(20, 1, 0.0, "evil")


def test_a_fraction_of_the_roster_outside_its_range() -> None:
    with pytest.raises(InvalidPlan, match=r"corrupt_fraction is 1\.0"):
        colluders_of_group(40, 4, 1.0)
    with pytest.raises(AssertionError, match="groups of such sizes"):
        colluders_of_group(19, 4, 0.1)


# --- what follows for a round --------------------------------------------------------------------


def test_nonces_are_revealed_wherever_something_is_drawn() -> None:
    sealed, grouped = samples_sealed.configuration(), samples_sealed.grouped_configuration()
    assert [nonces_needed(sealed, members) for members in (50, 51)] == [False, True]
    assert all(nonces_needed(grouped, members) for members in (20, 50, 51))


def test_each_group_carries_the_full_noise() -> None:
    roster = make_roster(1 for _ in range(60))
    configuration = make_configuration(
        roster,
        coordinates=1000,
        min_survivors=40,
        corrupt_fraction=0.05,
        noise_multiplier=1.0,
        grouping=m.Grouping(4, 10),
    )
    encoding = round_encoding(configuration)
    # Three of sixty, and all three may be in one group of fifteen.
    assert round_share_variance(configuration, encoding) == encoding.sigma_squared / (10 - 3)
    sealed = replace(configuration, mode=m.RoundMode.SEALED, grouping=None)
    assert round_share_variance(sealed, encoding) == encoding.sigma_squared / (40 - 3)
    few = replace(configuration, grouping=m.Grouping(4, 3))
    with pytest.raises(InvalidPlan, match="of at least 3 survivors 3 may collude"):
        round_share_variance(few, encoding)


def test_a_member_is_in_one_graph() -> None:
    graphs = tuple(
        Graph.build(group, group_parameters(5, 0, 0.0), seed=SEED)
        for group in (range(0, 10, 2), range(1, 11, 2))
    )
    agreement = Agreement.of(tuple(range(10)), graphs, SEED)
    assert agreement.graph_members == set(range(10))
    assert [agreement.group_of(index) for index in range(10)] == [0, 1] * 5
    assert agreement.graph_of(3) is graphs[1]
    assert 10 not in agreement
    with pytest.raises(AssertionError, match="not a graph member"):
        agreement.group_of(10)
    with pytest.raises(AssertionError, match="a member of one graph"):
        Agreement.of(tuple(range(10)), (graphs[0], graphs[0]), SEED)
