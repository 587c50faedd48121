"""Model files: canonical bytes, strict reading, and agreement with the safetensors library."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_protocol import limits
from boltz_protocol.errors import (
    LimitExceeded,
    MalformedMessage,
    MeshError,
    NotFinite,
    ShapeMismatch,
)
from boltz_protocol.messages import TensorSpec
from boltz_protocol.model_file import (
    Vector,
    canonical_layout,
    check_finite,
    check_vector,
    encode_model,
    file_parts,
    join_tensors,
    read_vector,
    split_vector,
    tensor_at,
)

TENSORS = (TensorSpec("w", (3, 4)), TensorSpec("b", ()), TensorSpec("a é", (2,)))


def _vector(size: int = 15) -> Vector:
    return np.arange(size, dtype=np.float32) - 4


def _file(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


GOOD = {"w": _entry([3, 4], 0, 48), "b": _entry([], 48, 52), "a é": _entry([2], 52, 60)}
DATA = _vector().tobytes()

tensor_lists = st.lists(
    st.tuples(
        st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=9),
        st.lists(st.integers(1, 4), max_size=3),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda pair: pair[0],
).map(lambda pairs: tuple(TensorSpec(name, tuple(shape)) for name, shape in pairs))


@settings(deadline=None)
@given(tensor_lists)
def test_what_is_written_reads_back_here_and_in_safetensors(
    tensors: tuple[TensorSpec, ...],
) -> None:
    layout = canonical_layout(tensors)
    vector = _vector(layout.coordinates)
    content = encode_model(tensors, vector)
    assert len(content) == layout.size_bytes
    assert layout.data_offset % 8 == 0
    np.testing.assert_array_equal(read_vector(content, tensors), vector)
    theirs = safetensors.numpy.load(content)
    ours = split_vector(tensors, vector)
    assert theirs.keys() == ours.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(theirs[name], array)
        assert theirs[name].shape == array.shape


@settings(deadline=None)
@given(tensor_lists, st.booleans())
def test_what_safetensors_writes_reads_here(
    tensors: tuple[TensorSpec, ...], with_metadata: bool
) -> None:
    vector = _vector(sum(spec.elements for spec in tensors))
    metadata = {"format": "pt"} if with_metadata else None
    content = safetensors.numpy.save(split_vector(tensors, vector), metadata)
    np.testing.assert_array_equal(read_vector(content, tensors), vector)


def test_a_canonical_file_is_read_without_a_copy_and_cannot_be_written_to() -> None:
    content = bytearray(encode_model(TENSORS, _vector()))
    vector = read_vector(content, TENSORS)
    assert np.shares_memory(vector, np.frombuffer(content, dtype=np.uint8))
    assert not vector.flags.writeable
    assert not read_vector(_file(GOOD, DATA), TENSORS).flags.writeable


def test_coordinates_lie_at_known_offsets() -> None:
    layout = canonical_layout(TENSORS)
    content = encode_model(TENSORS, _vector())
    for k in range(15):
        at = layout.offset_of(k)
        assert np.frombuffer(content[at : at + 4], "<f4")[0] == k - 4
    assert layout.offset_of(15) == layout.size_bytes


def test_large_files_come_in_pieces() -> None:
    tensors = (TensorSpec("w", (700_000,)),)
    parts = list(file_parts(canonical_layout(tensors), np.zeros(700_000, dtype=np.float32)))
    assert max(map(len, parts)) == limits.MODEL_CHUNK_BYTES
    assert b"".join(parts) == encode_model(tensors, np.zeros(700_000, dtype=np.float32))


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", MalformedMessage),
        (b"\1\0\0\0\0\0\0", MalformedMessage),
        ((1 << 40).to_bytes(8, "little"), LimitExceeded),
        ((100).to_bytes(8, "little") + b"{}", MalformedMessage),
        (_file(b"{", DATA), MalformedMessage),
        (_file(b"[" * 5000, DATA), MalformedMessage),
        (_file([], DATA), MalformedMessage),
        (_file(GOOD, DATA + b"\0"), MalformedMessage),
        (_file(GOOD, DATA[:-1]), MalformedMessage),
        (_file({"w": GOOD["w"], "b": GOOD["b"]}, DATA[:52]), ShapeMismatch),
        (_file(GOOD | {"more": _entry([1], 60, 64)}, DATA + bytes(4)), ShapeMismatch),
        (_file(GOOD | {"w": _entry([4, 3], 0, 48)}, DATA), ShapeMismatch),
        (_file(GOOD | {"w": _entry([3, 4], 0, 48, "F64")}, DATA), ShapeMismatch),
        (_file(GOOD | {"w": _entry([3, 4], 0, 44)}, DATA), MalformedMessage),
        (_file(GOOD | {"w": _entry([3, 4], -48, 0)}, DATA), MalformedMessage),
        (_file(GOOD | {"b": _entry([], 44, 48)}, DATA), MalformedMessage),
        (_file(GOOD | {"b": _entry([], 60, 64)}, DATA), MalformedMessage),
        (_file(GOOD | {"b": {"dtype": "F32"}}, DATA), MalformedMessage),
        (_file(GOOD | {"b": _entry([], 48, 52) | {"x": 1}}, DATA), MalformedMessage),
        (
            _file(
                GOOD | {"a é": {"dtype": "F32", "shape": [True], "data_offsets": [52, 60]}}, DATA
            ),
            MalformedMessage,
        ),
        (_file(b'{"w":{},"w":{}}', DATA), MalformedMessage),
        (_file({str(i): {} for i in range(limits.MAX_TENSORS + 1)}, b""), LimitExceeded),
    ],
)
def test_files_that_are_not_this_model_are_refused(content: bytes, error: type[MeshError]) -> None:
    with pytest.raises(error):
        read_vector(content, TENSORS)


@settings(deadline=None)
@given(st.data())
def test_damaged_files_raise_typed_errors_only(data: st.DataObject) -> None:
    content = bytearray(_file(GOOD, DATA))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MeshError):
        read_vector(content, TENSORS)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_named(bad: float) -> None:
    vector = _vector()
    vector[13] = bad
    with pytest.raises(NotFinite, match=r"coordinate 13.*a é"):
        check_vector(canonical_layout(TENSORS), vector)
    with pytest.raises(NotFinite):
        read_vector(_file(GOOD, vector.tobytes()), TENSORS)


def test_large_finite_numbers_pass() -> None:
    check_finite(TENSORS, np.full(15, 3e38, dtype=np.float32))


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(15, dtype=np.float64),
        np.zeros(14, dtype=np.float32),
        np.zeros((15, 1), dtype=np.float32),
        np.zeros(30, dtype=np.float32)[::2],
    ],
)
def test_other_vectors_are_not_written(vector: Vector) -> None:
    with pytest.raises(ShapeMismatch):
        encode_model(TENSORS, vector)


def test_headers_are_capped() -> None:
    tensors = tuple(TensorSpec(f"{i:04}" + "\U0001f4c8" * 190, ()) for i in range(4096))
    assert len(canonical_layout(tensors).header) < limits.MAX_MODEL_HEADER_BYTES


def test_join_is_the_inverse_of_split() -> None:
    out = np.empty(15, dtype=np.float32)
    join_tensors(TENSORS, split_vector(TENSORS, _vector()), out)
    np.testing.assert_array_equal(out, _vector())
    assert tensor_at(TENSORS, 12) == "b"
    assert tensor_at(TENSORS, 15) == ""


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"w": np.zeros((4, 3))}, "shape"),
        ({"w": np.zeros((3, 4), dtype=np.int64)}, "int64"),
        ({"x": np.zeros(1)}, "no tensor 'x'"),
    ],
)
def test_arrays_that_do_not_fit_are_named(change: dict[str, Vector], match: str) -> None:
    arrays = split_vector(TENSORS, _vector()) | change
    with pytest.raises(ShapeMismatch, match=match):
        join_tensors(TENSORS, arrays, np.empty(15, dtype=np.float32))


def test_a_missing_array_is_named() -> None:
    arrays = split_vector(TENSORS, _vector())
    del arrays["b"]
    with pytest.raises(ShapeMismatch, match="'b' is missing"):
        join_tensors(TENSORS, arrays, np.empty(15, dtype=np.float32))
    with pytest.raises(ShapeMismatch):
        split_vector(TENSORS, _vector(14))
