"""Trust's rows: states that follow from evidence, where a client stands, what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

import asyncpg
import pytest
import pytest_asyncio

from boltz_mesh.storage import round_events, rounds, trust
from boltz_mesh.storage.postgres import Connection, Database
from boltz_mesh.storage.round_events import NewEvent, RoundEnd, RoundUpdate, SignedConfig
from boltz_mesh.storage.rounds import RoundOutcome
from boltz_mesh.trust.replay import Step, replay
from boltz_mesh.trust.reputation import (
    GAIN_256,
    LARGE_LOSS_256,
    MAX_QUARANTINE_ROUNDS,
    NEGATIVE_MOST_256,
    NEWCOMER,
    POSITIVE_MOST_256,
    ROUNDS,
    Evidence,
    EvidenceKind,
    TrustState,
    apply,
    forget,
)
from boltz_protocol.errors import StateConflict
from boltz_protocol.ids import ClientId, ModelId
from tests.support.rows import MODEL, call, client_id, digest, new_round, prepare, round_id, tx

GOOD = Evidence(EvidenceKind.CONDUCT, "counted", GAIN_256, 0, {"outcome": "published"})
BAD = Evidence(EvidenceKind.OUTCOME, "far-off", 0, LARGE_LOSS_256, {"z": 11.25, "rank": 3})
LOCKED = Evidence(EvidenceKind.QUARANTINE, "far-off", inputs={ROUNDS: 3})
RELEASED = Evidence(EvidenceKind.RELEASE, "released", inputs={"by": "ann"})


@pytest_asyncio.fixture
async def prepared(database: Database) -> AsyncIterator[Database]:
    await tx(database, lambda connection: prepare(connection, with_round=False))
    yield database


async def end_round(database: Database, n: int, *, with_roster: bool = True) -> None:
    """Start and end the n-th round."""

    async def body(connection: Connection) -> None:
        await rounds.create_round(connection, new_round(n))
        config = SignedConfig(b"statement", digest("config")) if with_roster else None
        end = RoundEnd(RoundOutcome.ABORTED, "test", 9)
        await round_events.append_events(
            connection,
            round_id(n),
            [NewEvent(9, "AbortRequested", {})],
            RoundUpdate("ABORTED", 1, None, config=config, end=end),
            fencing_token=0,
            expected_seq=0,
        )

    await tx(database, body)


def state_of(row: Step) -> TrustState:
    return TrustState(row.positive_256, row.negative_256, row.quarantine_rounds)


async def append(
    database: Database,
    evidence: Evidence,
    *,
    client: int = 0,
    ordinal: int = 1,
    of_round: int | None = 1,
    model: ModelId = MODEL,
) -> Step:
    return await call(
        database,
        trust.append_evidence,
        model,
        client_id(client),
        evidence,
        round_id=None if of_round is None else round_id(of_round),
        attempt=None if of_round is None else 1,
        ordinal=ordinal,
        at_ms=70,
    )


async def append_many(
    connection: Connection, evidence: Mapping[ClientId, Evidence], of_round: int
) -> dict[ClientId, Step]:
    return await trust.append_all(
        connection, MODEL, evidence, round_id=round_id(of_round), attempt=1, ordinal=1, at_ms=5
    )


async def standing(database: Database, client: int = 0, model: ModelId = MODEL) -> trust.Standing:
    found = await call(database, trust.read_trust, model, [client_id(client)])
    return found[client_id(client)]


async def test_nobody_knows_a_newcomer(prepared: Database) -> None:
    assert await standing(prepared) == trust.Standing(NEWCOMER, 0)
    assert (await standing(prepared)).quarantined_until is None
    assert await call(prepared, trust.read_trust, MODEL, []) == {}
    assert await call(prepared, trust.models_with_evidence, client_id(0)) == []


async def test_each_row_continues_the_one_before_it(prepared: Database) -> None:
    await end_round(prepared, 1)
    first = await append(prepared, BAD, ordinal=1)
    second = await append(prepared, GOOD, ordinal=1)
    await end_round(prepared, 2)
    await end_round(prepared, 3)
    third = await append(prepared, GOOD, ordinal=3, of_round=3)
    assert state_of(first) == apply(NEWCOMER, 0, BAD)
    assert state_of(second) == apply(state_of(first), 0, GOOD)
    assert state_of(third) == apply(state_of(second), 2, GOOD)
    rows = await call(prepared, trust.list_evidence, MODEL, client_id(0), after=0, limit=10)
    assert rows == [first, second, third]
    assert [row.seq for row in rows] == [1, 2, 3]
    assert rows[0].inputs == {"z": 11.25, "rank": 3}
    assert all(row.trust_256 == state_of(row).trust_256 for row in rows)
    assert [one.state for one in replay(rows, judges={})] == [state_of(row) for row in rows]
    assert all(one.agrees for one in replay(rows, judges={}))
    later = await call(prepared, trust.list_evidence, MODEL, client_id(0), after=1, limit=1)
    assert later == [second]
    assert await standing(prepared) == trust.Standing(state_of(third), 3, 3, 3)


async def test_rounds_that_pass_are_forgotten(prepared: Database) -> None:
    await end_round(prepared, 1)
    row = await append(prepared, GOOD)
    for number in (2, 3):
        await end_round(prepared, number)
    assert (await standing(prepared)).state == forget(state_of(row), 2)


async def test_a_round_without_a_roster_lets_nobody_be_forgotten(prepared: Database) -> None:
    await end_round(prepared, 1)
    row = await append(prepared, GOOD)
    await end_round(prepared, 2, with_roster=False)
    assert await standing(prepared) == trust.Standing(state_of(row), 1, 1, 1)


async def test_evidence_of_a_round_that_has_not_ended(prepared: Database) -> None:
    row = await append(prepared, GOOD, ordinal=1)
    assert await standing(prepared) == trust.Standing(state_of(row), 0, 1, 1)
    await end_round(prepared, 1)
    assert await standing(prepared) == trust.Standing(state_of(row), 1, 1, 1)


async def test_a_quarantine_ends_after_so_many_rounds(prepared: Database) -> None:
    await end_round(prepared, 1)
    await append(prepared, GOOD)
    await append(prepared, LOCKED)
    for number, until in ((2, 4), (3, 4), (4, 4)):
        assert (await standing(prepared)).quarantined_until == until
        await end_round(prepared, number)
    back = await standing(prepared)
    assert back.quarantined_until is None
    assert back.trust_256 <= NEWCOMER.trust_256


async def test_a_quarantine_of_an_open_round_lasts_from_its_end(prepared: Database) -> None:
    await append(prepared, LOCKED, ordinal=1)
    assert (await standing(prepared)).quarantined_until == 4
    await end_round(prepared, 1)
    assert (await standing(prepared)).quarantined_until == 4


async def test_an_operator_ends_a_quarantine_at_once(prepared: Database) -> None:
    await end_round(prepared, 1)
    await append(prepared, BAD)
    await append(prepared, LOCKED)
    await append(prepared, RELEASED, of_round=None)
    assert await standing(prepared) == trust.Standing(NEWCOMER, 1, 1, 3)
    await append(prepared, RELEASED, of_round=None)  # as often as an operator likes
    rows = await call(prepared, trust.list_evidence, MODEL, client_id(0), after=2, limit=10)
    assert [(row.round_id, row.attempt) for row in rows] == [("", 0), ("", 0)]


async def test_models_and_clients_are_apart(prepared: Database) -> None:
    other = ModelId("other")
    await append(prepared, GOOD)
    await append(prepared, LOCKED, client=1)
    await append(prepared, BAD, model=other, of_round=2)
    assert (await standing(prepared)).state == apply(NEWCOMER, 0, GOOD)
    assert (await standing(prepared, model=other)).state == apply(NEWCOMER, 0, BAD)
    assert (await standing(prepared, client=2)).state == NEWCOMER
    assert await call(prepared, trust.models_with_evidence, client_id(0)) == [other, MODEL]


async def test_one_evidence_of_a_kind_for_a_round(prepared: Database) -> None:
    row = await append(prepared, GOOD)
    with pytest.raises(StateConflict, match="evidence of this kind"):
        await append(prepared, replace(GOOD, gain_256=1))
    assert (await standing(prepared)).state == state_of(row)


async def test_evidence_goes_forward_only(prepared: Database) -> None:
    await append(prepared, GOOD, ordinal=2)
    with pytest.raises(AssertionError, match="ended before"):
        await append(prepared, GOOD, ordinal=1, of_round=2)


async def test_writers_take_turns(prepared: Database) -> None:
    """Each continues the other's row, whoever comes first."""
    await asyncio.gather(
        *(append(prepared, RELEASED, of_round=None, ordinal=0) for _ in range(8)),
    )
    rows = await call(prepared, trust.list_evidence, MODEL, client_id(0), after=0, limit=99)
    assert [row.seq for row in rows] == list(range(1, 9))


async def test_many_clients_at_once(prepared: Database) -> None:
    evidence = {client_id(n): GOOD if n % 2 else BAD for n in range(500)}
    rows = await call(prepared, append_many, evidence, 1)
    assert rows.keys() == evidence.keys()
    found = await call(prepared, trust.read_trust, MODEL, list(evidence))
    assert {client: s.state for client, s in found.items()} == {
        client: state_of(row) for client, row in rows.items()
    }
    assert await call(prepared, append_many, {}, 2) == {}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE trust_evidence SET trust_256 = 256",
        "DELETE FROM trust_evidence",
        "TRUNCATE trust_evidence",
    ],
)
async def test_the_database_keeps_every_row(prepared: Database, statement: str) -> None:
    await append(prepared, BAD)
    with pytest.raises(asyncpg.IntegrityConstraintViolationError, match="append-only"):
        await tx(prepared, lambda connection: connection.execute(statement))


@pytest.mark.parametrize(
    "broken",
    [
        {"trust_256": 0},
        {"trust_256": 257},
        {"seq": 0},
        {"gain_256": -1},
        {"gain_256": NEGATIVE_MOST_256 + 1},
        {"loss_256": NEGATIVE_MOST_256 + 1},
        {"positive_256": POSITIVE_MOST_256 + 1},
        {"negative_256": NEGATIVE_MOST_256 + 1},
        {"quarantine_rounds": MAX_QUARANTINE_ROUNDS + 1},
        {"kind": "'rumour'"},
        {"inputs": "'[]'"},
        {"round_id": "NULL"},
        {"seq": 1},
    ],
)
async def test_the_database_refuses_rows_that_cannot_be(
    prepared: Database, broken: dict[str, object]
) -> None:
    await append(prepared, BAD)
    values: dict[str, object] = {
        "model_id": "'rates'",
        "client_id": f"'{client_id(0)}'",
        "seq": 2,
        "ordinal": 1,
        "round_id": f"'{round_id(2)}'",
        "attempt": 1,
        "kind": "'conduct'",
        "reason": "''",
        "gain_256": 0,
        "loss_256": 0,
        "inputs": "'{}'",
        "positive_256": 0,
        "negative_256": 0,
        "quarantine_rounds": 0,
        "trust_256": 54,
        "at_ms": 1,
    }
    values |= broken
    statement = (
        f"INSERT INTO trust_evidence ({', '.join(values)})"
        f" VALUES ({', '.join(str(value) for value in values.values())})"
    )
    with pytest.raises(asyncpg.IntegrityConstraintViolationError):
        await tx(prepared, lambda connection: connection.execute(statement))


async def test_the_database_takes_the_most_of_everything(prepared: Database) -> None:
    """The checks of the table and the constants of the arithmetic are the same."""
    most = Evidence(EvidenceKind.OUTCOME, "most", NEGATIVE_MOST_256, NEGATIVE_MOST_256)
    row = await append(prepared, most)
    assert state_of(row) == TrustState(POSITIVE_MOST_256, NEGATIVE_MOST_256)
    locked = Evidence(EvidenceKind.QUARANTINE, "most", inputs={ROUNDS: MAX_QUARANTINE_ROUNDS})
    assert (await append(prepared, locked)).quarantine_rounds == MAX_QUARANTINE_ROUNDS
