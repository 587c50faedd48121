"""Sums of whole attempts: exact for the survivors, whoever leaves, and whenever."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boltz_protocol import messages as m
from boltz_protocol.limits import CHUNK_PARAMETERS
from boltz_protocol.noise_share import share_variance
from boltz_protocol.secagg.graph import parameters
from tests.support.secagg import NotEnough, Phase, World

SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
LEAVING = st.sampled_from([phase for phase in Phase if phase is not Phase.RELEASED])


@st.composite
def leavers(draw: st.DrawFn, size: int, most: int) -> dict[int, Phase]:
    who = draw(st.lists(st.integers(0, size - 1), max_size=most, unique=True))
    return {index: draw(LEAVING) for index in who}


@settings(SLOW, max_examples=20)
@given(st.data(), st.sampled_from([3, 3, 4, 5, 8, 13, 20]), st.integers(0, 2**32))
def test_complete_graph_with_as_many_dropouts_as_it_withstands(
    data: st.DataObject, size: int, seed: int
) -> None:
    world = World.of(size, seed=seed)
    left = data.draw(leavers(size, size - parameters(size, 0.0, 0.0).threshold))
    if sum(phase is Phase.NOTHING for phase in left.values()) > size - 3:
        left = {}
    assert np.array_equal(world.run(left), world.plain_sum())
    uploaded = {index for index in range(size) if left.get(index, Phase.RELEASED) >= Phase.UPLOADED}
    assert world.survivors == uploaded


@settings(SLOW, max_examples=20)
@given(st.data(), st.sampled_from([3, 5, 9, 16]), st.sampled_from(list(m.Adversary)))
def test_any_mixture_of_dropouts_gives_the_exact_sum_or_none(
    data: st.DataObject, size: int, adversary: m.Adversary
) -> None:
    world = World.of(size, corrupt_fraction=0.2, dropout_fraction=0.1, adversary=adversary)
    left = data.draw(leavers(size, size))
    try:
        total = world.run(left)
    except NotEnough:
        return
    assert np.array_equal(total, world.plain_sum())


@settings(SLOW, max_examples=4)
@given(st.data(), st.sampled_from([51, 60, 90]), st.integers(0, 2**32))
def test_sparse_graph_with_as_many_dropouts_as_planned(
    data: st.DataObject, size: int, seed: int
) -> None:
    world = World.of(size, seed=seed, corrupt_fraction=0.05, dropout_fraction=0.05)
    left = data.draw(leavers(size, size // 20))
    assert np.array_equal(world.run(left), world.plain_sum())
    assert world.attempt.agreement.graphs[0].is_complete == (len(world.advertisements) <= 50)


@settings(SLOW, max_examples=5)
@given(st.data(), st.sampled_from([51, 60]), st.sampled_from(list(m.Adversary)))
def test_sparse_graph_with_any_mixture_gives_the_exact_sum_or_none(
    data: st.DataObject, size: int, adversary: m.Adversary
) -> None:
    world = World.of(size, corrupt_fraction=0.05, dropout_fraction=0.1, adversary=adversary)
    left = data.draw(leavers(size, size // 3))
    try:
        total = world.run(left)
    except NotEnough:
        return
    assert np.array_equal(total, world.plain_sum())


def test_the_largest_complete_graph_with_dropouts_in_every_phase() -> None:
    world = World.of(50)
    left = {3 * index: Phase(index % 6) for index in range(12)}
    assert np.array_equal(world.run(left), world.plain_sum())


def test_two_hundred_clients_with_dropouts_in_every_phase() -> None:
    world = World.of(200, corrupt_fraction=0.02, dropout_fraction=0.05)
    left = {20 * index + 1: Phase(index % 6) for index in range(10)}
    assert np.array_equal(world.run(left), world.plain_sum())


def test_a_vector_of_several_chunks() -> None:
    world = World.of(4, coordinates=CHUNK_PARAMETERS + 3)
    assert np.array_equal(world.run({2: Phase.DEALT}), world.plain_sum())


def test_masks_hide_every_vector_and_the_sum() -> None:
    world = World.of(5, coordinates=2000).until_uploaded()
    hidden = world.unmasked_sum(streams={0: ()})
    assert np.count_nonzero(hidden == world.plain_sum()) < 20


def test_noise_of_the_fewest_survivors_is_at_least_the_target() -> None:
    """Two of eight leave, and one of the rest is allowed for as a colluder."""
    coordinates = 40_000
    world = World.of(8, coordinates=coordinates, min_survivors=6, noise_multiplier=1.0)
    for values in world.values:
        values[:] = 0
    share = share_variance(world.encoding, least_survivors=6, colluders=1)
    total = world.run({1: Phase.DEALT, 4: Phase.ADVERTISED}, noise=share)
    assert len(world.survivors) == 6
    variance = float(np.mean(np.square(total, dtype=np.float64)))
    target = float(world.encoding.sigma_squared)
    # Six shares of a fifth each; a variance of 40,000 samples is within 0.7% of the truth (1 sd).
    assert variance == pytest.approx(6 / 5 * target, rel=0.05)
    assert variance > target
    assert abs(float(total.mean())) < 6 * (1.2 * target / coordinates) ** 0.5


def test_noise_and_vector_add_up() -> None:
    world = World.of(4, coordinates=30_000, noise_multiplier=1.0)
    total = world.run(noise=Fraction(100))
    difference = (total - world.plain_sum()).astype(np.float64)
    assert float(difference.var()) == pytest.approx(400, rel=0.06)


def test_as_many_releases_as_the_threshold_are_enough() -> None:
    world = World.of(7).until_seen(gone={2})
    world.release([0, 1, 4, 5])
    assert world.is_enough()
    assert np.array_equal(world.unmasked_sum(), world.plain_sum())


def test_no_sum_without_enough_shares() -> None:
    world = World.of(7).until_seen()
    world.release([0, 1, 2])
    assert not world.is_enough()
    with pytest.raises(AssertionError, match="waits for enough"):
        world.streams_to_remove()
