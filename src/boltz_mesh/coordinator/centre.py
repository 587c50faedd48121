"""The last published mean, read off two published versions chunk by chunk.

With FedAvg a version is its parent plus learning rate times mean, so the mean is their difference
over the learning rate, up to the rounding of float32. The versions are released, and the mean in
them is noised: whatever is computed from it costs no privacy. It is read off the version that the
round starts from, the one that its clients have. Lanes are in no version; their noised means are
in its metrics.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from boltz_mesh.services.files import EncryptedReader, model_context
from boltz_mesh.storage.blobs import BlobStore
from boltz_mesh.storage.models import ModelVersion
from boltz_protocol.clip import clip_factor
from boltz_protocol.errors import NotFinite
from boltz_protocol.key_wrap import KeyEncryptionKey
from boltz_protocol.messages import RoundConfiguration
from boltz_protocol.model_file import ELEMENT_BYTES, Layout
from boltz_protocol.update import chunk_count, chunk_slice

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PublishedStep:
    """A version that a round made with FedAvg, and the one that it started from.

    Attributes:
        learning_rate: of that round's plan.
        layout: of both files.
    """

    version: ModelVersion
    parent: ModelVersion
    learning_rate: float
    layout: Layout


class Centre:
    """v in the delta's own unit, no longer than the clip norm; 0 before anything was published."""

    def __init__(
        self,
        configuration: RoundConfiguration,
        lanes: Sequence[float],
        step: tuple[EncryptedReader, EncryptedReader, PublishedStep] | None,
    ) -> None:
        """Use `nothing` or `of`."""
        self._coordinates = configuration.coordinates
        self._parameters = configuration.parameters
        self._lanes = np.asarray(lanes, np.float64)
        self._step = step
        self._factor = 1.0
        # A reader holds one chunk of its file: two threads would take turns at reading it anew.
        self._lock = threading.Lock()

    @classmethod
    def nothing(cls, configuration: RoundConfiguration) -> Self:
        """0: the first round under a plan."""
        return cls(configuration, [0.0] * len(configuration.lanes), None)

    @classmethod
    def of(
        cls,
        stack: ExitStack,
        blobs: BlobStore,
        kek: KeyEncryptionKey,
        configuration: RoundConfiguration,
        step: PublishedStep,
    ) -> Self:
        """The mean that made a version; one that is longer than the clip norm is shortened to it.

        No contribution is longer, so a longer centre only leads away from all of them.

        Args:
            stack: closes the files.

        Raises: NotFinite; NotFound, DecryptionFailed, DigestMismatch: a file is gone or damaged.
        """
        version, parent = (
            stack.enter_context(
                EncryptedReader(
                    blobs,
                    kek,
                    model_context(configuration.mesh_id, row.model_id, row.version),
                    row.weights,
                    row.size_bytes,
                )
            )
            for row in (step.version, step.parent)
        )
        metrics = step.version.metrics
        lanes = [float(metrics.get(lane.name, 0.0)) * lane.scale for lane in configuration.lanes]
        centre = cls(configuration, lanes, (version, parent, step))
        square = 0.0
        with np.errstate(over="ignore"):
            for index in range(chunk_count(configuration.coordinates)):
                values = centre.chunk(index)
                square += float(np.dot(values, values))
        if not math.isfinite(square):
            raise NotFinite("the last published mean is no number; raise the learning rate")
        centre._factor = clip_factor(math.sqrt(square), configuration.clip_norm)
        return centre

    def chunk(self, index: int) -> Float64Array:
        """v of one chunk's coordinates, (k,) float64. Any thread may ask."""
        part = chunk_slice(index, self._coordinates)
        values = np.zeros(part.stop - part.start, np.float64)
        stop = min(part.stop, self._parameters)
        if self._step is not None and part.start < stop:
            version, parent, step = self._step
            with self._lock:
                inner = _floats(version, step.layout, part.start, stop)
                inner -= _floats(parent, step.layout, part.start, stop)
            values[: stop - part.start] = inner / step.learning_rate
        first = max(part.start, self._parameters)
        if first < part.stop:
            lanes = self._lanes[first - self._parameters : part.stop - self._parameters]
            values[first - part.start :] = lanes
        values *= self._factor
        return values


def _floats(reader: EncryptedReader, layout: Layout, start: int, stop: int) -> Float64Array:
    # Tensors lie apart by nothing but their order: all headers stand before the first of them.
    block = np.empty(stop - start, "<f4")
    read = reader.read_into(block.data.cast("B"), layout.offset_of(start))
    assert read == ELEMENT_BYTES * block.size, "the version has the plan's tensors"
    return block.astype(np.float64)
