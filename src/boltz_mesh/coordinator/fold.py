"""The aggregation: stored ciphertexts in, one noised sum out, chunk by chunk.

For each chunk of coordinates a thread adds up that chunk of every survivor's update, takes off what
is left of their masks (sealed rounds), and adds noise (open rounds; in a sealed round it came in
shares with the updates). In a grouped round it does so for each group, whose masks and noise are
its own, and adds up the groups' noised sums once each has passed the range check. Under centered
clipping the terms are added up instead (`centred_sum`), and what is public of them after the noise.
The noise of an open round is that of its `Calibration`, and so of its rule. Chunks are
written in order into one encrypted file of int32. So memory holds a few chunks, whatever the number
of clients and parameters, and an un-noised sum of a chunk, which only an open round has, lives in
one call in a thread.

Each sum is exact in Z_2^24 and does not depend on the order; the noise (Canonne, Kamath and Steinke
2020) is drawn from a fresh stream for each chunk and never kept. A fold that is repeated after a
crash draws new noise; the round charges one of them only, and the other is never read.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from boltz_mesh.aggregation.calibration import Calibration
from boltz_mesh.aggregation.centered_step import CenteredClipping
from boltz_mesh.coordinator.centre import Centre
from boltz_mesh.coordinator.centred_sum import CentredSum, CentredUpdates
from boltz_mesh.coordinator.ordered import in_order
from boltz_mesh.coordinator.stored import FoldCancelled, StoredUpdate, chunk_room, read_chunk
from boltz_mesh.rounds.plan_rule import SumRule
from boltz_mesh.services.files import EncryptedWriter, aggregate_context
from boltz_mesh.storage.blobs import BlobStore
from boltz_mesh.storage.models import StoredBlob
from boltz_protocol.encoding import Encoding
from boltz_protocol.errors import MeshError, NormExceeded
from boltz_protocol.key_wrap import KeyEncryptionKey
from boltz_protocol.keystream import Keystream
from boltz_protocol.messages import RoundConfiguration, RoundMode
from boltz_protocol.noise import DiscreteGaussian, discrete_gaussian
from boltz_protocol.packing import WIRE_MAX, add_packed24, decode_sum, norm_squared24
from boltz_protocol.sealing import round_encoding, round_share_variance
from boltz_protocol.secagg.masks import MaskStream, apply_masks
from boltz_protocol.update import chunk_count, chunk_slice

#: Bytes of a coordinate in the aggregate's file: int32, little-endian.
AGGREGATE_BYTES: Final = 4
#: Threads that fold at the same time.
FOLD_THREADS: Final = 2
# The noise's norm leaves sigma (sqrt(d) + 8) with probability exp(-32) (Gaussian concentration).
_NORM_SIGMAS: Final = 8

Int32Array = npt.NDArray[np.int32]
UInt32Array = npt.NDArray[np.uint32]


class AggregateOutOfRange(MeshError):
    """The noised sum lies beyond what clip and noise allow."""

    reason = "AGGREGATE_REJECTED"
    status = "FAILED_PRECONDITION"
    next_step = "Look for a fault in the clients' encoding or in the blob store."


@dataclass(frozen=True, slots=True)
class Summing:
    """How a round's updates become one released vector.

    Attributes:
        rule: of the round's plan.
        calibration: the noise that the round's holds are for.
        centre: of centered clipping.
    """

    rule: SumRule
    calibration: Calibration
    centre: Centre | None = None


@dataclass(frozen=True, slots=True)
class NoisedSum:
    """The aggregate's file and what may be told about it.

    Attributes:
        stored: encrypted file of int32, parameters then lanes; an orphan until it is charged.
        survivors, total_weight: of the sum.
        metrics: lane name -> noised mean.
    """

    stored: StoredBlob
    survivors: int
    total_weight: int
    metrics: dict[str, float]


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
        masks: Mapping[int, Sequence[MaskStream]],
        cancelled: threading.Event,
    ) -> NoisedSum:
        """Sum, noise, range check. Blocks; call it from a thread that is not of `executor`.

        Args:
            summing: rule and noise.
            masks: by group, what takes the masks off the sum of a sealed or grouped round, whose
                noise is in it already.

        Raises:
            AggregateOutOfRange: a noised sum cannot come from clipped updates and this noise.
            FoldCancelled: `cancelled` was set.
            NotFound, DecryptionFailed, MalformedMessage: a stored update is gone or damaged.
        """
        encoding = round_encoding(configuration)
        coordinates = configuration.coordinates
        noise = _central_noise(updates, configuration, encoding, summing)
        centred = self._centred(updates, configuration, summing, cancelled)
        if centred is not None:
            # Range and norm are those of terms: the centres come after the checks.
            assert isinstance(summing.rule, CenteredClipping)
            encoding = summing.rule.terms
        context = aggregate_context(
            configuration.mesh_id, configuration.round_id, configuration.attempt
        )
        lanes = np.empty(len(configuration.lanes), np.int64)
        norm_squared = 0
        groups = _by_group(updates)

        def one_chunk(index: int) -> tuple[Int32Array, int]:
            if cancelled.is_set():
                raise FoldCancelled
            if centred is not None:
                terms, centres = centred.chunk(index)
                _add_noise(terms, noise)
                _check_coordinates(terms, encoding, len(updates))
                square = norm_squared24(terms)
                return np.add(terms, centres, out=terms), square
            total: Int32Array | None = None
            counted = 0
            for group, members in groups.items():
                accumulator = _added_up(self.blobs, members, index, coordinates)
                apply_masks(accumulator, index, masks.get(group, ()))
                chunk = _signed(accumulator)
                _add_noise(chunk, noise)
                _check_coordinates(chunk, encoding, len(members))
                counted += len(members)
                if total is None:
                    total = chunk
                    continue
                # Two numbers of 24 bits. The encoding leaves room for the sum and the noise of the
                # whole roster, so that the total, too, stays within them.
                np.add(total, chunk, out=total)
                _check_coordinates(total, encoding, counted)
            assert total is not None, "an aggregate has survivors"
            return total, norm_squared24(total)

        with (
            contextlib.closing(
                in_order(self.executor, one_chunk, chunk_count(coordinates), ahead=2 * FOLD_THREADS)
            ) as chunks,
            EncryptedWriter(
                self.blobs, self.kek, context, AGGREGATE_BYTES * coordinates, hashed=False
            ) as writer,
        ):
            for index, (chunk, square) in enumerate(chunks):
                norm_squared += square
                _keep_lanes(lanes, chunk, chunk_slice(index, coordinates), configuration)
                writer.write(chunk.astype("<i4", copy=False).data.cast("B"))
            _check_norm(
                norm_squared,
                encoding,
                len(updates),
                _noise_sigma(configuration, encoding, summing.calibration, len(updates)),
            )
            stored = writer.commit()
        total_weight = sum(update.weight for update in updates)
        return NoisedSum(
            stored=stored,
            survivors=len(updates),
            total_weight=total_weight,
            metrics=_metrics(lanes, configuration, total_weight),
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


def _by_group(updates: Sequence[StoredUpdate]) -> dict[int, list[StoredUpdate]]:
    """The updates of each sum: in a grouped round one a group, of those that have survivors."""
    groups: dict[int, list[StoredUpdate]] = {}
    for update in updates:
        groups.setdefault(update.group, []).append(update)
    return groups


def _added_up(
    blobs: BlobStore, updates: Sequence[StoredUpdate], index: int, coordinates: int
) -> UInt32Array:
    """One chunk of the plain sum, (k,) uint32, right modulo 2^24; masked in a sealed round."""
    part = chunk_slice(index, coordinates)
    accumulator = np.zeros(part.stop - part.start, np.uint32)
    room = chunk_room(index, coordinates)
    for update in updates:
        add_packed24(accumulator, read_chunk(blobs, update, index, room))
    return accumulator


def _signed(accumulator: UInt32Array) -> Int32Array:
    """The chunk's signed values, in place."""
    try:
        return decode_sum(accumulator, WIRE_MAX)
    except NormExceeded as error:
        raise AggregateOutOfRange("a coordinate of the sum fills the ring") from error


def _add_noise(values: Int32Array, noise: DiscreteGaussian | None) -> None:
    """Central noise, where the round has any, in place."""
    if noise is not None:
        noise.add_into(values, Keystream.fresh())


def _check_coordinates(chunk: Int32Array, encoding: Encoding, survivors: int) -> None:
    limit = encoding.sum_limit(survivors, noised=encoding.noise_multiplier > 0)
    largest = max(int(chunk.max()), -int(chunk.min()))
    if largest > limit:
        raise AggregateOutOfRange(
            f"a coordinate of the noised sum is {largest} in size; clip and noise allow {limit}"
        )


def _noise_sigma(
    configuration: RoundConfiguration, encoding: Encoding, calibration: Calibration, survivors: int
) -> float:
    """Standard deviation of the noise on a coordinate of the sum, in ring units."""
    if configuration.secure_aggregation is None or calibration.noise_multiplier == 0:
        return math.sqrt(calibration.sigma_squared)
    # Every survivor added a share; more survivors than the fewest allowed make more noise, and so
    # do more groups.
    return math.sqrt(survivors * round_share_variance(configuration, encoding))


def _check_norm(norm_squared: int, encoding: Encoding, survivors: int, sigma: float) -> None:
    noise = sigma * (math.sqrt(encoding.coordinates) + _NORM_SIGMAS)
    limit = survivors * encoding.bound_l2 + noise
    norm = math.sqrt(norm_squared)
    if norm > limit * (1 + 1e-9):
        raise AggregateOutOfRange(
            f"the noised sum's norm is {norm:.6g}; clip and noise allow {limit:.6g}"
        )


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
    unit = configuration.max_weight / (configuration.scale * total_weight)
    return {
        lane.name: float(value) * unit / lane.scale
        for lane, value in zip(configuration.lanes, lanes.tolist(), strict=True)
    }
