"""gRPC channels to a mesh: mutual TLS under the pinned root, and typed errors from calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar, cast

import grpc
import grpc.aio

from boltz_client.tracing import Metadata
from boltz_protocol import limits
from boltz_protocol.errors import MeshError, Unavailable
from boltz_protocol.status import from_rpc_error

_T = TypeVar("_T")
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_EOF: Final[object] = vars(grpc.aio)["EOF"]

#: gRPC's own reconnection waits, kept in step with ours.
CHANNEL_OPTIONS: Final = (
    ("grpc.max_receive_message_length", limits.MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", limits.MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", limits.KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", limits.KEEPALIVE_TIMEOUT_MS),
    ("grpc.initial_reconnect_backoff_ms", limits.MIN_RECONNECT_WAIT_MS),
    ("grpc.min_reconnect_backoff_ms", limits.MIN_RECONNECT_WAIT_MS),
    ("grpc.max_reconnect_backoff_ms", limits.MAX_RECONNECT_WAIT_MS),
    # Clients of one process have certificates of their own, so nothing could be shared anyway.
    ("grpc.use_local_subchannel_pool", 1),
    # Retries are ours: we know what may be sent again.
    ("grpc.enable_retries", 0),
    # A proxy variable of the environment must not lead a mutual-TLS connection astray.
    ("grpc.enable_http_proxy", 0),
)


def secure_channel(
    address: str, *, root_pem: bytes, key_pem: bytes | None = None, chain_pem: bytes | None = None
) -> grpc.aio.Channel:
    """A channel that trusts one root only; the server's names must cover the address.

    Args:
        address: `host:port`.
        root_pem: the mesh's root.
        key_pem: the client's key and
        chain_pem: its chain; neither on the enrolment port.
    """
    credentials = grpc.ssl_channel_credentials(root_pem, key_pem, chain_pem)
    return grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)


def call_error(error: BaseException) -> MeshError:
    """What an exception of a gRPC call means."""
    if isinstance(error, grpc.RpcError):
        return from_rpc_error(error)
    # grpc.aio raises these when a stream is used after it ended.
    assert isinstance(error, asyncio.InvalidStateError | grpc.aio.UsageError)
    return Unavailable("the connection to the mesh was cut")


#: What a call or stream of grpc.aio raises.
CALL_EXCEPTIONS: Final = (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError)


async def answered(call: Awaitable[_T]) -> _T:
    """Await a unary call. Raises: the typed error that it failed with."""
    try:
        return await call
    except CALL_EXCEPTIONS as error:
        raise call_error(error) from error


class Duplex(Generic[_Request, _Response]):
    """One bidirectional call, with typed errors.

    Args:
        method: a stub's method.
        metadata: for the call.
    """

    __slots__ = ("_call",)

    def __init__(self, method: Callable[..., Any], metadata: Metadata) -> None:
        self._call: Any = method(metadata=metadata)

    async def write(self, request: _Request) -> None:
        """Send one message; waits while the peer takes no more. Raises: as `read`."""
        try:
            await self._call.write(request)
        except CALL_EXCEPTIONS as error:
            raise await self._why(error) from error

    async def read(self) -> _Response | None:
        """The next message; None when the peer has ended the call in order.

        Raises: the typed error that the call ended with; Unavailable when it was cut.
        """
        try:
            response = await self._call.read()
        except CALL_EXCEPTIONS as error:
            raise call_error(error) from error
        if response is _EOF:
            return None
        return cast(_Response, response)

    async def done_writing(self) -> None:
        """Say that nothing more will be sent. Raises: as `read`."""
        try:
            await self._call.done_writing()
        except CALL_EXCEPTIONS as error:
            raise await self._why(error) from error

    def cancel(self) -> None:
        """End the call. What still reads from it is cancelled."""
        self._call.cancel()

    async def _why(self, error: BaseException) -> MeshError:
        # A write to a call that has ended says only that; the call knows why it ended.
        if isinstance(error, asyncio.InvalidStateError) and self._call.done():
            try:
                await self._call.read()
            except CALL_EXCEPTIONS as ending:
                return call_error(ending)
        return call_error(error)


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed later, unchanged."""
    return isinstance(error, Unavailable)


async def send_all(call: Duplex[_Request, _Response], outbox: asyncio.Queue[_Request]) -> None:
    """Write what comes into a queue, for as long as the stream takes it."""
    while True:
        request = await outbox.get()
        try:
            await call.write(request)
        except MeshError:
            # The stream has ended; its reader learns why.
            return
        finally:
            outbox.task_done()
