"""OpenTelemetry over real OTLP: one trace a round, and errors that show as such."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest_asyncio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from boltz_protocol import codec
from boltz_protocol.errors import NotFound, PermissionDenied
from boltz_protocol.ids import new_round_id
from boltz_protocol.v1 import aggregator_pb2 as agg
from boltz_protocol.v1 import registry_pb2 as reg
from tests.integration.services.playing import all_in
from tests.support.calls import answered, refused
from tests.support.clients import (
    RawClient,
    aborted,
    client_key,
    published,
    seal,
    submit,
)
from tests.support.mesh import Mesh, serving
from tests.support.models import declare

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
METADATA = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.resources: list[dict[str, str]] = []
        self.spans: list[Span] = []

    def Export(self, request: otlp.ExportTraceServiceRequest, context: Any) -> Any:  # noqa: N802
        for part in request.resource_spans:
            attributes = part.resource.attributes
            self.resources.append({item.key: item.value.string_value for item in attributes})
            self.spans.extend(span for scope in part.scope_spans for span in scope.spans)
        return otlp.ExportTraceServiceResponse()

    def of_trace(self) -> dict[str, Span]:
        """The spans of our trace, by name."""
        return {span.name: span for span in self.spans if span.trace_id.hex() == TRACE}


@contextmanager
def collecting_traces() -> Iterator[tuple[Collector, int]]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    add(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, port
    finally:
        server.stop(None).wait()


@pytest_asyncio.fixture
async def collector() -> AsyncIterator[tuple[Collector, int]]:
    with collecting_traces() as running:
        yield running


async def start_traced(mesh: Mesh) -> agg.Round:
    request = agg.StartRoundRequest(model_id="model")
    call = mesh.operator.aggregator.StartRound(request, metadata=METADATA)
    return (await answered(call)).round


async def test_a_round_is_one_trace(
    database_url: str, tmp_path: Path, collector: tuple[Collector, int]
) -> None:
    seen, port = collector
    telemetry = {"otlp_endpoint": f"127.0.0.1:{port}", "otlp_insecure": True}
    async with serving(tmp_path / "data", database_url, telemetry=telemetry) as mesh:
        await declare(mesh, "model")
        clients = [await RawClient.enrol(mesh, client_key(number)) for number in range(3)]
        streams = await all_in(clients, "model")
        started = await start_traced(mesh)
        assert started.trace.traceparent.split("-")[1] == TRACE
        for client, stream in zip(clients, streams, strict=True):
            offer = await stream.offer()
            # The client learns the trace from its offer, and goes on in it.
            assert offer.message.trace.traceparent.split("-")[1] == TRACE
            await submit(client, seal(offer, np.full(8, 0.1, np.float32)))
        await published(mesh, started.round_id)
        for stream in streams:
            await stream.outcome()
            stream.cancel()
    # The server has stopped, so everything was exported.
    spans = seen.of_trace()
    start = spans["boltz_mesh.v1.Aggregator/StartRound"]
    assert start.parent_span_id.hex() == PARENT
    names = {
        "boltz.round.select",
        "boltz.round.configure",
        "boltz.round.collect",
        "boltz.round.aggregate",
        "boltz.round.fold",
        "boltz.round.release",
        "boltz.round.publish",
    }
    assert names <= set(spans)
    for name in names:
        assert spans[name].status.code != Status.STATUS_CODE_ERROR, name
    parents = {
        "boltz.round.fold": "boltz.round.aggregate",
        "boltz.round.publish": "boltz.round.release",
    }
    for name in names:
        parent = spans[parents[name]] if name in parents else None
        if parent is not None:
            assert spans[name].parent_span_id == parent.span_id
        assert spans[name].end_time_unix_nano >= spans[name].start_time_unix_nano
    order = ["select", "collect", "aggregate", "release"]
    starts = [spans[f"boltz.round.{phase}"].start_time_unix_nano for phase in order]
    assert starts == sorted(starts)
    resource = seen.resources[0]
    assert resource["service.name"] == "boltz-mesh"
    assert resource["service.instance.id"] == "replica-1"


async def test_errors_are_errors_in_the_trace(
    database_url: str, tmp_path: Path, collector: tuple[Collector, int]
) -> None:
    seen, port = collector
    telemetry = {"otlp_endpoint": f"127.0.0.1:{port}", "otlp_insecure": True}
    async with serving(tmp_path / "data", database_url, telemetry=telemetry) as mesh:
        await declare(mesh, "model", selecting="200ms")
        client = await RawClient.enrol(mesh, client_key(0))
        with refused(NotFound):
            request = agg.GetRoundRequest(round_id=new_round_id())
            await answered(mesh.operator.aggregator.GetRound(request, metadata=METADATA))
        with refused(PermissionDenied):
            everybody = reg.ListClientsRequest()
            await answered(client.stubs.registry.ListClients(everybody, metadata=METADATA))
        started = await start_traced(mesh)
        ended = await aborted(mesh, started.round_id)
    spans = seen.of_trace()
    for name, reason in (
        ("boltz_mesh.v1.Aggregator/GetRound", "NOT_FOUND"),
        ("boltz_mesh.v1.Registry/ListClients", "PERMISSION_DENIED"),
        ("boltz.round.select", ended.reason),
    ):
        status = spans[name].status
        assert (status.code, status.message) == (Status.STATUS_CODE_ERROR, reason), name
    fine = spans["boltz_mesh.v1.Aggregator/StartRound"].status.code
    assert fine != Status.STATUS_CODE_ERROR


async def test_a_collector_that_is_down_holds_nobody_up(database_url: str, tmp_path: Path) -> None:
    telemetry = {"otlp_endpoint": "127.0.0.1:9", "otlp_insecure": True}
    async with serving(tmp_path / "data", database_url, telemetry=telemetry) as mesh:
        await declare(mesh, "model")
        keys = await answered(mesh.operator.registry.GetServerKeys(reg.GetServerKeysRequest()))
        statement = codec.statement_from_proto(keys.encryption_keys[-1])
        assert codec.parse_encryption_key(statement.payload).mesh_id == mesh.name
