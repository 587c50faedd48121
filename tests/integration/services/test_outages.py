"""The database goes away for a moment; the server stops and comes back."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import asyncpg
import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from boltz_mesh.app.server import running_server
from boltz_protocol.errors import ConfigurationError, Unavailable
from boltz_protocol.v1 import registry_pb2 as reg
from tests.integration.services.playing import all_in
from tests.support.calls import answered, refused
from tests.support.clients import RawClient, client_key, published, seal, start_round, submit
from tests.support.mesh import Mesh, MeshProcess, configuration, observed, opened, serving
from tests.support.models import declare


async def end_sessions(database_url: str) -> int:
    """End every session of the database but ours, as a restart of PostgreSQL does."""
    connection = await asyncpg.connect(database_url)
    try:
        return len(
            await connection.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    finally:
        await connection.close()


async def until_served(mesh: Mesh) -> None:
    """Sessions of the pool that were idle may still have to be found dead, one call each."""
    for _ in range(50):
        try:
            await answered(mesh.operator.registry.ListClients(reg.ListClientsRequest()))
        except Unavailable:
            continue
        return
    raise AssertionError("the mesh did not recover")


async def test_all_sessions_of_the_database_end(database_url: str, tmp_path: Path) -> None:
    async with serving(tmp_path / "data", database_url) as mesh:
        await declare(mesh, "model")
        clients = [await RawClient.enrol(mesh, client_key(number)) for number in range(3)]
        streams = await all_in(clients, "model")
        for when in ("idle", "collecting"):
            if when == "idle":
                assert await end_sessions(database_url) > 3
                await until_served(mesh)
            started = await start_round(mesh, "model")
            offers = [await stream.offer() for stream in streams]
            if when == "collecting":
                await end_sessions(database_url)
                await until_served(mesh)
            for client, offer in zip(clients, offers, strict=True):
                update = seal(offer, np.full(8, 0.1, np.float32))
                await patiently_submitted(client, update)
            await published(mesh, started.round_id)
            for stream in streams:
                assert (await stream.outcome()).counted


async def patiently_submitted(client: RawClient, update: object) -> None:
    for _ in range(20):
        try:
            await submit(client, update)  # type: ignore[arg-type]
        except Unavailable:
            continue
        return
    raise AssertionError("the upload did not get through")


async def test_a_stopping_server_says_so(database_url: str, tmp_path: Path) -> None:
    async with serving(tmp_path / "data", database_url) as mesh:
        await declare(mesh, "model")
        client = await RawClient.enrol(mesh, client_key(0))
        stream = await client.participate("model")
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{mesh.health_port}")
        states: list[int] = []

        async def watch() -> None:
            stub = health_pb2_grpc.HealthStub(channel)
            async for answer in stub.Watch(health_pb2.HealthCheckRequest()):
                states.append(answer.status)

        watching = asyncio.create_task(watch())
        ending = asyncio.create_task(stream.next())
        stub = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == 1
        # `serving` closes the channels last, so the stream hears of the stop.
        mesh._channels.clear()
    with refused(Unavailable) as caught:
        await ending
    assert caught.error.retry_after_ms == 1000
    await asyncio.gather(watching, return_exceptions=True)
    assert states[-1] == health_pb2.HealthCheckResponse.NOT_SERVING
    await channel.close(None)


async def test_a_port_that_is_taken(database_url: str, tmp_path: Path) -> None:
    async with serving(tmp_path / "data", database_url) as mesh:
        port = int(mesh.addresses.mesh.rpartition(":")[2])
        config = configuration(tmp_path / "data", database_url, listen={"port": port})
        with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{port}"):
            async with running_server(config):
                raise AssertionError("two servers on one port")


async def test_the_wrong_key_file(database_url: str, tmp_path: Path) -> None:
    """Keys at rest are wrapped by a key in a file: without it the server does not start."""
    async with serving(tmp_path / "data", database_url):
        pass
    (tmp_path / "data" / "keys" / "kek.json").unlink()
    with pytest.raises(ConfigurationError, match=r"kek\.json"):
        async with serving(tmp_path / "data", database_url):
            raise AssertionError("started without its key")


async def test_up_and_down_and_up(database_url: str, tmp_path: Path) -> None:
    """An operator's Ctrl-C is a clean end; what was is there again, at another address."""
    process = MeshProcess(tmp_path / "data", database_url)
    async with observed(database_url) as (database, listener):
        try:
            async with opened(process, database, listener) as mesh:
                await declare(mesh, "model")
                client = await RawClient.enrol(mesh, client_key(0))
                first = mesh.addresses
            assert await process.end(signal.SIGINT) == 0
            assert process.output[-1] == "stopped"
            assert not [line for line in process.output if "Traceback" in line]
            async with opened(process, database, listener) as mesh:
                assert mesh.addresses != first
                mine = reg.GetClientRequest(client_id=client.client_id)
                again = client.on(mesh)
                assert (await answered(again.stubs.registry.GetClient(mine))).client.region
            assert await process.end(signal.SIGTERM) == 0
        finally:
            await process.close()
