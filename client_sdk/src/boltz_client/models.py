"""A model that was pulled and verified."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from pathlib import Path

from boltz_protocol import messages as m
from boltz_protocol.errors import MalformedMessage
from boltz_protocol.model_file import Vector, canonical_layout, read_vector, split_vector
from boltz_protocol.statement import Statement


@dataclass(frozen=True, slots=True, eq=False)
class PulledModel:
    """One version of a model: signed by the mesh, whole, of the declared shapes, finite.

    Attributes:
        statement: the signed manifest, to be shown to others.
        manifest: its content.
        vector: all coordinates in order, float32 (parameters,), read-only; a large model's are a
            map of `path`, so that they take memory only where they are read.
        path: the spooled safetensors file; None where the model is small and kept in memory. The
            client deletes it when it pulls another version: `save` keeps one.
    """

    statement: Statement = field(repr=False)
    manifest: m.ModelManifest
    vector: Vector = field(repr=False)
    path: Path | None
    _content: bytes | mmap.mmap = field(repr=False)

    @classmethod
    def from_bytes(
        cls, statement: Statement, manifest: m.ModelManifest, content: bytes
    ) -> PulledModel:
        """From a file in memory. Raises: MalformedMessage, ShapeMismatch, NotFinite."""
        _check_canonical(manifest)
        return cls(statement, manifest, read_vector(content, manifest.tensors), None, content)

    @classmethod
    def from_file(cls, statement: Statement, manifest: m.ModelManifest, path: Path) -> PulledModel:
        """From a spooled file. Raises: MalformedMessage, ShapeMismatch, NotFinite."""
        _check_canonical(manifest)
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        vector = read_vector(memoryview(content), manifest.tensors)
        return cls(statement, manifest, vector, path, content)

    def tensors(self) -> dict[str, Vector]:
        """One read-only float32 array a tensor, by name, with its shape: no copies."""
        return split_vector(self.manifest.tensors, self.vector)

    def save(self, path: Path) -> None:
        """Write the safetensors file somewhere."""
        with path.open("wb") as file:
            file.write(self._content)


def _check_canonical(manifest: m.ModelManifest) -> None:
    # The mesh stores canonical files only; another size means that its manifest cannot be true.
    layout = canonical_layout(manifest.tensors)
    if layout.size_bytes != manifest.size_bytes:
        raise MalformedMessage(
            f"a file of {manifest.size_bytes} bytes for tensors that take {layout.size_bytes}",
            field="size_bytes",
        )
