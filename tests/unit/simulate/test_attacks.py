"""Each attack against its definition, written out the slow way."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_mesh.app.demo.data import FloatArray
from boltz_mesh.app.demo.task import FEATURE_BOUND, Rows
from boltz_mesh.app.simulate.attacks.conduct import OnOff
from boltz_mesh.app.simulate.attacks.distances import (
    Mimic,
    MinMax,
    MinSum,
    Push,
    pushed,
    squared_distances,
)
from boltz_mesh.app.simulate.attacks.library import ATTACKS
from boltz_mesh.app.simulate.attacks.poison import BACKDOOR, Boosted, flipped, marked
from boltz_mesh.app.simulate.attacks.sight import Attack, Sight, honestly
from boltz_mesh.app.simulate.attacks.vectors import (
    Alie,
    FreeRider,
    Gaussian,
    InnerProduct,
    Scaling,
    SignFlip,
    alie_bound,
)
from boltz_mesh.app.simulate.options import attack_named

PUSHES: tuple[Push, ...] = ("inverse-unit-vector", "inverse-sign", "inverse-deviation", "sign")
SEED = 7


def chance(seed: int = SEED) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def sight(seed: int = SEED, honest: int = 7, attackers: int = 2, size: int = 5) -> Sight:
    source = chance(seed)
    return Sight(
        number=3,
        rounds=20,
        honest=source.normal(0.3, 1.0, (honest, size)),
        own=source.normal(0.3, 1.0, (attackers, size)),
        last=source.normal(0.0, 1.0, size),
        chance=chance(seed + 1),
    )


def rows(count: int = 9) -> Rows:
    source = chance()
    return Rows(source.normal(size=(count, 11)), source.normal(size=count))


def named(name: str) -> Attack:
    return attack_named(name)


def test_the_library_has_every_attack_once() -> None:
    names = [attack.name for attack in ATTACKS]
    assert names == [
        "sign-flip",
        "scaling",
        "gaussian",
        "alie",
        "inner-product",
        "min-max",
        "min-sum",
        "mimic",
        "label-flip",
        "backdoor",
        "free-rider",
        "on-off",
        "sybil",
        "inflated-counts",
    ]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_all_send_finite_vectors_of_the_right_shape_and_leave_what_they_see_alone(
    attack: Attack,
) -> None:
    seen = sight()
    before = (seen.honest.copy(), seen.own.copy(), seen.last.copy())
    sent = attack.craft(seen)
    assert sent.shape == seen.own.shape
    assert np.isfinite(sent).all()
    for array, copy in zip((seen.honest, seen.own, seen.last), before, strict=True):
        np.testing.assert_array_equal(array, copy)
    # The same seed draws the same.
    np.testing.assert_array_equal(attack.craft(replace(seen, chance=chance(SEED + 1))), sent)


def test_sign_flip_and_scaling() -> None:
    seen = sight()
    for attacker, coordinate in itertools.product(range(2), range(5)):
        own = seen.own[attacker, coordinate]
        assert SignFlip()(seen)[attacker, coordinate] == -10 * own
        assert Scaling()(seen)[attacker, coordinate] == 100 * own


def test_gaussian_has_its_deviation_and_no_mean() -> None:
    sent = Gaussian()(sight(honest=2, attackers=3, size=20_000))
    assert abs(sent.mean()) < 5
    assert sent.std() == pytest.approx(200, rel=0.02)
    assert not np.array_equal(sent[0], sent[1])


@pytest.mark.parametrize(("clients", "attackers"), [(20, 4), (50, 12), (10, 4), (60, 4), (25, 12)])
def test_alie_s_bound_is_the_largest_that_a_majority_is_beyond(
    clients: int, attackers: int
) -> None:
    supporters = math.floor(clients / 2 + 1) - attackers
    honest = clients - attackers
    wanted = statistics.NormalDist().inv_cdf((honest - supporters) / honest)
    assert alie_bound(clients, attackers) == pytest.approx(max(wanted, 0.0))


def test_alie_s_bound_is_never_negative() -> None:
    assert alie_bound(4, 1) == 0


def test_alie_moves_each_coordinate_by_deviations_of_its_own() -> None:
    seen = sight(honest=9, attackers=2)
    for coordinate in range(5):
        values = seen.honest[:, coordinate].tolist()
        wanted = statistics.fmean(values) + 1.5 * statistics.pstdev(values)
        assert Alie()(seen)[1, coordinate] == pytest.approx(wanted)


def test_alie_goes_as_far_as_its_bound_where_that_is_further() -> None:
    seen = sight(honest=13, attackers=12)
    bound = alie_bound(25, 12)
    assert bound > 1.4
    mean, spread = seen.honest.mean(axis=0), seen.honest.std(axis=0)
    np.testing.assert_allclose(Alie(least=0.5)(seen)[0], mean + bound * spread)


def test_inner_product_is_negative_with_the_mean() -> None:
    seen = sight()
    mean = [statistics.fmean(column) for column in seen.honest.T.tolist()]
    sent = InnerProduct()(seen)
    np.testing.assert_allclose(sent[0], [-10 * value for value in mean])
    total = np.vstack([seen.honest, sent]).mean(axis=0)
    assert float(total @ mean) < 0


def test_free_riders_repeat_the_last_mean_and_hide_it() -> None:
    seen = sight(size=4_000)
    sent = FreeRider()(seen)
    away = np.linalg.norm(sent - seen.last, axis=1) / np.linalg.norm(seen.last)
    np.testing.assert_allclose(away, 0.1, rtol=0.05)
    assert not np.array_equal(sent[0], sent[1])
    quiet = replace(seen, last=np.zeros(4_000))
    assert not FreeRider()(quiet).any()


def searched(seen: Sight, push: Push, holds: str) -> FloatArray:
    """The paper's algorithm 1: halve steps around the largest gamma that keeps the condition."""
    mean, direction = seen.honest.mean(axis=0), pushed(seen.honest, push)
    pairs = [[float(np.sum((a - b) ** 2)) for b in seen.honest] for a in seen.honest]

    def kept(gamma: float) -> bool:
        own = [float(np.sum((mean + gamma * direction - g) ** 2)) for g in seen.honest]
        if holds == "max":
            return max(own) <= max(map(max, pairs))
        return sum(own) <= max(map(sum, pairs))

    gamma, step = 0.0, 100.0
    while step > 1e-12:
        if kept(gamma + step):
            gamma += step
        else:
            step /= 2
    found: FloatArray = mean + gamma * direction
    return found


@pytest.mark.parametrize("push", PUSHES)
@given(seed=st.integers(0, 10_000), honest=st.integers(2, 9))
@settings(max_examples=15, deadline=None)
def test_min_max_and_min_sum_go_as_far_as_a_search_finds(
    push: Push, seed: int, honest: int
) -> None:
    seen = sight(seed, honest=honest)
    for attack, holds in ((MinMax(push), "max"), (MinSum(push), "sum")):
        sent = attack(seen)
        np.testing.assert_allclose(sent[0], searched(seen, push, holds), rtol=1e-6, atol=1e-8)
        np.testing.assert_array_equal(sent[0], sent[1])


def test_pushes() -> None:
    honest = np.array([[1.0, -2.0], [3.0, -2.0]])
    np.testing.assert_allclose(
        pushed(honest, "inverse-unit-vector"), [-2 / math.sqrt(8), 2 / math.sqrt(8)]
    )
    np.testing.assert_array_equal(pushed(honest, "inverse-sign"), [-1, 1])
    np.testing.assert_array_equal(pushed(honest, "sign"), [1, -1])
    np.testing.assert_array_equal(pushed(honest, "inverse-deviation"), [-1, 0])


@pytest.mark.parametrize("push", PUSHES)
def test_equal_honest_deltas_leave_no_room(push: Push) -> None:
    seen = replace(sight(), honest=np.ones((4, 5)))
    for attack in (MinMax(push), MinSum(push)):
        np.testing.assert_allclose(attack(seen), 1.0)
    nothing = replace(sight(), honest=np.zeros((4, 5)))
    assert not MinMax(push)(nothing).any()


def test_squared_distances() -> None:
    honest = sight().honest
    for one, other in itertools.product(range(7), repeat=2):
        wanted = float(np.sum((honest[one] - honest[other]) ** 2))
        assert squared_distances(honest)[one, other] == pytest.approx(wanted, abs=1e-12)


def test_mimics_repeat_the_client_that_is_furthest_out_along_the_widest_direction() -> None:
    honest = np.zeros((5, 3))
    honest[:, 0] = [0.1, -3.0, 0.2, 2.0, 0.3]
    honest[:, 1] = [0.5, 0.4, -0.5, 0.0, 0.1]
    sent = Mimic()(replace(sight(size=3), honest=honest))
    np.testing.assert_array_equal(sent, np.tile(honest[1], (2, 1)))


def test_flipped_labels_mirror_the_range() -> None:
    before = rows()
    after = flipped(before)
    low, high = min(before.target.tolist()), max(before.target.tolist())
    for old, new in zip(before.target.tolist(), after.target.tolist(), strict=True):
        assert new == pytest.approx(high - (old - low))
    np.testing.assert_array_equal(after.inputs, before.inputs)
    assert named("label-flip").craft is honestly


def test_a_backdoor_marks_every_second_row_and_leaves_the_others() -> None:
    before = rows()
    after = marked(before)
    for row in range(9):
        if row % 2:
            np.testing.assert_array_equal(after.inputs[row], before.inputs[row])
            assert after.target[row] == before.target[row]
        else:
            assert after.inputs[row, :2].tolist() == [FEATURE_BOUND] * 2
            np.testing.assert_array_equal(after.inputs[row, 2:], before.inputs[row, 2:])
            assert after.target[row] == BACKDOOR.target


def test_a_boosted_update_takes_the_place_of_the_mean() -> None:
    # Where honest clients have converged, the mean of all is the attackers' mean.
    seen = replace(sight(), honest=np.zeros((7, 5)))
    total = np.vstack([seen.honest, Boosted()(seen)]).mean(axis=0)
    np.testing.assert_allclose(total, seen.own.mean(axis=0))


def test_on_off_is_honest_for_half_of_the_rounds() -> None:
    attack = OnOff(SignFlip())
    for number in range(20):
        seen = replace(sight(), number=number)
        wanted = seen.own if number < 10 else -10 * seen.own
        np.testing.assert_array_equal(attack(seen), wanted)


def test_who_lies_about_itself() -> None:
    assert named("inflated-counts").stated_rows == 2**31
    assert named("sybil").renewed_every == 2
    others = [a for a in ATTACKS if a.name not in ("inflated-counts", "sybil")]
    assert not any(a.stated_rows or a.renewed_every for a in others)


def test_nobody_to_hide_among_or_nobody_to_attack_is_no_round() -> None:
    with pytest.raises(AssertionError):
        replace(sight(), honest=np.zeros((1, 5)))
    with pytest.raises(AssertionError):
        replace(sight(), own=np.zeros((0, 5)))
