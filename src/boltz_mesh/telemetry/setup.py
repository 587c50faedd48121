"""One tracer provider for a server, made by the composition root and shut down with it."""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NoOpTracerProvider
from opentelemetry.trace import TracerProvider as AnyTracerProvider

from boltz_protocol.errors import ConfigurationError


def make_tracer_provider(
    *, service_name: str, replica: str, otlp_endpoint: str, insecure: bool
) -> AnyTracerProvider:
    """A provider that exports to `otlp_endpoint` (`host:port`), or one that records nothing.

    The exporter's queue is bounded (2048 spans) and drops when it is full: telemetry that cannot
    be delivered must never hold up a round.

    Raises: ConfigurationError for an endpoint that is not `host:port`.
    """
    if not otlp_endpoint:
        return NoOpTracerProvider()
    if ":" not in otlp_endpoint.removeprefix("http://").removeprefix("https://"):
        raise ConfigurationError(
            f"telemetry.otlp_endpoint {otlp_endpoint!r} has no port; localhost:4317 would do"
        )
    resource = Resource.create({"service.name": service_name, "service.instance.id": replica})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=otlp_endpoint, insecure=insecure))
    )
    return provider
