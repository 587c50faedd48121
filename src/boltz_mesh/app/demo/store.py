"""The operator's side of the model store, for models that fit one message."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

from boltz_mesh.app.cli.connection import Mesh
from boltz_mesh.app.demo.desks import tensors_of
from boltz_mesh.app.demo.linear import Float32Array
from boltz_mesh.app.demo.settings import ModelKind
from boltz_protocol import limits
from boltz_protocol.codec import parse_model_manifest, statement_from_proto
from boltz_protocol.errors import DigestMismatch
from boltz_protocol.messages import ModelManifest, TensorSpec
from boltz_protocol.model_file import encode_model, read_vector
from boltz_protocol.v1 import model_store_pb2 as pb


def specs_of(kind: ModelKind) -> tuple[TensorSpec, ...]:
    """The model's tensors as the contract has them."""
    return tuple(TensorSpec(name, shape) for name, shape in tensors_of(kind))


async def publish_start(mesh: Mesh, model_id: str, kind: ModelKind, vector: Float32Array) -> None:
    """Store and promote the first version of a model.

    Args:
        vector: float32 (parameters,).

    Raises: as `ModelStore.Publish`.
    """
    content = encode_model(specs_of(kind), vector)
    assert len(content) <= limits.MODEL_CHUNK_BYTES, "one chunk holds a model of the demo"

    async def requests() -> AsyncIterator[pb.PublishRequest]:
        yield pb.PublishRequest(
            header=pb.PublishHeader(
                model_id=model_id,
                sha256=hashlib.sha256(content).digest(),
                size_bytes=len(content),
                promote=True,
            )
        )
        yield pb.PublishRequest(chunk=pb.ModelChunk(offset=0, data=content))

    await mesh.models.Publish(requests())


async def manifest_of(mesh: Mesh, model_id: str, version: int) -> ModelManifest:
    """A version's manifest. Raises: NotFound."""
    request = pb.GetManifestRequest(model_id=model_id, version=version)
    return _manifest((await mesh.models.GetManifest(request)).version)


async def pull_vector(
    mesh: Mesh, model_id: str, version: int, kind: ModelKind
) -> tuple[ModelManifest, Float32Array]:
    """A version as it came through the mesh: its manifest and float32 (parameters,).

    Raises: NotFound, DigestMismatch, MalformedMessage, ShapeMismatch, NotFinite.
    """

    async def requests() -> AsyncIterator[pb.PullRequest]:
        opening = pb.PullOpen(model_id=model_id, version=version, offset=0, credits=1)
        yield pb.PullRequest(open=opening)

    manifest: ModelManifest | None = None
    content = bytearray()
    async for answer in mesh.models.Pull(requests()):
        if answer.WhichOneof("message") == "header":
            manifest = _manifest(answer.header.version)
        else:
            content += answer.chunk.data
    if manifest is None or hashlib.sha256(content).digest() != manifest.sha256:
        raise DigestMismatch(f"the file that came is not {model_id} version {version}")
    return manifest, read_vector(content, specs_of(kind))


def _manifest(version: pb.ModelVersion) -> ModelManifest:
    return parse_model_manifest(statement_from_proto(version.manifest).payload)
