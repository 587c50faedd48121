"""Robust rules over stored updates: clients' deltas without noise, sums of groups with theirs."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest

from boltz_mesh.aggregation import (
    coordinate_median,
    geometric_median,
    multi_krum,
    nearest_neighbour_mixing,
    trimmed_mean,
)
from boltz_mesh.aggregation.calibration import Calibration
from boltz_mesh.aggregation.rows import ClientRows, Unprotected
from boltz_mesh.coordinator.chunks import row_source
from boltz_mesh.coordinator.client_rows import ClientSource
from boltz_mesh.coordinator.fold import Folder, NoisedSum, Summing
from boltz_mesh.coordinator.group_rows import GroupSource, Masks, Sums, by_group
from boltz_mesh.coordinator.range_check import AggregateOutOfRange, SumRange
from boltz_mesh.coordinator.robust_sum import RobustSum
from boltz_mesh.coordinator.stored import FoldCancelled, StoredUpdate
from boltz_mesh.rounds.plan_robust import RobustChoice
from boltz_mesh.rounds.plan_types import RobustRuleName
from boltz_mesh.storage.directory_blobs import DirectoryBlobs
from boltz_protocol import limits
from boltz_protocol import messages as m
from boltz_protocol.encoding import integer_bound_l2
from boltz_protocol.errors import DecryptionFailed, TooFewClients
from boltz_protocol.key_wrap import KeyEncryptionKey
from boltz_protocol.keystream import Keystream
from boltz_protocol.noise import discrete_gaussian
from boltz_protocol.sealing import round_encoding, round_share_variance
from tests.unit.coordinator.rounds import (
    Int32Array,
    configuration,
    mean_of,
    random_updates,
    stored,
)
from tests.unit.coordinator.test_centred_sum import summing as centred
from tests.unit.coordinator.test_fold import masked, read_back

CHUNK = limits.CHUNK_PARAMETERS
Float64Array = npt.NDArray[np.float64]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    with ThreadPoolExecutor(2) as executor:
        yield Folder(DirectoryBlobs(tmp_path), KeyEncryptionKey.generate(), executor)


def robust(config: m.RoundConfiguration, name: RobustRuleName, byzantine: int) -> Summing:
    return replace(mean_of(config), robust=RobustChoice(name, byzantine))


def by_definition(name: RobustRuleName, rows: Float64Array, byzantine: int) -> Float64Array:
    """The rule on an array of all rows, each of the same weight."""
    match name:
        case "mixed-trimmed-mean":
            return trimmed_mean(nearest_neighbour_mixing(rows, byzantine), byzantine)
        case "trimmed-mean":
            return trimmed_mean(rows, byzantine)
        case "coordinate-median":
            return coordinate_median(rows)
        case "multi-krum":
            return multi_krum(rows, byzantine, len(rows) - byzantine)
        case "geometric-median":
            return geometric_median(rows)


def folded(
    folder: Folder,
    config: m.RoundConfiguration,
    how: Summing,
    rows: list[StoredUpdate],
    masks: Masks | None = None,
) -> tuple[Float64Array, NoisedSum]:
    """The published mean, (coordinates,) float64, and what was told of it."""
    noised = folder.fold(rows, config, how, masks or {}, threading.Event())
    unit = config.max_weight / (config.scale * noised.total_weight)
    return read_back(folder, config, noised).astype(np.float64) * unit, noised


def unit_of_sum(config: m.RoundConfiguration, noised: NoisedSum) -> float:
    return config.max_weight / (config.scale * noised.total_weight)


# --- clients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", get_args(RobustRuleName))
@pytest.mark.parametrize("parameters", [7, CHUNK + 11])
def test_the_rule_is_applied_to_the_clients_own_deltas(
    folder: Folder, name: RobustRuleName, parameters: int
) -> None:
    config = configuration(parameters, clients=7, lanes=(m.Lane("loss", 0.5),))
    updates = random_updates(config, 7, seed=parameters)
    rows = [stored(folder.blobs, config, values) for values in updates]
    mean, noised = folded(folder, config, robust(config, name, 2), rows)
    deltas = np.array(updates) / config.scale
    wanted = by_definition(name, deltas, 2)
    np.testing.assert_allclose(mean, wanted, atol=0.51 * unit_of_sum(config, noised))
    # Lanes go through the rule with the rest.
    assert noised.metrics["loss"] == pytest.approx(wanted[-1] / 0.5, abs=1e-5)
    assert (noised.survivors, noised.total_weight, noised.left_out) == (7, 700, ())


def test_a_weight_is_taken_out_before_the_rule_and_kept_beside_it(folder: Folder) -> None:
    config = configuration(50, clients=5, max_weight=200, total_weight=605)
    weights = (200, 200, 100, 100, 5)
    delta = np.linspace(-0.05, 0.05, 50)
    # All of them have learnt the same, and send as much of it as they weigh.
    rows = [
        stored(
            folder.blobs,
            config,
            np.rint(delta * config.scale * weight / 200).astype(np.int32),
            weight=weight,
        )
        for weight in weights
    ]
    for name in get_args(RobustRuleName):
        mean, noised = folded(folder, config, robust(config, name, 1), rows)
        np.testing.assert_allclose(mean, delta, atol=40 / config.scale)
        assert noised.observations is not None
        assert noised.observations.weights == weights
        np.testing.assert_allclose(noised.observations.norms, np.linalg.norm(delta), rtol=1e-3)


def test_a_light_client_is_clipped_to_its_own_share(folder: Folder) -> None:
    """It may send what the heaviest may: as its own delta that is beyond the clip norm."""
    config = configuration(400, clients=5, max_weight=200, total_weight=801)
    long = np.trunc(np.full(400, config.bound_l2 / 20)).astype(np.int32)
    light = stored(folder.blobs, config, long, weight=1)
    others = [stored(folder.blobs, config, long, weight=200) for _ in range(4)]
    source = ClientSource(
        folder.blobs, config, (light, *others), Unprotected.of("open", config.privacy)
    )
    square = int(np.sum(long.astype(np.int64) ** 2))
    factors = source.admit([square] * 5).factors
    own = integer_bound_l2(round_encoding(config).clip_units / 200, 400)
    assert factors.tolist() == [own / math.sqrt(square), 1.0, 1.0, 1.0, 1.0]
    # The median of one, alone: its delta is no longer than the clip norm and its rounding.
    alone = replace(config, max_weight=200)
    mean, noised = folded(folder, alone, robust(alone, "coordinate-median", 0), [light])
    assert np.linalg.norm(mean) == pytest.approx(own * 200 / config.scale, rel=2e-3)
    # Alone it gives no evidence. Among others, what it has sent is told as it is.
    assert noised.observations is None
    _, noised = folded(folder, config, robust(config, "trimmed-mean", 1), [light, *others])
    assert noised.observations is not None
    assert noised.observations.norms[0] == pytest.approx(math.sqrt(square) * 200 / config.scale)


def test_liars_bend_the_mean_and_not_the_rule(folder: Folder) -> None:
    config = configuration(300, clients=7)
    honest = [np.rint(values / 8).astype(np.int32) for values in random_updates(config, 5, seed=2)]
    against = np.trunc(np.full(300, -config.bound_l2 / math.sqrt(300))).astype(np.int32)
    rows = [stored(folder.blobs, config, values) for values in (*honest, against, against)]
    truth = np.mean(honest, axis=0) / config.scale
    plain, _ = folded(folder, config, mean_of(config), rows)
    held, noised = folded(folder, config, robust(config, "mixed-trimmed-mean", 2), rows)
    spread = max(float(np.linalg.norm(each / config.scale - truth)) for each in honest)
    assert np.linalg.norm(plain - truth) > 0.25
    assert np.linalg.norm(held - truth) < spread
    seen = noised.observations
    assert seen is not None
    assert seen.distances[5:].min() > 5 * seen.distances[:5].max()
    assert seen.closeness[5, 6] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("rule", ["mean", "centred", "trimmed"])
def test_what_the_rows_look_like_is_told_without_noise(folder: Folder, rule: str) -> None:
    config = configuration(CHUNK + 3, clients=5)
    updates = random_updates(config, 5, seed=6)
    rows = [stored(folder.blobs, config, values) for values in updates]
    how = {
        "mean": mean_of(config),
        "centred": centred(config, 0.5),
        "trimmed": robust(config, "trimmed-mean", 1),
    }[rule]
    mean, noised = folded(folder, config, how, rows)
    seen = noised.observations
    assert seen is not None
    deltas = np.array(updates) / config.scale
    assert seen.rows == tuple(row.client_id for row in rows)
    np.testing.assert_allclose(seen.norms, np.linalg.norm(deltas, axis=1))
    np.testing.assert_allclose(seen.distances, np.linalg.norm(deltas - mean, axis=1))
    np.testing.assert_allclose(
        seen.cosines, deltas @ mean / (np.linalg.norm(deltas, axis=1) * np.linalg.norm(mean))
    )
    np.testing.assert_allclose(seen.gains, deltas @ mean / (mean @ mean))


def test_a_replay_gives_the_same_bits(folder: Folder) -> None:
    config = configuration(2 * CHUNK + 5, clients=5)
    rows = [stored(folder.blobs, config, each) for each in random_updates(config, 5, seed=3)]
    how = robust(config, "mixed-trimmed-mean", 1)
    (first, one), (second, two) = (folded(folder, config, how, rows) for _ in range(2))
    assert np.array_equal(first, second)
    assert one.observations is not None
    assert two.observations is not None
    for name in ("norms", "distances", "cosines", "closeness", "gains"):
        assert np.array_equal(getattr(one.observations, name), getattr(two.observations, name))


# --- where nothing may be looked at -------------------------------------------------------------


def no_source(folder: Folder, config: m.RoundConfiguration, rows: list[StoredUpdate]) -> bool:
    sums = Sums(folder.blobs, config, by_group(rows), {})
    in_range = SumRange(round_encoding(config), 0.0, shared=False)
    return row_source(rows, sums, in_range) is None


def test_with_noise_and_in_sealed_rounds_there_are_no_rows(folder: Folder) -> None:
    noisy = configuration(50, noise_multiplier=1.0)
    rows = [stored(folder.blobs, noisy, np.zeros(50, np.int32)) for _ in range(3)]
    assert no_source(folder, noisy, rows)
    noised = folder.fold(rows, noisy, mean_of(noisy), {}, threading.Event())
    assert noised.observations is None
    with pytest.raises(AssertionError, match="the plan's check"):
        folded(folder, noisy, robust(noisy, "trimmed-mean", 1), rows)
    for noise in (0.0, 1.0):
        sealed = configuration(
            50,
            mode=m.RoundMode.SEALED,
            noise_multiplier=noise,
            secure_aggregation=m.SecureAggregation(0.0, 0.1, m.Adversary.SEMI_HONEST),
            min_survivors=3,
        )
        assert no_source(folder, sealed, rows)
    with pytest.raises(AssertionError):
        Unprotected.of("open", "client-dp")


def test_more_rows_than_can_be_compared_are_added_up_unseen(folder: Folder) -> None:
    count = limits.MAX_ROBUST_ROWS + 1
    config = configuration(3, clients=count)
    ones = np.ones(3, np.int32)
    rows = [stored(folder.blobs, config, ones)] * count
    assert no_source(folder, config, rows)
    noised = folder.fold(rows, config, mean_of(config), {}, threading.Event())
    assert noised.observations is None
    assert read_back(folder, config, noised).tolist() == [count] * 3
    groups = [replace(row, group=place) for place, row in enumerate(rows)]
    config = grouped(3, count)
    assert no_source(folder, config, groups)
    noised = folder.fold(groups, config, mean_of(config), {}, threading.Event())
    assert (noised.observations, noised.survivors) == (None, count)
    assert read_back(folder, config, noised).tolist() == [count] * 3


# --- groups -------------------------------------------------------------------------------------


def grouped(parameters: int, count: int, **changes: object) -> m.RoundConfiguration:
    """Groups of five."""
    return configuration(
        parameters,
        clients=5 * count,
        mode=m.RoundMode.GROUPED,
        secure_aggregation=m.SecureAggregation(0.0, 0.1, m.Adversary.SEMI_HONEST),
        grouping=m.Grouping(count, 5),
        **changes,
    )


def in_groups(updates: list[Int32Array]) -> dict[int, list[Int32Array]]:
    return {first // 5: updates[first : first + 5] for first in range(0, len(updates), 5)}


@pytest.mark.parametrize("name", get_args(RobustRuleName))
def test_the_rule_is_applied_to_the_means_of_groups(folder: Folder, name: RobustRuleName) -> None:
    config = grouped(CHUNK + 11, 5, lanes=(m.Lane("loss", 0.5),))
    updates = random_updates(config, 25, seed=4)
    rows, masks = masked(folder, config, in_groups(updates))
    # Whatever the order in which the survivors come.
    mean, noised = folded(folder, config, robust(config, name, 1), rows[::-1], masks)
    means = np.array(updates).reshape(5, 5, -1).mean(axis=1) / config.scale
    np.testing.assert_allclose(mean, by_definition(name, means, 1), atol=2e-6)
    assert (noised.survivors, noised.total_weight, noised.left_out) == (25, 2500, ())
    assert noised.observations is not None
    assert noised.observations.rows == ("0", "1", "2", "3", "4")
    assert noised.observations.weights == (500,) * 5
    np.testing.assert_allclose(noised.observations.norms, np.linalg.norm(means, axis=1), rtol=1e-5)


@pytest.mark.parametrize(("count", "told"), [(4, False), (5, True)])
def test_the_plain_mean_over_groups_tells_of_them_too(
    folder: Folder, count: int, told: bool
) -> None:
    config = grouped(40, count)
    updates = random_updates(config, 5 * count, seed=4)
    rows, masks = masked(folder, config, in_groups(updates))
    mean, noised = folded(folder, config, mean_of(config), rows, masks)
    np.testing.assert_allclose(mean, np.mean(updates, axis=0) / config.scale)
    seen = noised.observations
    assert (seen is not None) is told
    assert seen is None or seen.rows == ("0", "1", "2", "3", "4")


def flooded(config: m.RoundConfiguration, how: str) -> Int32Array:
    """What one client adds to its group so that the sum is beyond its range."""
    match how:
        case "ring":
            return np.full(config.coordinates, -(1 << 23), np.int32)
        case "coordinate":
            values = np.zeros(config.coordinates, np.int32)
            values[-1] = 6 * config.bound_l2
            return values
        case _:
            return np.full(config.coordinates, config.bound_l2 // 3, np.int32)


@pytest.mark.parametrize("how", ["ring", "coordinate", "norm"])
def test_a_group_out_of_range_is_left_out_and_the_round_goes_on(folder: Folder, how: str) -> None:
    config = grouped(400 if how == "norm" else CHUNK + 9, 6)
    updates = random_updates(config, 30, seed=5)
    groups = in_groups(updates)
    zero = np.zeros(config.coordinates, np.int32)
    groups[2] = [flooded(config, how), zero, zero, zero, zero]
    rows, masks = masked(folder, config, groups)
    choice = robust(config, "coordinate-median", 1)
    mean, noised = folded(folder, config, choice, rows, masks)
    assert noised.left_out == ("2",)
    assert (noised.survivors, noised.total_weight) == (30, 3000)
    kept = [np.mean(groups[place], axis=0) / config.scale for place in (0, 1, 3, 4, 5)]
    np.testing.assert_allclose(mean, coordinate_median(np.array(kept)), atol=2e-6)
    assert noised.observations is not None
    assert noised.observations.rows == ("0", "1", "3", "4", "5")
    if how != "norm":
        # The plain mean is rejected with it; it holds only the length of all groups to its range.
        with pytest.raises(AggregateOutOfRange):
            folded(folder, config, mean_of(config), rows, masks)


@pytest.mark.parametrize("name", ["mixed-trimmed-mean", "coordinate-median"])
def test_too_few_groups_within_their_range_reject_the_aggregate(
    folder: Folder, tmp_path: Path, name: RobustRuleName
) -> None:
    config = grouped(30, 3)
    groups = in_groups(random_updates(config, 15, seed=5))
    groups[0][0] = flooded(config, "ring")
    rows, masks = masked(folder, config, groups)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TooFewClients, match="at least 3 updates or groups, and 2 are left"):
        folded(folder, config, robust(config, name, 1), rows, masks)
    # Before any group is looked at, where fewer have come at all.
    with pytest.raises(TooFewClients, match="2 are left"):
        folded(folder, config, robust(config, name, 1), rows[5:], masks)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_noise_of_a_group_is_within_its_range(folder: Folder) -> None:
    config = grouped(4096, 3, noise_multiplier=1.0)
    share = discrete_gaussian(round_share_variance(config, round_encoding(config)))
    updates = [np.zeros(4096, np.int32) for _ in range(15)]
    for values in updates:
        share.add_into(values, Keystream.fresh())
    rows, masks = masked(folder, config, in_groups(updates))
    mean, noised = folded(folder, config, robust(config, "trimmed-mean", 1), rows, masks)
    means = np.array(updates).reshape(3, 5, -1).mean(axis=1) / config.scale
    np.testing.assert_allclose(mean, np.median(means, axis=0), atol=1e-6)
    assert noised.left_out == ()


# --- passes -------------------------------------------------------------------------------------


def test_a_cancelled_pass_stops(folder: Folder) -> None:
    config = configuration(10, clients=3)
    rows = [stored(folder.blobs, config, np.zeros(10, np.int32)) for _ in range(3)]
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(FoldCancelled):
        folder.fold(rows, config, robust(config, "trimmed-mean", 1), {}, cancelled)
    source = ClientSource(folder.blobs, config, tuple(rows), Unprotected.of("open", "none"))
    with pytest.raises(FoldCancelled):
        RobustSum.measured(
            source, RobustChoice("trimmed-mean", 1), 1, folder.executor, cancelled, ahead=2
        )


def test_a_pass_that_is_cancelled_later_stops_at_its_next_chunk(folder: Folder) -> None:
    config = configuration(10, clients=3)
    rows = [stored(folder.blobs, config, np.zeros(10, np.int32)) for _ in range(3)]
    cancelled = threading.Event()
    how = robust(config, "trimmed-mean", 1)
    chunks = folder._chunks(rows, config, how, {}, cancelled)
    assert not chunks.make(0).values.any()
    cancelled.set()
    with pytest.raises(FoldCancelled):
        chunks.make(0)


def test_a_damaged_update_is_found_in_the_first_pass(folder: Folder, tmp_path: Path) -> None:
    config = configuration(10, clients=3)
    rows = [stored(folder.blobs, config, np.zeros(10, np.int32)) for _ in range(3)]
    path = next(tmp_path.glob(f"objects/*/*/{rows[1].blob_digest.hex()}"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DecryptionFailed):
        folded(folder, config, robust(config, "trimmed-mean", 1), rows)


def test_a_result_beyond_the_file_is_rejected(folder: Folder) -> None:
    config = configuration(10, clients=3)
    rows = [stored(folder.blobs, config, np.full(10, 1000, np.int32)) for _ in range(3)]
    source = ClientSource(folder.blobs, config, tuple(rows), Unprotected.of("open", "none"))
    made = RobustSum.measured(
        source, RobustChoice("trimmed-mean", 1), 1, folder.executor, threading.Event(), ahead=2
    )
    assert made.chunk(source.chunk(0), 10, 1 / config.scale).tolist() == [1000] * 10
    with pytest.raises(AggregateOutOfRange, match="2147483647 fit"):
        made.chunk(source.chunk(0), 10, 1e-7 / config.scale)


def test_a_chunk_is_handed_out_in_blocks(folder: Folder) -> None:
    config = configuration(40_000, clients=2)
    updates = random_updates(config, 2, seed=1)
    rows = tuple(stored(folder.blobs, config, values) for values in updates)
    chunk = ClientSource(folder.blobs, config, rows, Unprotected.of("open", "none")).chunk(0)
    parts = list(chunk.blocks())
    assert len(parts) == 3
    whole = np.concatenate([block.values for _, block in parts], axis=1)
    np.testing.assert_allclose(whole, np.array(updates) / config.scale)
    assert all(isinstance(block, ClientRows) for _, block in parts)
    group = GroupSource(
        Sums(folder.blobs, config, {0: rows[:1], 3: rows[1:]}, {}),
        SumRange.of(config, round_encoding(config), Calibration(0.0, config.bound_l2)),
    ).chunk(0)
    assert [part for part, _ in group.blocks()] == [part for part, _ in parts]
