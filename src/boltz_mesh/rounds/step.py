"""The round machine: `(state, event) -> (state, effects)`, pure.

                 RoundStarted
                      |
                      v     deadline, too few: TOO_FEW_CLIENTS, BUDGET_EXCEEDED
                  SELECTING ----------------------------------------+
                      | RosterFixed                                 |
                      v     too few left, deadline: TOO_FEW_UPDATES |
                  COLLECTING ---------------------------------------+
                      | target, or all in, or deadline              |
                      v     AggregateRejected (charged); deadline   |   AbortRequested leads there
                  AGGREGATING --------------------------------------+<- too, from every phase above
                      | AggregateReady (charged)                    |   RELEASING
                      v     PublishRejected, deadline (both charged)|
                  RELEASING ----------------------------------------+
                      | VersionPublished                            v
                      v                                          ABORTED
                  PUBLISHED

SELECTING waits until `wanted_clients` with budget left are checked in, or for its deadline with
at least `min_clients`. Then a roster is drawn outside; should clients leave meanwhile, the drawing
reports who is there now and the waiting goes on (or, past the deadline, ends). A round that fails
only because budgets are spent says so.

COLLECTING ends when `target_clients` updates are stored, when nobody is outstanding, or at its
deadline, each with at least `min_clients`; it aborts as soon as that minimum is out of reach. An
update with a receipt counts, whatever its client says or does later.

AGGREGATING starts by freezing the survivors. Until it ends nobody has learned anything, so an
abort costs no budget. A noised sum out of range was seen, so it is charged, and ends the round.
The deadline bounds the retries of a fold that a broken disk makes impossible.

RELEASING starts with the charge, in the same transaction. From there the round only goes on to
PUBLISHED, or to ABORTED when the aggregate makes no model, at once or by the deadline; the charge
stays.

PUBLISHED and ABORTED are final. What is left is to destroy updates and keys.

`open` rounds have one attempt. Facts that were on their way when a phase ended are ignored, each
where it says so; any other move that is not in the diagram is a defect and asserts.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from boltz_mesh.rounds.effect import (
    Aggregate,
    Announce,
    CleanUp,
    Effect,
    Publish,
    ScheduleDeadline,
    SelectRoster,
)
from boltz_mesh.rounds.event import (
    AbortRequested,
    AggregateReady,
    AggregateRejected,
    CandidatesSeen,
    ClientsDropped,
    DeadlineReached,
    Event,
    PublishRejected,
    Recovered,
    RosterFixed,
    RoundStarted,
    UpdatesStored,
    VersionPublished,
)
from boltz_mesh.rounds.state import (
    BY_RULES,
    Aborted,
    AbortReason,
    Aggregating,
    Collecting,
    Published,
    Releasing,
    RoundState,
    Running,
    Selecting,
)

Step = tuple[RoundState, tuple[Effect, ...]]


def step(state: RoundState | None, event: Event) -> Step:  # noqa: PLR0912 - one `match`, on purpose
    """The next state, and what to do once it is committed. `state` is None before RoundStarted."""
    match state, event:
        case None, RoundStarted(at_ms=at_ms, parameters=parameters):
            return _enter(
                Selecting(parameters=parameters, deadline_ms=at_ms + parameters.selecting_ms)
            )

        # --- SELECTING
        case Selecting(), CandidatesSeen():
            return _select(
                replace(
                    state,
                    candidates=event.candidates,
                    over_budget=event.over_budget,
                    choosing=False,
                )
            )
        case Selecting(), DeadlineReached(at_ms=at_ms):
            # A timer set before an outage extended the phase rings too early; one rings again.
            if state.expired or at_ms < state.deadline_ms:
                return state, ()
            expired = replace(state, expired=True)
            return (expired, ()) if state.choosing else _select(expired)
        case Selecting(), RosterFixed():
            return _fix_roster(state, event)

        # --- COLLECTING
        case Collecting(), UpdatesStored(clients=clients):
            assert clients <= frozenset(state.roster), "a receipt for a client outside the roster"
            # A client that declined and then uploaded all the same holds a receipt: it counts.
            dropped = {c: why for c, why in state.dropped.items() if c not in clients}
            stored = state.stored | clients
            return _collect(replace(state, stored=stored, dropped=dropped), event.at_ms)
        case Collecting(), ClientsDropped(clients=reasons):
            # Only those of whom something is still awaited: a stored update counts for good, and
            # clients outside the roster have nothing to drop.
            roster = frozenset(state.roster)
            leaving = {
                client: reason
                for client, reason in reasons.items()
                if client in roster and client not in state.stored and client not in state.dropped
            }
            dropped = {**state.dropped, **leaving}
            return _collect(replace(state, dropped=dropped), event.at_ms)
        case Collecting(), DeadlineReached(at_ms=at_ms):
            if at_ms < state.deadline_ms:  # as in SELECTING
                return state, ()
            if len(state.stored) >= state.parameters.min_clients:
                return _freeze(state, at_ms)
            return _abort(state, AbortReason.TOO_FEW_UPDATES)

        # --- AGGREGATING
        case Aggregating(), AggregateReady():
            assert event.survivors == len(state.survivors)
            return _enter(
                Releasing(
                    parameters=state.parameters,
                    survivors=state.survivors,
                    aggregate_digest=event.aggregate_digest,
                    total_weight=event.total_weight,
                    metrics=event.metrics,
                    deadline_ms=event.at_ms + state.parameters.releasing_ms,
                )
            )
        case Aggregating(), AggregateRejected(reason=reason):
            return _abort(state, AbortReason.AGGREGATE_REJECTED, reason, charged=True)

        case Aggregating(), DeadlineReached(at_ms=at_ms):
            if at_ms < state.deadline_ms:
                return state, ()
            return _abort(state, AbortReason.AGGREGATING_TOO_LONG)

        # --- RELEASING
        case Releasing(), VersionPublished(version=version, model_digest=digest):
            return _enter(
                Published(
                    parameters=state.parameters,
                    survivors=state.survivors,
                    version=version,
                    model_digest=digest,
                )
            )
        case Releasing(), PublishRejected(reason=reason):
            return _abort(state, AbortReason.PUBLISH_REJECTED, reason, charged=True)

        case Releasing(), DeadlineReached(at_ms=at_ms):
            if at_ms < state.deadline_ms:
                return state, ()
            return _abort(state, AbortReason.RELEASING_TOO_LONG, charged=True)

        # --- anywhere before the charge
        case ((Selecting() | Collecting() | Aggregating()), AbortRequested(by=by, reason=reason)):
            return _enter(Aborted(parameters=state.parameters, reason=reason, by=by))

        # --- a new coordinator: more time where it is due, and every pending effect once more
        case (
            (Selecting() | Collecting() | Aggregating() | Releasing()),
            Recovered(down_ms=down_ms),
        ):
            return _enter(_extend(state, down_ms))
        case ((Published() | Aborted()), Recovered()):
            return state, pending(state)

        # --- late facts, ignored on purpose
        case ((Releasing() | Published() | Aborted()), AbortRequested()):
            # It crossed with the charge, or with the end: there is nothing left to stop.
            return state, ()
        case (
            (Collecting() | Aggregating() | Releasing() | Published() | Aborted()),
            CandidatesSeen(),
        ):
            # Check-ins after the roster was fixed are for the next round.
            return state, ()
        case ((Published() | Aborted()), DeadlineReached()):
            # The timer of a phase that ended before its time.
            return state, ()
        case (
            (Selecting() | Aggregating() | Releasing() | Published() | Aborted()),
            ClientsDropped(),
        ):
            # Before the roster check-ins say who is there; after it the survivors are frozen.
            return state, ()
        case ((Aggregating() | Releasing() | Published()), UpdatesStored(clients=clients)):
            # The same fact again. A new one would be a receipt that does not count: a defect.
            assert clients <= frozenset(state.survivors), (
                "a receipt after the survivors were frozen"
            )
            return state, ()
        case Aborted(), UpdatesStored():
            # Nothing counts in a round without a result.
            return state, ()
    raise AssertionError(f"{type(event).__name__} in {state.phase if state else 'no round'}")


def fold(state: RoundState | None, events: Iterable[Event]) -> RoundState | None:
    """The state after `events`, effects left out: what recovery does from a snapshot."""
    for event in events:
        state, _ = step(state, event)
    return state


def pending(state: RoundState) -> tuple[Effect, ...]:
    """The effects that carry a round on from `state`."""
    match state:
        case Selecting():
            deadline = () if state.expired else (ScheduleDeadline(state.deadline_ms),)
            return (*deadline, *((_selection(state),) if state.choosing else ()))
        case Collecting():
            return ScheduleDeadline(state.deadline_ms), Announce()
        case Aggregating():
            return ScheduleDeadline(state.deadline_ms), Aggregate(state.survivors)
        case Releasing():
            return ScheduleDeadline(state.deadline_ms), Publish(state.aggregate_digest)
        case Published() | Aborted():
            return (CleanUp(),)


def _enter(state: RoundState) -> Step:
    return state, pending(state)


def _abort(
    state: RoundState, reason: AbortReason, detail: str = "", *, charged: bool = False
) -> Step:
    text = f"{reason}: {detail}" if detail else str(reason)
    return _enter(Aborted(parameters=state.parameters, reason=text, by=BY_RULES, charged=charged))


def _select(state: Selecting) -> Step:
    """Draw a roster, wait on, or give up: by who is there and whether the time is up."""
    parameters = state.parameters
    needed = parameters.min_clients if state.expired else parameters.wanted_clients
    if len(state.candidates) >= needed:
        choosing = replace(state, choosing=True)
        return choosing, (_selection(choosing),)
    if not state.expired:
        return state, ()
    if len(state.candidates) + state.over_budget >= parameters.min_clients:
        return _abort(state, AbortReason.BUDGET_EXCEEDED)
    return _abort(state, AbortReason.TOO_FEW_CLIENTS)


def _selection(state: Selecting) -> SelectRoster:
    return SelectRoster(
        state.candidates, min(len(state.candidates), state.parameters.wanted_clients)
    )


def _fix_roster(state: Selecting, event: RosterFixed) -> Step:
    roster = event.roster
    assert state.choosing, "a roster that nobody asked for"
    assert len(set(roster)) == len(roster)
    assert state.parameters.min_clients <= len(roster) <= state.parameters.wanted_clients
    assert event.deadline_ms > event.at_ms
    return _enter(
        Collecting(
            parameters=state.parameters,
            roster=roster,
            config_digest=event.config_digest,
            deadline_ms=event.deadline_ms,
        )
    )


def _collect(state: Collecting, at_ms: int) -> Step:
    """Freeze, give up or wait on, after updates or dropouts."""
    assert state.stored.isdisjoint(state.dropped)
    minimum = state.parameters.min_clients
    stored, outstanding = len(state.stored), state.outstanding()
    if stored + outstanding < minimum:
        return _abort(state, AbortReason.TOO_FEW_UPDATES)
    if stored >= state.parameters.target_clients or outstanding == 0:
        return _freeze(state, at_ms)
    return state, ()


def _freeze(state: Collecting, at_ms: int) -> Step:
    survivors = tuple(client for client in state.roster if client in state.stored)
    assert len(survivors) >= state.parameters.min_clients
    return _enter(
        Aggregating(
            parameters=state.parameters,
            survivors=survivors,
            deadline_ms=at_ms + state.parameters.aggregating_ms,
        )
    )


def _extend(state: Running, down_ms: int) -> Running:
    """Give back the time of an outage, up to a cap over the whole phase."""
    assert down_ms >= 0
    granted = min(down_ms, state.parameters.recovery_extension_ms - state.extended_ms)
    return replace(
        state,
        deadline_ms=state.deadline_ms + granted,
        extended_ms=state.extended_ms + granted,
    )
