"""The fold: exact sums, noise of the right size, refusals, nothing un-noised at rest."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from boltz_mesh.coordinator.fold import (
    AGGREGATE_BYTES,
    AggregateOutOfRange,
    FoldCancelled,
    Folder,
    NoisedSum,
)
from boltz_mesh.services.files import EncryptedReader, aggregate_context
from boltz_mesh.storage.directory_blobs import DirectoryBlobs
from boltz_protocol import limits
from boltz_protocol import messages as m
from boltz_protocol.errors import DecryptionFailed, NotFound
from boltz_protocol.key_wrap import KeyEncryptionKey
from tests.unit.coordinator.rounds import ROUND, Int32Array, configuration, random_updates, stored

CHUNK = limits.CHUNK_PARAMETERS


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    with ThreadPoolExecutor(2) as executor:
        yield Folder(DirectoryBlobs(tmp_path), KeyEncryptionKey.generate(), executor)


def fold(folder: Folder, config: m.RoundConfiguration, updates: list[Int32Array]) -> NoisedSum:
    rows = [stored(folder.blobs, config, values) for values in updates]
    return folder.fold(rows, config, (), threading.Event())


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
    first, second = (
        read_back(folder, config, folder.fold(rows, config, (), threading.Event())) - exact
        for _ in range(2)
    )
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
        folder.fold([row], config, (), threading.Event())
    path.write_bytes(content[:100])
    with pytest.raises(DecryptionFailed):
        folder.fold([row], config, (), threading.Event())
    path.unlink()
    with pytest.raises(NotFound):
        folder.fold([row], config, (), threading.Event())


def test_a_cancelled_fold_stops(folder: Folder) -> None:
    config = configuration(10)
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(FoldCancelled):
        folder.fold([], config, (), cancelled)


def test_what_is_at_rest_is_encrypted(folder: Folder, tmp_path: Path) -> None:
    config = configuration(4096)
    updates = [np.full(4096, 1000, np.int32)]
    noised = fold(folder, config, updates)
    name = noised.stored.blob_digest.hex()
    content = next(tmp_path.glob(f"objects/*/*/{name}")).read_bytes()
    assert np.full(2, 1000, "<i4").tobytes() not in content
    assert "hidden" in repr(noised) or noised.stored.wrapped_key.hex() not in repr(noised)
