"""One round, from wherever it stands to its end: wakeups in, transactions out.

A runner is one task, so a round's transactions never overlap in this process; other processes are
kept away by the fencing token, and handlers by the round's lock. Each turn is one transaction:
everything that waits becomes events, the machine steps, the step is committed. What a step asks for
is done after the commit. Heavy work runs beside the loop and reports into the next turn.

When the outcome of a transaction is not known, or somebody else moved the round, the position is
read again and every pending effect is asked for again: effects are idempotent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import tenacity

from boltz_mesh.coordinator import record
from boltz_mesh.coordinator.candidates import (
    enough_checked_in,
    parameters_of,
    prune_dead_replicas,
    read_candidates,
)
from boltz_mesh.coordinator.clean_up import clean_up
from boltz_mesh.coordinator.commit import BY_COORDINATOR, Settled, settle
from boltz_mesh.coordinator.configure import key_needed_until_ms
from boltz_mesh.coordinator.draw import draw_roster
from boltz_mesh.coordinator.parts import Parts
from boltz_mesh.coordinator.record import Position, Turn
from boltz_mesh.coordinator.sealed import Verdict, enough_released, judge, sign_what_is_fixed
from boltz_mesh.coordinator.trace import RoundTrace
from boltz_mesh.coordinator.work import Outcome, Work
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
    DeadlineReached,
    Event,
    Recovered,
    RoundStarted,
)
from boltz_mesh.rounds.fact import Fact, FactKind, events_of
from boltz_mesh.rounds.plan import Plan, validate_encoding
from boltz_mesh.rounds.plan_sealed import release_terms
from boltz_mesh.rounds.state import (
    Aggregating,
    Ended,
    Releasing,
    RoundState,
    Selecting,
    Unmasking,
    deadline_of,
)
from boltz_mesh.rounds.step import pending
from boltz_mesh.services.budgets import cost_of
from boltz_mesh.services.clip_norms import plan_in_force
from boltz_mesh.storage import plans, rounds
from boltz_mesh.storage.postgres import Connection
from boltz_mesh.storage.rounds import Round
from boltz_protocol import limits
from boltz_protocol.errors import StateConflict, Unavailable
from boltz_protocol.ids import ModelId, RoundId

_log: Final = logging.getLogger(__name__)
#: Longest wait between two tries of what the database or the disk refused.
_LONGEST_RETRY_S: Final = limits.MAX_DATABASE_RECONNECT_MS / 1000


class RoundRunner:
    """Runs one round. `wake` may be called from the same loop at any time."""

    def __init__(self, parts: Parts, round_id: RoundId, *, fencing_token: int) -> None:
        self._parts = parts
        self._round_id = round_id
        self._token = fencing_token
        self._due = asyncio.Event()
        self._position = Position(None, 0)
        self._deadline_ms: int | None = None
        self._selection: SelectRoster | None = None
        self._work: Work | None = None
        self._working: asyncio.Task[Outcome] | None = None
        self._working_on: Aggregate | Publish | None = None
        self._plan: Plan | None = None
        self._model_id: ModelId | None = None
        self._trace: RoundTrace | None = None

    @property
    def model_id(self) -> ModelId | None:
        """The round's model, once it is known."""
        return self._model_id

    def wake(self) -> None:
        """Something waits: facts, check-ins, or finished work."""
        self._due.set()

    async def run(self) -> None:
        """Until the round has ended and is cleaned up. Cancel it when the lease is lost."""
        try:
            await self._patiently(self._take_over)
            while not isinstance(self._position.state, Ended):
                await self._wait()
                await self._patiently(self._turn, self._reload)
            await self._patiently(self._clean_up)
        finally:
            self._stop_work()
            if self._trace is not None:
                self._trace.close(self._parts.clock(), self._position.state)

    # --- waiting --------------------------------------------------------------------------------

    async def _wait(self) -> None:
        """Until there is something to do: a wakeup, a roster to draw, or the deadline."""
        if self._selection is not None:
            return
        timeout: float | None = None
        if self._deadline_ms is not None:
            timeout = max(0, self._deadline_ms - self._parts.clock()) / 1000
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._due.wait(), timeout)
        self._due.clear()

    async def _patiently(
        self,
        action: Callable[[], Awaitable[None]],
        prepare_again: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Until it works. StateConflict: we lost the lease (and will be cancelled), or a commit
        went through whose answer we never got.
        """
        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type((Unavailable, StateConflict, OSError)),
            wait=tenacity.wait_random_exponential(multiplier=0.05, max=_LONGEST_RETRY_S),
            before_sleep=tenacity.before_sleep_log(_log, logging.WARNING),
        ):
            with attempt:
                if attempt.retry_state.attempt_number > 1 and prepare_again is not None:
                    await prepare_again()
                await action()

    async def _reload(self) -> None:
        async def body(connection: Connection) -> Position:
            return await record.load(connection, self._round_id)

        self._position = await self._parts.database.read("load_round", body)
        assert self._position.state is not None
        self._enter(self._parts.clock())
        self._follow(pending(self._position.state))

    # --- taking over ----------------------------------------------------------------------------

    async def _take_over(self) -> None:
        """Load the round; start it, or say that it was without a coordinator for a while."""

        async def body(connection: Connection) -> tuple[Round, Plan, Position, int]:
            found = await rounds.get_round(connection, self._round_id)
            plan = await plans.get_plan(connection, found.model_id, found.plan_revision)
            position = await record.load(connection, self._round_id)
            seen_ms = await record.last_sign_of_life_ms(connection, found)
            return found, await plan_in_force(connection, plan), position, seen_ms

        found, plan, position, seen_ms = await self._parts.database.read("take_over_round", body)
        self._plan, self._model_id, self._position = plan, found.model_id, position
        self._trace = RoundTrace(self._parts.tracer, found.trace_context, self._round_id)
        if position.state is None:
            parameters = parameters_of(found, plan)
            await self._commit([RoundStarted(at_ms=found.started_at_ms, parameters=parameters)])
        elif not isinstance(position.state, Ended):
            now_ms = self._parts.clock()
            self._trace.move_to(position.state, now_ms, recovered=True)
            down_ms = max(0, now_ms - seen_ms)
            await self._commit([Recovered(at_ms=now_ms, down_ms=down_ms)])
        self.wake()

    async def _commit(self, events: list[Event]) -> None:
        async def body(connection: Connection) -> Turn:
            await prune_dead_replicas(connection, self._parts.holder)
            await record.lock(connection, self._round_id, self._position, fencing_token=self._token)
            return await record.commit(
                connection, self._round_id, self._position, events, fencing_token=self._token
            )

        self._took(await self._parts.database.run_tx("step_round", body))

    # --- a turn ---------------------------------------------------------------------------------

    async def _turn(self) -> None:
        if isinstance(self._position.state, Ended):
            return  # found so when the position was read again
        if self._selection is not None:
            await self._select()
            return
        outcome = self._finished_work()
        now_ms = self._parts.clock()
        # Work that is there is used, even past the deadline; the next phase has its own.
        due_ms = self._deadline_ms if outcome is None else None
        overdue = due_ms is not None and now_ms >= due_ms

        async def body(connection: Connection) -> tuple[Turn | None, Settled]:
            found = await record.lock(
                connection, self._round_id, self._position, fencing_token=self._token
            )
            items = await record.take_all(connection, self._round_id)
            facts = [
                Fact(FactKind(item.kind), item.client_id, item.payload)
                for item in items
                if item.attempt == found.attempt
            ]
            enough = await self._enough_released(connection, found, facts)
            events = list(events_of(facts, now_ms, enough=enough))
            events.extend(await self._seen(connection, now_ms, overdue=overdue))
            if overdue:
                events.append(DeadlineReached(at_ms=now_ms))
            state, _ = record.advance(self._position.state, events)
            assert state is not None
            before = self._position.state
            await sign_what_is_fixed(connection, found, before, state, self._parts)
            verdict = await judge(connection, found, before, state, self._parts)
            if verdict.objection:
                # First, so that the round ends where it stands, before anybody is charged.
                abort = AbortRequested(at_ms=now_ms, by=BY_COORDINATOR, reason=verdict.objection)
                events.insert(0, abort)
            events.extend(verdict.events(now_ms))
            if verdict != Verdict():
                state, _ = record.advance(before, events)
                assert state is not None
            settled = await settle(connection, found, state, outcome, self._parts, now_ms=now_ms)
            events.extend(settled.events)
            if not events and not items:
                return None, settled
            assert self._plan is not None
            turn = await record.commit(
                connection,
                self._round_id,
                self._position,
                events,
                fencing_token=self._token,
                inbox_ids=[item.id for item in items],
                aggregate=settled.aggregate,
                terms=release_terms(self._plan, validate_encoding(self._plan)),
            )
            return turn, settled

        # Should the commit's outcome stay unknown, the finished work is kept: either the round has
        # moved on with it, or it is used again.
        turn, settled = await self._parts.database.run_tx("step_round", body)
        if settled.unused:
            await asyncio.to_thread(lambda: [self._parts.blobs.delete(d) for d in settled.unused])
        if settled.again:
            self._stop_work()
        if turn is not None:
            self._took(turn)
        if settled.again and self._position.state is not None:
            self._follow(pending(self._position.state))

    async def _seen(self, connection: Connection, now_ms: int, *, overdue: bool) -> list[Event]:
        """Who is checked in, where it can change anything: enough of them, or time is up."""
        state = self._position.state
        if not isinstance(state, Selecting):
            return []
        assert self._plan is not None
        model_id, wanted = ModelId(state.parameters.model_id), state.parameters.wanted_clients
        time_is_up = overdue or state.expired
        if not time_is_up and not await enough_checked_in(connection, model_id, wanted):
            return []
        cost = cost_of(self._plan, self._parts.policy)
        candidates = await read_candidates(connection, self._plan, cost, now_ms=now_ms)
        return [candidates.event(now_ms)] if time_is_up or len(candidates.able) >= wanted else []

    async def _enough_released(
        self, connection: Connection, found: Round, facts: list[Fact]
    ) -> bool:
        """Whether these shares, with the earlier ones, give back all that the sum needs."""
        state = self._position.state
        if not isinstance(state, Unmasking):
            return False
        if all(fact.kind is not FactKind.SHARES_RELEASED for fact in facts):
            return False
        return await enough_released(connection, found, state, self._parts.attempts)

    async def _select(self) -> None:
        """Draw the roster among those who are there now, and commit to it."""
        effect, self._selection = self._selection, None
        state, plan = self._position.state, self._plan
        assert effect is not None
        assert plan is not None
        assert isinstance(state, Selecting)
        parameters, parts = state.parameters, self._parts
        now_ms = parts.clock()
        encryption_key = await parts.keyring.encryption_key_until(
            key_needed_until_ms(parameters, now_ms)
        )

        async def body(connection: Connection) -> Turn:
            return await draw_roster(
                connection,
                parts,
                self._position,
                count=effect.count,
                plan=plan,
                encryption_key=encryption_key,
                now_ms=now_ms,
                fencing_token=self._token,
            )

        assert self._trace is not None
        with self._trace.work("configure", candidates=len(effect.candidates)):
            self._took(await parts.database.run_tx("fix_roster", body))
        self.wake()

    def _took(self, turn: Turn) -> None:
        """A transaction is committed: go on from it."""
        self._position = turn.position
        self._enter(turn.events[-1].at_ms if turn.events else self._parts.clock())
        self._follow(turn.effects)

    def _enter(self, at_ms: int) -> None:
        """What follows from the state alone, however it came about."""
        state = self._position.state
        assert state is not None
        assert self._trace is not None
        self._trace.move_to(state, at_ms)
        self._deadline_ms = deadline_of(state)
        if not isinstance(state, Aggregating | Releasing):
            self._stop_work()
        if not isinstance(state, Selecting):
            self._selection = None

    # --- effects --------------------------------------------------------------------------------

    def _follow(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case SelectRoster():
                    self._selection = effect
                case Aggregate() | Publish():
                    self._start(effect)
                case ScheduleDeadline() | Announce() | CleanUp():
                    # The deadline is read off the state. Every commit notifies all replicas, who
                    # send the offers. Cleaning up follows the loop.
                    pass

    def _start(self, effect: Aggregate | Publish) -> None:
        """Begin the work of an effect, unless it is under way or waits to be used."""
        if self._working is not None and self._working_on == effect:
            return
        self._stop_work()
        self._working_on = effect
        self._work = work = Work(self._parts)
        self._working = asyncio.create_task(self._run_work(work, self._position.state))
        self._working.add_done_callback(lambda _: self._due.set())

    async def _run_work(self, work: Work, state: RoundState | None) -> Outcome:
        """Try until it works, or the deadline ends the phase and cancels this."""
        assert self._trace is not None
        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type((Unavailable, OSError)),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=_LONGEST_RETRY_S),
            before_sleep=tenacity.before_sleep_log(_log, logging.WARNING),
        ):
            with attempt:
                match state:
                    case Aggregating(survivors=survivors):
                        with self._trace.work("fold", survivors=len(survivors)):
                            return await work.aggregate(state)
                    case Releasing(survivors=survivors):
                        with self._trace.work("publish", survivors=len(survivors)):
                            return await work.publish(state)
                    case _:
                        raise AssertionError("no other phase has work")
        raise AssertionError("retries without end")

    def _finished_work(self) -> Outcome | None:
        if self._working is None or not self._working.done():
            return None
        return self._working.result()

    def _stop_work(self) -> None:
        if self._work is not None:
            self._work.cancel()
        if self._working is not None and not self._working.done():
            self._working.cancel()
        self._work = self._working = self._working_on = None

    async def _clean_up(self) -> None:
        deleted = await clean_up(
            self._parts.database, self._parts.blobs, self._round_id, fencing_token=self._token
        )
        _log.info("round %s has ended; %d blobs deleted", self._round_id, deleted)
