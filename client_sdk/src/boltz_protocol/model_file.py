"""Model files: safetensors <-> one flat vector of coordinates.

A file that the mesh stores is *canonical*: tensors in the manifest's order, each in row-major
order, contiguous, little-endian float32, no metadata; the header is compact JSON, padded with
spaces to a multiple of 8 bytes. So a model's header follows from its tensor specs alone, and
coordinate k lies at byte `layout.data_offset + 4 * k` of the file.

A file that a person publishes may be any valid safetensors file with exactly these tensors
(the safetensors library sorts by name; torch adds `__metadata__`): `read_vector` takes both, and
gives a view without a copy where the file is canonical.

Format: https://huggingface.co/docs/safetensors (8-byte little-endian header length, JSON header,
data). The header is parsed here rather than by the safetensors package, which needs the whole file
in memory or a path, and reads a repeated key as its last value; the tests hold the two against
each other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from boltz_protocol import limits
from boltz_protocol.errors import LimitExceeded, MalformedMessage, NotFinite, ShapeMismatch
from boltz_protocol.messages import Dtype, TensorSpec, check_tensors
from boltz_protocol.squares import ROW

Vector = npt.NDArray[np.float32]

ELEMENT_BYTES: Final = 4
_PREFIX_BYTES: Final = 8
_ALIGNMENT: Final = 8
_DTYPE_NAMES: Final = {Dtype.FLOAT32: "F32"}
_FLOAT32: Final = np.dtype("<f4")
#: Coordinates looked at in one go when a vector is checked: stays in a core's cache.
_CHECK_BLOCK: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything lies in the canonical file of a model.

    Attributes:
        tensors: in coordinate order.
        header: the file's first bytes, the length prefix included.
        coordinates: number of float32 behind the header.
    """

    tensors: tuple[TensorSpec, ...]
    header: bytes
    coordinates: int

    @property
    def data_offset(self) -> int:
        """Byte offset of coordinate 0; a multiple of 8."""
        return len(self.header)

    @property
    def size_bytes(self) -> int:
        """Size of the whole file."""
        return len(self.header) + ELEMENT_BYTES * self.coordinates

    def offset_of(self, coordinate: int) -> int:
        """Byte offset of a coordinate; of the file's end for `coordinates` itself."""
        assert 0 <= coordinate <= self.coordinates
        return len(self.header) + ELEMENT_BYTES * coordinate


def canonical_layout(tensors: tuple[TensorSpec, ...]) -> Layout:
    """The layout that follows from a model's tensors. Raises: MalformedMessage, LimitExceeded."""
    check_tensors(tensors)
    entries: dict[str, dict[str, object]] = {}
    offset = 0
    for spec in tensors:
        end = offset + ELEMENT_BYTES * spec.elements
        entries[spec.name] = {
            "dtype": _DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    padded = -(-len(text) // _ALIGNMENT) * _ALIGNMENT
    header = padded.to_bytes(_PREFIX_BYTES, "little") + text.ljust(padded)
    if len(header) > limits.MAX_MODEL_HEADER_BYTES:
        raise LimitExceeded(
            f"the model file's header has {len(header)} bytes; "
            f"the cap is {limits.MAX_MODEL_HEADER_BYTES}"
        )
    return Layout(tensors, header, offset // ELEMENT_BYTES)


def file_parts(layout: Layout, vector: Vector) -> Iterator[memoryview]:
    """A canonical file as pieces of at most MODEL_CHUNK_BYTES (the header is the first piece).

    Raises:
        ShapeMismatch: the vector is not a contiguous float32 vector of the model's length.
        NotFinite: a coordinate is NaN or infinite.
    """
    check_vector(layout, vector)
    yield memoryview(layout.header)
    data = vector.astype(_FLOAT32, copy=False).data.cast("B")
    for start in range(0, len(data), limits.MODEL_CHUNK_BYTES):
        yield data[start : start + limits.MODEL_CHUNK_BYTES]


def encode_model(tensors: tuple[TensorSpec, ...], vector: Vector) -> bytes:
    """A whole canonical file in memory; see `file_parts` for large models. Raises: as there."""
    return b"".join(file_parts(canonical_layout(tensors), vector))


def check_vector(layout: Layout, vector: Vector) -> None:
    """Check that a vector can be a model's coordinates. Raises: ShapeMismatch, NotFinite."""
    if vector.dtype != np.float32 or vector.shape != (layout.coordinates,):
        raise ShapeMismatch(
            f"a vector of {vector.dtype} {vector.shape}; float32 ({layout.coordinates},) is needed"
        )
    if not vector.flags.c_contiguous:
        raise ShapeMismatch("the vector is not contiguous in memory")
    check_finite(layout.tensors, vector)


def check_finite(tensors: tuple[TensorSpec, ...], vector: Vector, first: int = 0) -> None:
    """Check coordinates `first`, `first + 1`, ... of a model. Raises: NotFinite naming the tensor
    of the first bad one.
    """
    for start in range(0, len(vector), _CHECK_BLOCK):
        block = vector[start : start + _CHECK_BLOCK]
        if not _all_finite(block):
            coordinate = first + start + int(np.argmin(np.isfinite(block)))
            raise NotFinite(
                f"coordinate {coordinate}, in tensor {tensor_at(tensors, coordinate)!r}, "
                "is not a finite number",
                coordinate=coordinate,
            )


def _all_finite(block: Vector) -> bool:
    whole = block.size - block.size % ROW
    rows = block[:whole].reshape(-1, ROW)
    rest = block[whole:]
    # The dot with itself is finite unless a coordinate is not, or the squares overflow; only then
    # is every coordinate looked at.
    with np.errstate(over="ignore", invalid="ignore"):
        square = float(np.vecdot(rows, rows).sum()) + float(np.dot(rest, rest))
    return math.isfinite(square) or bool(np.isfinite(block).all())


def tensor_at(tensors: tuple[TensorSpec, ...], coordinate: int) -> str:
    """Name of the tensor that a coordinate lies in; "" behind the last one (a lane)."""
    end = 0
    for spec in tensors:
        end += spec.elements
        if coordinate < end:
            return spec.name
    return ""


# --- reading ------------------------------------------------------------------------------------


def read_vector(buffer: bytes | bytearray | memoryview, tensors: tuple[TensorSpec, ...]) -> Vector:
    """The coordinates of a model file.

    Args:
        buffer: the whole file (bytes, or a mapped file's memoryview).
        tensors: what must be in it, no more and no less.

    Returns:
        float32 (parameters,), read-only; a view into `buffer` where the file is canonical.

    Raises:
        MalformedMessage: not a safetensors file, holes, overlaps, leftover bytes.
        LimitExceeded: an oversize header.
        ShapeMismatch: other tensors, shapes or dtypes than declared; the message names one.
        NotFinite: a NaN or an infinity.
    """
    layout = canonical_layout(tensors)
    view = memoryview(buffer).cast("B")
    if len(view) == layout.size_bytes and view[: layout.data_offset] == layout.header:
        vector: Vector = np.frombuffer(view[layout.data_offset :], dtype=_FLOAT32)
        if vector.flags.writeable:
            vector = vector.view()
            vector.flags.writeable = False
    else:
        vector = _gathered(view, layout)
    check_finite(tensors, vector)
    return vector


def _gathered(view: memoryview, layout: Layout) -> Vector:
    spans, data_offset = _declared_spans(view)
    _check_declared(spans, layout.tensors)
    if data_offset + ELEMENT_BYTES * layout.coordinates != len(view):
        raise MalformedMessage(
            f"the model file has {len(view)} bytes; its header promises "
            f"{data_offset + ELEMENT_BYTES * layout.coordinates}"
        )
    data = view[data_offset:]
    vector = np.empty(layout.coordinates, dtype=np.float32)
    position = 0
    for spec in layout.tensors:
        begin, end = spans[spec.name].begin, spans[spec.name].end
        # Copied as bytes: a foreign file's data need not be aligned.
        target = vector[position : position + spec.elements].data.cast("B")
        target[:] = data[begin:end]
        position += spec.elements
    vector.flags.writeable = False
    return vector


@dataclass(frozen=True, slots=True)
class _Span:
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _declared_spans(view: memoryview) -> tuple[dict[str, _Span], int]:
    """What a foreign file's header says is in it, and where the data begins."""
    if len(view) < _PREFIX_BYTES:
        raise MalformedMessage("the model file is shorter than a safetensors header")
    length = int.from_bytes(view[:_PREFIX_BYTES], "little")
    if length > limits.MAX_MODEL_HEADER_BYTES:
        raise LimitExceeded(
            f"the model file's header has {length} bytes; "
            f"the cap is {limits.MAX_MODEL_HEADER_BYTES}"
        )
    data_offset = _PREFIX_BYTES + length
    if data_offset > len(view):
        raise MalformedMessage("the model file ends inside its header")
    try:
        header = json.loads(
            bytes(view[_PREFIX_BYTES:data_offset]), object_pairs_hook=_without_repeats
        )
    except (ValueError, RecursionError) as error:
        raise MalformedMessage("the model file's header is not JSON") from error
    if not isinstance(header, dict):
        raise MalformedMessage("the model file's header is not a JSON object")
    header.pop("__metadata__", None)
    if len(header) > limits.MAX_TENSORS:
        raise LimitExceeded(f"{len(header)} tensors in the file; the cap is {limits.MAX_TENSORS}")
    return {name: _span(name, entry) for name, entry in header.items()}, data_offset


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise MalformedMessage("the model file's header names something twice")
    return result


def _span(name: str, entry: object) -> _Span:
    match entry:
        case {
            "dtype": str(dtype),
            "shape": list(shape),
            "data_offsets": [int(begin), int(end)],
            **rest,
        } if not rest and all(type(extent) is int for extent in shape):
            return _Span(dtype, tuple(shape), begin, end)
        case _:
            raise MalformedMessage(f"the model file's entry for {name[:80]!r} is malformed")


def _check_declared(spans: Mapping[str, _Span], tensors: tuple[TensorSpec, ...]) -> None:
    wanted = {spec.name for spec in tensors}
    for name in spans.keys() - wanted:
        raise ShapeMismatch(f"the file has a tensor {name[:80]!r} that the model does not have")
    for spec in tensors:
        span = spans.get(spec.name)
        if span is None:
            raise ShapeMismatch(f"the file has no tensor {spec.name!r}", tensor=spec.name)
        if span.dtype != _DTYPE_NAMES[spec.dtype]:
            raise ShapeMismatch(
                f"tensor {spec.name!r} is {span.dtype[:20]}, not {_DTYPE_NAMES[spec.dtype]}",
                tensor=spec.name,
            )
        if span.shape != spec.shape:
            raise ShapeMismatch(
                f"tensor {spec.name!r} has shape {span.shape}, not {spec.shape}", tensor=spec.name
            )
        if span.begin < 0 or span.end - span.begin != ELEMENT_BYTES * spec.elements:
            raise MalformedMessage(f"tensor {spec.name!r} has the wrong number of bytes")
    expected = 0
    for span in sorted(spans.values(), key=lambda span: span.begin):
        if span.begin != expected:
            raise MalformedMessage("the model file's tensors leave a hole or overlap")
        expected = span.end


# --- vector <-> tensors by name -----------------------------------------------------------------


def split_vector(tensors: tuple[TensorSpec, ...], vector: Vector) -> dict[str, Vector]:
    """A vector as one array a tensor, with the tensors' shapes: views, no copies.

    Raises: ShapeMismatch when the length is not the model's.
    """
    total = sum(spec.elements for spec in tensors)
    if vector.shape != (total,):
        raise ShapeMismatch(f"a vector of shape {vector.shape}; ({total},) is needed")
    result: dict[str, Vector] = {}
    position = 0
    for spec in tensors:
        result[spec.name] = vector[position : position + spec.elements].reshape(spec.shape)
        position += spec.elements
    return result


def join_tensors(
    tensors: tuple[TensorSpec, ...], arrays: Mapping[str, npt.NDArray[Any]], out: Vector
) -> None:
    """Write arrays, one a tensor, into a flat vector. Finiteness is the caller's to check.

    Args:
        arrays: float32 or float64, exactly the model's names and shapes.
        out: float32 (parameters,).

    Raises: ShapeMismatch naming the tensor.
    """
    parts = split_vector(tensors, out)
    for name in arrays.keys() - parts.keys():
        raise ShapeMismatch(f"the model has no tensor {str(name)[:80]!r}")
    for name, part in parts.items():
        if name not in arrays:
            raise ShapeMismatch(f"tensor {name!r} is missing", tensor=name)
        array = np.asarray(arrays[name])
        if array.dtype not in (np.float32, np.float64):
            raise ShapeMismatch(f"tensor {name!r} is {array.dtype}, not float32", tensor=name)
        if array.shape != part.shape:
            raise ShapeMismatch(
                f"tensor {name!r} has shape {array.shape}, not {part.shape}", tensor=name
            )
        with np.errstate(over="ignore"):  # an overflow to infinity is found by the finite check
            part[...] = array
