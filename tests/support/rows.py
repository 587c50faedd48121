"""Rows for storage tests: valid ones, of which a test changes what it is about."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec, TypeVar

from boltz_mesh.storage import clients, models, plans, rounds
from boltz_mesh.storage.postgres import Connection, Database
from boltz_protocol.ids import ClientId, KeyId, ModelId, RoundId

P = ParamSpec("P")
T = TypeVar("T")
MODEL = ModelId("rates")


def digest(text: str) -> bytes:
    """Some SHA-256."""
    return hashlib.sha256(text.encode()).digest()


def client_id(n: int) -> ClientId:
    """The n-th client's id."""
    return ClientId(f"{n:032x}")


def round_id(n: int) -> RoundId:
    """The n-th round's id."""
    return RoundId(f"{n:032x}")


async def call(
    database: Database,
    function: Callable[Concatenate[Connection, P], Awaitable[T]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """`function` in a transaction of its own."""
    return await tx(database, lambda connection: function(connection, *args, **kwargs))


async def tx(database: Database, body: Callable[[Connection], Awaitable[T]]) -> T:
    """One transaction with a test's name."""
    return await database.run_tx("test", body)


def new_client(
    n: int, status: clients.ClientStatus = clients.ClientStatus.ACTIVE
) -> clients.NewClient:
    """The n-th client."""
    return clients.NewClient(
        client_id=client_id(n),
        status=status,
        region="eu-west",
        public_key_spki=b"spki",
        key_id=KeyId(f"{n + 1000:032x}"),
        request_key_hash=digest(f"request {n}"),
        enrolled_at_ms=1_000 + n,
        enrolled_by="operator/ann",
        personal=clients.Personal(f"Desk {n}", "Firm", "desk@example.org"),
        certificate=clients.Certificate(b"chain", digest(f"certificate {n}"), 9_000),
    )


def new_version(
    version: int, *, parent: int | None = None, made_by: RoundId | None = None
) -> models.NewModelVersion:
    """A version of MODEL."""
    return models.NewModelVersion(
        model_id=MODEL,
        version=version,
        parent_version=parent,
        round_id=made_by,
        weights=models.StoredBlob(digest(f"m{version}"), digest(f"b{version}"), b"wrapped"),
        size_bytes=400,
        kek_id=KeyId("ab" * 16),
        manifest=b"manifest",
        optimizer=models.StoredBlob(digest("o"), digest(f"ob{version}"), b"wrapped too"),
        metrics={"loss": 0.25},
        created_at_ms=2_000,
    )


def new_round(n: int) -> rounds.NewRound:
    """A round of MODEL from version 1 and plan revision 1."""
    return rounds.NewRound(
        round_id=round_id(n),
        model_id=MODEL,
        phase="SELECTING",
        base_version=1,
        plan_revision=1,
        started_by="operator/ann",
        started_at_ms=3_000 + n,
        deadline_at_ms=4_000,
        trace_context="00-trace",
    )


async def prepare(
    connection: Connection, *, clients_count: int = 3, with_round: bool = True
) -> None:
    """Clients 0 and up, a plan, version 1 of MODEL, and round 1 where wanted."""
    for n in range(clients_count):
        await clients.insert_client(connection, new_client(n))
    await plans.apply_plan(connection, MODEL, {"mode": "open"}, applied_by="ann", applied_at_ms=1)
    await models.insert_model_version(connection, new_version(1))
    if with_round:
        await rounds.create_round(connection, new_round(1))
