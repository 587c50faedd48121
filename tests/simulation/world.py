"""A seeded world around the round machine: a durable part, a coordinator that crashes, a clock.

Operations and faults are data (`Op`); `World.run` plays them, lets faults stop, plays the round to
its end, and checks what must hold. The coordinator here is the shape of the real one: facts are
taken in batches, one commit a turn, effects after it, everything volatile lost in a crash.

`World` has open rounds, whose clients are told nothing and upload when an operation says so;
`sealed.SealedWorld` has clients that answer, and a network between.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from boltz_mesh.rounds.charge import charges
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
    AggregateReady,
    AggregateRejected,
    CandidatesSeen,
    DeadlineReached,
    Event,
    Recovered,
    RosterFixed,
    RoundStarted,
    VersionPublished,
)
from boltz_mesh.rounds.fact import LEFT, Fact, FactKind, events_of
from boltz_mesh.rounds.selection import sample_roster
from boltz_mesh.rounds.serialise import event_of, event_payload, state_of, state_payload
from boltz_mesh.rounds.state import (
    Aborted,
    Aggregating,
    Collecting,
    Ended,
    Published,
    Releasing,
    RoundParameters,
    RoundState,
    Selecting,
)
from boltz_mesh.rounds.step import Step, pending, step
from tests.simulation.ops import Kind, Op

StepFunction = Callable[[RoundState | None, Event], Step]
ChargeFunction = Callable[[RoundState | None, RoundState], tuple[str, ...]]
CLIENTS = tuple(f"client-{index}" for index in range(6))
PARAMETERS = RoundParameters(
    round_id="0" * 32,
    model_id="model",
    attempt=1,
    base_version=1,
    plan_revision=1,
    min_clients=2,
    target_clients=3,
    max_clients=5,
    wanted_clients=4,
    selecting_ms=1_000,
    collecting_ms=2_000,
    aggregating_ms=1_000,
    releasing_ms=1_000,
    recovery_extension_ms=500,
)


class Crash(Exception):
    """The coordinator is gone."""


@dataclass(slots=True)
class Durable:
    """What survives every crash: the tables."""

    events: list[str] = field(default_factory=list)
    snapshot: tuple[int, str] | None = None
    inbox: list[Fact] = field(default_factory=list)
    checked_in: set[str] = field(default_factory=set)
    without_budget: set[str] = field(default_factory=set)
    receipts: set[str] = field(default_factory=set)
    holds: set[str] = field(default_factory=set)
    ledger: Counter[str] = field(default_factory=Counter)
    versions: list[tuple[str, ...]] = field(default_factory=list)
    contents: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Volatile:
    """What a crash takes."""

    state: RoundState | None = None
    effects: list[Effect] = field(default_factory=list)
    deadline_ms: int | None = None


class World:
    """One round. `machine` and `charges` may be mutants, to show that the checks see them."""

    parameters = PARAMETERS

    def __init__(
        self,
        seed: int,
        machine: StepFunction = step,
        *,
        batches: bool = True,
        charges: ChargeFunction = charges,
    ) -> None:
        self.random = Random(seed)
        self.machine = machine
        self.charges = charges
        self.batches = batches
        self.now_ms = 1_000_000
        self.durable = Durable()
        self.driver: Volatile | None = None
        self.crash_at: Kind | None = None
        self.poisoned = False
        self.deadlines_met = 0
        self.last_alive_ms = self.now_ms
        self.replayed = 0

    # --- operations -----------------------------------------------------------------------------

    def run(self, ops: Sequence[Op]) -> RoundState:
        """Play the operations, then the rest without faults; check everything; the last state."""
        for op in ops:
            try:
                self._play(op)
            except Crash:
                self.driver = None
            self._check_always()
        self.crash_at = None
        state = self._finish()
        self._check_end(state)
        return state

    def _play(self, op: Op) -> None:  # noqa: PLR0912 - one `match`, on purpose
        client = CLIENTS[op.number % len(CLIENTS)]
        durable = self.durable
        match op.kind:
            case Kind.CHECK_IN:
                durable.checked_in.add(client)
            case Kind.CHECK_OUT:
                durable.checked_in.discard(client)
            case Kind.POOR:
                durable.without_budget.add(client)
            case Kind.UPLOAD:
                self._upload(client)
            case Kind.DROP:
                durable.inbox.append(Fact(FactKind.CLIENT_DROPPED, client, {"reason": LEFT}))
            case Kind.ABORT:
                durable.inbox.append(
                    Fact(FactKind.ABORT_REQUESTED, None, {"by": "ann", "reason": "stop"})
                )
            case Kind.WAIT:
                self.now_ms += 1 + op.number * 37 % 700
            case Kind.POISON:
                self.poisoned = True
            case Kind.TURN:
                self._turn()
            case Kind.EFFECT:
                self._turn()
                self._run_effect()
            case Kind.CRASH:
                raise Crash
            case Kind.CRASH_BEFORE_COMMIT | Kind.CRASH_AFTER_COMMIT:
                self.crash_at = op.kind
            case _:
                self._play_client(op, client)

    def _play_client(self, op: Op, client: str) -> None:
        """Where clients answer and a network is between."""

    def _announce(self, state: RoundState) -> None:
        """Tell the clients; those of this world are told nothing."""

    def _enough(self) -> bool:
        """Whether the released shares open the sum."""
        return False

    def _entered(self, before: RoundState | None, state: RoundState) -> None:
        """What the commit's transaction writes beside the round's own rows."""

    def _quiet(self) -> bool:
        """Without faults: let clients and network run; whether nothing more comes of it."""
        return True

    def _wakes_at_ms(self) -> int | None:
        """When something happens next without the coordinator."""
        return None

    def _upload(self, client: str) -> None:
        """The handler's transaction: checks the phase under the lock, receipt and fact together."""
        state = self._stored_state()
        if isinstance(state, Collecting) and client in state.participants:
            self.durable.receipts.add(client)
            self.durable.contents.add(client)
            self.durable.inbox.append(Fact(FactKind.UPDATE_STORED, client, {}))

    # --- the coordinator ------------------------------------------------------------------------

    def _stored_state(self) -> RoundState | None:
        durable = self.durable
        first, state = 0, None
        if durable.snapshot is not None:
            first, state = durable.snapshot[0], state_of(json.loads(durable.snapshot[1]))
        for text in durable.events[first:]:
            state, _ = self.machine(state, event_of(json.loads(text)))
        return state

    def _coordinator(self) -> Volatile:
        if self.driver is None:
            self.driver = Volatile(state=self._stored_state())
            if self.driver.state is None:
                self._commit([RoundStarted(at_ms=self.now_ms, parameters=self.parameters)])
            elif not isinstance(self.driver.state, Ended):
                down_ms = max(0, self.now_ms - self.last_alive_ms)
                self._commit([Recovered(at_ms=self.now_ms, down_ms=down_ms)])
            else:
                self._follow(pending(self.driver.state))
        self.last_alive_ms = self.now_ms
        return self.driver

    def _turn(self) -> None:
        driver = self._coordinator()
        if isinstance(driver.state, Ended):
            return
        taken = list(self.durable.inbox)
        events: list[Event] = []
        if self.batches:
            events.extend(events_of(taken, self.now_ms, enough=self._enough()))
        else:
            for fact in taken:
                events.extend(events_of([fact], self.now_ms, enough=self._enough()))
        overdue = driver.deadline_ms is not None and self.now_ms >= driver.deadline_ms
        if isinstance(driver.state, Selecting):
            events.append(self._seen())
        if overdue:
            self.deadlines_met += 1
            events.append(DeadlineReached(at_ms=self.now_ms))
        if events:
            self._commit(events, taken=len(taken))

    def _able(self) -> set[str]:
        return self.durable.checked_in - self.durable.without_budget

    def _seen(self) -> CandidatesSeen:
        able = self._able()
        return CandidatesSeen(
            at_ms=self.now_ms,
            candidates=frozenset(able),
            over_budget=len(self.durable.checked_in - able),
        )

    def _run_effect(self) -> None:
        driver = self._coordinator()
        if not driver.effects:
            return
        effect = driver.effects.pop(0)
        state = driver.state
        match effect:
            case SelectRoster(count=count) if isinstance(state, Selecting):
                able = self._able()
                if len(able) < count:
                    self._commit([self._seen()])
                    return
                roster = sample_roster(able, count, self.random)
                event = RosterFixed(
                    at_ms=self.now_ms,
                    roster=roster,
                    config_digest="00",
                    deadline_ms=self.now_ms + self.parameters.collecting_ms,
                )
                self._commit([event], holds=roster)
            case Aggregate(survivors=survivors) if isinstance(state, Aggregating):
                assert set(survivors) <= self.durable.contents, "an update is gone before it counts"
                if self.poisoned:
                    rejected = AggregateRejected(at_ms=self.now_ms, reason="norm")
                    self._commit([rejected])
                    return
                ready = AggregateReady(
                    at_ms=self.now_ms,
                    aggregate_digest="11",
                    survivors=len(survivors),
                    total_weight=len(survivors),
                    metrics={},
                )
                self._commit([ready])
            case Publish():
                published = VersionPublished(at_ms=self.now_ms, version=2, model_digest="22")
                self._commit([published])
            case CleanUp():
                self.durable.contents.clear()
            case Announce() if state is not None:
                self._announce(state)
            case _:
                pass

    def _commit(
        self,
        events: list[Event],
        *,
        taken: int = 0,
        holds: Sequence[str] = (),
    ) -> None:
        driver = self.driver
        assert driver is not None
        before = driver.state
        state = before
        emitted: list[Effect] = []
        for event in events:
            state, effects = self.machine(state, event)
            emitted.extend(effects)
        assert state is not None
        if self.crash_at is Kind.CRASH_BEFORE_COMMIT:
            self.crash_at = None
            raise Crash
        durable = self.durable
        durable.events.extend(json.dumps(event_payload(event)) for event in events)
        if type(before) is not type(state):
            durable.snapshot = (len(durable.events), json.dumps(state_payload(state)))
        del durable.inbox[:taken]
        durable.holds.update(holds)
        charge = self.charges(before, state)
        durable.ledger.update(charge)
        if charge or isinstance(state, Ended):
            durable.holds.clear()
        if isinstance(state, Published) and not isinstance(before, Published):
            durable.versions.append(state.survivors)
        self._entered(before, state)
        if self.crash_at is Kind.CRASH_AFTER_COMMIT:
            self.crash_at = None
            raise Crash
        driver.state = state
        wanted = pending(state)
        self._follow(tuple(effect for effect in wanted if effect in emitted))

    def _follow(self, effects: tuple[Effect, ...]) -> None:
        driver = self.driver
        assert driver is not None
        state = driver.state
        driver.deadline_ms = getattr(state, "deadline_ms", None)
        if isinstance(state, Selecting) and state.expired:
            driver.deadline_ms = None
        still = pending(state) if state is not None else ()
        driver.effects = [effect for effect in driver.effects if effect in still]
        driver.effects.extend(
            effect
            for effect in effects
            if not isinstance(effect, ScheduleDeadline) and effect not in driver.effects
        )

    # --- the end --------------------------------------------------------------------------------

    def _finish(self) -> RoundState:
        """No more faults: turns, effects, and time up to each deadline. Must end, and soon."""
        for _ in range(200):
            self._turn()
            driver = self._coordinator()
            while driver.effects:
                self._run_effect()
            state = driver.state
            if isinstance(state, Ended) and not driver.effects:
                return state
            assert not isinstance(state, Aggregating | Releasing), "nobody works on the round"
            if self._quiet():
                times = [t for t in (driver.deadline_ms, self._wakes_at_ms()) if t is not None]
                self.now_ms = max(self.now_ms, min(times, default=self.now_ms))
        raise AssertionError("the round does not end although faults have stopped")

    def _check_always(self) -> None:
        durable = self.durable
        assert all(count == 1 for count in durable.ledger.values()), "charged twice"
        assert len(durable.versions) <= 1, "published twice"
        if self.replayed == len(durable.events) or self.driver is None:
            return
        self.replayed = len(durable.events)
        events = [event_of(json.loads(text)) for text in durable.events]
        state: RoundState | None = None
        for event in events:
            state, _ = self.machine(state, event)
        assert state == self.driver.state, "replay gives another state"
        assert state is not None
        self._check_charge(state, Counter(type(event).__name__ for event in events))

    def _check_charge(self, state: RoundState, events: Counter[str]) -> None:
        charging = events["AggregateReady"] + events["AggregateRejected"]
        assert bool(self.durable.ledger) == bool(charging), "the ledger and the events disagree"

    def _check_end(self, state: RoundState) -> None:
        durable = self.durable
        self._check_always()
        assert not durable.holds, "a hold outlives its round"
        assert not durable.contents, "contents outlive their round"
        match state:
            case Published(survivors=survivors):
                assert set(survivors) == durable.receipts, "a receipt that does not count"
                assert len(survivors) >= self.parameters.min_clients
                assert durable.versions == [survivors]
                assert set(durable.ledger) == set(survivors)
            case Aborted(charged=charged):
                assert not durable.versions
                assert bool(durable.ledger) == charged
            case _:
                raise AssertionError("not an end")
