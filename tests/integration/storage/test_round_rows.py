"""Rounds, events, inbox, roster, updates: fenced, in order, each digest once."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from boltz_mesh.rounds.fact import FactKind
from boltz_mesh.storage import inbox, roster, round_events, round_stats, rounds, updates
from boltz_mesh.storage.lease import CoordinatorLease
from boltz_mesh.storage.listen import Listener
from boltz_mesh.storage.postgres import Channel, Connection, Database
from boltz_mesh.storage.references import referenced_blobs
from boltz_mesh.storage.round_events import (
    AggregateBlob,
    NewEvent,
    RoundEnd,
    RoundUpdate,
    SignedConfig,
)
from boltz_mesh.storage.rounds import RoundOutcome
from boltz_mesh.storage.updates import UpdateState
from boltz_protocol.errors import NotFound, SecondDigest, StateConflict
from boltz_protocol.ids import KeyId, SessionId
from tests.support.rows import MODEL, call, client_id, digest, new_round, prepare, round_id, tx

SESSION = SessionId("ee" * 16)
TOKEN = 0  # the lease has not been taken in most tests
COLLECTING = RoundUpdate(phase="COLLECTING", attempt=1, deadline_at_ms=5_000)


def event(kind: str, **payload: object) -> NewEvent:
    return NewEvent(at_ms=10, kind=kind, payload=payload)


async def append(
    database: Database,
    update: RoundUpdate,
    *events: NewEvent,
    at: int,
    token: int = TOKEN,
    inbox_ids: tuple[int, ...] = (),
) -> int:
    return await tx(
        database,
        lambda c: round_events.append_events(
            c,
            round_id(1),
            events,
            update,
            fencing_token=token,
            expected_seq=at,
            inbox_ids=inbox_ids,
        ),
    )


async def put(database: Database, kind: str, client: int = 0) -> int:
    return await tx(
        database,
        lambda c: inbox.put(
            c,
            round_id=round_id(1),
            attempt=1,
            kind=kind,
            client_id=client_id(client),
            payload={"kind": kind},
            at_ms=11,
        ),
    )


async def test_one_unfinished_round_for_a_model(database: Database) -> None:
    await tx(database, prepare)
    found = await tx(database, lambda c: rounds.find_open_round(c, MODEL))
    assert found is not None
    assert (found.round_id, found.attempt, found.next_seq) == (round_id(1), 1, 0)
    assert await tx(database, rounds.list_open_rounds) == [found]
    with pytest.raises(StateConflict, match="unfinished round"):
        await tx(database, lambda c: rounds.create_round(c, new_round(2)))
    end = RoundEnd(RoundOutcome.ABORTED, "nobody came", 99)
    await append(database, replace(COLLECTING, phase="ABORTED", end=end), event("end"), at=0)
    assert await tx(database, lambda c: rounds.find_open_round(c, MODEL)) is None
    await tx(database, lambda c: rounds.create_round(c, new_round(2)))
    newest, older = await tx(database, lambda c: rounds.list_rounds(c, MODEL, limit=9))
    assert (newest.round_id, older.round_id) == (round_id(2), round_id(1))
    assert (older.outcome, older.reason, older.ended_at_ms) == (end.outcome, end.reason, 99)
    page = await tx(database, lambda c: rounds.list_rounds(c, MODEL, limit=9, before=newest))
    assert page == [older]
    assert await call(database, rounds.list_rounds, None, limit=9) == [newest, older]


async def test_a_round_needs_its_model_and_plan(database: Database) -> None:
    await tx(database, lambda c: prepare(c, with_round=False))
    for missing in (
        replace(new_round(1), base_version=2),
        replace(new_round(1), plan_revision=2),
    ):
        with pytest.raises(NotFound, match="no version"):
            await call(database, rounds.create_round, missing)
    for read in (rounds.get_round, rounds.share_round):
        with pytest.raises(NotFound):
            await call(database, read, round_id(1))


async def test_events_are_numbered_and_the_row_moves(database: Database) -> None:
    await tx(database, prepare)
    assert await tx(database, lambda c: round_events.load_snapshot(c, round_id(1))) is None
    config = SignedConfig(b"statement", digest("config"))
    first = replace(COLLECTING, snapshot={"n": 2}, config=config)
    async with await Listener.open(database.url) as listener:
        with listener.subscribe(Channel.ROUND_CHANGED) as wakeups:
            await anext(wakeups)
            assert await append(database, first, event("a", x=1), event("b"), at=0) == 2
            assert (await anext(wakeups)).payloads == {round_id(1)}
    blob = AggregateBlob(digest("aggregate"), b"wrapped")
    assert await append(database, replace(COLLECTING, aggregate=blob), event("c"), at=2) == 3
    found = await tx(database, lambda c: rounds.get_round(c, round_id(1)))
    assert (found.phase, found.next_seq, found.deadline_at_ms) == ("COLLECTING", 3, 5_000)
    assert (found.config_digest, found.aggregate_blob_digest) == (config.digest, blob.blob_digest)
    snapshot = await tx(database, lambda c: round_events.load_snapshot(c, round_id(1)))
    assert snapshot is not None
    assert (snapshot.seq, snapshot.state) == (2, {"n": 2})
    events = await tx(database, lambda c: round_events.load_events(c, round_id(1)))
    assert [(stored.seq, stored.kind) for stored in events] == [(0, "a"), (1, "b"), (2, "c")]
    assert events[0].payload == {"x": 1}
    since = await tx(database, lambda c: round_events.load_events(c, round_id(1), from_seq=2))
    assert since == events[2:]
    assert digest("aggregate") in await tx(database, referenced_blobs)
    # A new attempt starts without configuration and aggregate; a newer snapshot replaces.
    await append(database, replace(COLLECTING, attempt=2, snapshot={"n": 4}), event("d"), at=3)
    again = await tx(database, lambda c: rounds.get_round(c, round_id(1)))
    assert (again.attempt, again.config_statement, again.aggregate_wrapped_key) == (2, None, None)
    snapshot = await tx(database, lambda c: round_events.load_snapshot(c, round_id(1)))
    assert snapshot is not None
    assert (snapshot.seq, snapshot.state) == (4, {"n": 4})


async def test_what_appending_refuses(database: Database) -> None:
    await tx(database, prepare)
    await append(database, COLLECTING, event("a"), at=0)
    for wrong in (0, 2):
        with pytest.raises(StateConflict, match=f"at event 1 and not {wrong}"):
            await append(database, COLLECTING, event("b"), at=wrong)
    with pytest.raises(StateConflict, match="another replica"):
        await append(database, COLLECTING, event("b"), at=1, token=7)
    end = RoundEnd(RoundOutcome.PUBLISHED, "", 99, new_version=2)
    await append(database, replace(COLLECTING, end=end), event("end"), at=1)
    with pytest.raises(StateConflict, match="has ended"):
        await append(database, COLLECTING, event("b"), at=2)
    events = await tx(database, lambda c: round_events.load_events(c, round_id(1)))
    assert [stored.kind for stored in events] == ["a", "end"]


async def test_an_old_lease_holder_writes_nothing(database: Database) -> None:
    await tx(database, prepare)
    old = await CoordinatorLease.acquire(database.url, "old")
    await append(database, COLLECTING, event("a"), at=0, token=old.token)
    await old.release()
    async with await CoordinatorLease.acquire(database.url, "new") as new:
        with pytest.raises(StateConflict, match="another replica"):
            await append(database, COLLECTING, event("b"), at=1, token=old.token)
        with pytest.raises(StateConflict, match="another replica"):
            await tx(database, lambda c: rounds.lock_round(c, round_id(1), fencing_token=old.token))
        await append(database, COLLECTING, event("c"), at=1, token=new.token)


async def test_facts_wait_until_an_event_takes_them_in(database: Database) -> None:
    await tx(database, prepare)
    async with await Listener.open(database.url) as listener:
        with listener.subscribe(Channel.ROUND_INBOX) as wakeups:
            await anext(wakeups)
            numbers = [await put(database, kind) for kind in "abc"]
            assert (await anext(wakeups)).payloads == {round_id(1)}
    waiting = await tx(database, lambda c: inbox.take(c, round_id(1), limit=2))
    assert [(item.id, item.kind) for item in waiting] == [(numbers[0], "a"), (numbers[1], "b")]
    assert waiting[0].payload == {"kind": "a"}
    assert (waiting[0].client_id, waiting[0].inserted_at_ms) == (client_id(0), 11)
    await append(database, COLLECTING, event("x"), at=0, inbox_ids=tuple(numbers[:2]))
    (last,) = await tx(database, lambda c: inbox.take(c, round_id(1)))
    assert last.kind == "c"
    with pytest.raises(AssertionError, match="handled twice"):
        await append(database, COLLECTING, event("x"), at=1, inbox_ids=(numbers[0],))
    end = RoundEnd(RoundOutcome.ABORTED, "", 99)
    await append(database, replace(COLLECTING, end=end), at=1, inbox_ids=(last.id,))
    assert await tx(database, lambda c: inbox.prune(c, ended_before_ms=99)) == 0
    assert await tx(database, lambda c: inbox.prune(c, ended_before_ms=100)) == 3


async def test_a_fact_is_in_before_the_phase_ends_or_not_at_all(database: Database) -> None:
    """`share_round` and `lock_round` exclude each other, so that a receipt always counts."""
    await tx(database, prepare)
    shared, may_commit = asyncio.Event(), asyncio.Event()

    async def handler(connection: Connection) -> None:
        assert (await rounds.share_round(connection, round_id(1))).phase == "SELECTING"
        shared.set()
        await may_commit.wait()
        await inbox.put(
            connection,
            round_id=round_id(1),
            attempt=1,
            kind="update",
            client_id=client_id(0),
            payload={},
            at_ms=1,
        )

    async def coordinator(connection: Connection) -> list[inbox.InboxItem]:
        await rounds.lock_round(connection, round_id(1), fencing_token=TOKEN)
        return await inbox.take(connection, round_id(1))

    handling = asyncio.create_task(tx(database, handler))
    await shared.wait()
    other = await tx(database, lambda c: rounds.share_round(c, round_id(1)))  # many may share
    assert other.round_id == round_id(1)
    coordinating = asyncio.create_task(tx(database, coordinator))
    done, _ = await asyncio.wait({coordinating}, timeout=0.1)
    assert not done
    may_commit.set()
    await handling
    assert [item.kind for item in await coordinating] == ["update"]


def entry(position: int) -> roster.RosterEntry:
    return roster.RosterEntry(
        round_id=round_id(1),
        attempt=1,
        position=position,
        client_id=client_id(position),
        session_id=SESSION,
        weight=255,
        sample_bucket=31,
        quality_bucket=3,
        trust_256=54,
        group_id=0,
        entry=b"entry",
    )


async def test_a_roster_is_frozen_once(database: Database) -> None:
    await tx(database, prepare)
    entries = [entry(n) for n in range(3)]
    await tx(database, lambda c: roster.insert_roster(c, entries))
    assert await tx(database, lambda c: roster.get_roster(c, round_id(1), 1)) == entries
    assert await tx(database, lambda c: roster.get_roster(c, round_id(1), 2)) == []
    found = await tx(database, lambda c: roster.find_roster_entry(c, round_id(1), 1, client_id(2)))
    assert found == entries[2]
    stranger = client_id(9)
    assert (
        await tx(database, lambda c: roster.find_roster_entry(c, round_id(1), 1, stranger)) is None
    )
    with pytest.raises(StateConflict):
        await tx(database, lambda c: roster.insert_roster(c, entries))
    twice = [replace(entry(0), attempt=2), replace(entry(0), attempt=2, position=1)]
    with pytest.raises(StateConflict):
        await tx(database, lambda c: roster.insert_roster(c, twice))


def new_update(client: int, text: str = "update") -> updates.NewUpdate:
    return updates.NewUpdate(
        round_id=round_id(1),
        attempt=1,
        client_id=client_id(client),
        session_id=SESSION,
        position=client,
        update_digest=digest(f"{text} {client}"),
        manifest=b"manifest",
        key_commitment=b"commitment",
        key_id=KeyId("ab" * 16),
        wrapped_content_key=b"wrapped",
        size_bytes=10,
        chunk_count=1,
    )


async def stored(database: Database, client: int, receipt: bytes = b"receipt") -> updates.Update:
    return await tx(
        database,
        lambda c: updates.mark_stored(
            c,
            round_id(1),
            1,
            client_id(client),
            blob_digest=digest(f"blob {client}"),
            receipt=receipt,
            received_at_ms=12,
        ),
    )


async def test_the_life_of_an_update(database: Database) -> None:
    await tx(database, prepare)
    for n in range(3):
        begun = await call(database, updates.begin_update, new_update(n))
        assert (begun.state, begun.receipt) == (UpdateState.RECEIVING, None)
    assert await tx(database, lambda c: updates.begin_update(c, new_update(0))) == await tx(
        database, lambda c: updates.get_update(c, round_id(1), 1, client_id(0))
    )
    with pytest.raises(SecondDigest) as refused:
        await tx(database, lambda c: updates.begin_update(c, new_update(0, "other")))
    assert refused.value.metadata["first_digest"] == digest("update 0").hex()
    first = await stored(database, 0)
    assert (first.state, first.receipt, first.received_at_ms) == (
        UpdateState.STORED,
        b"receipt",
        12,
    )
    assert await stored(database, 0, b"another receipt") == first
    await stored(database, 1)
    assert await tx(database, lambda c: updates.begin_update(c, new_update(0))) == first
    listed = await tx(
        database, lambda c: updates.list_updates(c, round_id(1), 1, UpdateState.STORED)
    )
    assert [row.client_id for row in listed] == [client_id(0), client_id(1)]
    assert digest("blob 0") in await tx(database, referenced_blobs)

    async def settle(connection: Connection) -> tuple[int, int]:
        return await updates.settle_updates(connection, round_id(1), 1, counted=[client_id(0)])

    assert await tx(database, settle) == (1, 2)
    assert await tx(database, settle) == (0, 0)
    states = await tx(database, lambda c: updates.list_updates(c, round_id(1), 1))
    assert [row.state.value for row in states] == ["counted", "dropped", "dropped"]
    with pytest.raises(StateConflict, match="dropped"):
        await stored(database, 2)
    old = await tx(database, lambda c: updates.forget_contents(c, round_id(1)))
    assert sorted(old) == sorted([digest("blob 0"), digest("blob 1")])
    assert await tx(database, lambda c: updates.forget_contents(c, round_id(1))) == []
    kept = await tx(database, lambda c: updates.get_update(c, round_id(1), 1, client_id(0)))
    assert (kept.wrapped_content_key, kept.blob_digest, kept.receipt) == (None, None, b"receipt")
    assert digest("blob 0") not in await tx(database, referenced_blobs)


async def test_updates_that_were_never_announced(database: Database) -> None:
    await tx(database, prepare)
    with pytest.raises(NotFound):
        await stored(database, 0)
    with pytest.raises(NotFound):
        await tx(database, lambda c: updates.get_update(c, round_id(1), 2, client_id(0)))


async def test_an_update_that_fails_its_checks_is_dropped_for_good(database: Database) -> None:
    await tx(database, prepare)
    await call(database, updates.begin_update, new_update(0))
    drop = (round_id(1), 1, client_id(0))
    assert await call(database, updates.mark_dropped, *drop)
    assert not await call(database, updates.mark_dropped, *drop)
    with pytest.raises(StateConflict, match="dropped"):
        await stored(database, 0)


async def test_counts_of_a_round(database: Database) -> None:
    await tx(database, prepare)
    await call(database, roster.insert_roster, [entry(n) for n in range(3)])
    for n in range(2):
        await call(database, updates.begin_update, new_update(n))
    await stored(database, 0)
    await put(database, FactKind.CLIENT_DROPPED, 2)
    counts = await call(database, round_stats.count_updates, [round_id(1), round_id(9)])
    expected = round_stats.RoundStats(selected=3, received=1, dropped=1, bytes_up=10)
    assert counts == {round_id(1): expected}


async def test_two_manifests_at_once(database: Database) -> None:
    await tx(database, prepare)
    results = await asyncio.gather(
        *(call(database, updates.begin_update, new_update(0, text)) for text in "abcd"),
        return_exceptions=True,
    )
    assert sum(isinstance(result, updates.Update) for result in results) == 1
    assert sum(isinstance(result, SecondDigest) for result in results) == 3
