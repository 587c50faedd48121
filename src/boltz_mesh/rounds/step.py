"""The round machine: `(state, event) -> (state, effects)`, pure.

       open rounds                                       sealed rounds

                            RoundStarted
                                 |
                                 v
                             SELECTING    TOO_FEW_CLIENTS, BUDGET_EXCEEDED
                                 | RosterFixed
            +--------------------+--------------------+
            |                                         v
            |                                 ADVERTISING_KEYS    TOO_FEW_KEYS
            |                                         | all asked have answered, or deadline
            |                                         |   (groups, or more than 50 members:
            |                                         |    nonces first)
            |                                         v
            |                                   SHARING_KEYS      TOO_FEW_SHARES
            |                                         | all asked have answered, or deadline
            +--------------------+--------------------+
                                 v
                            COLLECTING    TOO_FEW_UPDATES
                                 | target, or all in, or deadline
            +--------------------+--------------------+
            |                                         v
            |                              CHECKING_CONSISTENCY   TOO_FEW_SIGNATURES
            |                                         | all survivors signed, or deadline
            |                                         v
            |                                UNMASKING (charged)  TOO_FEW_RELEASED
            |                                         | enough shares
            +--------------------+--------------------+
                                 v
                            AGGREGATING   AGGREGATE_REJECTED (charged), AGGREGATING_TOO_LONG
                                 | AggregateReady
                                 v
                        RELEASING (charged)   PUBLISH_REJECTED, RELEASING_TOO_LONG
                                 | VersionPublished
                                 v
                             PUBLISHED

Each phase ends in ABORTED for the reasons beside it; all but the last two phases also by
AbortRequested. An abort from a charged phase stays charged.

SELECTING waits until `wanted_clients` with budget left are checked in, or for its deadline with
at least `min_clients`. Then a roster is drawn outside; should clients leave meanwhile, the drawing
reports who is there now and the waiting goes on (or, past the deadline, ends). A round that fails
only because budgets are spent says so.

ADVERTISING_KEYS, its second half for sparse graphs (RevealingNonces), and SHARING_KEYS run while
the clients train. Each ends when nobody it asked is outstanding or at its deadline, with at least
`min_clients` answers, and aborts as soon as that minimum is out of reach. Who has answered and not
dropped out is asked the next thing. The moves are in `step_keys`.

COLLECTING ends when `target_clients` updates are stored, when nobody is outstanding, or at its
deadline, each with at least `min_clients`; it aborts as soon as that minimum is out of reach. An
update with a receipt counts, whatever its client says or does later. In a sealed round only the
sharers upload, and no more of them are left behind than its graph withstands (`quota`); the
deadline is the configuration's, so that quick key phases leave the more time.

A grouped round goes the way of a sealed one. Nonces are revealed whatever the number of members,
and GroupsDrawn comes in with the step into SHARING_KEYS. From there on only clients in groups that
are strong enough count towards the minimum (`groups`): sharers of other groups do not upload, and
an update of a group with too few of them does not count, is not charged, and leaves its client with
nothing to sign. A receipt promises a place in its group's sum, where that is opened. At the target
the round still waits for groups that can become strong enough.

CHECKING_CONSISTENCY starts by freezing the survivors: from here on membership never changes. It
ends when every survivor that is still there has signed them, or at its deadline, each with at least
`min_clients` signatures of sharers that are still there. An abort costs no budget: no share is out.

UNMASKING starts with the charge, in the same transaction. It ends when the shares are `enough`, and
aborts, charged, when everybody has answered or the deadline has come without that. The moves of
both phases are in `step_unmask`.

AGGREGATING starts, in an open round, by freezing the survivors. Until it ends nobody has learned
anything there, so an abort costs no budget. A noised sum out of range was seen, so it is charged,
and ends the round. In a sealed round the charge is made already, and every abort keeps it. The
deadline bounds the retries of a fold that a broken disk makes impossible.

RELEASING starts, in an open round, with the charge, in the same transaction. From there a round
only goes on to PUBLISHED, or to ABORTED when the aggregate makes no model, at once or by the
deadline; the charge stays.

PUBLISHED and ABORTED are final. What is left is to destroy updates and keys.

A round has one attempt. Facts that were on their way when a phase ended are ignored (`late`); any
other move that is not in the diagram is a defect and asserts. Which step charges whom is told by
`charge`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from msgspec.structs import replace

from boltz_mesh.rounds import step_keys, step_unmask
from boltz_mesh.rounds.charge import abort_by_rules, is_charged
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
    GroupsDrawn,
    KeysAdvertised,
    NoncesRevealed,
    PublishRejected,
    Recovered,
    RosterFixed,
    RoundStarted,
    SharesDealt,
    SharesReleased,
    SurvivorsSigned,
    UpdatesStored,
    VersionPublished,
)
from boltz_mesh.rounds.groups import in_strong_groups, is_settled
from boltz_mesh.rounds.late import is_late
from boltz_mesh.rounds.quota import updates_awaited
from boltz_mesh.rounds.state import (
    Aborted,
    AbortReason,
    AdvertisingKeys,
    Aggregating,
    CheckingConsistency,
    Collecting,
    Ended,
    Published,
    Releasing,
    RevealingNonces,
    RoundState,
    Running,
    Selecting,
    SharingKeys,
    Unmasking,
)

Step = tuple[RoundState, tuple[Effect, ...]]


def step(state: RoundState | None, event: Event) -> Step:
    """The next state, and what to do once it is committed. `state` is None before RoundStarted."""
    if state is None:
        assert isinstance(event, RoundStarted), f"{type(event).__name__} before the start"
        return _enter(_start(event))
    if isinstance(event, Recovered):
        # A new coordinator: more time where it is due, and every pending effect once more.
        return _enter(state if isinstance(state, Ended) else _extend(state, event.down_ms))
    after = state if is_late(state, event) else _next(state, event)
    if type(after) is not type(state):
        return _enter(after)
    # Within a phase little is asked for that was not asked for already: another drawing.
    known = pending(state)
    return after, tuple(effect for effect in pending(after) if effect not in known)


def _next(state: RoundState, event: Event) -> RoundState:  # noqa: PLR0912 - one `match`, on purpose
    """Every move of the diagram."""
    match state, event:
        # --- SELECTING
        case Selecting(), CandidatesSeen(candidates=candidates, over_budget=over_budget):
            seen = replace(state, candidates=candidates, over_budget=over_budget, choosing=False)
            return _select(seen)
        case Selecting(), DeadlineReached():
            expired = replace(state, expired=True)
            return expired if state.choosing else _select(expired)
        case Selecting(), RosterFixed():
            return _fix_roster(state, event)

        # --- ADVERTISING_KEYS, SHARING_KEYS
        case AdvertisingKeys(), KeysAdvertised(at_ms=at_ms, clients=clients):
            return step_keys.answer(state, clients, at_ms)
        case RevealingNonces(), NoncesRevealed(at_ms=at_ms, clients=clients):
            return step_keys.answer(state, clients, at_ms)
        case SharingKeys(), SharesDealt(at_ms=at_ms, clients=clients):
            return step_keys.answer(state, clients, at_ms)
        case SharingKeys(), GroupsDrawn():
            return step_keys.draw(state, event)
        case (
            (AdvertisingKeys() | RevealingNonces() | SharingKeys()),
            ClientsDropped(at_ms=at_ms, clients=reasons),
        ):
            return step_keys.drop(state, reasons, at_ms)
        case (
            (AdvertisingKeys() | RevealingNonces() | SharingKeys()),
            DeadlineReached(at_ms=at_ms),
        ):
            return step_keys.close(state, at_ms)

        # --- COLLECTING
        case Collecting(), UpdatesStored(at_ms=at_ms, clients=clients):
            return _store(state, clients, at_ms)
        case Collecting(), ClientsDropped(at_ms=at_ms, clients=reasons):
            return _drop(state, reasons, at_ms)
        case Collecting(), DeadlineReached(at_ms=at_ms):
            if len(_surviving(state, state.stored)) >= state.parameters.min_clients:
                return _freeze(state, at_ms)
            return abort_by_rules(state, AbortReason.TOO_FEW_UPDATES)

        # --- CHECKING_CONSISTENCY
        case CheckingConsistency(), SurvivorsSigned(at_ms=at_ms, clients=clients):
            return step_unmask.sign(state, clients, at_ms)
        case CheckingConsistency(), ClientsDropped(at_ms=at_ms, clients=reasons):
            return step_unmask.drop_checking(state, reasons, at_ms)
        case CheckingConsistency(), DeadlineReached(at_ms=at_ms):
            return step_unmask.close_checking(state, at_ms)

        # --- UNMASKING
        case Unmasking(), SharesReleased():
            return step_unmask.release(state, event)
        case Unmasking(), ClientsDropped(clients=reasons):
            return step_unmask.drop_unmasking(state, reasons)
        case Unmasking(), DeadlineReached():
            return step_unmask.close_unmasking(state)

        # --- AGGREGATING
        case Aggregating(), AggregateReady():
            return _release(state, event)
        case Aggregating(), AggregateRejected(reason=reason):
            return abort_by_rules(state, AbortReason.AGGREGATE_REJECTED, reason, charging=True)
        case Aggregating(), DeadlineReached():
            return abort_by_rules(state, AbortReason.AGGREGATING_TOO_LONG)

        # --- RELEASING
        case Releasing(), VersionPublished(version=version, model_digest=digest):
            return Published(
                parameters=state.parameters,
                survivors=state.survivors,
                version=version,
                model_digest=digest,
            )
        case Releasing(), PublishRejected(reason=reason):
            return abort_by_rules(state, AbortReason.PUBLISH_REJECTED, reason)
        case Releasing(), DeadlineReached():
            return abort_by_rules(state, AbortReason.RELEASING_TOO_LONG)

        # --- anywhere else than in RELEASING and at the end, where it is late
        case _, AbortRequested(by=by, reason=reason):
            return Aborted(
                parameters=state.parameters, reason=reason, by=by, charged=is_charged(state)
            )
    raise AssertionError(f"{type(event).__name__} in {state.phase}")


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
        case Aggregating():
            return ScheduleDeadline(state.deadline_ms), Aggregate(state.survivors)
        case Releasing():
            return ScheduleDeadline(state.deadline_ms), Publish(state.aggregate_digest)
        case Published() | Aborted():
            return (CleanUp(),)
        case _:  # the phases that wait for clients
            return ScheduleDeadline(state.deadline_ms), Announce()


def _enter(state: RoundState) -> Step:
    return state, pending(state)


# --- SELECTING ----------------------------------------------------------------------------------


def _start(event: RoundStarted) -> Selecting:
    parameters = event.parameters
    return Selecting(parameters=parameters, deadline_ms=event.at_ms + parameters.selecting_ms)


def _select(state: Selecting) -> RoundState:
    """Draw a roster, wait on, or give up: by who is there and whether the time is up."""
    parameters = state.parameters
    needed = parameters.least_members if state.expired else parameters.wanted_clients
    if len(state.candidates) >= needed:
        return replace(state, choosing=True)
    if not state.expired:
        return state
    if len(state.candidates) + state.over_budget >= parameters.least_members:
        return abort_by_rules(state, AbortReason.BUDGET_EXCEEDED)
    return abort_by_rules(state, AbortReason.TOO_FEW_CLIENTS)


def _selection(state: Selecting) -> SelectRoster:
    return SelectRoster(
        state.candidates, min(len(state.candidates), state.parameters.wanted_clients)
    )


def _fix_roster(state: Selecting, event: RosterFixed) -> RoundState:
    roster = event.roster
    assert state.choosing, "a roster that nobody asked for"
    assert len(set(roster)) == len(roster)
    assert state.parameters.least_members <= len(roster) <= state.parameters.wanted_clients
    assert event.deadline_ms > event.at_ms
    if state.parameters.is_sealed:
        return step_keys.begin(state.parameters, event)
    return Collecting(
        parameters=state.parameters,
        participants=roster,
        config_digest=event.config_digest,
        deadline_ms=event.deadline_ms,
    )


# --- COLLECTING ---------------------------------------------------------------------------------


def _store(state: Collecting, clients: frozenset[str], at_ms: int) -> RoundState:
    assert clients <= frozenset(state.participants), "a receipt for a client outside the roster"
    # A client that declined and then uploaded all the same holds a receipt: it counts.
    back = {client: why for client, why in state.dropped.items() if client in clients}
    return _collect(
        replace(
            state,
            stored=state.stored | clients,
            dropped={c: why for c, why in state.dropped.items() if c not in back},
            left={**state.left, **back},
        ),
        at_ms,
    )


def _drop(state: Collecting, reasons: Mapping[str, str], at_ms: int) -> RoundState:
    """Stop waiting for clients; an update that is stored counts for good. First reasons stand."""
    dropped, left = dict(state.dropped), dict(state.left)
    for client in state.participants:
        if client in reasons:
            gone = left if client in state.stored else dropped
            gone.setdefault(client, reasons[client])
    return _collect(replace(state, dropped=dropped, left=left), at_ms)


def _collect(state: Collecting, at_ms: int) -> RoundState:
    """Freeze, give up or wait on, after updates or dropouts."""
    assert state.stored.isdisjoint(state.dropped)
    assert state.stored.issuperset(state.left)
    there = frozenset(state.participants) - state.dropped.keys()
    if len(_surviving(state, there)) < state.parameters.min_clients:
        return abort_by_rules(state, AbortReason.TOO_FEW_UPDATES)
    awaited = updates_awaited(state.parameters, len(state.graph_members))
    enough = len(_surviving(state, state.stored)) >= awaited and is_settled(state)
    if enough or state.outstanding() == 0:
        return _freeze(state, at_ms)
    return state


def _surviving(state: Collecting, stored: Collection[str]) -> frozenset[str]:
    """Of clients whose updates are stored, those that would count."""
    return in_strong_groups(state.parameters, state.groups, stored)


def _freeze(state: Collecting, at_ms: int) -> RoundState:
    counted = _surviving(state, state.stored)
    survivors = tuple(client for client in state.participants if client in counted)
    assert len(survivors) >= state.parameters.min_clients
    if state.parameters.is_sealed:
        return step_unmask.begin(state, survivors, at_ms)
    return Aggregating(
        parameters=state.parameters,
        survivors=survivors,
        deadline_ms=at_ms + state.parameters.aggregating_ms,
    )


# --- AGGREGATING, recovery ----------------------------------------------------------------------


def _release(state: Aggregating, event: AggregateReady) -> Releasing:
    assert event.survivors == len(state.survivors)
    return Releasing(
        parameters=state.parameters,
        survivors=state.survivors,
        aggregate_digest=event.aggregate_digest,
        total_weight=event.total_weight,
        metrics=event.metrics,
        deadline_ms=event.at_ms + state.parameters.releasing_ms,
    )


def _extend(state: Running, down_ms: int) -> Running:
    """Give back the time of an outage, up to a cap over the whole phase."""
    assert down_ms >= 0
    cap_ms = state.parameters.recovery_extension_ms
    granted = min(down_ms, cap_ms - state.extended_ms)
    longer = replace(
        state,
        deadline_ms=state.deadline_ms + granted,
        extended_ms=state.extended_ms + granted,
    )
    if isinstance(longer, AdvertisingKeys | RevealingNonces | SharingKeys):
        # COLLECTING's deadline was running as well.
        granted = min(down_ms, cap_ms - longer.collecting_extended_ms)
        longer = replace(
            longer,
            collecting_deadline_ms=longer.collecting_deadline_ms + granted,
            collecting_extended_ms=longer.collecting_extended_ms + granted,
        )
    return longer
