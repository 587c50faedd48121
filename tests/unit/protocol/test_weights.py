from __future__ import annotations

import hashlib
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_protocol import messages as m
from boltz_protocol.errors import MalformedMessage, WeightRefused
from boltz_protocol.ids import ClientId
from boltz_protocol.weights import (
    SumNode,
    WeightLeaf,
    check_share,
    check_weight,
    prove,
    prove_all,
    relative_trust,
    root,
    sample_bucket,
    verify,
    weight,
)
from tests.support import samples
from tests.support.keys import load_vectors


def _leaves(weights: list[int]) -> list[WeightLeaf]:
    return [
        WeightLeaf(
            index=index,
            client_id=ClientId(f"{index:032x}"),
            entry_digest=hashlib.sha256(bytes([index % 256])).digest(),
            weight=value,
        )
        for index, value in enumerate(weights)
    ]


WEIGHTS = st.lists(st.integers(1, 255), min_size=1, max_size=40)


@given(st.integers(0, 1 << 40))
def test_bucket_is_the_floor_of_the_logarithm(count: int) -> None:
    bucket = sample_bucket(count)
    assert 0 <= bucket <= 31
    if 1 <= count < 1 << 32:
        assert 1 << bucket <= count < 2 << bucket
    else:
        assert bucket == (31 if count else 0)


def test_negative_count_is_refused() -> None:
    with pytest.raises(MalformedMessage):
        sample_bucket(-1)


@given(st.integers(0, 31), st.integers(0, 3), st.integers(0, 256), st.integers(0, 31))
def test_weight_is_the_rounded_product(bucket: int, quality: int, trust: int, cap: int) -> None:
    got = weight(
        sample_bucket=bucket, quality_bucket=quality, trust_256=trust, sample_bucket_cap=cap
    )
    exact = 255 * Fraction(1, 1 << (cap - min(bucket, cap)))
    exact *= Fraction(quality + 1, 4) * Fraction(trust, 256)
    assert got == max(1, round(exact))
    assert 1 <= got <= 255


def test_known_weights() -> None:
    full = {"sample_bucket": 12, "quality_bucket": 3, "trust_256": 256, "sample_bucket_cap": 12}
    assert weight(**full) == 255
    assert weight(**{**full, "trust_256": 128}) == 128  # 127.5 goes to the even side
    assert weight(**{**full, "sample_bucket": 11}) == 128
    assert weight(**{**full, "sample_bucket": 0}) == 1
    assert weight(**{**full, "trust_256": 0}) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sample_bucket", 32),
        ("quality_bucket", 4),
        ("trust_256", 257),
        ("sample_bucket_cap", 32),
        ("sample_bucket", -1),
        ("trust_256", -1),
    ],
)
def test_weight_refuses_what_is_out_of_range(name: str, value: int) -> None:
    good = {"sample_bucket": 1, "quality_bucket": 1, "trust_256": 1, "sample_bucket_cap": 1}
    with pytest.raises(MalformedMessage) as refusal:
        weight(**{**good, name: value})
    assert refusal.value.metadata["field"] == name


def test_share() -> None:
    check_share(25, 100, max_share_ppm=250_000)
    with pytest.raises(WeightRefused):
        check_share(26, 100, max_share_ppm=259_999)


@settings(max_examples=50)
@given(WEIGHTS)
def test_every_proof_verifies(weights: list[int]) -> None:
    leaves = _leaves(weights)
    committed = root(leaves)
    assert committed.total == sum(weights)
    proofs = prove_all(leaves)
    for leaf, proof in zip(leaves, proofs, strict=True):
        assert proof == prove(leaves, leaf.index)
        verify(leaf, len(leaves), proof, committed)


@settings(max_examples=50)
@given(WEIGHTS, st.data())
def test_nothing_changed_verifies(weights: list[int], data: st.DataObject) -> None:
    leaves = _leaves(weights)
    index = data.draw(st.integers(0, len(leaves) - 1))
    leaf, proof, committed = leaves[index], prove(leaves, index), root(leaves)
    size = len(leaves)
    other_weight = data.draw(st.integers(1, 255).filter(lambda value: value != leaf.weight))
    changed = [
        (replace(leaf, weight=other_weight), proof, committed),
        (replace(leaf, client_id=ClientId("f" * 32)), proof, committed),
        (replace(leaf, entry_digest=bytes(32)), proof, committed),
        (leaf, proof, SumNode(committed.hash, committed.total + 1)),
        (leaf, proof, SumNode(bytes(32), committed.total)),
    ]
    for level, node in enumerate(proof):
        for forged in (SumNode(node.hash, node.total + 1), SumNode(bytes(32), node.total)):
            changed.append((leaf, (*proof[:level], forged, *proof[level + 1 :]), committed))
    for bad_leaf, bad_proof, bad_root in changed:
        with pytest.raises(WeightRefused):
            verify(bad_leaf, size, bad_proof, bad_root)
    with pytest.raises(MalformedMessage):
        verify(leaf, size, (*proof, SumNode(bytes(32), 1)), committed)
    if proof:
        with pytest.raises(MalformedMessage):
            verify(leaf, size, proof[:-1], committed)
        short = (SumNode(proof[0].hash[:31], proof[0].total), *proof[1:])
        with pytest.raises(MalformedMessage):
            verify(leaf, size, short, committed)


def test_moving_weight_between_siblings_is_seen() -> None:
    # A tree whose nodes hash only the sum of both sides would let a mesh do this.
    leaves = _leaves([10, 20, 30, 40])
    proof, committed = prove(leaves, 0), root(leaves)
    moved = (SumNode(proof[0].hash, proof[0].total - 1), SumNode(proof[1].hash, 71))
    with pytest.raises(WeightRefused):
        verify(leaves[0], 4, moved, committed)


@pytest.mark.parametrize("total", [0, 1, 511, -5])
def test_a_sum_that_its_leaves_cannot_have_is_refused(total: int) -> None:
    leaves = _leaves([10, 20, 30, 40])
    proof = prove(leaves, 0)
    with pytest.raises(WeightRefused, match="cannot weigh"):
        verify(leaves[0], 4, (proof[0], SumNode(proof[1].hash, total)), root(leaves))


def test_rosters_out_of_order_or_size_are_refused() -> None:
    leaves = _leaves([1, 2, 3])
    for bad in ([], leaves[::-1], leaves[1:], _leaves([1] * 10_000) * 2):
        with pytest.raises(MalformedMessage):
            root(bad)
        with pytest.raises(MalformedMessage):
            prove(bad, 0)
        with pytest.raises(MalformedMessage):
            prove_all(bad)
    for index in (-1, 3):
        with pytest.raises(MalformedMessage):
            prove(leaves, index)
    for size in (0, 2, 10_001):
        with pytest.raises(MalformedMessage):
            verify(leaves[2], size, (), root(leaves))


@pytest.mark.parametrize(
    "change",
    [
        {"index": -1},
        {"index": 10_000},
        {"client_id": ""},
        {"client_id": "é" * 32},
        {"client_id": "a" * 256},
        {"entry_digest": bytes(31)},
        {"weight": 0},
        {"weight": 256},
    ],
)
def test_leaves_out_of_range_are_refused(change: dict[str, int | str | bytes]) -> None:
    good = {"index": 0, "client_id": "a" * 32, "entry_digest": bytes(32), "weight": 1}
    with pytest.raises(MalformedMessage) as refusal:
        WeightLeaf(**{**good, **change})  # type: ignore[arg-type]
    assert refusal.value.metadata["field"] == next(iter(change))


def test_a_full_roster_at_full_weight() -> None:
    leaves = _leaves([255] * 10_000)
    committed = root(leaves)
    assert committed.total == 2_550_000
    verify(leaves[9_999], 10_000, prove(leaves, 9_999), committed)


def test_vectors() -> None:
    vectors = load_vectors("numerics_weights")
    for case in vectors["weights"]:
        wanted = case.pop("weight")
        assert weight(**case) == wanted
    for tree in vectors["trees"]:
        leaves = [
            WeightLeaf(
                index=leaf["index"],
                client_id=ClientId(leaf["client_id"]),
                entry_digest=bytes.fromhex(leaf["entry_digest"]),
                weight=leaf["weight"],
            )
            for leaf in tree["leaves"]
        ]
        committed = SumNode(bytes.fromhex(tree["root"]), tree["total"])
        assert root(leaves) == committed
        for leaf, described in zip(leaves, tree["leaves"], strict=True):
            assert leaf.node().hash.hex() == described["hash"]
            proof = tuple(
                SumNode(bytes.fromhex(node["hash"]), node["total"]) for node in described["proof"]
            )
            assert prove(leaves, leaf.index) == proof
            verify(leaf, len(leaves), proof, committed)


# --- trust --------------------------------------------------------------------------------------


@given(st.integers(1, 256), st.integers(1, 256))
def test_trust_counts_relative_to_the_largest(one: int, other: int) -> None:
    trust, top = min(one, other), max(one, other)
    got = relative_trust(trust, top)
    assert 1 <= got <= 256
    assert abs(got - Fraction(256 * trust, top)) <= Fraction(1, 2) or got == 1
    assert relative_trust(top, top) == 256


@pytest.mark.parametrize(("trust", "top"), [(0, 5), (6, 5), (1, 257), (-1, 3)])
def test_trust_out_of_its_range_is_refused(trust: int, top: int) -> None:
    with pytest.raises(MalformedMessage):
        relative_trust(trust, top)


def told(
    weight: int, *, trust: int = 54, top: int = 108, most: int = 255, told_terms: bool = True
) -> tuple[m.RosterEntry, m.RoundConfiguration]:
    """An entry of sample bucket 5 and quality 3 in a round whose cap on buckets is 6."""
    entry = replace(samples.roster_entry(), weight=weight, trust_256=trust)
    terms = m.WeightTerms(6, top) if told_terms else None
    configuration = replace(
        samples.configuration(), max_weight=most, total_weight=most + 2, weight_terms=terms
    )
    return entry, configuration


def test_a_weight_is_computed_again_where_its_terms_are_told() -> None:
    check_weight(*told(64))  # 255 / 2 for the bucket, half of it for the trust
    check_weight(*told(40, most=40))  # lowered by the cap on shares
    check_weight(*told(128, trust=108))
    check_weight(*told(17, trust=0, told_terms=False))  # by a server that does not tell


@pytest.mark.parametrize(
    "said",
    [told(63), told(65), told(64, most=63), told(64, most=70, trust=108), told(1), told(128)],
)
def test_another_weight_is_refused(said: tuple[m.RosterEntry, m.RoundConfiguration]) -> None:
    with pytest.raises(WeightRefused, match="make"):
        check_weight(*said)


@pytest.mark.parametrize(
    "said", [told(64, trust=0), told(64, told_terms=False), told(64, trust=109)]
)
def test_half_a_story_is_refused(said: tuple[m.RosterEntry, m.RoundConfiguration]) -> None:
    with pytest.raises(MalformedMessage):
        check_weight(*said)
