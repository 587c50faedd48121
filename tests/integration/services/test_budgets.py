"""Budgets over real gRPC: over all models, within their days, by period, and a ledger that can be
checked."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from boltz_mesh.privacy import accountant
from boltz_mesh.privacy.chain import LedgerEvent, verify_chain
from boltz_mesh.services.clock import system_clock
from boltz_mesh.storage import ledger
from boltz_mesh.storage.postgres import Connection
from boltz_protocol.errors import (
    BudgetExceeded,
    ConfigurationError,
    InvalidPlan,
    LedgerBroken,
    PermissionDenied,
)
from boltz_protocol.ids import ModelId, RoundId
from boltz_protocol.v1 import aggregator_pb2 as agg
from tests.integration.services.playing import all_in, budget, constant, leave
from tests.support.calls import answered, refused
from tests.support.clients import (
    RawClient,
    client_key,
    published,
    reached,
    seal,
    start_round,
    submit,
)
from tests.support.mesh import Mesh, serving
from tests.support.models import declare, plan_toml

DELTA = 1e-6
#: Three releases at noise multiplier 4.
CLIENT_EPSILON = accountant.epsilon(4.0, 3, 1.0, DELTA)
ROOMY = "[budget]\nepsilon = 50.0\ndelta = 1e-5\n"
DAY_MS = 86_400_000


def day(offset: int) -> str:
    return (datetime.now(UTC) + timedelta(days=offset)).date().isoformat()


async def declare_private(
    mesh: Mesh, model: str, tables: str = ROOMY, noise: float = 4.0, **plan: object
) -> ModelId:
    changes: dict[str, object] = {"privacy": "client-dp", "noise": noise, "tables": tables}
    return await declare(mesh, model, None, **(changes | plan))


async def train(mesh: Mesh, model: str, clients: list[RawClient]) -> agg.Round:
    """One round of these clients, to its publication."""
    streams = await all_in(clients, model)
    started = await start_round(mesh, model)
    for client, stream in zip(clients, streams, strict=True):
        await submit(client, seal(await stream.offer(), constant(0.1)))
    ended = await published(mesh, started.round_id)
    await leave(streams)
    return ended


async def enrolled(mesh: Mesh) -> list[RawClient]:
    return [await RawClient.enrol(mesh, client_key(number)) for number in range(3)]


@pytest.fixture
async def spanning(database_url: str, tmp_path: Path) -> AsyncIterator[Mesh]:
    """A mesh that allows a client three releases at noise multiplier 4, over all models."""
    async with serving(
        tmp_path / "data",
        database_url,
        privacy={"client_epsilon": CLIENT_EPSILON, "client_delta": DELTA},
    ) as mesh:
        yield mesh


# --- over all models ----------------------------------------------------------------------------


async def test_a_client_spends_in_two_models_from_one_budget(spanning: Mesh) -> None:
    clients = await enrolled(spanning)
    for model in ("one", "two"):
        await declare_private(spanning, model, min=3)
    plan = await answered(spanning.operator.aggregator.GetPlan(agg.GetPlanRequest(model_id="one")))
    assert plan.plan.rounds_allowed == 3
    await train(spanning, "one", clients)
    await train(spanning, "two", clients)
    seen = await budget(spanning, "one", clients[0].client_id)
    assert (seen.rounds_charged, seen.rounds_lifetime, seen.rounds_left) == (1, 1, 1)
    assert seen.epsilon_all_models == pytest.approx(accountant.epsilon(4.0, 2, 1.0, DELTA))
    assert (seen.delta_all_models, seen.epsilon_all_models_budget) == (DELTA, CLIENT_EPSILON)
    assert seen.epsilon_lifetime == seen.epsilon_spent
    assert (seen.unit, seen.period, seen.starts_at_ms, seen.ends_at_ms) == ("client", "", 0, 0)
    await train(spanning, "two", clients)
    for model in ("one", "two"):
        assert (await budget(spanning, model)).rounds_left == 0
        with refused(BudgetExceeded, "over all models") as caught:
            await start_round(spanning, model)
        assert caught.metadata["rounds_that_fit"] == "0"
        assert "unit: one client; relation: its contribution set to zero" in caught.error.message
    assert len(await spanning.fetch("SELECT 1 FROM privacy_events")) == 9


async def test_the_noise_that_would_fit_is_told_and_fits(spanning: Mesh) -> None:
    clients = await enrolled(spanning)
    # Leaves room for a release with a lot of noise.
    await declare_private(spanning, "one", min=3, noise=2.4)
    await train(spanning, "one", clients)
    with refused(BudgetExceeded) as caught:
        await start_round(spanning, "one")
    found = re.search(r"noise multiplier of at least ([0-9.]+) would fit", caught.error.message)
    assert found is not None
    noise = float(found[1])
    text = plan_toml("one", privacy="client-dp", noise=noise, min=3, tables=ROOMY)
    await answered(spanning.operator.aggregator.ApplyPlan(agg.ApplyPlanRequest(plan_toml=text)))
    await train(spanning, "one", clients)
    spent = await budget(spanning, "one", clients[0].client_id)
    assert spent.epsilon_all_models <= CLIENT_EPSILON


async def test_two_rounds_at_once_cannot_share_the_last_release(spanning: Mesh) -> None:
    clients = await enrolled(spanning)
    for model in ("one", "two"):
        await declare_private(spanning, model, min=3, selecting="2s")
    await train(spanning, "one", clients)
    await train(spanning, "two", clients)
    streams = {model: await all_in(clients, model) for model in ("one", "two")}
    started = await asyncio.gather(*(start_round(spanning, model) for model in streams))
    ends = await asyncio.gather(
        *(
            reached(spanning, each.round_id, agg.PHASE_COLLECTING, agg.PHASE_ABORTED)
            for each in started
        )
    )
    assert sorted(agg.Phase.Name(each.phase) for each in ends) == [
        "PHASE_ABORTED",
        "PHASE_COLLECTING",
    ]
    (winner,) = (each for each in ends if each.phase == agg.PHASE_COLLECTING)
    (loser,) = (each for each in ends if each.phase == agg.PHASE_ABORTED)
    assert loser.reason == "BUDGET_EXCEEDED"
    held = await budget(spanning, loser.model_id, clients[0].client_id)
    assert held.rounds_left == 0
    assert held.epsilon_all_models == pytest.approx(CLIENT_EPSILON)
    for client, stream in zip(clients, streams[winner.model_id], strict=True):
        await submit(client, seal(await stream.offer(), constant(0.1)))
    await published(spanning, winner.round_id)
    counts = await spanning.fetch("SELECT count(*) AS n FROM privacy_events GROUP BY client_id")
    assert [row["n"] for row in counts] == [3, 3, 3]
    assert not await spanning.fetch("SELECT 1 FROM privacy_holds")
    for each in streams.values():
        await leave(each)


async def test_plans_that_no_client_could_pay_for(spanning: Mesh) -> None:
    for text, setting in (
        (plan_toml("m"), "privacy"),
        (plan_toml("m", privacy="client-dp", noise=1.0, tables=ROOMY), "noise_multiplier"),
    ):
        with refused(InvalidPlan, "would do") as caught:
            await answered(
                spanning.operator.aggregator.ApplyPlan(agg.ApplyPlanRequest(plan_toml=text))
            )
        assert caught.metadata["setting"] == setting


async def test_settings_that_promise_nothing_stop_the_start(
    database_url: str, tmp_path: Path
) -> None:
    for settings in ({"client_epsilon": -1.0}, {"client_epsilon": 1.0, "client_delta": 0.5}):
        with pytest.raises(ConfigurationError, match=r"privacy\.client_.* would do"):
            async with serving(tmp_path / "data", database_url, privacy=settings):
                raise AssertionError("it started")


# --- production and days ------------------------------------------------------------------------


async def test_noise_may_not_be_off_in_production(database_url: str, tmp_path: Path) -> None:
    async with serving(tmp_path / "data", database_url) as mesh:
        await declare(mesh, "tried-out")
    async with serving(tmp_path / "data", database_url, privacy={"production": True}) as mesh:
        with refused(InvalidPlan, r"privacy\.production"):
            await declare(mesh, "another")
        # A plan from before is not grandfathered in.
        with refused(InvalidPlan, r"privacy\.production"):
            await start_round(mesh, "tried-out")
        await declare_private(mesh, "private")
        assert (await start_round(mesh, "private")).round_id


async def test_rounds_start_within_the_budgets_days(database_url: str, tmp_path: Path) -> None:
    shift_ms = 0

    def clock() -> int:
        return system_clock() + shift_ms

    async with serving(tmp_path / "data", database_url, clock) as mesh:
        with refused(InvalidPlan, r"budget\.end: .* is past.* would do"):
            await declare_private(mesh, "m", f"{ROOMY}end = {day(0)}\n")
        await declare_private(mesh, "m", f"{ROOMY}start = {day(1)}\nend = {day(3)}\n")
        seen = await budget(mesh, "m")
        assert seen.ends_at_ms - seen.starts_at_ms == 2 * DAY_MS
        for days, setting in ((0, "budget.start"), (3, "budget.end"), (-400, "budget.start")):
            shift_ms = days * DAY_MS
            with refused(BudgetExceeded, setting) as caught:
                await start_round(mesh, "m")
            assert caught.metadata["setting"] == setting
        shift_ms = DAY_MS
        assert (await start_round(mesh, "m")).round_id


async def test_days_that_end_while_a_round_waits_for_clients(
    database_url: str, tmp_path: Path
) -> None:
    shift_ms = 0

    def clock() -> int:
        return system_clock() + shift_ms

    async with serving(tmp_path / "data", database_url, clock) as mesh:
        clients = await enrolled(mesh)
        await declare_private(mesh, "m", f"{ROOMY}end = {day(1)}\n", min=3, target=4)
        streams = await all_in(clients, "m")
        started = await start_round(mesh, "m")
        shift_ms = DAY_MS
        stream = await clients[0].on(mesh).participate("m", at_ms=clock())
        ended = await reached(mesh, started.round_id, agg.PHASE_ABORTED)
        assert ended.reason == "BUDGET_EXCEEDED"
        assert not await mesh.fetch("SELECT 1 FROM privacy_holds")
        await leave([*streams, stream])


# --- periods ------------------------------------------------------------------------------------


async def test_a_period_is_renewed_and_the_lifetime_is_shown(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    days = f'unit = "client-period"\nstart = {day(-5)}\nend = {day(5)}\n'
    await declare_private(mesh, model, f"[budget]\nepsilon = 2.0\ndelta = 1e-5\n{days}", min=3)
    before = (await budget(mesh, model)).rounds_left
    ended = await train(mesh, model, clients[:3])
    period = f"{day(-5)}/{day(5)}"
    rows = await mesh.fetch("SELECT unit, period FROM privacy_events WHERE model_id = $1", model)
    assert [(row["unit"], row["period"]) for row in rows] == [("client-period", period)] * 3
    client = clients[0].client_id

    async def charge(attempt: int, earlier: str) -> None:
        """As a round of an earlier period did."""
        event = LedgerEvent(
            model_id=ModelId(model),
            client_id=client,
            round_id=RoundId(ended.round_id),
            attempt=attempt,
            mechanism="discrete-gaussian",
            noise_multiplier=4.0,
            sensitivity=1000.0,
            relation="contribution-set-to-zero",
            unit="client-period" if earlier else "client",
            sampling_rate=1.0,
            at_ms=1,
            period=earlier,
        )
        hold = ledger.Hold(event.round_id, attempt, client, ModelId(model), {})

        async def body(connection: Connection) -> None:
            await ledger.place_holds(connection, [hold])
            await ledger.debit(connection, [event])

        await mesh.database.run_tx("test", body)

    await charge(2, f"{day(-100)}/{day(-5)}")
    seen = await budget(mesh, model, client)
    assert (seen.unit, seen.period) == ("client-period", period)
    assert (seen.rounds_charged, seen.rounds_lifetime, seen.rounds_left) == (1, 2, before - 1)
    assert seen.epsilon_spent == pytest.approx(accountant.epsilon(4.0, 1, 1.0, 1e-5))
    assert seen.epsilon_lifetime == pytest.approx(accountant.epsilon(4.0, 2, 1.0, 1e-5))
    assert seen.epsilon_all_models >= seen.epsilon_lifetime
    await charge(3, f"{day(-50)}/{day(-4)}")  # a day too long
    seen = await budget(mesh, model, client)
    # The long one touches both of the others, so that all three are one.
    assert (seen.rounds_charged, seen.rounds_lifetime, seen.rounds_left) == (3, 3, before - 3)
    await charge(4, "")  # of all that the client has
    assert (await budget(mesh, model, client)).rounds_left == before - 4 == 0


# --- a ledger that can be checked ---------------------------------------------------------------


async def test_length_and_head_tell_whether_the_ledger_is_the_same(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare_private(mesh, model, min=3)
    empty = await budget(mesh, model)
    assert (empty.chain_length, empty.chain_head, empty.chain_verified) == (0, bytes(32), False)
    await train(mesh, model, clients[:3])
    noted = await budget(mesh, model)
    assert noted.chain_length == 3

    async def body(connection: Connection) -> None:
        head = verify_chain(
            ModelId(model), await ledger.read_chain(connection, ModelId(model), limit=3)
        )
        assert (head.length, head.hash) == (noted.chain_length, noted.chain_head)

    await train(mesh, model, clients[:3])
    await mesh.database.read("test", body)
    request = agg.GetPrivacyBudgetRequest(model_id=model, verify_chain=True)
    checked = await answered(mesh.operator.aggregator.GetPrivacyBudget(request))
    assert (checked.chain_length, checked.chain_verified) == (6, True)
    mine = agg.GetPrivacyBudgetRequest(model_id=model, client_id=clients[0].client_id)
    own = await answered(clients[0].stubs.aggregator.GetPrivacyBudget(mine))
    assert (own.chain_length, own.chain_head) == (6, checked.chain_head)
    mine.verify_chain = True
    with refused(PermissionDenied):
        await answered(clients[0].stubs.aggregator.GetPrivacyBudget(mine))


async def test_no_round_starts_on_a_ledger_that_was_altered(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare_private(mesh, model, min=3)
    await train(mesh, model, clients[:3])

    async def cheaper(connection: Connection) -> None:
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute(
            "UPDATE privacy_events SET noise_multiplier = 900 WHERE model_id = $1 AND seq = 2",
            model,
        )

    await mesh.database.run_tx("tamper", cheaper)
    request = agg.GetPrivacyBudgetRequest(model_id=model, verify_chain=True)
    with refused(LedgerBroken, "row 2 does not have the hash of what it says") as caught:
        await answered(mesh.operator.aggregator.GetPrivacyBudget(request))
    assert caught.metadata["row"] == "2"
    with refused(LedgerBroken, "row 2"):
        await start_round(mesh, model)


async def test_without_noise_every_figure_is_infinite(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model, min=3)
    untouched = await budget(mesh, model, clients[0].client_id)
    assert (untouched.epsilon_lifetime, untouched.rounds_lifetime) == (0, 0)
    await train(mesh, model, clients[:3])
    seen = await budget(mesh, model)
    assert seen.client_id
    assert (seen.rounds_charged, seen.rounds_lifetime, seen.delta_all_models) == (1, 1, 0)
    assert seen.epsilon_lifetime == seen.epsilon_all_models == seen.epsilon_held == math.inf
