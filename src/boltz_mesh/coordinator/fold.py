"""The aggregation: stored ciphertexts in, one noised sum out, chunk by chunk.

For each chunk of coordinates a thread adds up that chunk of every survivor's update, takes off what
is left of their masks (sealed rounds), and adds noise (open rounds; in a sealed round it came in
shares with the updates). In a grouped round it does so for each group, whose masks and noise are
its own, and adds up the groups' noised sums once each has passed the range check. Under centered
clipping the terms are added up instead (`centred_sum`), and what is public of them after the noise.
Under a robust rule there is no sum but what the rule makes of the rows (`robust_sum`): of the
groups' means, or of the deltas of an open round without noise. Where there are such rows (`rows`),
what they look like beside the aggregate is told too.

The noise of an open round is that of its `Calibration`, and so of its rule. Chunks are written in
order into one encrypted file of int32. So memory holds a few chunks, whatever the number of clients
and parameters (and under a robust rule one chunk of each row), and an un-noised sum of a chunk,
which only an open round has, lives in one call in a thread.

Each sum is exact in Z_2^24 and does not depend on the order; the noise (Canonne, Kamath and Steinke
2020) is drawn from a fresh stream for each chunk and never kept. A fold that is repeated after a
crash draws new noise; the round charges one of them only, and the other is never read.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from boltz_mesh.aggregation.calibration import Calibration
from boltz_mesh.aggregation.centered_step import CenteredClipping
from boltz_mesh.aggregation.observations import Observations
from boltz_mesh.coordinator.centre import Centre
from boltz_mesh.coordinator.centred_sum import CentredSum, CentredUpdates
from boltz_mesh.coordinator.chunks import Chunks, row_source, unit_of
from boltz_mesh.coordinator.group_rows import Masks, Sums, by_group
from boltz_mesh.coordinator.ordered import in_order
from boltz_mesh.coordinator.range_check import SumRange
from boltz_mesh.coordinator.robust_sum import RobustSum
from boltz_mesh.coordinator.rows import Float64Array, Int32Array
from boltz_mesh.coordinator.stored import FoldCancelled, StoredUpdate
from boltz_mesh.rounds.plan_robust import RobustChoice
from boltz_mesh.rounds.plan_rule import SumRule
from boltz_mesh.services.files import EncryptedWriter, aggregate_context
from boltz_mesh.storage.blobs import BlobStore
from boltz_mesh.storage.models import StoredBlob
from boltz_mesh.trust.outliers import MIN_ROWS
from boltz_protocol.encoding import Encoding
from boltz_protocol.key_wrap import KeyEncryptionKey
from boltz_protocol.messages import RoundConfiguration, RoundMode
from boltz_protocol.noise import DiscreteGaussian, discrete_gaussian
from boltz_protocol.sealing import round_encoding
from boltz_protocol.update import chunk_count, chunk_slice

#: Bytes of a coordinate in the aggregate's file: int32, little-endian.
AGGREGATE_BYTES: Final = 4
#: Threads that fold at the same time.
FOLD_THREADS: Final = 2


@dataclass(frozen=True, slots=True)
class Summing:
    """How a round's updates become one released vector.

    Attributes:
        rule: of the round's sums.
        calibration: the noise that the round's holds are for.
        centre: of centered clipping.
        robust: what takes the place of adding up the rows, by the round's plan.
        slope: (parameters,) float64, a direction that rows are measured along where there are rows
            to look at: the gradient of a validation loss.
    """

    rule: SumRule
    calibration: Calibration
    centre: Centre | None = None
    robust: RobustChoice | None = None
    slope: Float64Array | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class NoisedSum:
    """The aggregate's file and what may be told about it.

    Attributes:
        stored: encrypted file of int32, parameters then lanes; an orphan until it is charged.
        survivors, total_weight: of the sum.
        metrics: lane name -> noised mean.
        observations: what the rows look like, where there are rows to look at, and enough of them
            for evidence (`MIN_ROWS`).
        left_out: places of groups whose sums were out of range, under a robust rule.
    """

    stored: StoredBlob
    survivors: int
    total_weight: int
    metrics: dict[str, float]
    observations: Observations | None = None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Folder:
    """What every fold of a server shares."""

    blobs: BlobStore
    kek: KeyEncryptionKey
    executor: Executor

    def fold(
        self,
        updates: Sequence[StoredUpdate],
        configuration: RoundConfiguration,
        summing: Summing,
        masks: Masks,
        cancelled: threading.Event,
    ) -> NoisedSum:
        """Sum, noise, range check. Blocks; call it from a thread that is not of `executor`.

        Args:
            summing: rule and noise.
            masks: by group, what takes the masks off the sum of a sealed or grouped round, whose
                noise is in it already.

        Raises:
            AggregateOutOfRange: a noised sum cannot come from clipped updates and this noise.
            TooFewClients: too few rows are left for the robust rule.
            FoldCancelled: `cancelled` was set.
            NotFound, DecryptionFailed, MalformedMessage: a stored update is gone or damaged.
        """
        if cancelled.is_set():
            raise FoldCancelled
        coordinates = configuration.coordinates
        context = aggregate_context(
            configuration.mesh_id, configuration.round_id, configuration.attempt
        )
        total_weight = sum(update.weight for update in updates)
        chunks = self._chunks(updates, configuration, summing, masks, cancelled)
        observer = chunks.observer()
        lanes = np.empty(len(configuration.lanes), np.int64)
        norm_squared = 0
        with (
            contextlib.closing(
                in_order(
                    self.executor, chunks.make, chunk_count(coordinates), ahead=2 * FOLD_THREADS
                )
            ) as made,
            EncryptedWriter(
                self.blobs, self.kek, context, AGGREGATE_BYTES * coordinates, hashed=False
            ) as writer,
        ):
            for index, chunk in enumerate(made):
                norm_squared += chunk.square
                if observer is not None and chunk.seen is not None:
                    observer.include(chunk.seen)
                _keep_lanes(lanes, chunk.values, chunk_slice(index, coordinates), configuration)
                writer.write(chunk.values.astype("<i4", copy=False).data.cast("B"))
            chunks.in_range.check_norm(norm_squared, len(updates))
            stored = writer.commit()
        return NoisedSum(
            stored=stored,
            survivors=len(updates),
            total_weight=total_weight,
            metrics=_metrics(lanes, configuration, total_weight),
            observations=None if observer is None else observer.finish(),
            left_out=() if chunks.robust is None else chunks.robust.left_out,
        )

    def _chunks(
        self,
        updates: Sequence[StoredUpdate],
        configuration: RoundConfiguration,
        summing: Summing,
        masks: Masks,
        cancelled: threading.Event,
    ) -> Chunks:
        """What chunks are made of, after the first pass of a rule that has one."""
        encoding = round_encoding(configuration)
        noise = _central_noise(updates, configuration, encoding, summing)
        centred = self._centred(updates, configuration, summing, cancelled)
        if centred is not None:
            # Range and norm are those of terms: the centres come after the checks.
            assert isinstance(summing.rule, CenteredClipping)
            encoding = summing.rule.terms
        in_range = SumRange.of(configuration, encoding, summing.calibration)
        sums = Sums(self.blobs, configuration, by_group(updates), masks)
        source = row_source(updates, sums, in_range)
        robust: RobustSum | None = None
        if summing.robust is not None:
            assert source is not None, "the plan's check"
            robust = RobustSum.measured(
                source,
                summing.robust,
                chunk_count(configuration.coordinates),
                self.executor,
                cancelled,
                ahead=2 * FOLD_THREADS,
            )
            source = robust.source
        elif source is not None and len(source.names) < MIN_ROWS:
            # No evidence comes of so few: they are only added up, which takes half of the time.
            source = None
        total_weight = sum(update.weight for update in updates)
        return Chunks(
            sums=sums,
            noise=noise,
            in_range=in_range,
            survivors=len(updates),
            unit=unit_of(configuration, total_weight),
            source=source,
            centred=centred,
            robust=robust,
            slope=summing.slope,
            cancelled=cancelled,
        )

    def _centred(
        self,
        updates: Sequence[StoredUpdate],
        configuration: RoundConfiguration,
        summing: Summing,
        cancelled: threading.Event,
    ) -> CentredSum | None:
        """The first pass of centered clipping; None under another rule."""
        if not isinstance(summing.rule, CenteredClipping):
            return None
        assert configuration.mode is RoundMode.OPEN, "the plan's check"
        assert summing.centre is not None, "zero, where nothing is published"
        return CentredSum.measured(
            CentredUpdates.of(self.blobs, configuration, summing.centre, updates),
            summing.rule,
            self.executor,
            cancelled,
            ahead=2 * FOLD_THREADS,
        )


def _central_noise(
    updates: Sequence[StoredUpdate],
    configuration: RoundConfiguration,
    encoding: Encoding,
    summing: Summing,
) -> DiscreteGaussian | None:
    """What the mesh adds: in an open round, what its rule's sensitivity asks for."""
    calibration = summing.calibration
    if configuration.mode is not RoundMode.OPEN or calibration.noise_multiplier == 0:
        return None
    assert calibration.noise_multiplier == encoding.noise_multiplier, "as clients were told"
    weights = [update.weight for update in updates]
    calibration.check_covers(summing.rule, clip=encoding.bound_l2, weights=weights)
    return discrete_gaussian(calibration.sigma_squared)


def _keep_lanes(
    lanes: npt.NDArray[np.int64],
    chunk: Int32Array,
    part: slice,
    configuration: RoundConfiguration,
) -> None:
    first = max(part.start, configuration.parameters)
    if first < part.stop:
        start = first - configuration.parameters
        lanes[start : start + part.stop - first] = chunk[first - part.start :]


def _metrics(
    lanes: npt.NDArray[np.int64], configuration: RoundConfiguration, total_weight: int
) -> dict[str, float]:
    unit = unit_of(configuration, total_weight)
    return {
        lane.name: float(value) * unit / lane.scale
        for lane, value in zip(configuration.lanes, lanes.tolist(), strict=True)
    }
