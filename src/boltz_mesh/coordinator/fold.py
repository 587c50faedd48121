"""The aggregation: stored ciphertexts in, one noised sum out, chunk by chunk.

For each chunk of coordinates a thread adds up that chunk of every survivor's update, takes off what
is left of their masks (sealed rounds), and adds noise (open rounds; in a sealed round it came in
shares with the updates). In a grouped round it does so for each group, whose masks and noise are
its own, and adds up the groups' noised sums once each has passed the range check. Chunks are
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
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from boltz_mesh.coordinator.ordered import in_order
from boltz_mesh.services.files import EncryptedWriter, aggregate_context
from boltz_mesh.storage.blobs import BlobStore
from boltz_mesh.storage.models import StoredBlob
from boltz_protocol import limits
from boltz_protocol.encoding import Encoding
from boltz_protocol.envelope import Opener
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


class FoldCancelled(Exception):
    """The round went on without this fold."""


class AggregateOutOfRange(MeshError):
    """The noised sum lies beyond what clip and noise allow."""

    reason = "AGGREGATE_REJECTED"
    status = "FAILED_PRECONDITION"
    next_step = "Look for a fault in the clients' encoding or in the blob store."


@dataclass(frozen=True, slots=True)
class StoredUpdate:
    """One survivor's update at rest, ready to be opened.

    Attributes:
        client_id: whose.
        blob_digest: of the ciphertext.
        opener: for its chunks; holds the key.
        weight: as committed.
        group: place of the client's group in a grouped round; 0 in others.
    """

    client_id: str
    blob_digest: bytes
    opener: Opener = field(repr=False)
    weight: int
    group: int = 0


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
        masks: Mapping[int, Sequence[MaskStream]],
        cancelled: threading.Event,
    ) -> NoisedSum:
        """Sum, noise, range check. Blocks; call it from a thread that is not of `executor`.

        Args:
            masks: by group, what takes the masks off the sum of a sealed or grouped round, whose
                noise is in it already.

        Raises:
            AggregateOutOfRange: a noised sum cannot come from clipped updates and this noise.
            FoldCancelled: `cancelled` was set.
            NotFound, DecryptionFailed, MalformedMessage: a stored update is gone or damaged.
        """
        encoding = round_encoding(configuration)
        coordinates = configuration.coordinates
        central = configuration.mode is RoundMode.OPEN and encoding.noise_multiplier > 0
        noise = discrete_gaussian(encoding.sigma_squared) if central else None
        context = aggregate_context(
            configuration.mesh_id, configuration.round_id, configuration.attempt
        )
        lanes = np.empty(len(configuration.lanes), np.int64)
        norm_squared = 0
        groups = _by_group(updates)

        def one_chunk(index: int) -> tuple[Int32Array, int]:
            if cancelled.is_set():
                raise FoldCancelled
            total: Int32Array | None = None
            counted = 0
            for group, members in groups.items():
                accumulator = _added_up(self.blobs, members, index, coordinates)
                apply_masks(accumulator, index, masks.get(group, ()))
                chunk = _noised(accumulator, noise)
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
                _noise_sigma(configuration, encoding, len(updates)),
            )
            stored = writer.commit()
        total_weight = sum(update.weight for update in updates)
        return NoisedSum(
            stored=stored,
            survivors=len(updates),
            total_weight=total_weight,
            metrics=_metrics(lanes, configuration, total_weight),
        )


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
    cipher = memoryview(bytearray(accumulator.size * limits.WIRE_BYTES + limits.GCM_TAG_BYTES))
    for update in updates:
        layout = update.opener.layout
        with blobs.open(update.blob_digest) as reader:
            # A blob that is too short leaves old bytes in the buffer: they do not authenticate.
            reader.pread_into(cipher, layout.cipher_offset(index))
        written = update.opener.open_into(index, cipher, cipher)
        add_packed24(accumulator, cipher[:written])
    return accumulator


def _noised(accumulator: UInt32Array, noise: DiscreteGaussian | None) -> Int32Array:
    """The chunk's signed values with central noise, where the round has any, in place."""
    try:
        values = decode_sum(accumulator, WIRE_MAX)
    except NormExceeded as error:
        raise AggregateOutOfRange("a coordinate of the sum fills the ring") from error
    if noise is not None:
        noise.add_into(values, Keystream.fresh())
    return values


def _check_coordinates(chunk: Int32Array, encoding: Encoding, survivors: int) -> None:
    limit = encoding.sum_limit(survivors, noised=encoding.noise_multiplier > 0)
    largest = max(int(chunk.max()), -int(chunk.min()))
    if largest > limit:
        raise AggregateOutOfRange(
            f"a coordinate of the noised sum is {largest} in size; clip and noise allow {limit}"
        )


def _noise_sigma(configuration: RoundConfiguration, encoding: Encoding, survivors: int) -> float:
    """Standard deviation of the noise on a coordinate of the sum, in ring units."""
    if configuration.secure_aggregation is None or encoding.noise_multiplier == 0:
        return math.sqrt(encoding.sigma_squared)
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
