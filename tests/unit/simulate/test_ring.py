"""Deltas become integers by the product's steps; attackers in masked sums keep to its checks."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_mesh.app.simulate.ring import Sending, groups_of, range_factor
from boltz_protocol.encoding import plan_encoding
from boltz_protocol.errors import InvalidPlan, NotFinite

ENCODING = plan_encoding(clip_norm_l2=1.0, noise_multiplier=2.0, cohort_max=30, coordinates=40)


def chance(seed: int = 3) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def sending(weights: dict[int, int] | None = None, seed: int = 3) -> Sending:
    return Sending(ENCODING, weights or {0: 100, 1: 50, 2: 200}, chance(seed))


def test_a_delta_is_clipped_weighed_and_rounded() -> None:
    delta = chance().normal(size=40)
    sent = sending()
    encoded = sent.encoded(1, delta)
    clipped = delta / np.linalg.norm(delta)
    np.testing.assert_allclose(sent.clipped(delta), clipped, rtol=1e-6)
    scale = 2.0**ENCODING.scale_log2
    np.testing.assert_allclose(encoded / scale, clipped * 50 / 200, atol=1.01 / scale)
    assert float(encoded @ encoded) <= ENCODING.bound_l2**2


def test_who_grasps_takes_the_largest_weight() -> None:
    delta = chance().normal(size=40)
    scale = 2.0**ENCODING.scale_log2
    grasped = sending().encoded(1, delta, grasping=True)
    np.testing.assert_allclose(grasped / scale, delta / np.linalg.norm(delta), atol=1.01 / scale)


def test_a_mean_is_by_weight() -> None:
    sent = sending()
    deltas = {client: chance(client).normal(size=40) * 0.1 for client in range(3)}
    total = sum(sent.encoded(client, delta) for client, delta in deltas.items())
    wanted = (100 * deltas[0] + 50 * deltas[1] + 200 * deltas[2]) / 350
    assert isinstance(total, np.ndarray)
    np.testing.assert_allclose(sent.mean(total, [0, 1, 2]), wanted, atol=1e-4)


def test_a_broken_delta_is_refused_as_the_product_does() -> None:
    with pytest.raises(NotFinite):
        sending().encoded(0, np.full(40, np.nan))


def test_the_same_seed_draws_the_same_bits() -> None:
    delta = chance().normal(size=40)
    one, same, other = (sending(seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.encoded(0, delta), same.encoded(0, delta))
    variance = Fraction(400)
    drawn = one.noise(variance)
    np.testing.assert_array_equal(drawn, same.noise(variance))
    assert not np.array_equal(drawn, other.noise(variance))


def test_noise_has_its_variance_and_none_is_none() -> None:
    sent = sending()
    assert not sent.noise(Fraction(0)).any()
    drawn = np.concatenate([sent.noise(Fraction(10_000)) for _ in range(200)])
    assert drawn.std() == pytest.approx(100, rel=0.05)


@given(seed=st.integers(0, 1000), length=st.floats(1e-3, 1e6), limit=st.integers(100, 10**7))
@settings(max_examples=60, deadline=None)
def test_attackers_send_as_much_as_the_check_lets_through_and_no_more(
    seed: int, length: float, limit: int
) -> None:
    source = chance(seed)
    honest = np.trunc(source.normal(size=40) * limit / 20).astype(np.int64)
    wanted = source.normal(size=40) * length
    factor = range_factor(honest, wanted, limit)
    assert 0 <= factor <= 1
    sent = honest + np.trunc(factor * wanted).astype(np.int64)
    if np.linalg.norm(honest) <= (1 - 1e-6) * limit:
        # Cutting off moves a sum by less than sqrt(40); a limit of a real sum is far above that.
        assert np.linalg.norm(sent) <= limit + 7
    if 0 < factor < 1:
        exact = np.linalg.norm(honest + factor * wanted)
        assert exact == pytest.approx((1 - 1e-6) * limit, rel=1e-9)


def test_nothing_wanted_and_no_room() -> None:
    honest = np.full(4, 10, np.int64)
    assert range_factor(honest, np.zeros(4), 100) == 1
    assert range_factor(honest, np.ones(4), 10) == 0


def test_groups_are_a_partition_that_changes() -> None:
    source = chance()
    one, other = groups_of(30, 5, source), groups_of(30, 5, source)
    assert sorted(client for group in one for client in group) == list(range(30))
    assert one != other
    with pytest.raises(InvalidPlan):
        groups_of(30, 7, source)
