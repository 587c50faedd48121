"""Rows measured along a direction: by the observer, and through a fold of sealed updates."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from boltz_mesh.aggregation.observations import Observer
from boltz_mesh.aggregation.rows import ClientRows, Unprotected
from boltz_mesh.coordinator.fold import Folder
from boltz_mesh.storage.directory_blobs import DirectoryBlobs
from boltz_mesh.trust.outliers import MIN_ROWS
from boltz_protocol import limits
from boltz_protocol import messages as m
from boltz_protocol.key_wrap import KeyEncryptionKey
from tests.unit.coordinator.rounds import configuration, mean_of, random_updates, stored

OPEN = Unprotected.of("open", "none")
NAMES = ("ann", "ben", "cem")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    with ThreadPoolExecutor(2) as executor:
        yield Folder(DirectoryBlobs(tmp_path), KeyEncryptionKey.generate(), executor)


def test_slopes_add_up_over_blocks_and_observers() -> None:
    rng = np.random.default_rng(1)
    rows, result, direction = rng.normal(size=(3, 900)), rng.normal(size=900), rng.normal(size=900)
    whole = Observer.init(NAMES, (1, 2, 3))
    for start in range(0, 900, 300):
        part = slice(start, start + 300)
        seen = Observer.init(NAMES, (1, 2, 3))
        for inner in (slice(start, start + 100), slice(start + 100, part.stop)):
            seen.add(ClientRows(rows[:, inner], OPEN), result[inner], direction[inner])
        whole.include(seen)
    slopes = whole.finish().slopes
    assert slopes is not None
    np.testing.assert_allclose(slopes, rows @ direction, rtol=1e-12)


def test_without_a_direction_there_are_none() -> None:
    observer = Observer.init(NAMES, (1, 2, 3))
    observer.add(ClientRows(np.ones((3, 5)), OPEN), np.ones(5))
    other = Observer.init(NAMES, (1, 2, 3))
    other.include(observer)
    assert other.finish().slopes is None


@pytest.mark.parametrize("parameters", [7, limits.CHUNK_PARAMETERS - 1, limits.CHUNK_PARAMETERS])
def test_a_fold_measures_parameters_and_not_lanes(folder: Folder, parameters: int) -> None:
    """The last two cases have lanes on both sides of a chunk's end, or in a chunk of their own."""
    lanes = (m.Lane("loss", 0.01), m.Lane("rows", 0.001))
    config = configuration(parameters, clients=MIN_ROWS, lanes=lanes)
    updates = random_updates(config, MIN_ROWS, seed=parameters)
    direction = np.random.default_rng(2).normal(size=parameters)
    rows = [stored(folder.blobs, config, values) for values in updates]
    summing = replace(mean_of(config), slope=direction)
    noised = folder.fold(rows, config, summing, {}, threading.Event())
    assert noised.observations is not None
    assert noised.observations.slopes is not None
    unit = config.max_weight / (config.scale * 100)
    wanted = [unit * float(values[:parameters] @ direction) for values in updates]
    np.testing.assert_allclose(noised.observations.slopes, wanted, rtol=1e-9)


def test_with_noise_no_row_is_measured(folder: Folder) -> None:
    config = configuration(7, noise_multiplier=1.0)
    rows = [stored(folder.blobs, config, values) for values in random_updates(config, 3, seed=1)]
    summing = replace(mean_of(config), slope=np.ones(7))
    assert folder.fold(rows, config, summing, {}, threading.Event()).observations is None
