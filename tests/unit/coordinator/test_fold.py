"""The fold: exact sums, noise of the right size, refusals, nothing un-noised at rest."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from boltz_mesh.coordinator.fold import (
    AGGREGATE_BYTES,
    Folder,
    NoisedSum,
)
from boltz_mesh.coordinator.range_check import AggregateOutOfRange
from boltz_mesh.coordinator.stored import FoldCancelled, StoredUpdate
from boltz_mesh.services.files import EncryptedReader, aggregate_context
from boltz_mesh.storage.directory_blobs import DirectoryBlobs
from boltz_protocol import limits
from boltz_protocol import messages as m
from boltz_protocol.errors import DecryptionFailed, NotFound
from boltz_protocol.key_wrap import KeyEncryptionKey
from boltz_protocol.keystream import Keystream
from boltz_protocol.noise import discrete_gaussian
from boltz_protocol.sealing import round_encoding, round_share_variance
from boltz_protocol.secagg.masks import MaskStream, apply_masks
from boltz_protocol.update import chunk_count, chunk_slice
from tests.unit.coordinator.rounds import (
    ROUND,
    Int32Array,
    configuration,
    mean_of,
    random_updates,
    stored,
)

CHUNK = limits.CHUNK_PARAMETERS


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    with ThreadPoolExecutor(2) as executor:
        yield Folder(DirectoryBlobs(tmp_path), KeyEncryptionKey.generate(), executor)


def fold(folder: Folder, config: m.RoundConfiguration, updates: list[Int32Array]) -> NoisedSum:
    rows = [stored(folder.blobs, config, values) for values in updates]
    return folder.fold(rows, config, mean_of(config), {}, threading.Event())


def read_back(folder: Folder, config: m.RoundConfiguration, noised: NoisedSum) -> Int32Array:
    values = np.empty(config.coordinates, "<i4")
    with EncryptedReader(
        folder.blobs,
        folder.kek,
        aggregate_context("demo", ROUND, 1),
        noised.stored,
        AGGREGATE_BYTES * config.coordinates,
    ) as reader:
        reader.read_into(values.data.cast("B"), 0)
    return values.astype(np.int32)


@pytest.mark.parametrize("parameters", [1, 1000, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
def test_without_noise_the_sum_is_exact(folder: Folder, parameters: int) -> None:
    config = configuration(parameters)
    updates = random_updates(config, 3, seed=parameters)
    noised = fold(folder, config, updates)
    assert np.array_equal(read_back(folder, config, noised), np.sum(updates, axis=0))
    assert (noised.survivors, noised.total_weight) == (3, 300)


def test_noise_has_the_planned_size_and_is_fresh(folder: Folder) -> None:
    config = configuration(CHUNK + 100, noise_multiplier=1.5)
    updates = random_updates(config, 3, seed=1)
    rows = [stored(folder.blobs, config, values) for values in updates]
    exact = np.sum(updates, axis=0)
    folds = (folder.fold(rows, config, mean_of(config), {}, threading.Event()) for _ in range(2))
    first, second = (read_back(folder, config, noised) - exact for noised in folds)
    sigma = 1.5 * config.bound_l2
    for noise in (first, second, first[:CHUNK], first[CHUNK:]):
        # 100 samples: within 40% but for one in ten million; the others are far closer.
        assert abs(float(np.std(noise)) / sigma - 1) < 0.4
    assert abs(float(np.mean(first)) / sigma) < 0.02
    assert not np.array_equal(first, second)
    assert abs(float(np.corrcoef(first, second)[0, 1])) < 0.02


def test_lanes_are_decoded_across_a_chunk_boundary(folder: Folder) -> None:
    lanes = (m.Lane("loss", 0.01), m.Lane("hits", 0.5))
    config = configuration(CHUNK - 1, lanes=lanes)
    updates = random_updates(config, 3, seed=3)
    noised = fold(folder, config, updates)
    total = np.sum(updates, axis=0)
    for index, lane in enumerate(lanes):
        mean = total[CHUNK - 1 + index] / config.scale * 100 / 300 / lane.scale
        assert noised.metrics[lane.name] == pytest.approx(mean)


def test_a_sum_beyond_clip_and_noise_is_rejected(folder: Folder, tmp_path: Path) -> None:
    config = configuration(50, clients=2)
    long = np.full(50, config.bound_l2 // 3, np.int32)  # each coordinate is fine, the norm is not
    with pytest.raises(AggregateOutOfRange, match="norm"):
        fold(folder, config, [long, long])
    high = np.zeros(50, np.int32)
    high[7] = min(3 * config.bound_l2, (1 << 23) - 1)
    with pytest.raises(AggregateOutOfRange, match="coordinate"):
        fold(folder, config, [high])
    full = np.full(50, -(1 << 23), np.int32)
    with pytest.raises(AggregateOutOfRange, match="ring"):
        fold(folder, config, [full])
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_largest_honest_sum_passes(folder: Folder) -> None:
    config = configuration(50, clients=2)
    most = np.zeros(50, np.int32)
    most[7] = config.bound_l2
    assert fold(folder, config, [most, most]).survivors == 2


@pytest.mark.parametrize("place", [0, -1])
def test_a_damaged_update_is_named(folder: Folder, tmp_path: Path, place: int) -> None:
    config = configuration(CHUNK + 9)
    row = stored(folder.blobs, config, random_updates(config, 1, seed=5)[0])
    name = row.blob_digest.hex()
    path = next(tmp_path.glob(f"objects/*/*/{name}"))
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(DecryptionFailed):
        folder.fold([row], config, mean_of(config), {}, threading.Event())
    path.write_bytes(content[:100])
    with pytest.raises(DecryptionFailed):
        folder.fold([row], config, mean_of(config), {}, threading.Event())
    path.unlink()
    with pytest.raises(NotFound):
        folder.fold([row], config, mean_of(config), {}, threading.Event())


def test_a_cancelled_fold_stops(folder: Folder) -> None:
    config = configuration(10)
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(FoldCancelled):
        folder.fold([], config, mean_of(config), {}, cancelled)


def test_what_is_at_rest_is_encrypted(folder: Folder, tmp_path: Path) -> None:
    config = configuration(4096)
    updates = [np.full(4096, 1000, np.int32)]
    noised = fold(folder, config, updates)
    name = noised.stored.blob_digest.hex()
    content = next(tmp_path.glob(f"objects/*/*/{name}")).read_bytes()
    assert np.full(2, 1000, "<i4").tobytes() not in content
    assert "hidden" in repr(noised) or noised.stored.wrapped_key.hex() not in repr(noised)


def test_without_noise_nobody_asks_who_could_share_it(folder: Folder) -> None:
    config = configuration(
        50,
        clients=60,
        mode=m.RoundMode.SEALED,
        secure_aggregation=m.SecureAggregation(0.05, 0.1, m.Adversary.SEMI_HONEST),
        min_survivors=3,  # as many as may collude
    )
    assert fold(folder, config, random_updates(config, 3, seed=2)).survivors == 3


# --- groups -------------------------------------------------------------------------------------


def grouped(parameters: int, **changes: object) -> m.RoundConfiguration:
    """Ten clients in two groups."""
    return configuration(
        parameters,
        clients=10,
        mode=m.RoundMode.GROUPED,
        secure_aggregation=m.SecureAggregation(0.0, 0.1, m.Adversary.SEMI_HONEST),
        grouping=m.Grouping(2, 5),
        **changes,
    )


def masked(
    folder: Folder,
    config: m.RoundConfiguration,
    groups: dict[int, list[Int32Array]],
) -> tuple[list[StoredUpdate], dict[int, tuple[MaskStream, ...]]]:
    """Stored updates, each under a mask of its own, and what takes a group's masks off."""
    rows: list[StoredUpdate] = []
    masks: dict[int, tuple[MaskStream, ...]] = {}
    for group, updates in groups.items():
        for values in updates:
            mask = MaskStream(secrets.token_bytes(32), 1)
            wire = values.astype(np.int64).astype(np.uint32)
            for index in range(chunk_count(wire.size)):
                apply_masks(wire[chunk_slice(index, wire.size)], index, (mask,))
            low = (wire << np.uint32(8)).view(np.int32) >> 8
            rows.append(replace(stored(folder.blobs, config, low), group=group))
            masks[group] = (*masks.get(group, ()), mask.removed())
    return rows, masks


def test_each_group_is_unmasked_by_itself_and_the_sums_are_added(folder: Folder) -> None:
    config = grouped(CHUNK + 11, lanes=(m.Lane("loss", 0.01),))
    updates = random_updates(config, 8, seed=9)
    rows, masks = masked(folder, config, {0: updates[:5], 1: updates[5:]})
    # Whatever the order in which the survivors come.
    noised = folder.fold(rows[::-1], config, mean_of(config), masks, threading.Event())
    total = np.sum(updates, axis=0)
    assert np.array_equal(read_back(folder, config, noised), total)
    assert (noised.survivors, noised.total_weight) == (8, 800)
    assert noised.metrics["loss"] == pytest.approx(total[-1] / config.scale / 8 / 0.01)
    # Each group's masks belong to its own sum.
    with pytest.raises(AggregateOutOfRange):
        folder.fold(rows, config, mean_of(config), {0: masks[1], 1: masks[0]}, threading.Event())


def test_the_range_of_a_sum_is_that_of_its_own_group(folder: Folder) -> None:
    config = grouped(50)
    high = np.zeros(50, np.int32)
    high[7] = 2 * config.bound_l2
    rows, masks = masked(folder, config, {0: [high], 1: [0 * high] * 5})
    # Six clients could make it, but the one of the first group cannot.
    with pytest.raises(AggregateOutOfRange, match="coordinate"):
        folder.fold(rows, config, mean_of(config), masks, threading.Event())
    rows, masks = masked(folder, config, {0: [high, 0 * high], 1: [0 * high]})
    assert folder.fold(rows, config, mean_of(config), masks, threading.Event()).survivors == 3


def test_the_norm_of_all_groups_is_checked_together(folder: Folder) -> None:
    config = grouped(50)
    long = np.full(50, config.bound_l2 // 3, np.int32)
    rows, masks = masked(folder, config, {0: [long, long], 1: [long, long]})
    with pytest.raises(AggregateOutOfRange, match="norm"):
        folder.fold(rows, config, mean_of(config), masks, threading.Event())


def test_the_noise_of_every_share_in_the_sum_is_allowed(folder: Folder) -> None:
    config = grouped(4096, noise_multiplier=1.0)
    share = discrete_gaussian(round_share_variance(config, round_encoding(config)))
    updates = [np.zeros(4096, np.int32) for _ in range(10)]
    for values in updates:
        share.add_into(values, Keystream.fresh())
    rows, masks = masked(folder, config, {0: updates[:5], 1: updates[5:]})
    noised = folder.fold(rows, config, mean_of(config), masks, threading.Event())
    total = read_back(folder, config, noised)
    assert np.array_equal(total, np.sum(updates, axis=0))
    # No noise is added by the mesh: there are two sums, each with the plan's sigma.
    assert np.var(total) / config.bound_l2**2 == pytest.approx(2, rel=0.2)
