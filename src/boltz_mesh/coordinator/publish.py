"""From a charged aggregate to the next version's files, one block of coordinates at a time.

The next model is `server_optimizer(parent, mean delta, moments)`, coordinate by coordinate. Model
files and the optimizer's state are canonical safetensors files; the aggregate is int32. Their
chunks, headers and blocks do not line up, so all of them are read and written as streams, by
position. What is read here is noised: everything is post-processing.

A file holds one tensor after the other, so an optimizer with two moments goes over the blocks
twice: once for the model and the first moment, once for the second. That costs arithmetic, not
memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from boltz_mesh.aggregation.server_optimizer import ServerOptimizer
from boltz_mesh.aggregation.weighted_mean import block_mean
from boltz_mesh.coordinator.fold import AGGREGATE_BYTES
from boltz_mesh.coordinator.stored import FoldCancelled
from boltz_mesh.rounds.plan import Plan
from boltz_mesh.services.files import (
    EncryptedReader,
    EncryptedWriter,
    aggregate_context,
    model_context,
    optimizer_context,
)
from boltz_mesh.storage.blobs import BlobStore
from boltz_mesh.storage.models import ModelVersion, StoredBlob
from boltz_protocol.errors import ShapeMismatch
from boltz_protocol.key_wrap import KeyEncryptionKey
from boltz_protocol.messages import RoundConfiguration, TensorSpec
from boltz_protocol.model_file import ELEMENT_BYTES, Layout, canonical_layout

#: Coordinates worked on at once: the float64 arrays of one block stay in a core's cache, which
#: halves the time against blocks of a wire chunk (measured).
_BLOCK: Final = 1 << 16
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class NewVersionFiles:
    """The next version's files, durable, and orphans until a row refers to them.

    Attributes:
        version: the number they are bound to.
        weights: the model's file; `size_bytes` is its plain size.
        optimizer: the optimizer's state, where it keeps one.
    """

    version: int
    weights: StoredBlob
    size_bytes: int
    optimizer: StoredBlob | None

    def blob_digests(self) -> tuple[bytes, ...]:
        """Both blobs."""
        optimizer = () if self.optimizer is None else (self.optimizer.blob_digest,)
        return (self.weights.blob_digest, *optimizer)


@dataclass(frozen=True, slots=True)
class ReleasedAggregate:
    """The aggregate of a round in RELEASING."""

    configuration: RoundConfiguration
    stored: StoredBlob
    total_weight: int


def plan_tensors(plan: Plan) -> tuple[TensorSpec, ...]:
    """The plan's tensors in the contract's type."""
    return tuple(TensorSpec(tensor.name, tensor.shape) for tensor in plan.tensors)


def moments_layout(optimizer: ServerOptimizer, coordinates: int) -> Layout | None:
    """The layout of an optimizer's state file; None where it keeps no state."""
    if not optimizer.moment_names:
        return None
    return canonical_layout(
        tuple(TensorSpec(name, (coordinates,)) for name in optimizer.moment_names)
    )


@dataclass(frozen=True, slots=True)
class Publisher:
    """What every publication of a server shares."""

    blobs: BlobStore
    kek: KeyEncryptionKey

    def make_files(
        self,
        aggregate: ReleasedAggregate,
        *,
        plan: Plan,
        base: ModelVersion,
        keeps_moments: bool,
        version: int,
        cancelled: threading.Event,
    ) -> NewVersionFiles:
        """Apply the aggregate to the base version. Blocks.

        Args:
            keeps_moments: whether the base's optimizer state is this plan's optimizer's; it
                starts anew otherwise.
            version: the number of the next version.

        Raises:
            NotFinite: the next model leaves float32.
            ShapeMismatch: the base version's file is not the plan's.
            FoldCancelled: `cancelled` was set.
            NotFound, DecryptionFailed, DigestMismatch: a file at rest is gone or damaged.
        """
        with ExitStack() as stack:
            blocks = self._open(
                stack,
                aggregate,
                plan=plan,
                base=base,
                keeps_moments=keeps_moments,
                cancelled=cancelled,
            )
            names = blocks.optimizer.moment_names
            model_id = base.model_id
            mesh_id = aggregate.configuration.mesh_id
            model = stack.enter_context(
                EncryptedWriter(
                    self.blobs,
                    self.kek,
                    model_context(mesh_id, model_id, version),
                    blocks.layout.size_bytes,
                )
            )
            model.write(blocks.layout.header)
            if blocks.moments_layout is None:
                for parameters, _ in blocks.run():
                    model.write(_bytes(parameters))
                return NewVersionFiles(version, model.commit(), blocks.layout.size_bytes, None)
            state = stack.enter_context(
                EncryptedWriter(
                    self.blobs,
                    self.kek,
                    optimizer_context(mesh_id, model_id, version),
                    blocks.moments_layout.size_bytes,
                )
            )
            state.write(blocks.moments_layout.header)
            for number, name in enumerate(names):
                for parameters, moments in blocks.run():
                    if number == 0:
                        model.write(_bytes(parameters))
                    state.write(_bytes(moments[name]))
            return NewVersionFiles(
                version, model.commit(), blocks.layout.size_bytes, state.commit()
            )

    def _open(
        self,
        stack: ExitStack,
        aggregate: ReleasedAggregate,
        *,
        plan: Plan,
        base: ModelVersion,
        keeps_moments: bool,
        cancelled: threading.Event,
    ) -> _Blocks:
        configuration = aggregate.configuration
        mesh_id = configuration.mesh_id
        layout = canonical_layout(plan_tensors(plan))
        optimizer = plan.server_optimizer.build()
        state_layout = moments_layout(optimizer, layout.coordinates)
        if base.size_bytes != layout.size_bytes:
            raise ShapeMismatch(
                f"version {base.version} has {base.size_bytes} bytes; its plan asks for "
                f"{layout.size_bytes}"
            )
        state: tuple[EncryptedReader, ...] = ()
        if keeps_moments and base.optimizer is not None and state_layout is not None:
            # A reader for each moment: they lie apart, and a reader holds one chunk.
            state = tuple(
                stack.enter_context(
                    EncryptedReader(
                        self.blobs,
                        self.kek,
                        optimizer_context(mesh_id, base.model_id, base.version),
                        base.optimizer,
                        state_layout.size_bytes,
                    )
                )
                for _ in optimizer.moment_names
            )
        return _Blocks(
            aggregate=aggregate,
            layout=layout,
            optimizer=optimizer,
            moments_layout=state_layout,
            parent=stack.enter_context(
                EncryptedReader(
                    self.blobs,
                    self.kek,
                    model_context(mesh_id, base.model_id, base.version),
                    base.weights,
                    base.size_bytes,
                )
            ),
            state=state,
            sums=stack.enter_context(
                EncryptedReader(
                    self.blobs,
                    self.kek,
                    aggregate_context(mesh_id, configuration.round_id, configuration.attempt),
                    aggregate.stored,
                    AGGREGATE_BYTES * configuration.coordinates,
                )
            ),
            cancelled=cancelled,
        )


@dataclass(frozen=True, slots=True)
class _Blocks:
    """The streams of one publication."""

    aggregate: ReleasedAggregate
    layout: Layout
    optimizer: ServerOptimizer
    moments_layout: Layout | None
    parent: EncryptedReader
    state: tuple[EncryptedReader, ...]
    sums: EncryptedReader
    cancelled: threading.Event

    def run(self) -> Iterator[tuple[Float32Array, Mapping[str, Float32Array]]]:
        """The next parameters and moments of every block, in order."""
        configuration = self.aggregate.configuration
        for start in range(0, self.layout.coordinates, _BLOCK):
            if self.cancelled.is_set():
                raise FoldCancelled
            size = min(_BLOCK, self.layout.coordinates - start)
            sums = np.empty(size, "<i4")
            self.sums.read_into(sums.data.cast("B"), AGGREGATE_BYTES * start)
            mean = block_mean(
                sums.astype(np.int32, copy=False),
                configuration.scale,
                configuration.max_weight,
                self.aggregate.total_weight,
            )
            parameters = _floats(self.parent, self.layout.offset_of(start), size)
            yield self.optimizer.apply(parameters, mean, self._moments(start, size))

    def _moments(self, start: int, size: int) -> Mapping[str, Float32Array]:
        if not self.state:
            return self.optimizer.init(size)
        assert self.moments_layout is not None
        moments: dict[str, Float32Array] = {}
        for number, name in enumerate(self.optimizer.moment_names):
            offset = self.moments_layout.offset_of(number * self.layout.coordinates + start)
            moments[name] = _floats(self.state[number], offset, size)
        return moments


def _floats(reader: EncryptedReader, offset: int, count: int) -> Float32Array:
    block = np.empty(count, "<f4")
    read = reader.read_into(block.data.cast("B"), offset)
    assert read == ELEMENT_BYTES * count, "sizes were checked when the files were opened"
    return block.astype(np.float32, copy=False)


def _bytes(block: Float32Array) -> memoryview:
    return np.ascontiguousarray(block, "<f4").data.cast("B")
