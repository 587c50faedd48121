"""A mesh without gRPC: real PostgreSQL, real keys and blobs, and clients that seal real updates.

Handlers are stood in for by the same storage calls that they make.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from boltz_mesh.coordinator.driver import Coordinator
from boltz_mesh.coordinator.parts import Parts
from boltz_mesh.coordinator.publish import plan_tensors
from boltz_mesh.rounds.fact import FactKind
from boltz_mesh.rounds.plan import Plan, plan_from_toml, plan_to_json
from boltz_mesh.rounds.state import Phase
from boltz_mesh.services.clock import system_clock
from boltz_mesh.services.files import EncryptedReader, EncryptedWriter, model_context
from boltz_mesh.storage import (
    check_ins,
    clients,
    inbox,
    ledger,
    models,
    plans,
    roster,
    round_events,
    rounds,
    updates,
)
from boltz_mesh.storage.lease import CoordinatorLease
from boltz_mesh.storage.models import ModelVersion
from boltz_mesh.storage.postgres import Channel, Connection
from boltz_protocol import codec
from boltz_protocol import messages as m
from boltz_protocol.errors import RoundClosed
from boltz_protocol.ids import (
    ClientId,
    ModelId,
    RoundId,
    SessionId,
    new_client_id,
    new_key_id,
    new_round_id,
    new_session_id,
)
from boltz_protocol.model_file import canonical_layout, read_vector
from boltz_protocol.statement import RSA_PSS_SHA256, Statement
from tests.integration.coordinator.faults import Crash, FaultyDatabase
from tests.integration.coordinator.sealing import seal

T = TypeVar("T")
Vector = npt.NDArray[np.float32]
REPLICA = "replica-under-test"


@dataclass(slots=True)
class TestClient:
    """One client: enrolled, and checked in where a session is set."""

    __test__ = False

    client_id: ClientId
    session_id: SessionId = field(default_factory=new_session_id)


class World:
    """Everything around a coordinator; `coordinating` runs one."""

    def __init__(self, parts: Parts, database: FaultyDatabase, spans: InMemorySpanExporter) -> None:
        self.parts = parts
        self.spans = spans
        self.database = database
        self.crashed = asyncio.Event()

    async def crash(self) -> None:
        """A fault's action: whoever runs this transaction goes no further."""
        self.crashed.set()
        raise Crash

    async def tx(self, body: Callable[[Connection], Awaitable[T]]) -> T:
        return await self.database.run_tx("test", body)

    # --- models and plans -----------------------------------------------------------------------

    async def declare(self, text: str, parameters: Vector | None = None) -> Plan:
        """Apply a plan; publish and promote its first version."""
        plan = plan_from_toml(text)
        model_id = ModelId(plan.model)
        vector = np.zeros(plan.parameters, np.float32) if parameters is None else parameters

        async def apply(connection: Connection) -> int:
            applied, _ = await plans.apply_plan(
                connection,
                model_id,
                json.loads(plan_to_json(plan)),
                applied_by="ann",
                applied_at_ms=system_clock(),
            )
            return applied.revision

        revision = await self.tx(apply)
        layout = canonical_layout(plan_tensors(plan))
        parts = self.parts
        with EncryptedWriter(
            parts.blobs,
            parts.keyring.kek,
            model_context(parts.keyring.mesh_id, model_id, 1),
            layout.size_bytes,
        ) as writer:
            writer.write(layout.header)
            writer.write(vector.astype("<f4").tobytes())
            stored = writer.commit()
        manifest = m.ModelManifest(
            mesh_id=parts.keyring.mesh_id,
            model_id=model_id,
            version=1,
            parent_version=0,
            parent_sha256=b"",
            round_id=None,
            sha256=stored.digest,
            size_bytes=layout.size_bytes,
            tensors=layout.tensors,
            optimizer_state_sha256=b"",
            plan_revision=revision,
            created_at_ms=system_clock(),
        )
        statement = parts.keyring.sign_statement(
            m.MODEL_MANIFEST, codec.encode_model_manifest(manifest)
        )

        async def publish(connection: Connection) -> None:
            await models.insert_model_version(
                connection,
                models.NewModelVersion(
                    model_id=model_id,
                    version=1,
                    parent_version=None,
                    round_id=None,
                    weights=stored,
                    size_bytes=layout.size_bytes,
                    kek_id=parts.keyring.kek.key_id,
                    manifest=codec.encode_statement(statement),
                    optimizer=None,
                    metrics={},
                    created_at_ms=system_clock(),
                ),
            )
            await models.promote_model(connection, model_id, 1, by="ann", at_ms=system_clock())

        await self.tx(publish)
        return plan

    async def reapply(self, text: str) -> Plan:
        """Another revision of a plan that is declared already."""
        plan = plan_from_toml(text)

        async def apply(connection: Connection) -> None:
            await plans.apply_plan(
                connection,
                ModelId(plan.model),
                json.loads(plan_to_json(plan)),
                applied_by="ann",
                applied_at_ms=system_clock(),
            )

        await self.tx(apply)
        return plan

    async def version(self, plan: Plan, number: int) -> ModelVersion:
        return await self.tx(
            lambda connection: models.get_model_version(connection, ModelId(plan.model), number)
        )

    async def vector(self, plan: Plan, number: int) -> Vector:
        """The parameters of a stored version, read back through every layer."""
        row = await self.version(plan, number)
        parts = self.parts
        content = bytearray(row.size_bytes)
        with EncryptedReader(
            parts.blobs,
            parts.keyring.kek,
            model_context(parts.keyring.mesh_id, row.model_id, row.version),
            row.weights,
            row.size_bytes,
        ) as reader:
            reader.read_into(content, 0)
        assert hashlib.sha256(content).digest() == row.weights.digest
        return read_vector(content, plan_tensors(plan))

    # --- clients --------------------------------------------------------------------------------

    async def enrol(self, count: int) -> list[TestClient]:
        made = [TestClient(new_client_id()) for _ in range(count)]

        async def body(connection: Connection) -> None:
            for client in made:
                await clients.insert_client(
                    connection,
                    clients.NewClient(
                        client_id=client.client_id,
                        status=clients.ClientStatus.ACTIVE,
                        region="eu",
                        public_key_spki=secrets.token_bytes(32),
                        key_id=new_key_id(),
                        request_key_hash=secrets.token_bytes(32),
                        enrolled_at_ms=system_clock(),
                        enrolled_by="token",
                        personal=clients.Personal("a firm", "", ""),
                    ),
                )

        await self.tx(body)
        return made

    async def check_in(
        self,
        plan: Plan,
        who: Sequence[TestClient],
        *,
        sample_bucket: int = 10,
        region: str = "eu",
    ) -> None:
        async def body(connection: Connection) -> None:
            for client in who:
                statement = Statement(
                    m.CHECK_IN, b"signed elsewhere", new_key_id(), RSA_PSS_SHA256, bytes(384)
                )
                await check_ins.put_check_in(
                    connection,
                    check_ins.CheckIn(
                        client_id=client.client_id,
                        model_id=ModelId(plan.model),
                        session_id=client.session_id,
                        replica_id=REPLICA,
                        sample_bucket=sample_bucket,
                        quality_bucket=3,
                        region=region,
                        protocol_min=1,
                        protocol_max=1,
                        statement=codec.encode_statement(statement),
                        at_ms=system_clock(),
                    ),
                )

        await self.tx(body)

    async def check_out(self, plan: Plan, client: TestClient) -> None:
        async def body(connection: Connection) -> None:
            row = await check_ins.find_check_in(connection, client.client_id, ModelId(plan.model))
            assert row is not None
            await check_ins.remove_check_in(
                connection, row.client_id, row.model_id, [row.statement]
            )

        await self.tx(body)

    async def upload(
        self,
        round_id: RoundId,
        client: TestClient,
        delta: Vector,
        *,
        loss: float = 0.0,
        damage: bool = False,
        poison: bool = False,
    ) -> None:
        """Seal, store, and put down the fact, as SubmitUpdate does.

        Raises: RoundClosed.
        """
        found = await self.round(round_id)
        assert found.config_statement is not None
        assert found.config_digest is not None
        configuration = codec.parse_round_configuration(
            codec.parse_statement(found.config_statement).payload
        )
        entry = await self.tx(
            lambda connection: roster.find_roster_entry(connection, round_id, 1, client.client_id)
        )
        assert entry is not None
        sealed = seal(configuration, found.config_digest, entry, delta, loss, poison=poison)
        content = bytearray(sealed.content)
        if damage:
            content[0] ^= 1
        with self.parts.blobs.writer() as writer:
            writer.write(content)
            ref = writer.commit()

        async def body(connection: Connection) -> None:
            held = await rounds.share_round(connection, round_id)
            if held.phase != Phase.COLLECTING:
                raise RoundClosed("too late")
            await updates.begin_update(connection, replace(sealed.row, update_digest=ref.digest))
            await updates.mark_stored(
                connection,
                round_id,
                1,
                client.client_id,
                blob_digest=ref.digest,
                receipt=b"a receipt",
                received_at_ms=system_clock(),
            )
            await inbox.put(
                connection,
                round_id=round_id,
                attempt=1,
                kind=FactKind.UPDATE_STORED,
                client_id=client.client_id,
                payload={},
                at_ms=system_clock(),
            )

        await self.tx(body)

    async def put_fact(
        self, round_id: RoundId, kind: FactKind, client: TestClient | None, **payload: str
    ) -> None:
        await self.tx(
            lambda connection: inbox.put(
                connection,
                round_id=round_id,
                attempt=1,
                kind=kind,
                client_id=None if client is None else client.client_id,
                payload=payload,
                at_ms=system_clock(),
            )
        )

    # --- rounds ---------------------------------------------------------------------------------

    async def start(self, plan: Plan, *, trace_context: str = "") -> RoundId:
        model_id = ModelId(plan.model)

        async def body(connection: Connection) -> RoundId:
            base = await models.find_promoted(connection, model_id)
            assert base is not None
            row = await plans.get_plan(connection, model_id)
            created = await rounds.create_round(
                connection,
                rounds.NewRound(
                    round_id=new_round_id(),
                    model_id=model_id,
                    phase=Phase.SELECTING,
                    base_version=base.version,
                    plan_revision=row.revision,
                    started_by="ann",
                    started_at_ms=system_clock(),
                    deadline_at_ms=None,
                    trace_context=trace_context,
                ),
            )
            return created.round_id

        return await self.tx(body)

    async def round(self, round_id: RoundId) -> rounds.Round:
        return await self.tx(lambda connection: rounds.get_round(connection, round_id))

    async def reached(self, round_id: RoundId, *phases: Phase, seconds: float = 20) -> rounds.Round:
        """The round once it is in one of these phases; an end in another phase fails."""
        ends = {Phase.PUBLISHED, Phase.ABORTED}
        async with asyncio.timeout(seconds):
            with self.parts.listener.subscribe(Channel.ROUND_CHANGED) as wakeups:
                async for _ in wakeups:
                    found = await self.round(round_id)
                    if found.phase in phases:
                        return found
                    assert found.phase not in ends, f"{found.phase}: {found.reason}"
        raise AssertionError("the listener was closed")

    async def settled(self, coordinator: asyncio.Task[None]) -> None:
        """Wait until every runner has ended: the last thing it does is to clean up."""
        assert not coordinator.done()
        runners = {task for task in asyncio.all_tasks() if task.get_name().startswith("round ")}
        if runners:
            done, late = await asyncio.wait(runners, timeout=10)
            assert not late
            for task in done:
                task.result()

    async def cleaned(self, round_id: RoundId) -> None:
        """Assert that nothing of a round's contents is left."""

        async def body(connection: Connection) -> list[updates.Update]:
            return await updates.list_updates(connection, round_id, 1)

        for row in await self.tx(body):
            assert row.wrapped_content_key is None
            assert row.blob_digest is None
        found = await self.round(round_id)
        assert found.aggregate_wrapped_key is None
        assert found.aggregate_blob_digest is None

    async def events(self, round_id: RoundId) -> list[str]:
        """The kinds of a round's events, in order."""
        stored = await self.tx(lambda c: round_events.load_events(c, round_id))
        return [event.kind for event in stored]

    async def charged(self, plan: Plan) -> list[tuple[str, str]]:
        """(client, round) of every charge, sorted."""
        events = await self.tx(
            lambda connection: ledger.list_privacy_events(connection, ModelId(plan.model))
        )
        return sorted((event.client_id, event.round_id) for event in events)

    async def holds(self, plan: Plan) -> int:
        return len(await self.tx(lambda c: ledger.list_holds(c, ModelId(plan.model))))

    @contextlib.asynccontextmanager
    async def coordinating(self) -> AsyncIterator[asyncio.Task[None]]:
        """A coordinator in its own task, under a lease of its own; cancelled at the end."""
        async with await CoordinatorLease.acquire(self.database.url, REPLICA) as lease:
            task = asyncio.create_task(Coordinator(self.parts, lease).run())
            try:
                yield task
            finally:
                if task.done() and not task.cancelled():
                    task.result()
                task.cancel()
                await asyncio.wait({task})


async def collecting(world: World, plan: Plan, who: Sequence[TestClient]) -> RoundId:
    """A round that takes updates of these clients; a coordinator must be running."""
    round_id = await world.start(plan)
    await world.check_in(plan, who)
    await world.reached(round_id, Phase.COLLECTING)
    return round_id


async def upload_all(world: World, round_id: RoundId, who: Sequence[TestClient]) -> None:
    """Deltas of 0.1 everywhere."""
    for client in who:
        await world.upload(round_id, client, np.full(8, 0.1, np.float32))
