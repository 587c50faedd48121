"""Typed errors on the wire: `MeshError` <-> `google.rpc.Status` with ErrorInfo and RetryInfo.

The rich status travels in the trailer `grpc-status-details-bin` (gRPC, "Richer error model";
AIP-193 for ErrorInfo). Whatever a peer or the network sends becomes a `MeshError`: an error that
carries our ErrorInfo becomes its own class again; one that does not, the class nearest to its gRPC
code.
"""

from __future__ import annotations

from typing import Final, cast

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from boltz_protocol import limits
from boltz_protocol.errors import (
    ERROR_DOMAIN,
    AlreadyExists,
    LimitExceeded,
    MalformedMessage,
    MeshError,
    NotFound,
    PermissionDenied,
    StateConflict,
    Unauthenticated,
    Unavailable,
    error_from_wire,
)

STATUS_DETAILS_KEY: Final = "grpc-status-details-bin"
_MAX_DETAIL_CHARS: Final = 200
_MAX_RETRY_MS: Final = 24 * 3600 * 1000

_BY_NAME: Final = {code.name: code for code in grpc.StatusCode}
#: What an error without our ErrorInfo is taken for. A deadline or a cancellation by the transport
#: says nothing about the request itself: it may be sent again.
_BY_CODE: Final[dict[grpc.StatusCode, type[MeshError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: MalformedMessage,
    grpc.StatusCode.OUT_OF_RANGE: MalformedMessage,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LimitExceeded,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: StateConflict,
    grpc.StatusCode.ABORTED: StateConflict,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
}
#: How gRPC words a connection that was cut under a call; the code it gives is INTERNAL or UNKNOWN.
#: The last is what grpc.aio says of a write that came just after the peer had ended the call.
_CUT: Final = (
    "rst_stream",
    "stream removed",
    "socket closed",
    "connection reset",
    "goaway",
    "internal error from core",
)


def status_code(error: MeshError) -> grpc.StatusCode:
    """The gRPC code of an error."""
    return _BY_NAME[error.status]


def to_status(error: MeshError) -> Status:
    """An error as `google.rpc.Status`; over-long texts are cut to what fits in trailers."""
    info = ErrorInfo(
        reason=error.reason,
        domain=ERROR_DOMAIN,
        metadata={
            key: value[:_MAX_DETAIL_CHARS]
            for key, value in list(error.metadata.items())[: limits.MAX_ERROR_DETAILS]
        },
    )
    details = [_packed(info)]
    if error.retry_after_ms is not None:
        delay = Duration()
        delay.FromMilliseconds(error.retry_after_ms)
        details.append(_packed(RetryInfo(retry_delay=delay)))
    code: int = status_code(error).value[0]
    return Status(code=code, message=error.message[: limits.MAX_ERROR_CHARS], details=details)


def to_grpc_status(error: MeshError) -> grpc.Status:
    """What `ServicerContext.abort_with_status` takes."""
    status = to_status(error)
    return _GrpcStatus(
        status_code(error), status.message, ((STATUS_DETAILS_KEY, status.SerializeToString()),)
    )


class _GrpcStatus(grpc.Status):
    def __init__(
        self,
        code: grpc.StatusCode,
        details: str,
        trailing_metadata: tuple[tuple[str, bytes], ...],
    ) -> None:
        self.code = code
        self.details = details
        self.trailing_metadata = trailing_metadata


def from_status(status: Status) -> MeshError | None:
    """The typed error in a rich status; None where there is no ErrorInfo of ours in it."""
    info = ErrorInfo()
    retry = RetryInfo()
    retry_after_ms: int | None = None
    found = False
    try:
        for detail in status.details[: limits.MAX_ERROR_DETAILS]:
            if not found and detail.Is(ErrorInfo.DESCRIPTOR):
                detail.Unpack(info)
                found = info.domain == ERROR_DOMAIN
            elif detail.Is(RetryInfo.DESCRIPTOR):
                detail.Unpack(retry)
                delay_ms = retry.retry_delay.ToMilliseconds()
                retry_after_ms = min(max(delay_ms, 0), _MAX_RETRY_MS)
    except DecodeError:
        return None
    if not found:
        return None
    metadata = dict(info.metadata)
    error = error_from_wire(info.reason, status.message, metadata, retry_after_ms)
    if error.reason != info.reason:
        # A newer peer's reason: keep it for programs that look.
        error.metadata["reason"] = info.reason
    return error


def from_rpc_error(error: grpc.RpcError) -> MeshError:
    """What a failed call (`grpc.aio.AioRpcError` or a blocking call's error) means.

    Never raises: bytes that do not parse are passed over and the gRPC code decides.
    """
    code: grpc.StatusCode = error.code()
    text: str = error.details() or code.name
    for item in error.trailing_metadata() or ():
        key, value = cast(tuple[str, str | bytes], item)
        if key == STATUS_DETAILS_KEY and isinstance(value, bytes):
            status = Status()
            try:
                status.ParseFromString(value)
            except DecodeError:
                continue
            typed = from_status(status)
            if typed is not None:
                # Marks an error as a peer's word, not this machine's own finding.
                typed.metadata.setdefault("grpc_code", code.name)
                return typed
    shown = text[: limits.MAX_ERROR_CHARS]
    kind = _BY_CODE.get(code)
    if kind is None:
        lower = text.lower()
        kind = Unavailable if any(words in lower for words in _CUT) else MeshError
    return kind(shown, grpc_code=code.name)


def _packed(message: ErrorInfo | RetryInfo) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed
