"""A round between the tables and the machine: loading it, and committing a step.

A commit is one transaction: fencing token and sequence number are checked, events appended, a
snapshot written where the phase changes, and whatever the change means for the ledger, the
updates' rows and, at the end, the clients' trust. So none of them and the events can ever tell
different stories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from boltz_mesh.coordinator.conduct import record_conduct
from boltz_mesh.rounds.charge import charges
from boltz_mesh.rounds.effect import Effect
from boltz_mesh.rounds.event import Event
from boltz_mesh.rounds.plan_sealed import ReleaseTerms
from boltz_mesh.rounds.serialise import (
    event_kind,
    event_of,
    event_payload,
    state_of,
    state_payload,
)
from boltz_mesh.rounds.state import Aborted, Ended, Published, Releasing, RoundState, deadline_of
from boltz_mesh.rounds.step import fold, pending, step
from boltz_mesh.services.budgets import ledger_entry
from boltz_mesh.storage import inbox, ledger, round_events, rounds, updates
from boltz_mesh.storage.inbox import InboxItem
from boltz_mesh.storage.postgres import Connection
from boltz_mesh.storage.round_events import (
    AggregateBlob,
    NewEvent,
    RoundEnd,
    RoundUpdate,
    SignedConfig,
)
from boltz_mesh.storage.rounds import Round, RoundOutcome
from boltz_protocol import limits
from boltz_protocol.errors import StateConflict
from boltz_protocol.ids import ClientId, RoundId


@dataclass(frozen=True, slots=True)
class Position:
    """Where a round stands: the fold of its events, and the number of the next one.

    `state` is None before RoundStarted.
    """

    state: RoundState | None
    next_seq: int


@dataclass(frozen=True, slots=True)
class Turn:
    """What one transaction made of a round."""

    position: Position
    events: tuple[Event, ...]
    effects: tuple[Effect, ...]


async def load(connection: Connection, round_id: RoundId) -> Position:
    """The fold of a round's events, from its newest snapshot on. Raises: NotFound."""
    snapshot = await round_events.load_snapshot(connection, round_id)
    state = None if snapshot is None else state_of(snapshot.state)
    first = 0 if snapshot is None else snapshot.seq
    stored = await round_events.load_events(connection, round_id, from_seq=first)
    return Position(fold(state, (event_of(row.payload) for row in stored)), first + len(stored))


async def last_sign_of_life_ms(connection: Connection, found: Round) -> int:
    """When something last happened in a round, as far as the tables tell."""
    last = await round_events.load_events(
        connection, found.round_id, from_seq=max(0, found.next_seq - 1)
    )
    waiting = await inbox.take(connection, found.round_id)
    times = [found.started_at_ms]
    times.extend(event.at_ms for event in last)
    times.extend(item.inserted_at_ms for item in waiting)
    return max(times)


async def lock(
    connection: Connection, round_id: RoundId, position: Position, *, fencing_token: int
) -> Round:
    """Take the round for this transaction, and hold it against what the caller believes.

    Raises: StateConflict when the lease is another's, or the round has moved on without us.
    """
    found = await rounds.lock_round(connection, round_id, fencing_token=fencing_token)
    if found.next_seq != position.next_seq or found.outcome is not None:
        raise StateConflict(
            f"round {round_id} is at event {found.next_seq}, not {position.next_seq}, or has ended",
            round_id=round_id,
        )
    return found


async def take_all(connection: Connection, round_id: RoundId) -> list[InboxItem]:
    """Every fact that waits. All of them: one left behind when the phase ends would not count."""
    limit = limits.MAX_INBOX_BATCH
    while len(items := await inbox.take(connection, round_id, limit=limit)) == limit:
        limit *= 2
    return items


def advance(
    state: RoundState | None, events: Sequence[Event]
) -> tuple[RoundState | None, tuple[Effect, ...]]:
    """Step through the events; of the effects, those that the last state still asks for."""
    emitted: list[Effect] = []
    for event in events:
        state, effects = step(state, event)
        emitted.extend(effects)
    wanted = () if state is None else pending(state)
    return state, tuple(effect for effect in wanted if effect in emitted)


async def commit(
    connection: Connection,
    round_id: RoundId,
    before: Position,
    events: Sequence[Event],
    *,
    fencing_token: int,
    inbox_ids: Sequence[int] = (),
    config: SignedConfig | None = None,
    aggregate: AggregateBlob | None = None,
    terms: ReleaseTerms | None = None,
) -> Turn:
    """Step, and write what the step means. The caller holds the round's lock.

    Args:
        before: the position under the lock.
        events: in order; may be empty when only facts without a meaning were taken.
        inbox_ids: rows that the events came from.
        config: with RosterFixed.
        aggregate: with AggregateReady.
        terms: what a release costs each survivor; needed where the step may charge.

    Raises: StateConflict.
    """
    state, effects = advance(before.state, events)
    assert state is not None, "the first event of a round starts it"
    # By type: two states share ADVERTISING_KEYS.
    moved = type(before.state) is not type(state)
    if survivors := charges(before.state, state):
        assert terms is not None, "a charge has its terms"
        await _charge(connection, state, survivors, terms, events[-1].at_ms)
    if moved and aggregate is not None:
        assert isinstance(state, Releasing), "an aggregate is released"
        await updates.settle_updates(
            connection,
            round_id,
            state.parameters.attempt,
            counted=[ClientId(client) for client in state.survivors],
        )
    if isinstance(state, Ended):
        await ledger.release_holds(connection, round_id)
        if isinstance(state, Aborted):
            # No effect on what was counted before a publication failed.
            await updates.settle_updates(connection, round_id, state.parameters.attempt, counted=())
    next_seq = await round_events.append_events(
        connection,
        round_id,
        [NewEvent(event.at_ms, event_kind(event), event_payload(event)) for event in events],
        RoundUpdate(
            phase=state.phase,
            attempt=state.parameters.attempt,
            deadline_at_ms=deadline_of(state),
            snapshot=state_payload(state) if moved else None,
            config=config,
            aggregate=aggregate,
            end=_end(state, events[-1].at_ms) if isinstance(state, Ended) else None,
        ),
        fencing_token=fencing_token,
        expected_seq=before.next_seq,
        inbox_ids=inbox_ids,
    )
    if isinstance(state, Ended):
        await record_conduct(connection, round_id, events[-1].at_ms)
    return Turn(Position(state, next_seq), tuple(events), effects)


async def _charge(
    connection: Connection,
    state: RoundState,
    survivors: Sequence[str],
    terms: ReleaseTerms,
    at_ms: int,
) -> None:
    parameters = state.parameters
    await ledger.debit(
        connection,
        [
            ledger_entry(
                terms.event(
                    model=parameters.model_id,
                    round=parameters.round_id,
                    attempt=parameters.attempt,
                    client=client,
                ),
                at_ms,
            )
            for client in survivors
        ],
    )


def _end(state: Ended, at_ms: int) -> RoundEnd:
    match state:
        case Published(version=version):
            return RoundEnd(RoundOutcome.PUBLISHED, "", at_ms, version)
        case Aborted(reason=reason, charged=charged):
            outcome = RoundOutcome.REJECTED if charged else RoundOutcome.ABORTED
            return RoundEnd(outcome, reason, at_ms)
