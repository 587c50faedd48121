"""The composition root: the one place where the parts of a server are put together."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import _async as aio_health
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from boltz_mesh.app.config import Config
from boltz_mesh.app.credentials import move_credential, open_authority, write_credential
from boltz_mesh.app.embedded_postgres import EmbeddedPostgres
from boltz_mesh.app.tls import ServerTls
from boltz_mesh.app.validation import read_validation
from boltz_mesh.coordinator.driver import coordinate
from boltz_mesh.coordinator.parts import Parts
from boltz_mesh.rounds.plan_policy import privacy_policy
from boltz_mesh.services.aggregator import AggregatorService
from boltz_mesh.services.attempts import Attempts
from boltz_mesh.services.clock import Clock, as_datetime, system_clock
from boltz_mesh.services.guard import Guard, OpenCalls
from boltz_mesh.services.identity.authority import Authority
from boltz_mesh.services.keyring import KeyRing, open_or_create_kek
from boltz_mesh.services.ledger_checks import LedgerChecks
from boltz_mesh.services.membership import Membership
from boltz_mesh.services.model_store import ModelStoreService
from boltz_mesh.services.participation import Participation
from boltz_mesh.services.plans import Plans
from boltz_mesh.services.privacy import PrivacyBudgets
from boltz_mesh.services.pushes import Pushes
from boltz_mesh.services.refusals import Refusals
from boltz_mesh.services.registry import Addresses, RegistryService
from boltz_mesh.services.rounds import Rounds
from boltz_mesh.services.sealed_inbox import SealedInbox
from boltz_mesh.services.sealed_notices import SealedNotices
from boltz_mesh.services.subscriptions import Subscriptions
from boltz_mesh.services.trust import ClientTrusts
from boltz_mesh.services.uploads import Uploads
from boltz_mesh.storage.directory_blobs import DirectoryBlobs
from boltz_mesh.storage.listen import Listener
from boltz_mesh.storage.migrate import migrate
from boltz_mesh.storage.postgres import Database
from boltz_mesh.telemetry.setup import make_tracer_provider
from boltz_protocol import limits
from boltz_protocol.errors import ConfigurationError, DecryptionFailed, Unavailable
from boltz_protocol.v1 import (
    aggregator_pb2,
    aggregator_pb2_grpc,
    model_store_pb2,
    model_store_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
)

_log: Final = logging.getLogger(__name__)
_ENROLL: Final = "/boltz_mesh.v1.Registry/Enroll"
#: A stopping server gives calls this long to end by themselves.
_GRACE_S: Final = 2.0
_CHANNEL_OPTIONS: Final = (
    ("grpc.max_receive_message_length", limits.MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", limits.MAX_MESSAGE_BYTES),
    # A fixed window in place of one that grows with the bandwidth: what the server holds of
    # uploads that it has not read stays small, however many there are.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", limits.STREAM_WINDOW_BYTES),
    # Clients behind home routers keep their control stream alive by pings.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", limits.KEEPALIVE_MS // 2),
    ("grpc.keepalive_time_ms", limits.KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", limits.KEEPALIVE_TIMEOUT_MS),
    ("grpc.so_reuseport", 0),
)


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that answers.

    Attributes:
        addresses: `host:port` of both TLS ports.
        health_port: of the plain health service, or None.
        operator: folder of the first operator's credential.
        failed: ends only when a part of the server fails; raises what it met.
    """

    mesh_id: str
    addresses: Addresses
    health_port: int | None
    fingerprint: str
    operator: Path
    embedded_database: bool
    failed: Awaitable[None]


@asynccontextmanager
async def running_server(
    config: Config, clock: Clock = system_clock
) -> AsyncIterator[RunningServer]:
    """Start everything, in order; stop everything, in the other order.

    Raises: ConfigurationError, Unavailable, and what a part of it meets while it starts.
    """
    policy = privacy_policy(
        production=config.privacy.production,
        client_epsilon=config.privacy.client_epsilon,
        client_delta=config.privacy.client_delta,
    )
    validation = await asyncio.to_thread(read_validation, config.validation.folder)
    data_dir = config.data_dir
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        authority = await asyncio.to_thread(open_authority, config, as_datetime(clock()))
        url = config.database.url
        if not url:
            embedded = EmbeddedPostgres(data_dir / "postgres", search_path=os.defpath)
            await stack.enter_async_context(embedded)
            url = embedded.url
        await migrate(url)
        database = await stack.enter_async_context(await Database.open(url))
        listener = await stack.enter_async_context(
            await Listener.open(url, replica_id=config.mesh.replica)
        )
        keyring = await _open_keys(database, authority, data_dir / "keys" / "kek.json", clock)
        blobs = await asyncio.to_thread(DirectoryBlobs, data_dir / "blobs")
        executors = [
            stack.enter_context(ThreadPoolExecutor(count, thread_name_prefix=name))
            for name, count in (("transfer", 4), ("heavy", 2), ("chunk", os.cpu_count() or 1))
        ]
        provider = make_tracer_provider(
            service_name=config.telemetry.service_name,
            replica=config.mesh.replica,
            otlp_endpoint=config.telemetry.otlp_endpoint,
            insecure=config.telemetry.otlp_insecure,
        )
        if shutdown := getattr(provider, "shutdown", None):
            # What is left is exported then: not on the loop, and not for ever.
            stack.push_async_callback(asyncio.to_thread, shutdown)
        parts = Parts(
            database=database,
            listener=listener,
            keyring=keyring,
            attempts=Attempts(),
            blobs=blobs,
            clock=clock,
            tracer=provider.get_tracer("boltz_mesh"),
            random=secrets.SystemRandom(),
            heavy=executors[1],
            chunks=executors[2],
            holder=config.mesh.replica,
            policy=policy,
            validation=validation,
        )
        server = await stack.enter_async_context(
            _serving(config, parts, authority, transfers=executors[0])
        )
        operator = data_dir / "operator"
        if not operator.exists():
            write_credential(
                operator,
                authority.issue_operator("local", now=as_datetime(clock())),
                authority,
                address=server.addresses.mesh,
            )
        else:
            move_credential(operator, authority.mesh, server.addresses.mesh)
        yield server


async def _open_keys(
    database: Database, authority: Authority, kek_file: Path, clock: Clock
) -> KeyRing:
    kek = await asyncio.to_thread(open_or_create_kek, kek_file)
    try:
        return await KeyRing.open(database, authority, kek, clock)
    except DecryptionFailed as error:
        raise ConfigurationError(
            f"{kek_file} is not the key that this database's keys and models were encrypted under; "
            "restore it from a backup, or use the data directory that belongs to the database",
            setting="mesh.data_dir",
        ) from error


@asynccontextmanager
async def _serving(
    config: Config, parts: Parts, authority: Authority, *, transfers: ThreadPoolExecutor
) -> AsyncIterator[RunningServer]:
    """The services and the coordinator over parts that exist."""
    database, keyring, clock = parts.database, parts.keyring, parts.clock
    open_calls, subscriptions = OpenCalls(), Subscriptions()
    membership = Membership(database, open_calls, subscriptions)
    guard = Guard(
        mesh_id=authority.mesh,
        open_to_all=frozenset(),
        check_client=membership.check,
        open_calls=open_calls,
        observe_refusal=Refusals(database, clock).observe,
        tracer=parts.tracer,
    )
    participation = Participation(
        database=database,
        keyring=keyring,
        subscriptions=subscriptions,
        pushes=Pushes(
            database=database,
            keyring=keyring,
            subscriptions=subscriptions,
            notices=SealedNotices(database, parts.attempts),
        ),
        sealed=SealedInbox(
            database=database, keyring=keyring, attempts=parts.attempts, clock=clock
        ),
        replica_id=config.mesh.replica,
        clock=clock,
    )
    await participation.forget_earlier_run()
    ledger = LedgerChecks(database)
    rounds = Rounds(database, clock, ledger=ledger, policy=parts.policy)
    tls = ServerTls(authority, config.mesh.replica, config.listen.names, clock)
    main = grpc.aio.server(interceptors=[guard], options=_CHANNEL_OPTIONS)
    enroll = grpc.aio.server(
        interceptors=[guard.for_methods(frozenset({_ENROLL}))], options=_CHANNEL_OPTIONS
    )
    host = config.listen.host
    main_port = _bind(main, host, config.listen.port, tls.credentials(ask_for_client=True))
    enroll_port = _bind(
        enroll, host, config.listen.enroll_port, tls.credentials(ask_for_client=False)
    )
    name = config.listen.names[0]
    addresses = Addresses(enroll=f"{name}:{enroll_port}", mesh=f"{name}:{main_port}")
    registry = RegistryService(
        database=database,
        authority=authority,
        keyring=keyring,
        addresses=addresses,
        always_requires_approval=config.enrollment.always_requires_approval,
        trusts=ClientTrusts(database, clock),
        clock=clock,
    )
    registry_pb2_grpc.add_RegistryServicer_to_server(registry, main)
    enroll.add_generic_rpc_handlers((_only_enroll(registry),))
    model_store_pb2_grpc.add_ModelStoreServicer_to_server(
        ModelStoreService(
            database=database,
            blobs=parts.blobs,
            keyring=keyring,
            executor=transfers,
            clock=clock,
        ),
        main,
    )
    aggregator_pb2_grpc.add_AggregatorServicer_to_server(
        AggregatorService(
            mesh_id=authority.mesh,
            participation=participation,
            uploads=Uploads(
                database=database,
                blobs=parts.blobs,
                keyring=keyring,
                executor=transfers,
                clock=clock,
            ),
            plans=Plans(database, clock, parts.policy),
            rounds=rounds,
            budgets=PrivacyBudgets(database, ledger, parts.policy),
        ),
        main,
    )
    healthy = _add_standard_services(main)
    servers = [main, enroll]
    health_port = None
    if config.listen.health_port is not None:
        # Probes have no certificate; this port tells whether the server serves, nothing else.
        probes = grpc.aio.server()
        health_pb2_grpc.add_HealthServicer_to_server(healthy, probes)
        health_port = probes.add_insecure_port(f"{host}:{config.listen.health_port}")
        servers.append(probes)
    for server in servers:
        await server.start()
    failed = asyncio.ensure_future(
        _first_failure(
            coordinate(parts),
            participation.watch(parts.listener),
            rounds.watch_changes(parts.listener),
            membership.watch(parts.listener),
        )
    )
    try:
        yield RunningServer(
            mesh_id=authority.mesh,
            addresses=addresses,
            health_port=health_port,
            fingerprint=authority.fingerprint,
            operator=config.data_dir / "operator",
            embedded_database=not config.database.url,
            failed=asyncio.shield(failed),
        )
    finally:
        await healthy.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        subscriptions.close_all(Unavailable("the server is stopping", retry_after_ms=1000))
        await asyncio.gather(*(server.stop(_GRACE_S) for server in servers))
        failed.cancel()
        await asyncio.wait({failed})


async def _first_failure(*parts: Any) -> None:
    """Run parts that never end; the first that does ends all, and its error is raised."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        raise AssertionError("a part of the server ended without a reason")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _bind(
    server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials
) -> int:
    try:
        return server.add_secure_port(f"{host}:{port}", credentials)
    except RuntimeError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: another program does, or the address is not this "
            "machine's; choose another port, or 0 for any free one"
        ) from error


def _only_enroll(registry: RegistryService) -> Any:
    return grpc.method_handlers_generic_handler(
        "boltz_mesh.v1.Registry",
        {
            "Enroll": grpc.unary_unary_rpc_method_handler(
                registry.Enroll,
                request_deserializer=registry_pb2.EnrollRequest.FromString,
                response_serializer=registry_pb2.EnrollResponse.SerializeToString,
            )
        },
    )


def _add_standard_services(server: Any) -> Any:
    """Health, reflection and channelz, behind the same table of roles. Returns the health servicer.

    grpc-stubs does not know the aio variants, hence Any.
    """
    healthy = aio_health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    channelz.add_channelz_servicer(server)
    ours = (
        registry_pb2.DESCRIPTOR.services_by_name["Registry"],
        model_store_pb2.DESCRIPTOR.services_by_name["ModelStore"],
        aggregator_pb2.DESCRIPTOR.services_by_name["Aggregator"],
    )
    names = [
        *(service.full_name for service in ours),
        health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
        channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name,
        reflection.SERVICE_NAME,
    ]
    reflection.enable_server_reflection(names, server)
    return healthy
