"""From aggregate to files, over chunk boundaries that do not line up, against plain numpy."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load

from boltz_mesh.aggregation.weighted_mean import block_mean
from boltz_mesh.coordinator.fold import Folder
from boltz_mesh.coordinator.publish import (
    NewVersionFiles,
    Publisher,
    ReleasedAggregate,
    moments_layout,
    plan_tensors,
)
from boltz_mesh.coordinator.stored import FoldCancelled
from boltz_mesh.rounds.plan import Plan, plan_from_toml
from boltz_mesh.services.files import (
    EncryptedReader,
    EncryptedWriter,
    model_context,
    optimizer_context,
)
from boltz_mesh.storage.directory_blobs import DirectoryBlobs
from boltz_mesh.storage.models import ModelState, ModelVersion, StoredBlob
from boltz_protocol import limits
from boltz_protocol.context import BlobContext
from boltz_protocol.errors import NotFinite, ShapeMismatch
from boltz_protocol.ids import ModelId
from boltz_protocol.key_wrap import KeyEncryptionKey
from boltz_protocol.model_file import canonical_layout
from tests.unit.coordinator.rounds import Int32Array, configuration, mean_of, random_updates, stored

CHUNK = limits.CHUNK_PARAMETERS
Vector = npt.NDArray[np.float32]
MODEL = ModelId("model")

PLAN = """\
model = "model"
mode = "open"
clip_norm = 1.0
privacy = "none"
[cohort]
min = 2
target = 3
max = 3
[server_optimizer]
name = "{optimizer}"
learning_rate = {rate}
[[tensors]]
name = "a tensor with an odd name"
shape = [{first}]
[[tensors]]
name = "b"
shape = []
[[tensors]]
name = "c"
shape = [3, {rest}]
"""


def plan(optimizer: str, first: int, rest: int, rate: float = 0.5) -> Plan:
    return plan_from_toml(PLAN.format(optimizer=optimizer, first=first, rest=rest, rate=rate))


@dataclass(slots=True)
class Shop:
    """Files of one model."""

    folder: Folder
    publisher: Publisher

    def first_version(self, p: Plan, vector: Vector) -> ModelVersion:
        layout = canonical_layout(plan_tensors(p))
        context = model_context("demo", MODEL, 1)
        publisher = self.publisher
        with EncryptedWriter(publisher.blobs, publisher.kek, context, layout.size_bytes) as writer:
            writer.write(layout.header)
            writer.write(vector.tobytes())
            return version(NewVersionFiles(1, writer.commit(), layout.size_bytes, None))

    def aggregate(self, p: Plan, seed: int) -> tuple[ReleasedAggregate, Int32Array]:
        config = configuration(p.parameters)
        updates = random_updates(config, 3, seed)
        rows = [stored(self.folder.blobs, config, values) for values in updates]
        noised = self.folder.fold(rows, config, mean_of(config), {}, threading.Event())
        total: Int32Array = np.sum(updates, axis=0, dtype=np.int32)
        return ReleasedAggregate(config, noised.stored, noised.total_weight), total

    def next_version(
        self, p: Plan, base: ModelVersion, aggregate: ReleasedAggregate, *, keeps: bool = True
    ) -> ModelVersion:
        return version(
            self.publisher.make_files(
                aggregate,
                plan=p,
                base=base,
                keeps_moments=keeps,
                version=base.version + 1,
                cancelled=threading.Event(),
            )
        )

    def tensors(self, context: BlobContext, blob: StoredBlob, size: int) -> Mapping[str, Vector]:
        """A file as the safetensors package reads it."""
        content = bytearray(size)
        with EncryptedReader(
            self.publisher.blobs, self.publisher.kek, context, blob, size
        ) as reader:
            assert reader.read_into(content, 0) == size
        return load(bytes(content))

    def model(self, p: Plan, row: ModelVersion) -> Vector:
        context = model_context("demo", MODEL, row.version)
        tensors = self.tensors(context, row.weights, row.size_bytes)
        return np.concatenate([tensors[spec.name].ravel() for spec in plan_tensors(p)])

    def moments(self, p: Plan, row: ModelVersion) -> Mapping[str, Vector]:
        layout = moments_layout(p.server_optimizer.build(), p.parameters)
        assert layout is not None
        assert row.optimizer is not None
        context = optimizer_context("demo", MODEL, row.version)
        return self.tensors(context, row.optimizer, layout.size_bytes)


def version(files: NewVersionFiles) -> ModelVersion:
    return ModelVersion(
        model_id=MODEL,
        version=files.version,
        state=ModelState.CANDIDATE,
        parent_version=None,
        round_id=None,
        weights=files.weights,
        size_bytes=files.size_bytes,
        kek_id=KeyEncryptionKey.generate().key_id,
        manifest=b"",
        optimizer=files.optimizer,
        metrics={},
        created_at_ms=1,
        promoted_at_ms=None,
        promoted_by=None,
    )


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    blobs, kek = DirectoryBlobs(tmp_path), KeyEncryptionKey.generate()
    with ThreadPoolExecutor(2) as executor:
        yield Shop(Folder(blobs, kek, executor), Publisher(blobs, kek))


@pytest.mark.parametrize("optimizer", ["fedavg", "fedavgm", "fedadam", "fedyogi"])
@pytest.mark.parametrize(("first", "rest"), [(1, 1), (CHUNK - 1, CHUNK // 2)])
def test_streams_agree_with_whole_vectors(
    shop: Shop, optimizer: str, first: int, rest: int
) -> None:
    p = plan(optimizer, first, rest)
    rule = p.server_optimizer.build()
    random = np.random.default_rng(11)
    expected = random.normal(size=p.parameters).astype(np.float32)
    row = shop.first_version(p, expected)
    moments: Mapping[str, Vector] = rule.init(p.parameters)
    for seed in (1, 2):
        aggregate, total = shop.aggregate(p, seed)
        row = shop.next_version(p, row, aggregate)
        config = aggregate.configuration
        mean = block_mean(total, config.scale, config.max_weight, aggregate.total_weight)
        expected, moments = rule.apply(expected, mean, moments)
        assert np.array_equal(shop.model(p, row), expected)
        if moments:
            kept = shop.moments(p, row)
            assert kept.keys() == moments.keys()
            for name, values in moments.items():
                assert np.array_equal(kept[name], values)
        else:
            assert row.optimizer is None


def test_moments_start_anew_where_they_are_another_optimizers(shop: Shop) -> None:
    p = plan("fedavgm", 4, 1)
    row = shop.first_version(p, np.zeros(p.parameters, np.float32))
    aggregate, _ = shop.aggregate(p, 1)
    once = shop.next_version(p, row, aggregate)
    anew = shop.next_version(p, once, aggregate, keeps=False)
    assert np.array_equal(shop.moments(p, anew)["momentum"], shop.moments(p, once)["momentum"])


def test_a_model_that_leaves_float32_is_refused(shop: Shop) -> None:
    p = plan("fedavg", 4, 1, rate=1e39)
    row = shop.first_version(p, np.full(p.parameters, 3e38, np.float32))
    aggregate, _ = shop.aggregate(p, 1)
    with pytest.raises(NotFinite):
        shop.next_version(p, row, aggregate)


def test_a_base_of_another_shape_is_refused(shop: Shop) -> None:
    p, other = plan("fedavg", 4, 1), plan("fedavg", 5, 1)
    row = shop.first_version(other, np.zeros(other.parameters, np.float32))
    aggregate, _ = shop.aggregate(p, 1)
    with pytest.raises(ShapeMismatch):
        shop.next_version(p, row, aggregate)


def test_a_cancelled_publication_stops_and_leaves_no_file(shop: Shop, tmp_path: Path) -> None:
    p = plan("fedadam", 4, 1)
    row = shop.first_version(p, np.zeros(p.parameters, np.float32))
    aggregate, _ = shop.aggregate(p, 1)
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(FoldCancelled):
        shop.publisher.make_files(
            aggregate, plan=p, base=row, keeps_moments=True, version=2, cancelled=cancelled
        )
    assert list((tmp_path / "tmp").iterdir()) == []


def test_files_name_their_blobs(shop: Shop) -> None:
    weights = StoredBlob(b"d", b"w", b"k")
    assert NewVersionFiles(2, weights, 1, None).blob_digests() == (b"w",)
    state = StoredBlob(b"d", b"o", b"k")
    assert NewVersionFiles(2, weights, 1, state).blob_digests() == (b"w", b"o")
