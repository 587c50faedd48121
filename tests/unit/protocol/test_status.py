"""Typed errors survive the wire; whatever else comes becomes the nearest typed error."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.status_pb2 import Status

from boltz_protocol import errors, limits
from boltz_protocol.status import (
    STATUS_DETAILS_KEY,
    from_rpc_error,
    from_status,
    status_code,
    to_grpc_status,
    to_status,
)


def _all(root: type[errors.MeshError]) -> list[type[errors.MeshError]]:
    return [root, *(leaf for sub in root.__subclasses__() for leaf in _all(sub))]


def _rpc_error(
    code: grpc.StatusCode, details: str | None, trailers: tuple[tuple[str, bytes | str], ...] = ()
) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details, None
    )


@pytest.mark.parametrize("kind", _all(errors.MeshError), ids=lambda kind: kind.__name__)
def test_every_error_comes_back_as_itself(kind: type[errors.MeshError]) -> None:
    sent = kind("what happened", retry_after_ms=1500, committed_bytes=7)
    status = to_grpc_status(sent)
    got = from_rpc_error(_rpc_error(status.code, status.details, tuple(status.trailing_metadata)))
    assert type(got) is kind
    assert got.message == "what happened"
    assert got.retry_after_ms == 1500
    assert got.metadata == {"committed_bytes": "7", "grpc_code": status_code(sent).name}


def test_no_retry_info_where_there_is_none() -> None:
    got = from_status(to_status(errors.NotFound("x")))
    assert isinstance(got, errors.NotFound)
    assert got.retry_after_ms is None


def test_long_texts_are_cut_to_fit_trailers() -> None:
    error = errors.NotFound("x" * 5000)
    error.metadata = {f"k{i}": "v" * 5000 for i in range(20)}
    status = to_status(error)
    assert len(status.message) == limits.MAX_ERROR_CHARS
    assert len(status.SerializeToString()) < 8 << 10


def test_a_reason_of_a_newer_peer_is_kept() -> None:
    status = to_status(errors.NotFound("x"))
    detail = status.details[0]
    detail.value = detail.value.replace(b"NOT_FOUND", b"NEW_THING")
    got = from_status(status)
    assert type(got) is errors.MeshError
    assert got.metadata["reason"] == "NEW_THING"


def test_a_foreign_domain_is_not_ours() -> None:
    status = to_status(errors.NotFound("x"))
    status.details[0].value = status.details[0].value.replace(b"boltz-mesh", b"other-mesh")
    assert from_status(status) is None


def test_an_absurd_retry_delay_is_capped() -> None:
    got = from_status(to_status(errors.Unavailable("x", retry_after_ms=10**12)))
    assert got is not None
    assert got.retry_after_ms == 24 * 3600 * 1000
    got = from_status(to_status(errors.Unavailable("x", retry_after_ms=-5)))
    assert got is not None
    assert got.retry_after_ms == 0


@pytest.mark.parametrize(
    "trailer",
    [
        b"\xff\xff",
        Status(
            details=[AnyMessage(type_url="t/google.rpc.ErrorInfo", value=b"\xff")]
        ).SerializeToString(),
        Status().SerializeToString(),
        "text",
    ],
)
def test_trailers_that_do_not_parse_are_passed_over(trailer: bytes | str) -> None:
    error = _rpc_error(
        grpc.StatusCode.NOT_FOUND, "gone", (("x", "y"), (STATUS_DETAILS_KEY, trailer))
    )
    assert isinstance(from_rpc_error(error), errors.NotFound)


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, "failed to connect", errors.Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "late", errors.Unavailable),
        (grpc.StatusCode.CANCELLED, "", errors.Unavailable),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2", errors.Unavailable),
        (grpc.StatusCode.UNKNOWN, "Stream removed", errors.Unavailable),
        (grpc.StatusCode.INTERNAL, "a bug", errors.MeshError),
        (grpc.StatusCode.UNIMPLEMENTED, None, errors.MeshError),
        (grpc.StatusCode.UNAUTHENTICATED, "", errors.Unauthenticated),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "too large", errors.LimitExceeded),
        (grpc.StatusCode.ABORTED, "", errors.StateConflict),
    ],
)
def test_errors_without_details_go_by_their_code(
    code: grpc.StatusCode, details: str | None, kind: type[errors.MeshError]
) -> None:
    got = from_rpc_error(_rpc_error(code, details))
    assert type(got) is kind
    assert got.message
    assert got.metadata["grpc_code"] == code.name
