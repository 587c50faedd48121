"""Centered clipping over stored updates: what is summed, what is noised, what it is centred on."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boltz_mesh.aggregation.calibration import calibrate
from boltz_mesh.aggregation.centered_step import CenteredClipping, centre_units
from boltz_mesh.coordinator.centre import Centre, PublishedStep
from boltz_mesh.coordinator.centred_sum import CentredSum, CentredUpdates
from boltz_mesh.coordinator.fold import Folder, Summing
from boltz_mesh.coordinator.range_check import AggregateOutOfRange
from boltz_mesh.coordinator.stored import FoldCancelled, StoredUpdate
from boltz_mesh.services.files import EncryptedWriter, model_context
from boltz_mesh.storage.directory_blobs import DirectoryBlobs
from boltz_mesh.storage.models import ModelState, ModelVersion
from boltz_protocol import limits
from boltz_protocol import messages as m
from boltz_protocol.errors import NotFinite
from boltz_protocol.ids import ModelId
from boltz_protocol.key_wrap import KeyEncryptionKey
from boltz_protocol.model_file import canonical_layout
from boltz_protocol.packing import norm_squared24
from boltz_protocol.sealing import round_encoding
from tests.unit.aggregation.sums import rosters
from tests.unit.coordinator.rounds import Int32Array, configuration, random_updates, stored
from tests.unit.coordinator.test_fold import read_back

CHUNK = limits.CHUNK_PARAMETERS
Vector = npt.NDArray[np.float32]
MODEL = ModelId("model")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    with ThreadPoolExecutor(2) as executor:
        yield Folder(DirectoryBlobs(tmp_path), KeyEncryptionKey.generate(), executor)


def rule_of(config: m.RoundConfiguration, radius: float) -> CenteredClipping:
    return CenteredClipping.of(round_encoding(config), radius)


def summing(config: m.RoundConfiguration, radius: float, centre: Centre | None = None) -> Summing:
    rule = rule_of(config, radius)
    calibration = calibrate(
        rule,
        noise_multiplier=config.noise_multiplier,
        clip=config.bound_l2,
        weights=(limits.MAX_WEIGHT,) * config.roster_size,
    )
    return Summing(rule, calibration, centre or Centre.nothing(config))


class Versions:
    """Two versions at rest: 1, and 2 = 1 + step."""

    def __init__(self, folder: Folder, parameters: int) -> None:
        self.folder = folder
        self.layout = canonical_layout((m.TensorSpec("w", (parameters,)),))

    def row(self, number: int, vector: Vector, metrics: dict[str, float]) -> ModelVersion:
        context = model_context("demo", MODEL, number)
        folder, layout = self.folder, self.layout
        with EncryptedWriter(folder.blobs, folder.kek, context, layout.size_bytes) as writer:
            writer.write(layout.header)
            writer.write(vector.tobytes())
            weights = writer.commit()
        return ModelVersion(
            model_id=MODEL,
            version=number,
            state=ModelState.PROMOTED,
            parent_version=number - 1 or None,
            round_id=None,
            weights=weights,
            size_bytes=layout.size_bytes,
            kek_id=folder.kek.key_id,
            manifest=b"",
            optimizer=None,
            metrics=metrics,
            created_at_ms=1,
            promoted_at_ms=None,
            promoted_by=None,
        )

    def step(
        self, start: Vector, mean: Vector, rate: float = 1.0, **metrics: float
    ) -> PublishedStep:
        following = (start + rate * mean).astype(np.float32)
        return PublishedStep(
            self.row(2, following, metrics), self.row(1, start, {}), rate, self.layout
        )

    def centre(self, stack: ExitStack, config: m.RoundConfiguration, step: PublishedStep) -> Centre:
        return Centre.of(stack, self.folder.blobs, self.folder.kek, config, step)


def whole(centre: Centre, coordinates: int) -> npt.NDArray[np.float64]:
    chunks = -(-coordinates // CHUNK)
    return np.concatenate([centre.chunk(index) for index in range(chunks)])


# --- the centre ---------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", [1, 1000, CHUNK - 1, CHUNK, CHUNK + 7])
def test_the_centre_is_the_mean_that_made_the_version(folder: Folder, parameters: int) -> None:
    config = configuration(parameters, lanes=(m.Lane("loss", 0.01), m.Lane("other", 0.5)))
    random = np.random.default_rng(parameters)
    mean = random.normal(size=parameters).astype(np.float32)
    mean /= 2 * np.linalg.norm(mean)
    start = random.normal(size=parameters).astype(np.float32)
    versions = Versions(folder, parameters)
    with ExitStack() as stack:
        step = versions.step(start, mean, 0.25, loss=3.0)
        values = whole(versions.centre(stack, config, step), config.coordinates)
    np.testing.assert_allclose(values[:-2], mean, atol=4e-6)
    assert values[-2:].tolist() == [0.03, 0.0]  # a lane that was not there before is 0


def test_a_centre_beyond_the_clip_norm_is_shortened_to_it(folder: Folder) -> None:
    config = configuration(300, lanes=(m.Lane("loss", 1.0),))
    versions = Versions(folder, 300)
    with ExitStack() as stack:
        step = versions.step(np.zeros(300, np.float32), np.ones(300, np.float32), loss=10.0)
        values = whole(versions.centre(stack, config, step), 301)
    assert np.linalg.norm(values) == pytest.approx(config.clip_norm)
    assert values[0] == pytest.approx(1 / 20)
    assert values[300] == pytest.approx(10 / 20)


def test_a_centre_that_is_no_number_is_refused(folder: Folder) -> None:
    versions = Versions(folder, 3)
    with ExitStack() as stack:
        ones = np.ones(3, np.float32)
        step = replace(versions.step(ones, ones), learning_rate=1e-200)
        with pytest.raises(NotFinite, match="learning rate"):
            versions.centre(stack, configuration(3), step)


def test_before_anything_is_published_the_centre_is_zero() -> None:
    config = configuration(CHUNK + 3, lanes=(m.Lane("loss", 1.0),))
    assert not whole(Centre.nothing(config), config.coordinates).any()


# --- the sum ------------------------------------------------------------------------------------


def fold(
    folder: Folder, config: m.RoundConfiguration, how: Summing, rows: list[StoredUpdate]
) -> Int32Array:
    return read_back(folder, config, folder.fold(rows, config, how, {}, threading.Event()))


def test_whoever_is_near_the_centre_counts_as_in_the_mean(folder: Folder) -> None:
    config = configuration(CHUNK + 9, lanes=(m.Lane("loss", 0.01),))
    mean = np.full(config.parameters, 0.1 / math.sqrt(config.parameters), np.float32)
    versions = Versions(folder, config.parameters)
    near = [(values * 0.3).astype(np.int32) for values in random_updates(config, 3, seed=4)]
    near[1] //= 3
    rows = [
        stored(folder.blobs, config, values, weight=weight)
        for values, weight in zip(near, (100, 37, 100), strict=True)
    ]
    with ExitStack() as stack:
        step = versions.step(np.zeros_like(mean), mean, loss=0.5)
        centre = versions.centre(stack, config, step)
        total = fold(folder, config, summing(config, 1.0, centre), rows)
    # Differences and centres add up to the updates: exactly their sum.
    assert np.array_equal(total, np.sum(near, axis=0))


def test_whoever_is_far_from_the_centre_is_brought_near(folder: Folder) -> None:
    config = configuration(CHUNK + 50, clients=4)
    direction = np.ones(config.parameters) / math.sqrt(config.parameters)
    mean = (0.5 * direction).astype(np.float32)
    honest = np.rint(0.5 * config.scale * direction).astype(np.int32)
    hostile = np.trunc(-config.bound_l2 * direction).astype(np.int32)
    rows = [
        *(stored(folder.blobs, config, honest) for _ in range(3)),
        stored(folder.blobs, config, hostile, weight=50),
    ]
    versions = Versions(folder, config.parameters)
    rule = rule_of(config, 0.2)
    with ExitStack() as stack:
        step = versions.step(np.zeros_like(mean), mean)
        centre = versions.centre(stack, config, step)
        total = fold(folder, config, summing(config, 0.2, centre), rows)
        v = whole(centre, config.coordinates)
    public = 3 * centre_units(v, config.scale, 100, 100) + centre_units(v, config.scale, 50, 100)
    moved = total - public
    bound = rule.term_bound(50, 100)
    length = math.sqrt(norm_squared24(moved.astype(np.int32)))
    # Three who repeat what was published, up to rounding, and one who pulls with all it has.
    assert length <= bound + 3 * math.sqrt(config.parameters)
    pull = float(moved @ -direction)
    assert pull > 0.9 * bound
    # Under the mean the same client takes off three times as much, and weight did not help it.
    assert config.bound_l2 > 3 * pull


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    roster=rosters(4),
    radius=st.sampled_from([1.0, 0.5, 0.1]),
    seed=st.integers(0, 2**32 - 1),
    parameters=st.sampled_from([1, 300, CHUNK + 5]),
)
def test_no_client_moves_the_sum_by_more_than_the_noise_is_for(
    folder: Folder, roster: tuple[int, ...], radius: float, seed: int, parameters: int
) -> None:
    """Whatever it sends within the bound, whatever weight its claims have brought it."""
    config = configuration(
        parameters,
        clients=4,
        noise_multiplier=1.0,
        max_weight=max(roster),
        total_weight=sum(roster),
    )
    random = np.random.default_rng(seed)
    how = summing(config, radius)
    assert isinstance(how.rule, CenteredClipping)
    mean = random.normal(size=parameters).astype(np.float32)
    versions = Versions(folder, parameters)
    with ExitStack() as stack:
        centre = versions.centre(stack, config, versions.step(np.zeros_like(mean), mean))
        for weight in roster:
            direction = -mean if random.random() < 0.5 else random.normal(size=parameters)
            values = np.trunc(config.bound_l2 / np.linalg.norm(direction) * direction)
            row = stored(folder.blobs, config, values.astype(np.int32), weight=weight)
            alone = CentredSum.measured(
                CentredUpdates.of(folder.blobs, config, centre, [row]),
                how.rule,
                folder.executor,
                threading.Event(),
                ahead=2,
            )
            chunks = [alone.chunk(index)[0] for index in range(-(-parameters // CHUNK))]
            moved = sum(map(norm_squared24, chunks))
            assert moved <= how.calibration.sensitivity**2
            assert moved <= how.rule.term_bound(weight, max(roster)) ** 2


def test_noise_has_the_size_of_a_term_and_not_of_an_update(folder: Folder) -> None:
    config = configuration(40_000, noise_multiplier=2.0)
    rows = [stored(folder.blobs, config, np.zeros(40_000, np.int32)) for _ in range(3)]
    how = summing(config, 0.25)
    noise = fold(folder, config, how, rows)
    sigma = 2.0 * how.calibration.sensitivity
    assert how.calibration.sensitivity < 0.26 * config.bound_l2
    assert float(np.std(noise)) == pytest.approx(sigma, rel=0.02)
    assert not np.array_equal(noise, fold(folder, config, how, rows))


def test_the_range_is_that_of_terms(folder: Folder) -> None:
    """A sum of terms that is longer than terms can be is a fault of ours, and is not published."""
    config = configuration(2000, noise_multiplier=1.0)
    how = summing(config, 0.25)
    rows = [stored(folder.blobs, config, np.zeros(2000, np.int32))] * 3
    wide = replace(how, rule=rule_of(config, 1.0))
    with pytest.raises(AssertionError, match="fewer survivors"):
        fold(folder, config, wide, rows)  # the noise is for a smaller radius
    small = replace(how.calibration, noise_multiplier=0.5)
    with pytest.raises(AssertionError, match="clients were told"):
        fold(folder, config, replace(how, calibration=small), rows)
    # Noise eight times as large as planned cannot come from this round.
    broken = replace(how.calibration, sensitivity=8 * how.calibration.sensitivity)
    with pytest.raises(AggregateOutOfRange):
        fold(folder, config, replace(how, calibration=broken), rows)


def test_a_cancelled_first_pass_stops(folder: Folder) -> None:
    config = configuration(10)
    cancelled = threading.Event()
    cancelled.set()
    rows = [stored(folder.blobs, config, np.zeros(10, np.int32))]
    with pytest.raises(FoldCancelled):
        folder.fold(rows, config, summing(config, 0.5), {}, cancelled)
    assert len(rows) == 1


def test_between_the_passes_there_is_one_number_for_each_update_and_chunk(folder: Folder) -> None:
    config = configuration(3 * CHUNK + 1)
    far = [np.trunc(values * 1.9).astype(np.int32) for values in random_updates(config, 2, seed=8)]
    rows = [stored(folder.blobs, config, values) for values in far]
    measured = CentredSum.measured(
        CentredUpdates.of(folder.blobs, config, Centre.nothing(config), rows),
        rule_of(config, 0.5),
        folder.executor,
        threading.Event(),
        ahead=2,
    )
    assert measured.squares.shape == (2, 4)
    assert set(measured.shrinkings) == {0, 1}
    assert all(each.allowances.shape == (4,) for each in measured.shrinkings.values())
    sums = [measured.chunk(index)[0] for index in range(4)]
    bound = rule_of(config, 0.5).terms.bound_l2
    assert sum(map(norm_squared24, sums)) <= (2 * bound) ** 2
