"""The privacy ledger's rows: holds, charges, the chain of hashes, and what the database refuses."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import asyncpg
import pytest
import pytest_asyncio

from boltz_mesh.app.embedded_postgres import EmbeddedPostgres
from boltz_mesh.privacy.chain import EMPTY, LedgerEvent, event_hash, verify_chain, verify_end
from boltz_mesh.services.ledger_checks import LedgerChecks
from boltz_mesh.storage import ledger
from boltz_mesh.storage.migrate import load_migrations, migrate
from boltz_mesh.storage.postgres import Connection, Database
from boltz_protocol.errors import LedgerBroken, StateConflict
from boltz_protocol.ids import ModelId
from tests.support.postgres import execute, with_database
from tests.support.rows import MODEL, call, client_id, prepare, round_id, tx

OTHER = ModelId("other")
T = TypeVar("T")


def event(
    client: int, attempt: int = 1, noise: float = 1.1, *, model: ModelId = MODEL, period: str = ""
) -> LedgerEvent:
    return LedgerEvent(
        model_id=model,
        client_id=client_id(client),
        round_id=round_id(1),
        attempt=attempt,
        mechanism="discrete-gaussian",
        noise_multiplier=noise,
        sensitivity=1000.0,
        relation="contribution-set-to-zero",
        unit="client-period" if period else "client",
        sampling_rate=1.0,
        at_ms=20,
        period=period,
    )


def hold(client: int, attempt: int = 1, *, model: ModelId = MODEL) -> ledger.Hold:
    return ledger.Hold(round_id(1), attempt, client_id(client), model, {"noise_multiplier": 1.1})


@pytest_asyncio.fixture
async def prepared(database: Database) -> AsyncIterator[Database]:
    await tx(database, prepare)
    yield database


async def charge(database: Database, *events: LedgerEvent) -> int:
    """Hold and spend, each in a transaction of its own."""
    holds = [
        ledger.Hold(each.round_id, each.attempt, each.client_id, each.model_id, {})
        for each in events
    ]
    await call(database, ledger.place_holds, holds)
    return await call(database, ledger.debit, events)


async def whole(database: Database, model: ModelId = MODEL) -> int:
    """The length of a chain that fits."""
    rows = await call(database, ledger.read_chain, model)
    head = await call(database, ledger.read_head, model)
    verify_end(model, verify_chain(model, rows), head)
    assert await LedgerChecks(database).check_all(model) == head
    return head.length


# --- holds and charges --------------------------------------------------------------------------


async def test_holds_are_spent_or_end_with_the_round(prepared: Database) -> None:
    holds = [hold(n) for n in range(3)]
    await call(prepared, ledger.place_holds, holds)
    with pytest.raises(StateConflict):
        await call(prepared, ledger.place_holds, holds[:1])
    assert await call(prepared, ledger.list_holds, MODEL) == holds
    assert await call(prepared, ledger.list_holds, None) == holds
    assert await call(prepared, ledger.list_holds, MODEL, [client_id(1)]) == [hold(1)]
    assert await call(prepared, ledger.list_holds, OTHER) == []
    spent = [event(0), event(1)]
    assert await call(prepared, ledger.debit, spent) == 2
    assert await call(prepared, ledger.debit, spent) == 0
    assert await call(prepared, ledger.debit, []) == 0
    assert await call(prepared, ledger.list_holds, MODEL) == [hold(2)]
    assert await call(prepared, ledger.release_holds, round_id(1), 2) == 0
    assert await call(prepared, ledger.release_holds, round_id(1)) == 1
    assert await call(prepared, ledger.list_privacy_events, MODEL) == spent
    assert await call(prepared, ledger.list_privacy_events, MODEL, client_id(1)) == spent[1:]
    assert await whole(prepared) == 2


async def test_a_second_attempt_is_a_second_release(prepared: Database) -> None:
    events = [event(0, 1), event(0, 2), event(0, 3, 2.5), event(1)]
    assert await charge(prepared, *events) == 4
    assert await call(prepared, ledger.debit, events) == 0
    spent = await call(prepared, ledger.list_spent, MODEL)
    assert [(row.client_id, row.noise_multiplier, row.count) for row in spent] == [
        (client_id(0), 1.1, 2),
        (client_id(0), 2.5, 1),
        (client_id(1), 1.1, 1),
    ]
    assert await call(prepared, ledger.list_spent, MODEL, [client_id(1)]) == spent[2:]
    assert await call(prepared, ledger.list_spent, None) == spent
    assert await call(prepared, ledger.list_spent, OTHER) == []


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 99.0},
        {"sensitivity": 1.0},
        {"unit": "client-period", "period": "2026-10-01/2027-01-01"},
    ],
)
async def test_a_replay_with_other_figures_is_refused(
    prepared: Database, change: dict[str, object]
) -> None:
    await charge(prepared, event(0))
    # A clock that was set back changes nothing: the first time stands.
    assert await call(prepared, ledger.debit, [replace(event(0), at_ms=3)]) == 0
    with pytest.raises(StateConflict, match="other figures"):
        await call(prepared, ledger.debit, [replace(event(0), **change)])  # type: ignore[arg-type]
    assert await call(prepared, ledger.list_privacy_events, MODEL) == [event(0)]


async def test_nobody_is_charged_without_a_hold(prepared: Database) -> None:
    await call(prepared, ledger.place_holds, [hold(0)])
    with pytest.raises(AssertionError, match="without a hold"):
        await call(prepared, ledger.debit, [event(0), event(1)])
    # All or nothing: the hold that was there is there still.
    assert await call(prepared, ledger.list_holds, MODEL) == [hold(0)]
    assert await whole(prepared) == 0


# --- the chain ----------------------------------------------------------------------------------


async def test_each_model_has_a_chain_of_its_own(prepared: Database) -> None:
    assert await call(prepared, ledger.read_head, MODEL) == EMPTY
    await charge(prepared, event(0), event(1))
    await charge(prepared, event(0, 2, model=OTHER))
    await charge(prepared, event(2, period="2026-10-01/2027-01-01"))
    assert await whole(prepared) == 3
    assert await whole(prepared, OTHER) == 1
    rows = await call(prepared, ledger.read_chain, MODEL)
    assert [row.seq for row in rows] == [1, 2, 3]
    assert rows[0].hash == event_hash(event(0), 1, bytes(32))
    assert await call(prepared, ledger.read_chain, MODEL, after=1, limit=1) == rows[1:2]


async def test_writers_of_two_models_do_not_wait_for_each_other(prepared: Database) -> None:
    await call(prepared, ledger.place_holds, [hold(0), hold(1), hold(0, 2, model=OTHER)])
    entered, leave = asyncio.Event(), asyncio.Event()

    async def slow(connection: Connection) -> None:
        await ledger.debit(connection, [event(0)])
        entered.set()
        await leave.wait()

    first = asyncio.create_task(tx(prepared, slow))
    await entered.wait()
    assert await call(prepared, ledger.debit, [event(0, 2, model=OTHER)]) == 1
    second = asyncio.create_task(call(prepared, ledger.debit, [event(1)]))
    done, _ = await asyncio.wait({second}, timeout=0.2)
    assert not done, "two transactions at the end of one chain"
    leave.set()
    await first
    assert await second == 1
    assert (await whole(prepared), await whole(prepared, OTHER)) == (2, 1)


async def test_a_crash_between_hold_and_commit_charges_nothing_and_keeps_the_hold(
    prepared: Database,
) -> None:
    await call(prepared, ledger.place_holds, [hold(0)])

    async def dies(connection: Connection) -> None:
        assert await ledger.debit(connection, [event(0)]) == 1
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power"):
        await tx(prepared, dies)
    assert await call(prepared, ledger.list_holds, MODEL) == [hold(0)]
    assert await call(prepared, ledger.read_head, MODEL) == EMPTY
    assert await call(prepared, ledger.debit, [event(0)]) == 1
    assert await whole(prepared) == 1


# --- what the database refuses ------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE privacy_events SET noise_multiplier = 99",
        "DELETE FROM privacy_events",
        "TRUNCATE privacy_events",
        "UPDATE privacy_chains SET length = 0",
        "UPDATE privacy_chains SET head = decode(repeat('ab', 32), 'hex')",
        "UPDATE privacy_chains SET model_id = 'x', length = 9",
        "DELETE FROM privacy_chains",
        "TRUNCATE privacy_chains",
    ],
)
async def test_nobody_rewrites_the_ledger(prepared: Database, statement: str) -> None:
    await charge(prepared, event(0))
    with pytest.raises(asyncpg.IntegrityConstraintViolationError, match="append-only"):
        await tx(prepared, lambda c: c.execute(statement))
    assert await whole(prepared) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
        {"noise_multiplier": 0.0},
        {"mechanism": "none"},
        {"sensitivity": 0.0},
        {"sensitivity": math.nan},
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.5},
        {"sampling_rate": math.nan},
    ],
)
async def test_events_that_make_no_sense_are_refused(
    prepared: Database, change: dict[str, object]
) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await charge(prepared, replace(event(0), **change))  # type: ignore[arg-type]


# --- who may write the database all the same ----------------------------------------------------

TAMPERING: list[tuple[str, int | None]] = [
    ("UPDATE privacy_events SET noise_multiplier = 99 WHERE seq = 2", 2),
    ("UPDATE privacy_events SET client_id = 'ff' WHERE seq = 3", 3),
    ("UPDATE privacy_events SET at_ms = 1 WHERE seq = 1", 1),
    ("UPDATE privacy_events SET hash = previous_hash WHERE seq = 4", 4),
    ("UPDATE privacy_events SET previous_hash = hash WHERE seq = 4", 4),
    ("UPDATE privacy_events SET model_id = 'other' WHERE seq = 4", 4),
    ("DELETE FROM privacy_events WHERE seq = 1", 1),
    ("DELETE FROM privacy_events WHERE seq = 3", 3),
    ("DELETE FROM privacy_events WHERE seq = 5", 5),
    ("DELETE FROM privacy_events", 1),
    ("UPDATE privacy_events SET seq = 100 WHERE seq = 2", 2),
    ("UPDATE privacy_chains SET head = decode(repeat('ab', 32), 'hex')", 5),
    ("UPDATE privacy_chains SET length = 4", 5),
    ("UPDATE privacy_chains SET length = 9", 6),
    ("DELETE FROM privacy_chains", 1),
    (
        "INSERT INTO privacy_events (model_id, client_id, round_id, attempt, mechanism,"
        " noise_multiplier, sensitivity, relation, unit, sampling_rate, at_ms, seq, previous_hash,"
        " hash) SELECT model_id, 'aa', round_id, attempt, mechanism, noise_multiplier, sensitivity,"
        " relation, unit, sampling_rate, at_ms, 6, hash, hash FROM privacy_events WHERE seq = 5",
        6,
    ),
]


@pytest.mark.parametrize(("statement", "row"), TAMPERING)
async def test_a_change_behind_the_triggers_is_found_and_its_first_row_named(
    prepared: Database, monkeypatch: pytest.MonkeyPatch, statement: str, row: int
) -> None:
    monkeypatch.setattr(ledger, "CHAIN_PAGE", 2)
    await charge(prepared, *[event(client, attempt) for client in (0, 1) for attempt in (1, 2)])
    await charge(prepared, event(2))
    checks = LedgerChecks(prepared)
    assert (await checks.check_new(MODEL)).length == 5

    async def behind(connection: Connection) -> None:
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute(statement)

    await tx(prepared, behind)
    with pytest.raises(LedgerBroken) as found:
        await checks.check_all(MODEL)
    assert found.value.metadata == {"model_id": MODEL, "row": str(row)}
    assert f"row {row} " in found.value.message
    # Another process meets it before its first round.
    with pytest.raises(LedgerBroken):
        await LedgerChecks(prepared).check_new(MODEL)


async def test_a_check_is_at_ease_with_charges_that_are_made_meanwhile(
    prepared: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the head and the rows, and between two pages, the chain may grow."""
    monkeypatch.setattr(ledger, "CHAIN_PAGE", 1)
    await charge(prepared, event(0))
    checks, read, left = LedgerChecks(prepared), prepared.read, [event(1), event(2), event(0, 2)]

    async def reading(name: str, body: Callable[[Connection], Awaitable[T]]) -> T:
        found = await read(name, body)
        if left:
            await charge(prepared, left.pop())
        return found

    monkeypatch.setattr(prepared, "read", reading)
    head = await checks.check_new(MODEL)
    assert not left
    assert head.length >= 2
    assert (await checks.check_new(MODEL)).length == 4


# --- databases from before the chain ------------------------------------------------------------

OLD_ROW = (
    "INSERT INTO privacy_events (model_id, client_id, round_id, attempt, mechanism,"
    " noise_multiplier, sensitivity, relation, unit, sampling_rate, at_ms)"
    " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
)


async def test_what_was_charged_before_there_was_a_chain_is_its_beginning(
    postgres: EmbeddedPostgres,
) -> None:
    name = f"test_{secrets.token_hex(6)}"
    await execute(postgres.url, f"CREATE DATABASE {name}")
    url = with_database(postgres.url, name)
    await migrate(url, load_migrations()[:2])
    old = [event(0), event(1), event(0, 2, 0.1 + 0.2, model=OTHER), event(2)]
    connection = await asyncpg.connect(url)
    for each in old:
        await connection.execute(
            OLD_ROW,
            each.model_id,
            each.client_id,
            each.round_id,
            each.attempt,
            each.mechanism,
            each.noise_multiplier,
            each.sensitivity,
            each.relation,
            each.unit,
            each.sampling_rate,
            each.at_ms,
        )
    await connection.close()
    await migrate(url)
    async with await Database.open(url) as database:
        assert await whole(database) == 3
        assert await whole(database, OTHER) == 1
        assert await call(database, ledger.list_privacy_events, OTHER) == [old[2]]
        await tx(database, prepare)
        await charge(database, event(2, 2))
        assert await whole(database) == 4
        with pytest.raises(asyncpg.IntegrityConstraintViolationError, match="append-only"):
            await tx(database, lambda c: c.execute("DELETE FROM privacy_events"))
