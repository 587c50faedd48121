"""Spans of the client, as children of the round's trace; `opentelemetry-api` only.

Without an SDK installed by the application all of this does nothing. Attributes hold sizes and
counts, never values of a delta.
"""

from __future__ import annotations

from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from boltz_protocol.messages import TraceContext

TRACER_NAME: Final = "boltz_client"

Metadata = tuple[tuple[str, str], ...]


def tracer() -> trace.Tracer:
    """The tracer of this library."""
    return trace.get_tracer(TRACER_NAME)


def context_of(remote: TraceContext) -> Context:
    """The context that a peer sent."""
    carrier = {"traceparent": remote.traceparent, "tracestate": remote.tracestate}
    return TraceContextTextMapPropagator().extract(carrier, context=Context())


def call_metadata(context: Context | None = None) -> Metadata:
    """gRPC metadata that carries the current (or a given) trace context."""
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, context=context)
    return tuple(carrier.items())
