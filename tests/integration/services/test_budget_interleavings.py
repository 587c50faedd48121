"""Rounds of several models at once, against real PostgreSQL: no budget is overdrawn, nothing that
was released is missing from the ledger.

A program is data: rounds with what becomes of each, and how their steps are interleaved. Rounds
hold, release and spend in transactions of their own, as the coordinator does, on as many
connections as they like; some die inside a transaction or between two, are taken up again, spend
twice, make a second attempt, or run on a clock that was set back. Beside the tables an oracle notes
what was released, at the commit that charges for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boltz_mesh.privacy import accountant
from boltz_mesh.privacy.budget import Budget, counted
from boltz_mesh.privacy.chain import ChainHead, verify_chain
from boltz_mesh.privacy.mechanisms import PrivacyEvent
from boltz_mesh.privacy.periods import parse_period
from boltz_mesh.rounds.plan_sealed import ReleaseTerms
from boltz_mesh.services.budgets import Cost, Spending, hold_releases, ledger_entry, read_spending
from boltz_mesh.services.ledger_checks import LedgerChecks
from boltz_mesh.storage import ledger
from boltz_mesh.storage.postgres import Connection, Database
from boltz_protocol.errors import BudgetExceeded, LedgerBroken
from boltz_protocol.ids import ClientId, ModelId, RoundId
from tests.support.rows import call, tx

DELTA = 1e-6
CLIENTS = 3
MODELS = 3
NOISES = (4.0, 5.5)
#: Room for about three rounds a model, and five over all of them.
MODEL_EPSILON = accountant.epsilon(4.0, 3, 1.0, DELTA)
CLIENT_EPSILON = accountant.epsilon(4.0, 5, 1.0, DELTA)
#: The plans of the third model renew with each quarter; the last two overlap.
PERIODS = ("2026-07-01/2026-10-01", "2026-10-01/2027-01-01", "2026-12-01/2027-03-01")

FATES = (
    "publishes",
    "aborts",  # before anything is released
    "dies holding",  # inside the transaction: nothing was held
    "dies held",  # after it: the next coordinator ends the round
    "dies spending",  # inside the transaction: it is tried again
    "spends twice",  # the answer to the commit was lost
    "tries again",  # a second attempt on the same data
)


@dataclass(frozen=True, slots=True)
class Round:
    """One round of a program."""

    model: int
    clients: frozenset[int]
    noise: float
    period: int
    fate: str
    clock_ms: int
    pauses: tuple[int, ...]


rounds_ = st.builds(
    Round,
    model=st.integers(0, MODELS - 1),
    clients=st.frozensets(st.integers(0, CLIENTS - 1), min_size=1),
    noise=st.sampled_from(NOISES),
    period=st.integers(0, len(PERIODS) - 1),
    fate=st.sampled_from(FATES),
    clock_ms=st.integers(0, 2_000_000_000_000),
    pauses=st.lists(st.integers(0, 12), min_size=4, max_size=4).map(tuple),
)
programs = st.lists(rounds_, min_size=4, max_size=14)


@dataclass(slots=True)
class World:
    """A database with clients and models that no other example uses, and the oracle."""

    database: Database
    spans_models: bool
    base: int = field(default_factory=lambda: secrets.randbits(100) << 16)
    released: Counter[tuple[str, str, int, str]] = field(default_factory=Counter)
    refusals: int = 0

    def client(self, number: int) -> ClientId:
        return ClientId(f"{self.base + number:032x}")

    def model(self, number: int) -> ModelId:
        return ModelId(f"m{number}-{self.base:x}"[:60])

    def round_id(self, number: int) -> RoundId:
        return RoundId(f"{self.base + 0x1000 + number:032x}")

    def budget(self, model: int, period: int) -> Budget:
        if model < MODELS - 1:
            return Budget(MODEL_EPSILON, DELTA)
        days = parse_period(PERIODS[period])
        return Budget(MODEL_EPSILON, DELTA, "client-period", days.start, days.end)

    def cost(self, round_: Round) -> Cost:
        budget = self.budget(round_.model, round_.period)
        return Cost(
            self.model(round_.model),
            ReleaseTerms(round_.noise, 1000, False, budget.period),
            budget,
            Budget(CLIENT_EPSILON, DELTA) if self.spans_models else None,
        )

    # --- what a round does ----------------------------------------------------------------------

    async def run(self, number: int, round_: Round) -> None:
        pauses = itertools.cycle(round_.pauses)
        for attempt in (1, 2) if round_.fate == "tries again" else (1,):
            await _pause(next(pauses))
            if not await self._attempt(number, round_, attempt, pauses):
                return

    async def _attempt(
        self, number: int, round_: Round, attempt: int, pauses: Iterator[int]
    ) -> bool:
        cost, round_id = self.cost(round_), self.round_id(number)
        events = [
            cost.terms.event(
                model=cost.model_id, round=round_id, attempt=attempt, client=self.client(client)
            )
            for client in sorted(round_.clients)
        ]

        async def hold(connection: Connection) -> None:
            await hold_releases(connection, events, cost)
            await _pause(next(pauses))
            if round_.fate == "dies holding":
                raise _Death

        async def spend(connection: Connection) -> None:
            await ledger.debit(connection, [ledger_entry(e, round_.clock_ms) for e in events])
            await _pause(next(pauses))

        async def spend_and_die(connection: Connection) -> None:
            await spend(connection)
            raise _Death

        async def end(connection: Connection) -> None:
            await ledger.release_holds(connection, round_id, attempt)

        try:
            await tx(self.database, hold)
        except BudgetExceeded:
            self.refusals += 1
            return False
        except _Death:
            return False
        await _pause(next(pauses))
        if round_.fate in ("aborts", "dies held"):
            await tx(self.database, end)
            return False
        if round_.fate == "dies spending":
            with contextlib.suppress(_Death):
                await tx(self.database, spend_and_die)
        await tx(self.database, spend)
        for event in events:
            self.released[event.model, event.round, attempt, event.client] += 1
        if round_.fate == "spends twice":
            await tx(self.database, spend)
        await tx(self.database, end)
        return True

    # --- what must hold -------------------------------------------------------------------------

    async def look(self) -> dict[ModelId, ChainHead]:
        """No budget is overdrawn, at one moment, whatever is under way, holds included."""
        clients = [self.client(number) for number in range(CLIENTS)]
        spending = await self.database.run_tx(
            "look",
            lambda connection: read_spending(connection, None, clients),
            isolation="repeatable_read",
        )
        for client in clients:
            self._within_budgets(client, spending.of(client))
        return {
            self.model(number): await LedgerChecks(self.database).check_all(self.model(number))
            for number in range(MODELS)
        }

    async def watch(self, running: Sequence[asyncio.Task[None]]) -> None:
        """Look again and again, until all rounds are over and once more."""
        before: dict[ModelId, ChainHead] = {}
        left = set(running)
        while True:
            over = not left
            now = await self.look()
            assert all(now[model].length >= head.length for model, head in before.items())
            if over:
                return
            before = now
            done, left = await asyncio.wait(left, timeout=0)
            for task in done:
                task.result()

    def _within_budgets(self, client: str, spent: list[PrivacyEvent]) -> None:
        for model in range(MODELS):
            of_model = [event for event in spent if event.model == self.model(model)]
            for period in range(len(PERIODS)):
                budget = self.budget(model, period)
                counts = counted(budget, of_model)
                assert accountant.epsilon_of(counts, DELTA) <= budget.epsilon, "overdrawn"
        if self.spans_models:
            assert accountant.epsilon_of(spent, DELTA) <= CLIENT_EPSILON, "overdrawn over models"

    async def nothing_is_missing(self) -> None:
        """The ledger has every release, once, in chains that fit; and no hold is left."""
        seen: Counter[tuple[str, str, int, str]] = Counter()
        for number in range(MODELS):
            model = self.model(number)
            rows = await call(self.database, ledger.read_chain, model)
            verify_chain(model, rows)
            seen.update(
                (row.event.model_id, row.event.round_id, row.event.attempt, row.event.client_id)
                for row in rows
            )
            assert not await call(self.database, ledger.list_holds, model)
        assert seen == self.released


class _Death(Exception):
    """The process is gone."""


async def _pause(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def prepare(connection: Connection, world: World, count: int) -> None:
    """Clients and rounds; the rounds have ended, so that a model may have many at once."""
    for number in range(CLIENTS):
        await connection.execute(
            "INSERT INTO federated_clients (client_id, status, region, public_key_spki, key_id,"
            " request_key_hash, enrolled_at_ms, status_at_ms, status_by)"
            " VALUES ($1, 'active', 'eu', '', $1, $2, 1, 1, 'ann')",
            world.client(number),
            secrets.token_bytes(32),
        )
    await connection.execute("INSERT INTO plans VALUES ($1, 1, '{}', 'ann', 1)", world.model(0))
    await connection.execute(
        "INSERT INTO federated_models (model_id, version, state, digest, size_bytes, blob_digest,"
        " wrapped_key, kek_id, manifest, created_at_ms)"
        " VALUES ($1, 1, 'candidate', $2, 1, $2, '', '', '', 1)",
        world.model(0),
        bytes(32),
    )
    for number in range(count):
        await connection.execute(
            "INSERT INTO federated_aggregations (round_id, model_id, attempt, phase, base_version,"
            " plan_revision, started_by, started_at_ms, outcome, ended_at_ms)"
            " VALUES ($1, $2, 1, 'ABORTED', 1, 1, 'ann', 1, 'aborted', 1)",
            world.round_id(number),
            world.model(0),
        )


async def play(url: str, program: list[Round], *, spans_models: bool) -> World:
    async with await Database.open(url) as database:
        world = World(database, spans_models)
        await tx(database, lambda c: prepare(c, world, len(program)))
        running = [
            asyncio.create_task(world.run(number, round_)) for number, round_ in enumerate(program)
        ]
        try:
            await world.watch(running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.wait(running)
        await world.nothing_is_missing()
        return world


def played(url: str, program: list[Round], *, spans_models: bool) -> World:
    return asyncio.run(play(url, program, spans_models=spans_models))


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(program=programs, spans_models=st.booleans())
def test_no_interleaving_overdraws_or_forgets(
    database_url: str, program: list[Round], spans_models: bool
) -> None:
    played(database_url, program, spans_models=spans_models)


def everybody(model: int, count: int, *, period: int = 0, fate: str = "publishes") -> list[Round]:
    """Rounds of all clients at once."""
    return [
        Round(model, frozenset(range(CLIENTS)), 4.0, period, fate, 1, (0, 0, 0, 0))
        for _ in range(count)
    ]


def test_just_so_many_rounds_fit_however_many_start_at_once(database_url: str) -> None:
    world = played(database_url, everybody(0, 8), spans_models=False)
    assert len(world.released) == 3 * CLIENTS
    assert world.refusals == 5


def test_a_budget_over_all_models_is_one(database_url: str) -> None:
    program = everybody(0, 3) + everybody(1, 3) + everybody(2, 3)
    world = played(database_url, program, spans_models=True)
    assert len(world.released) == 5 * CLIENTS
    apart = played(database_url, program, spans_models=False)
    assert len(apart.released) == 9 * CLIENTS


def test_a_budget_renews_with_a_period_of_other_days_only(database_url: str) -> None:
    renewed = everybody(2, 4, period=0) + everybody(2, 4, period=1)
    assert len(played(database_url, renewed, spans_models=False).released) == 6 * CLIENTS
    moved = everybody(2, 4, period=1) + everybody(2, 4, period=2)
    assert len(played(database_url, moved, spans_models=False).released) == 3 * CLIENTS


def test_a_second_attempt_and_a_round_that_gave_up(database_url: str) -> None:
    again = everybody(0, 2, fate="tries again")
    assert len(played(database_url, again, spans_models=False).released) == 3 * CLIENTS
    lost = everybody(0, 3, fate="dies holding") + everybody(0, 1, fate="dies held")
    assert not played(database_url, lost, spans_models=False).released


# --- planted defects: each is seen ---------------------------------------------------------------


async def _no_lock(connection: Connection, model_id: ModelId) -> ChainHead:
    return await ledger.read_head(connection, model_id)


async def _no_lock_of_all(connection: Connection) -> None:
    await asyncio.sleep(0)


def _forget_holds(spending: Spending, client: str) -> list[PrivacyEvent]:
    return list(spending.charged.get(client, ()))


@pytest.mark.parametrize(
    ("defect", "spans_models"),
    [
        # Two rounds read what is spent before either holds; and their charges want one place.
        ((ledger, "lock_chain", _no_lock), False),
        ((ledger, "lock_all_models", _no_lock_of_all), True),
        ((Spending, "of", _forget_holds), False),
    ],
)
def test_a_defect_is_seen(
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    defect: tuple[Any, str, object],
    spans_models: bool,
) -> None:
    where, name, what = defect
    monkeypatch.setattr(where, name, what)
    # Everyone dawdles between its look at the budget and its commit.
    slow = (0, 300, 0, 0)
    program = [
        replace(round_, pauses=slow) for model in range(MODELS) for round_ in everybody(model, 4)
    ]
    with pytest.raises((AssertionError, asyncpg.IntegrityConstraintViolationError, LedgerBroken)):
        played(database_url, program, spans_models=spans_models)
