"""A real server for tests: real PostgreSQL, mutual TLS on free ports, in this process or its own.

`serving` runs `running_server` here; `MeshProcess` runs `boltz-mesh up`, which can be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import msgspec

from boltz_mesh.app.config import Config
from boltz_mesh.app.server import running_server
from boltz_mesh.services.clock import Clock, system_clock
from boltz_mesh.services.identity.authority import Authority, Credential, Lifetimes
from boltz_mesh.services.identity.authority_files import open_or_create_authority
from boltz_mesh.services.registry import Addresses
from boltz_mesh.storage import security_events
from boltz_mesh.storage.listen import Listener
from boltz_mesh.storage.postgres import Channel, Connection, Database
from boltz_protocol import limits
from boltz_protocol.v1 import aggregator_pb2_grpc, model_store_pb2_grpc, registry_pb2_grpc

COMMAND = Path(sys.executable).with_name("boltz-mesh")
_OPTIONS = (
    ("grpc.max_receive_message_length", limits.MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", 4 * limits.MAX_MESSAGE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a connection proves itself with; nothing at all by default."""

    key_pem: bytes | None = field(default=None, repr=False)
    chain_pem: bytes | None = None

    @classmethod
    def of(cls, credential: Credential) -> Identity:
        return cls(credential.private_key_pem, credential.issued.chain_pem)


class Stubs:
    """One channel and the three services on it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.registry: registry_pb2_grpc.RegistryAsyncStub = registry_pb2_grpc.RegistryStub(channel)
        self.models: model_store_pb2_grpc.ModelStoreAsyncStub = model_store_pb2_grpc.ModelStoreStub(
            channel
        )
        self.aggregator: aggregator_pb2_grpc.AggregatorAsyncStub = (
            aggregator_pb2_grpc.AggregatorStub(channel)
        )


@dataclass(slots=True)
class Mesh:
    """A running mesh and how to reach it; `database` looks into its tables."""

    name: str
    data_dir: Path
    addresses: Addresses
    database: Database
    listener: Listener
    health_port: int | None = None
    _channels: list[grpc.aio.Channel] = field(default_factory=list)
    _operator: Stubs | None = None

    @property
    def operator_folder(self) -> Path:
        return self.data_dir / "operator"

    @property
    def root_pem(self) -> bytes:
        return (self.operator_folder / "root.pem").read_bytes()

    def authority(self, lifetimes: Lifetimes | None = None) -> Authority:
        """The mesh's own authority, for certificates of every kind."""
        opened = open_or_create_authority(
            self.data_dir / "authority", mesh=self.name, now=datetime.now(UTC)
        )
        if lifetimes is None:
            return opened
        return with_lifetimes(opened, lifetimes)

    def connect(self, identity: Identity, *, address: str | None = None) -> Stubs:
        """A channel of its own, closed with the mesh."""
        channel = grpc.aio.secure_channel(
            address or self.addresses.mesh,
            grpc.ssl_channel_credentials(self.root_pem, identity.key_pem, identity.chain_pem),
            options=_OPTIONS,
        )
        self._channels.append(channel)
        return Stubs(channel)

    @property
    def operator(self) -> Stubs:
        """The first operator's connection."""
        if self._operator is None:
            folder = self.operator_folder
            self._operator = self.connect(
                Identity((folder / "key.pem").read_bytes(), (folder / "chain.pem").read_bytes())
            )
        return self._operator

    @property
    def enrolment(self) -> Stubs:
        """The port that asks for no certificate."""
        return self.connect(Identity(), address=self.addresses.enroll)

    async def refusals(self) -> dict[tuple[str, str], int]:
        """(method without its package, reason) -> how often it was refused."""

        async def body(connection: Connection) -> list[security_events.RefusalCount]:
            return await security_events.list_refusals(connection)

        counts = await self.database.read("refusals", body)
        return {(row.method.rpartition(".")[2], row.reason): row.count for row in counts}

    async def fetch(self, sql: str, *arguments: object) -> list[Mapping[str, Any]]:
        """Rows of a query of a test's own."""

        async def body(connection: Connection) -> list[Mapping[str, Any]]:
            return [dict(row) for row in await connection.fetch(sql, *arguments)]

        return await self.database.read("test_fetch", body)

    async def wait(self, channel: Channel, condition: Callable[[], Awaitable[bool]]) -> None:
        """Until a condition on the tables holds, looked at anew at each notification."""
        async with asyncio.timeout(30):
            with self.listener.subscribe(channel) as wakeups:
                async for _ in wakeups:
                    if await condition():
                        return

    async def close_channels(self) -> None:
        for channel in self._channels:
            await channel.close(None)
        self._channels.clear()
        self._operator = None


def with_lifetimes(
    authority: Authority, lifetimes: Lifetimes, mesh: str | None = None
) -> Authority:
    """The same keys under other rules, or for a mesh of another name."""
    return Authority(
        mesh=mesh or authority.mesh,
        key=authority._key,
        chain=[authority.root],
        now=datetime.now(UTC),
        lifetimes=lifetimes,
    )


def expired(authority: Authority) -> tuple[Authority, datetime]:
    """An authority and a moment; what it issues then has ended by now."""
    # The root itself is only as old as its backdate, so certificates live for milliseconds.
    brief = timedelta(seconds=1)
    moment = datetime.now(UTC) - timedelta(minutes=2)
    lifetimes = Lifetimes(client=brief, operator=brief, server=brief, statement=brief)
    return with_lifetimes(authority, lifetimes), moment


def configuration(folder: Path, database_url: str, **sections: Mapping[str, object]) -> Config:
    """Free ports on the loopback, everything else as `sections` say."""
    tree: dict[str, dict[str, object]] = {
        "mesh": {"data_dir": str(folder)},
        "listen": {"port": 0, "enroll_port": 0, "health_port": 0},
        "database": {"url": database_url},
    }
    for section, values in sections.items():
        tree.setdefault(section, {}).update(values)
    return msgspec.convert(tree, Config)


@contextlib.asynccontextmanager
async def observed(database_url: str) -> AsyncIterator[tuple[Database, Listener]]:
    """A look into a mesh's tables, and its notifications, from outside."""
    async with (
        await Database.open(database_url) as database,
        await Listener.open(database_url, replica_id="test-observer") as listener,
    ):
        yield database, listener


@contextlib.asynccontextmanager
async def serving(
    folder: Path,
    database_url: str,
    clock: Clock = system_clock,
    **sections: Mapping[str, object],
) -> AsyncIterator[Mesh]:
    """A server in this process. It must not have failed when the test is over."""
    config = configuration(folder, database_url, **sections)
    async with running_server(config, clock) as server, observed(database_url) as (own, listener):
        mesh = Mesh(server.mesh_id, folder, server.addresses, own, listener, server.health_port)
        failed = asyncio.ensure_future(server.failed)
        try:
            yield mesh
            if failed.done():
                failed.result()
        finally:
            failed.cancel()
            await mesh.close_channels()


class MeshProcess:
    """`boltz-mesh up` in a process of its own, on the same folder each time it is started."""

    def __init__(
        self, folder: Path, database_url: str | None, *arguments: str, port: int = 0
    ) -> None:
        self.folder = folder
        self._url = database_url
        self._arguments = arguments
        self._port = port
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self.output: list[str] = []

    async def start(self) -> tuple[Addresses, int]:
        """Start it and wait until it says `ready`. Returns its addresses and the health port."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MESH_")}
        environment.pop("DATABASE_URL", None)
        if self._url is not None:
            environment["DATABASE_URL"] = self._url
        self._process = process = await asyncio.create_subprocess_exec(
            COMMAND,
            "up",
            *("--data-dir", str(self.folder)),
            *("--port", str(self._port), "--enroll-port", "0"),
            *("--health-port", "0"),
            *self._arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
        )
        assert process.stdout is not None
        self.output = []
        async with asyncio.timeout(60):
            async for raw in process.stdout:
                line = raw.decode().rstrip()
                self.output.append(line)
                if line == "ready":
                    break
            else:
                raise AssertionError("the server ended:\n" + "\n".join(self.output))
        self._reading = asyncio.create_task(self._read(process.stdout))
        text = "\n".join(self.output)
        found = [
            re.search(rf"{label}\s+(\S+)", text) for label in ("listening", "enrolment", "health")
        ]
        main, enroll, health = (match.group(1) for match in found if match)
        return Addresses(enroll=enroll, mesh=main), int(health)

    async def _read(self, stdout: asyncio.StreamReader) -> None:
        async for raw in stdout:
            self.output.append(raw.decode().rstrip())

    async def end(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end. Returns the exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        code = await self._process.wait()
        if self._reading is not None:
            await self._reading
        self._process = self._reading = None
        return code

    async def kill(self) -> None:
        """As a crash of the machine's process: nothing is written, nobody is told."""
        assert await self.end(signal.SIGKILL) == -signal.SIGKILL

    async def close(self) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.kill()


@contextlib.asynccontextmanager
async def opened(
    process: MeshProcess, database: Database, listener: Listener
) -> AsyncIterator[Mesh]:
    """Start a process and reach it; the process goes on when the context ends."""
    addresses, health_port = await process.start()
    mesh = Mesh("boltz", process.folder, addresses, database, listener, health_port)
    try:
        yield mesh
    finally:
        await mesh.close_channels()
