from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_protocol.errors import MalformedMessage, RoundRefused
from boltz_protocol.secagg.graph import (
    CompleteGraphParameters,
    Graph,
    GraphParameters,
    _shuffled,
    graph_seed,
    parameters,
)
from tests.support.keys import load_vectors

SEED = bytes(range(32))
SPARSE = GraphParameters(neighbours=6, threshold=4)


def _parts(graph: Graph, alive: Collection[int]) -> int:
    """Into how many pieces the graph falls when only these are left."""
    left, parts = set(alive), 0
    while left:
        parts += 1
        reached = [left.pop()]
        while reached:
            near = left.intersection(graph.neighbours(reached.pop()))
            left -= near
            reached += near
    return parts


def _check_form(graph: Graph, members: Sequence[int]) -> None:
    assert graph.members == tuple(members)
    assert sorted(graph.ring) == list(members)
    for index in members:
        near = graph.neighbours(index)
        assert index in graph
        assert index not in near
        assert list(near) == sorted(set(near))
        assert all(index in graph.neighbours(other) for other in near)
        assert graph.dealers(index) == graph.holders(index)
        assert all(index in graph.dealers(holder) for holder in graph.holders(index))
        assert (index in graph.holders(index)) == graph.is_complete
        assert set(graph.holders(index)) - {index} == set(near)


@given(
    st.sets(st.integers(0, 200), min_size=8, max_size=60),
    st.sampled_from([2, 4, 6]),
    st.binary(min_size=32, max_size=32),
)
@settings(max_examples=50, deadline=None)
def test_a_sparse_graph(positions: set[int], neighbours: int, seed: bytes) -> None:
    members = sorted(positions)
    graph = Graph.build(members, GraphParameters(neighbours, 2), seed=seed)
    _check_form(graph, members)
    assert not graph.is_complete
    assert all(len(graph.neighbours(index)) == neighbours for index in members)
    assert _parts(graph, members) == 1
    assert graph == Graph.build(members, GraphParameters(neighbours, 2), seed=seed)


@given(st.integers(7, 40), st.data())
@settings(max_examples=50, deadline=None)
def test_only_two_runs_of_missing_neighbours_part_it(count: int, data: st.DataObject) -> None:
    graph = Graph.build(range(count), SPARSE, seed=SEED)
    # One run of any length, and another one short of half the neighbours: still one piece.
    start = data.draw(st.integers(0, count - 1))
    length = data.draw(st.integers(0, count - 5))
    turned = graph.ring[start:] + graph.ring[:start]
    left = turned[length:]
    gap = data.draw(st.integers(1, len(left) - 3))
    alive = left[:gap] + left[gap + 2 :]
    assert _parts(graph, alive) == 1
    # Two runs of half the neighbours: two pieces.
    if count >= 8:
        cut = data.draw(st.integers(1, count - 7))
        assert _parts(graph, turned[3 : 3 + cut] + turned[6 + cut :]) == 2


@pytest.mark.parametrize("count", [3, 4, 5, 30, 50])
def test_a_complete_graph(count: int) -> None:
    chosen = parameters(count, 0.05, 0.1)
    for members in (list(range(count)), list(range(100, 100 + count - 1))):
        graph = Graph.build(members, chosen, seed=SEED)
        _check_form(graph, members)
        assert graph.is_complete
        assert graph.threshold == chosen.threshold
        assert graph.holders(members[0]) == tuple(members)
    with pytest.raises(AssertionError):
        Graph.build(range(count + 1), chosen, seed=SEED)


def test_a_sparse_graph_that_shrinks() -> None:
    # One more than the neighbours: everybody is a neighbour, yet the threshold, which assumes six
    # holders, counts on no share of one's own.
    graph = Graph.build(range(7), SPARSE, seed=SEED)
    assert not graph.is_complete
    assert graph.neighbours(3) == graph.holders(3) == (0, 1, 2, 4, 5, 6)
    # The same numbers for a complete graph of seven.
    whole = Graph.build(range(7), CompleteGraphParameters(6, 4), seed=SEED)
    assert whole.is_complete
    assert whole.holders(3) == (0, 1, 2, 3, 4, 5, 6)
    # From here on there are at most six holders with oneself.
    for count in (6, 5, 4):
        graph = Graph.build(range(count), SPARSE, seed=SEED)
        _check_form(graph, range(count))
        assert graph.is_complete
    for refused in (3, 1, 0):
        with pytest.raises(MalformedMessage, match="threshold of 4"):
            Graph.build(range(refused), SPARSE, seed=SEED)


@pytest.mark.parametrize("members", [(1, 0, *range(2, 20)), (0, 0, *range(1, 20))])
def test_members_ascend(members: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        Graph.build(members, SPARSE, seed=SEED)


def test_an_odd_number_of_neighbours_has_no_ring() -> None:
    with pytest.raises(AssertionError):
        Graph.build(range(20), GraphParameters(5, 3), seed=SEED)


def test_strangers_have_no_neighbours() -> None:
    graph = Graph.build(range(20), SPARSE, seed=SEED)
    assert 20 not in graph
    with pytest.raises(AssertionError):
        graph.neighbours(20)
    with pytest.raises(AssertionError):
        graph.holders(20)


def test_the_order_is_uniform() -> None:
    counts = Counter(
        Graph.build(range(5), GraphParameters(2, 2), seed=trial.to_bytes(32, "big")).ring
        for trial in range(6000)
    )
    assert len(counts) == 120
    # Chi square with 119 degrees of freedom: 186 is exceeded with probability 1e-4.
    assert sum((count - 50) ** 2 / 50 for count in counts.values()) < 186


def test_words_that_would_favour_a_place_are_drawn_again() -> None:
    # 2^32 is 1 modulo 3 and modulo 5: the last word is one too many for either.
    top = (1 << 32) - 1
    words = iter([top, top - 1, top, top, 7, top, top])
    # (2^32 - 2) mod 5 = 4; 2^32 - 1 mod 4 = 3; refused for 3; 7 mod 3 = 1; 2^32 - 1 mod 2 = 1.
    assert _shuffled([10, 11, 12, 13, 14], words) == (10, 12, 11, 13, 14)
    assert list(words) == [top]


# --- seed --------------------------------------------------------------------------------------


def test_the_seed_depends_on_context_and_order() -> None:
    one, two = b"1" * 32, b"2" * 32
    seeds = {
        graph_seed(b"c" * 32, [one, two]),
        graph_seed(b"c" * 32, [two, one]),
        graph_seed(b"d" * 32, [one, two]),
        graph_seed(b"c" * 32, [one]),
        graph_seed(b"c" * 32, []),
    }
    assert len(seeds) == 5
    for bad in ([one[:31]], [one + one]):
        with pytest.raises(AssertionError):
            graph_seed(b"c" * 32, bad)


def test_vectors() -> None:
    for case in load_vectors("secagg_graph")["graphs"]:
        nonces = [bytes.fromhex(nonce) for nonce in case["nonces"]]
        seed = graph_seed(bytes.fromhex(case["mask_context"]), nonces)
        assert seed.hex() == case["graph_seed"]
        chosen = GraphParameters(case["neighbours"], case["threshold"])
        graph = Graph.build(case["graph_members"], chosen, seed=seed)
        assert list(graph.ring) == case["ring"]
        for index, near in zip(case["graph_members"], case["neighbours_of"], strict=True):
            assert list(graph.neighbours(index)) == near


# --- survivors ---------------------------------------------------------------------------------


@given(st.integers(7, 40), st.data())
@settings(max_examples=80, deadline=None)
def test_survivors_with_enough_surviving_neighbours_pass(count: int, data: st.DataObject) -> None:
    graph = Graph.build(range(count), SPARSE, seed=SEED)
    alive = data.draw(st.sets(st.integers(0, count - 1), min_size=4))
    kept = [len(alive.intersection(graph.neighbours(index))) for index in alive]
    if min(kept) >= SPARSE.threshold:
        graph.check_survivors(alive)
        # With 2t > k the survivors are one piece, whoever chose them.
        assert _parts(graph, alive) == 1
    else:
        with pytest.raises(RoundRefused, match="surviving neighbours"):
            graph.check_survivors(alive)


def test_a_client_cut_off_by_its_neighbours_is_seen() -> None:
    chosen = parameters(1000, 0.1, 0.1)
    graph = Graph.build(range(1000), chosen, seed=SEED)
    alone = set(range(1000)) - set(graph.neighbours(17))
    assert len(alone) == 904  # no more dropouts than the plan tolerates
    assert _parts(graph, alone) == 2
    with pytest.raises(RoundRefused) as refusal:
        graph.check_survivors(alone)
    assert refusal.value.metadata["survivors"] == "904"
    graph.check_survivors(range(1000))
    graph.check_survivors(set(range(1000)) - set(graph.ring[:20]))


def test_survivors_of_a_complete_graph_are_counted() -> None:
    graph = Graph.build(range(10, 15), parameters(5, 0.0, 0.2), seed=SEED)
    graph.check_survivors({10, 12, 14})
    with pytest.raises(RoundRefused, match="2 survivors; 3 shares"):
        graph.check_survivors({10, 12})
    with pytest.raises(RoundRefused):
        graph.check_survivors(())


def test_survivors_are_members() -> None:
    graph = Graph.build(range(20), SPARSE, seed=SEED)
    with pytest.raises(MalformedMessage) as refusal:
        graph.check_survivors(range(21))
    assert refusal.value.metadata["field"] == "survivors"
