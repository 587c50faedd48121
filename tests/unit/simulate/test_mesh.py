"""One round in each mode against the same in plain numpy, and what attackers can do in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from boltz_mesh.aggregation import coordinate_median, nearest_neighbour_mixing, trimmed_mean
from boltz_mesh.app.demo.data import FloatArray
from boltz_mesh.app.demo.settings import PRESET_60, PRESET_MLP, QUARTERS_3, TWO_YEARS
from boltz_mesh.app.simulate.mesh import Aggregated, Sent, aggregate
from boltz_mesh.app.simulate.ring import Sending
from boltz_mesh.app.simulate.scenario import ROBUST, Scenario
from boltz_protocol.errors import TooFewClients

D = 241
OPEN = Scenario("open", "mixed-trimmed-mean", "mlp", TWO_YEARS, PRESET_MLP, 20, 0, 4, 8)
GROUPED = replace(OPEN, mode="grouped", clients=60, groups=12)
SEALED = replace(OPEN, mode="sealed", rule="weighted-mean")
NOISED = Scenario("open", "weighted-mean", "linear", QUARTERS_3, PRESET_60, 60, 0, 4, 5)


def chance(seed: int = 5) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def deltas(count: int, size: int = D, seed: int = 9, length: float = 0.2) -> FloatArray:
    """Around a common direction, each of about this length."""
    source = chance(seed)
    common = source.normal(size=size)
    drawn: FloatArray = (common + source.normal(size=(count, size))) / np.sqrt(2 * size) * length
    return drawn


def run(
    scenario: Scenario,
    honest: FloatArray,
    hostile: FloatArray | None = None,
    *,
    weights: dict[int, int] | None = None,
    last: FloatArray | None = None,
    seed: int = 5,
) -> Aggregated:
    """Attackers are the last clients."""
    bad = np.zeros((0, honest.shape[1])) if hostile is None else hostile
    clients = len(honest) + len(bad)
    sending = Sending(
        scenario.encoding(), weights or dict.fromkeys(range(clients), 54), chance(seed)
    )
    sent = Sent(
        dict(enumerate(honest)), {len(honest) + place: row for place, row in enumerate(bad)}
    )
    return aggregate(scenario, sending, sent, np.zeros(honest.shape[1]) if last is None else last)


@pytest.mark.parametrize("rule", ROBUST)
def test_open_rounds_apply_the_product_s_rule_to_clipped_deltas(rule: Any) -> None:
    rows = deltas(20)
    made = run(replace(OPEN, rule=rule), rows)
    assert made.members == tuple((client,) for client in range(20))
    assert made.rows is not None
    np.testing.assert_allclose(made.rows.values, rows, atol=1e-4)
    exact = {
        "mixed-trimmed-mean": lambda: trimmed_mean(nearest_neighbour_mixing(rows, 4), 4),
        "trimmed-mean": lambda: trimmed_mean(rows, 4),
        "coordinate-median": lambda: coordinate_median(rows),
    }
    if rule in exact:
        np.testing.assert_allclose(made.mean, exact[rule](), atol=2e-4)


def test_open_rounds_clip_a_liar_and_then_hold_it_back() -> None:
    honest, hostile = deltas(16), np.full((4, D), -1e9)
    made = run(OPEN, honest, hostile)
    assert made.rows is not None
    lengths = np.linalg.norm(made.rows.values, axis=1)
    np.testing.assert_allclose(lengths[16:], 1.0, rtol=1e-3)
    assert np.linalg.norm(made.mean - honest.mean(axis=0)) < 0.2 * np.linalg.norm(honest[0])


def test_under_a_mean_a_liar_s_part_is_its_clip_whatever_its_weight() -> None:
    honest, hostile = np.zeros((16, D)), np.eye(1, D) * 50
    weights = {**dict.fromkeys(range(16), 100), 16: 1}
    made = run(replace(OPEN, rule="weighted-mean"), honest, hostile, weights=weights)
    # It takes the bound of the largest weight, 100, of a total of 1601.
    np.testing.assert_allclose(made.mean[0], 100 / 1601, rtol=1e-3)
    # A rule that sees rows gives it its own share: its row is as long as the clip norm.
    seen = run(replace(OPEN, attackers=1), honest, hostile, weights=weights)
    assert seen.rows is not None
    np.testing.assert_allclose(seen.rows.values[16, 0], 1.0, rtol=0.05)


@pytest.mark.parametrize("rule", ["weighted-mean", "centered-clipping"])
def test_noise_is_that_of_the_rule_s_calibration(rule: Any) -> None:
    scenario = replace(NOISED, rule=rule)
    quiet = replace(scenario, preset=replace(PRESET_60, noise_multiplier=0.0))
    honest = deltas(60, 12, length=0.03)
    still = run(quiet, honest).mean
    away = np.concatenate([run(scenario, honest, seed=seed).mean - still for seed in range(150)])
    sigma = float(scenario.calibration().sigma_squared) ** 0.5
    assert away.std() == pytest.approx(sigma / 2.0 ** scenario.encoding().scale_log2 / 60, rel=0.06)
    made = run(scenario, honest)
    assert made.rows is None, "with noise nobody's own row may be looked at"
    assert made.members == (tuple(range(60)),)


def test_centered_clipping_is_a_step_around_the_last_mean() -> None:
    scenario = replace(OPEN, rule="centered-clipping")
    rows, last = deltas(20, length=0.9), deltas(1, seed=11)[0]
    terms = rows - last
    lengths = np.linalg.norm(terms, axis=1, keepdims=True)
    wanted = last + (terms * np.minimum(1, 0.5 / lengths)).mean(axis=0)
    made = run(scenario, rows, last=last)
    assert (lengths > 0.5).any()
    np.testing.assert_allclose(made.mean, wanted, atol=2e-3)


def test_grouped_rounds_mean_their_groups_and_apply_the_rule_to_them() -> None:
    rows = deltas(60)
    made = run(GROUPED, rows)
    assert made.rows is not None
    assert sorted(client for group in made.members for client in group) == list(range(60))
    means = np.stack([rows[list(group)].mean(axis=0) for group in made.members])
    np.testing.assert_allclose(made.rows.values, means, atol=2e-4)
    wanted = trimmed_mean(nearest_neighbour_mixing(means, 4), 4)
    np.testing.assert_allclose(made.mean, wanted, atol=2e-4)
    mean = run(replace(GROUPED, rule="weighted-mean"), rows)
    np.testing.assert_allclose(mean.mean, rows.mean(axis=0), atol=1e-4)


def test_in_a_group_a_liar_does_not_clip_and_spoils_its_group_only() -> None:
    honest, hostile = deltas(56), np.full((4, D), 1e6)
    made = run(GROUPED, honest, hostile)
    assert made.rows is not None
    lengths = np.linalg.norm(made.rows.values, axis=1)
    bad = [any(client >= 56 for client in group) for group in made.members]
    # The range of a sum over five clients is five clips, so that its mean is as long as one clip.
    np.testing.assert_allclose(lengths[bad], 1.0, rtol=1e-2)
    assert (lengths[np.logical_not(bad)] < 0.3).all()
    assert np.linalg.norm(made.mean - honest.mean(axis=0)) < 0.05


def test_in_a_sealed_round_one_liar_may_spend_the_range_of_the_whole_sum() -> None:
    honest = deltas(19)
    hostile = -1e6 * honest.mean(axis=0, keepdims=True)
    made = run(SEALED, honest, hostile)
    assert made.rows is None
    length = float(np.linalg.norm(made.mean))
    assert length == pytest.approx(1.0, rel=1e-2), "the clip norm, twenty times its honest share"
    assert float(made.mean @ honest.mean(axis=0)) < 0


def test_a_modest_liar_in_a_sealed_round_is_not_cut() -> None:
    honest, hostile = deltas(19), deltas(1, seed=21)
    made = run(SEALED, honest, hostile)
    wanted = np.vstack([honest, hostile]).mean(axis=0)
    np.testing.assert_allclose(made.mean, wanted, atol=1e-4)


def test_masked_noise_comes_in_shares_of_all_members() -> None:
    scenario = replace(NOISED, mode="sealed")
    quiet = replace(scenario, preset=replace(PRESET_60, noise_multiplier=0.0))
    assert quiet.share() == 0
    honest = np.zeros((60, 12))
    drawn = np.concatenate([run(scenario, honest, seed=seed).mean for seed in range(150)])
    sigma = float(60 * scenario.share()) ** 0.5
    assert float(60 * scenario.share()) > float(scenario.encoding().sigma_squared)
    assert drawn.std() == pytest.approx(
        sigma / 2.0 ** scenario.encoding().scale_log2 / 60, rel=0.06
    )


def test_too_few_rows_are_refused_by_the_rule() -> None:
    with pytest.raises(TooFewClients):
        run(OPEN, deltas(8))
