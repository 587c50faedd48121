"""Chunks on the wire: the same bytes as protobuf's, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boltz_protocol.chunk_wire import encode_chunk, parse_chunk
from boltz_protocol.v1 import aggregator_pb2, model_store_pb2

OFFSETS = st.one_of(st.integers(0, (1 << 64) - 1), st.sampled_from([0, 127, 128, 16383, 16384]))


def as_protobuf(offset: int, data: bytes) -> list[bytes]:
    return [
        aggregator_pb2.SubmitUpdateRequest(
            chunk=aggregator_pb2.UpdateChunk(offset=offset, data=data)
        ).SerializeToString(),
        model_store_pb2.PullResponse(
            chunk=model_store_pb2.ModelChunk(offset=offset, data=data)
        ).SerializeToString(),
        model_store_pb2.PublishRequest(
            chunk=model_store_pb2.ModelChunk(offset=offset, data=data)
        ).SerializeToString(),
    ]


@given(OFFSETS, st.binary(max_size=300))
def test_encoded_as_protobuf_would(offset: int, data: bytes) -> None:
    assert {encode_chunk(offset, memoryview(data))} == set(as_protobuf(offset, data))


@given(OFFSETS, st.binary(min_size=1, max_size=300))
def test_read_back(offset: int, data: bytes) -> None:
    chunk = parse_chunk(encode_chunk(offset, data))
    assert chunk is not None
    assert (chunk.offset, bytes(chunk.data)) == (offset, data)


@given(st.binary(max_size=60))
def test_never_differs_from_protobuf(message: bytes) -> None:
    chunk = parse_chunk(message)
    if chunk is not None:
        parsed = aggregator_pb2.SubmitUpdateRequest.FromString(message)
        assert parsed.WhichOneof("message") == "chunk"
        assert (parsed.chunk.offset, parsed.chunk.data) == (chunk.offset, bytes(chunk.data))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x0a\x00",  # field 1
        b"\x12\x00",  # a chunk without data
        b"\x12\x05\x12\x02ab",  # an outer length beyond the end
        b"\x12\x04\x12\x03ab",  # an inner length beyond the end
        b"\x12\x04\x12\x01ab",  # bytes behind the data
        b"\x12\x07\x12\x01a\x08\x05\x08\x06",  # the offset behind the data
        b"\x12\x0d\x08" + b"\xff" * 9 + b"\x02\x12\x00",  # a varint of more than 64 bits
        b"\x12" + b"\x80" * 10,  # a varint that does not end
    ],
)
def test_other_forms_are_left_to_protobuf(message: bytes) -> None:
    assert parse_chunk(message) is None
