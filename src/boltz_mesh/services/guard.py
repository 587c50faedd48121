"""What stands before every method: who calls, may they, are they still welcome, what went wrong.

An aio interceptor sees method and metadata only, so it wraps the handler and reads the peer's
certificate from the call's context. Errors of ours leave as `google.rpc.Status`; any other
exception is a bug, is logged with its trace and leaves as INTERNAL without its text.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from opentelemetry import trace
from opentelemetry.propagate import extract
from opentelemetry.trace import SpanKind, StatusCode, Tracer

from boltz_mesh.services.access import check_access
from boltz_protocol.chunk_wire import parse_chunk
from boltz_protocol.errors import ClientNotActive, MalformedMessage, MeshError, Unauthenticated
from boltz_protocol.names import Peer, Role, parse_peer_uri
from boltz_protocol.status import to_grpc_status

_log: Final = logging.getLogger(__name__)

Handler = Callable[..., Any]
#: Methods whose requests carry chunks.
_BULK: Final = frozenset(
    {"/boltz_mesh.v1.Aggregator/SubmitUpdate", "/boltz_mesh.v1.ModelStore/Publish"}
)
_MAX_DRAINED: Final = 8
_DRAIN_S: Final = 0.05
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
#: Raises ClientNotActive or Unauthenticated where a client may not call now.
CheckClient = Callable[[str], Awaitable[None]]
#: Told of each refusal: method, caller (None where unknown), error.
ObserveRefusal = Callable[[str, Peer | None, MeshError], Awaitable[None]]
#: Stands for bytes that are no message. gRPC parses before it calls us, and would answer UNKNOWN.
_GARBAGE: Final = object()


def caller_of(context: Context, mesh_id: str) -> Peer:
    """Who is at the other end, by its certificate's URI name alone.

    Raises: Unauthenticated where there is no certificate, no single URI name, or another mesh's.
    """
    uris = list((context.auth_context() or {}).get("peer_spiffe_id", ()))
    if len(uris) != 1:
        raise Unauthenticated("the connection has no client certificate with one SPIFFE name")
    try:
        caller = parse_peer_uri(uris[0].decode())
    except (MalformedMessage, UnicodeDecodeError) as error:
        raise Unauthenticated("the client certificate's URI name is not one of a mesh") from error
    if caller.mesh != mesh_id:
        raise Unauthenticated(f"the certificate is for the mesh {caller.mesh!r}, not {mesh_id!r}")
    return caller


class OpenCalls:
    """The calls that each client has open, so that they can be ended when it is shut out."""

    def __init__(self) -> None:
        self._tasks: defaultdict[str, set[asyncio.Task[Any]]] = defaultdict(set)
        self._ended: set[asyncio.Task[Any]] = set()

    def add(self, client_id: str, task: asyncio.Task[Any]) -> None:
        """Remember a call."""
        self._tasks[client_id].add(task)

    def remove(self, client_id: str, task: asyncio.Task[Any]) -> None:
        """Forget a call."""
        self._ended.discard(task)
        self._tasks[client_id].discard(task)
        if not self._tasks[client_id]:
            del self._tasks[client_id]

    def end(self, client_id: str) -> int:
        """End every open call of a client; returns how many."""
        tasks = self._tasks.get(client_id, set()) - self._ended
        for task in tasks:
            self._ended.add(task)
            task.cancel()
        return len(tasks)

    def was_ended(self, task: asyncio.Task[Any]) -> bool:
        """Whether `end` is the reason of this call's cancellation."""
        return task in self._ended

    def clients(self) -> list[str]:
        """Clients with open calls."""
        return list(self._tasks)


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Authentication, authorization, errors and spans around every method of one server.

    Args:
        mesh_id: the only mesh whose certificates count.
        open_to_all: methods that need no certificate (`Enroll`, on its own port).
        check_client: looks up a client's status; called for each call of a client.
        open_calls: where calls of clients are registered.
        observe_refusal: told of each error that leaves.
        tracer: one span a call.
    """

    def __init__(
        self,
        *,
        mesh_id: str,
        open_to_all: frozenset[str],
        check_client: CheckClient,
        open_calls: OpenCalls,
        observe_refusal: ObserveRefusal,
        tracer: Tracer,
    ) -> None:
        self._mesh_id = mesh_id
        self._open_to_all = open_to_all
        self._check_client = check_client
        self._open_calls = open_calls
        self._observe_refusal = observe_refusal
        self._tracer = tracer

    def for_methods(self, open_to_all: frozenset[str]) -> Guard:
        """The same guard for a port where these methods need no certificate."""
        return Guard(
            mesh_id=self._mesh_id,
            open_to_all=open_to_all,
            check_client=self._check_client,
            open_calls=self._open_calls,
            observe_refusal=self._observe_refusal,
            tracer=self._tracer,
        )

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the method's handler."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # gRPC answers UNIMPLEMENTED
        method = str(handler_call_details.method)
        metadata = dict(handler_call_details.invocation_metadata or ())
        kinds = {
            (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
            (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
            (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
            (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
        }
        name, make = kinds[handler.request_streaming, handler.response_streaming]
        inner = getattr(handler, name)
        read = _messages if handler.request_streaming else _message
        wrapped = self._wrap(method, metadata, inner, read)
        return make(
            wrapped,
            request_deserializer=_lenient(handler.request_deserializer, bulk=method in _BULK),
            response_serializer=_prepared(handler.response_serializer),
        )

    def _wrap(
        self, method: str, metadata: dict[str, Any], inner: Handler, read: Callable[[Any], Any]
    ) -> Handler:
        if inspect.isasyncgenfunction(inner):
            # A coroutine that writes, and no generator: when the peer goes away gRPC cancels a
            # coroutine, but leaves a generator to the collector, with all that it holds.
            async def stream(request: Any, context: Context) -> None:
                async with (
                    self._admitted(method, metadata, context, request),
                    aclosing(inner(read(request), context)) as responses,
                ):
                    async for response in responses:
                        await context.write(response)

            return stream

        async def call(request: Any, context: Context) -> Any:
            async with self._admitted(method, metadata, context, request):
                return await inner(read(request), context)

        return call

    @asynccontextmanager
    async def _admitted(
        self, method: str, metadata: dict[str, Any], context: Context, request: Any
    ) -> AsyncIterator[None]:
        caller: Peer | None = None
        task = asyncio.current_task()
        assert task is not None
        with self._tracer.start_as_current_span(
            method.lstrip("/"),
            context=extract(
                {key: value for key, value in metadata.items() if isinstance(value, str)}
            ),
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc"},
            record_exception=False,
            # The abort that carries a refusal would take the place of its reason.
            set_status_on_exception=False,
        ) as span:
            try:
                if method not in self._open_to_all:
                    caller = caller_of(context, self._mesh_id)
                    check_access(method, caller)
                if caller is not None and caller.role is Role.CLIENT:
                    # Registered before the look-up: a revocation in between ends the call.
                    self._open_calls.add(caller.name, task)
                    await self._check_client(caller.name)
                yield
            except MeshError as error:
                if method in _BULK:
                    await _drain(request)
                await self._refuse(method, caller, error, context, span)
            except asyncio.CancelledError:
                if not self._open_calls.was_ended(task):
                    raise
                task.uncancel()
                shut_out = ClientNotActive("this client was shut out while the call was open")
                await self._refuse(method, caller, shut_out, context, span)
            except (grpc.aio.AbortError, grpc.RpcError, GeneratorExit):
                raise  # already on its way out as a status, or the caller went away
            except Exception as error:
                _log.exception("%s failed", method)
                span.record_exception(error)
                internal = MeshError(f"{method} met an internal error; see the server's log")
                await self._refuse(method, caller, internal, context, span)
            finally:
                if caller is not None and caller.role is Role.CLIENT:
                    self._open_calls.remove(caller.name, task)

    async def _refuse(
        self,
        method: str,
        caller: Peer | None,
        error: MeshError,
        context: Context,
        span: trace.Span,
    ) -> None:
        span.set_status(StatusCode.ERROR, error.reason)
        await self._observe_refusal(method, caller, error)
        # grpc-stubs does not know this method.
        await context.abort_with_status(to_grpc_status(error))  # type: ignore[attr-defined]


async def _drain(requests: AsyncIterator[Any]) -> None:
    """Take what a refused caller is sending: grpc.aio tells a caller that is held up in the middle
    of a message of an internal error, and not of the refusal. Bounded in messages and in time.
    """
    with contextlib.suppress(TimeoutError, StopAsyncIteration):
        for _ in range(_MAX_DRAINED):
            await asyncio.wait_for(anext(aiter(requests)), _DRAIN_S)


def _lenient(parse: Callable[[bytes], Any] | None, *, bulk: bool) -> Callable[[bytes], Any] | None:
    """Parse, or give `_GARBAGE`: who calls is checked before anything is said about what came.

    Chunks of `bulk` methods become a WireChunk, without protobuf's copies.
    """
    if parse is None:
        return None

    def parse_or_mark(data: bytes) -> Any:
        try:
            return (parse_chunk(data) if bulk else None) or parse(data)
        except DecodeError:
            return _GARBAGE

    return parse_or_mark


def _prepared(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    """Serialize a response, or send the bytes that a handler made itself (chunks)."""
    if serialize is None:
        return None
    return lambda response: response if isinstance(response, bytes) else serialize(response)


def _message(request: Any) -> Any:
    """The request. Raises: MalformedMessage where its bytes were no message."""
    if request is _GARBAGE:
        raise MalformedMessage("the bytes are not a message of this method's request type")
    return request


async def _messages(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The requests of a stream, each checked as `_message` does."""
    async for request in requests:
        yield _message(request)
