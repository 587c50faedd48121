"""The ledger's rows for the accountant; who of the clients has budget left; holds.

A round's cost is held against two budgets: the model's, from its plan, and the mesh's for each
client over all models, where the mesh has one.

`hold_releases` is the one place where a round gets its holds. It takes the model's chain, and where
a budget spans models the lock of all of them, before it reads what was spent: so of two rounds that
touch one client the second sees what the first holds, whatever models they are of.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from boltz_mesh.privacy.budget import (
    Budget,
    affordable,
    check_round,
    check_window,
    noise_for_cohort,
    rounded_up,
    rounds_that_fit,
)
from boltz_mesh.privacy.chain import LedgerEvent
from boltz_mesh.privacy.mechanisms import PrivacyEvent
from boltz_mesh.privacy.periods import day_of
from boltz_mesh.rounds.plan import Plan, validate_encoding
from boltz_mesh.rounds.plan_policy import PrivacyPolicy
from boltz_mesh.rounds.plan_sealed import ReleaseTerms, release_terms
from boltz_mesh.storage import ledger
from boltz_mesh.storage.postgres import Connection
from boltz_protocol.errors import BudgetExceeded
from boltz_protocol.ids import ClientId, ModelId, RoundId

Events = dict[str, list[PrivacyEvent]]
#: The mesh's budget in messages.
_MESH = "this mesh for a client over all models"


def hold_payload(event: PrivacyEvent) -> dict[str, object]:
    """What a hold's row keeps of an event."""
    payload = msgspec.to_builtins(event)
    assert isinstance(payload, dict)
    return payload


def ledger_entry(event: PrivacyEvent, at_ms: int) -> LedgerEvent:
    """The row that charges an event."""
    return LedgerEvent(
        model_id=ModelId(event.model),
        client_id=ClientId(event.client),
        round_id=RoundId(event.round),
        attempt=event.attempt,
        mechanism=event.mechanism,
        noise_multiplier=event.noise_multiplier,
        sensitivity=event.sensitivity,
        relation=event.relation,
        unit=event.unit,
        period=event.period,
        sampling_rate=event.sampling_rate,
        at_ms=at_ms,
    )


# --- what was spent ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spending:
    """What clients have spent and what running rounds may still spend, of one model or of all.

    Attributes:
        charged, held: client id -> events; a client that is missing has none.
    """

    charged: Events
    held: Events

    def of(self, client: str) -> list[PrivacyEvent]:
        """Everything that counts for a client, holds included."""
        return [*self.charged.get(client, ()), *self.held.get(client, ())]

    def past(self) -> Events:
        """Client id -> everything that counts."""
        return {client: self.of(client) for client in self.charged.keys() | self.held.keys()}

    def on_model(self, model_id: ModelId) -> Spending:
        """What of it is on one model."""
        return Spending(_only(self.charged, model_id), _only(self.held, model_id))


def _only(events: Events, model_id: ModelId) -> Events:
    kept = {
        client: [event for event in each if event.model == model_id]
        for client, each in events.items()
    }
    return {client: each for client, each in kept.items() if each}


async def read_spending(
    connection: Connection,
    model_id: ModelId | None,
    client_ids: Sequence[ClientId] | None = None,
) -> Spending:
    """What some clients, or all, have spent and hold, on a model or on all.

    Holds are read first: a hold that becomes a charge between the two reads is counted twice, and
    never not at all.
    """
    held: defaultdict[str, list[PrivacyEvent]] = defaultdict(list)
    for hold in await ledger.list_holds(connection, model_id, client_ids):
        held[hold.client_id].append(msgspec.convert(dict(hold.event), PrivacyEvent))
    charged: defaultdict[str, list[PrivacyEvent]] = defaultdict(list)
    for spent in await ledger.list_spent(connection, model_id, client_ids):
        event = msgspec.convert(
            {
                "mechanism": spent.mechanism,
                "noise_multiplier": spent.noise_multiplier,
                "sensitivity": int(spent.sensitivity),
                "sampling_rate": spent.sampling_rate,
                "unit": spent.unit,
                "relation": spent.relation,
                "model": spent.model_id,
                # Many rounds that are alike: which ones does not matter to the sum.
                "round": "",
                "attempt": 1,
                "client": spent.client_id,
                "period": spent.period,
            },
            PrivacyEvent,
        )
        charged[spent.client_id].extend([event] * spent.count)
    return Spending(dict(charged), dict(held))


# --- what a round costs, and who can pay --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cost:
    """What the next release of a model costs each client, and the budgets that pay for it.

    Attributes:
        budget: the model's; None where its plan has no noise, and so no epsilon to hold against it.
        client_budget: the mesh's, for a client over all models; None where it has none.
    """

    model_id: ModelId
    terms: ReleaseTerms
    budget: Budget | None
    client_budget: Budget | None

    def event(self, client: str) -> PrivacyEvent:
        """The next release, for one client."""
        return self.terms.event(model=self.model_id, round="", attempt=1, client=client)

    async def read_spending(
        self, connection: Connection, client_ids: Sequence[ClientId]
    ) -> Spending:
        """What counts: of the model, and of all models where a budget spans them."""
        if self.budget is None and self.client_budget is None:
            return Spending({}, {})
        model_id = self.model_id if self.client_budget is None else None
        return await read_spending(connection, model_id, client_ids)

    def accounts(self, spending: Spending) -> Iterator[tuple[str, Budget, Events]]:
        """Each budget, by whose it is, with what was spent of it.

        Args:
            spending: from `read_spending`.
        """
        if self.budget is not None:
            yield "the model", self.budget, spending.on_model(self.model_id).past()
        if self.client_budget is not None:
            yield _MESH, self.client_budget, spending.past()

    def rounds_left(self, spending: Spending, client: str) -> int:
        """Releases that still fit for a client. There must be a budget."""
        return min(
            rounds_that_fit(budget, past.get(client, ()), self.event(client))
            for _, budget, past in self.accounts(spending)
        )


def cost_of(plan: Plan, policy: PrivacyPolicy) -> Cost:
    """What a release under a plan costs on this mesh."""
    terms = release_terms(plan, validate_encoding(plan))
    return Cost(ModelId(plan.model), terms, plan.budget, policy.client_budget)


async def clients_with_budget(
    connection: Connection, client_ids: Sequence[ClientId], cost: Cost, *, now_ms: int
) -> frozenset[str]:
    """Those for whom one more release fits every budget; nobody outside the budget's days.

    Args:
        now_ms: Unix time.
    """
    if cost.budget is not None:
        try:
            check_window(cost.budget, day_of(now_ms))
        except BudgetExceeded:
            return frozenset()
    spending = await cost.read_spending(connection, client_ids)
    return _able(client_ids, cost, spending)


def _able(client_ids: Sequence[ClientId], cost: Cost, spending: Spending) -> frozenset[str]:
    events = [cost.event(client_id) for client_id in client_ids]
    able: frozenset[str] = frozenset(client_ids)
    for _, budget, past in cost.accounts(spending):
        able &= affordable(budget, past, events)
    return able


async def check_cohort(
    connection: Connection,
    client_ids: Sequence[ClientId],
    cost: Cost,
    *,
    cohort: int,
    now_ms: int,
) -> None:
    """Refuse a round for which so many clients have spent their budget that no cohort is left.

    Args:
        client_ids: all that could take part.
        cohort: the fewest that a round needs. Where the mesh has not so many clients at all, more
            may come, and nothing is refused.
        now_ms: Unix time.

    Raises: BudgetExceeded, with what would fit: the days, the noise, and that fewer rounds do not.
    """
    if cost.budget is not None:
        check_window(cost.budget, day_of(now_ms))
    spending = await cost.read_spending(connection, client_ids)
    able = _able(client_ids, cost, spending)
    if len(client_ids) < cohort or len(able) >= cohort:
        return
    accounts = list(cost.accounts(spending))
    noise = noise_for_cohort([(budget, past) for _, budget, past in accounts], client_ids, cohort)
    would_do = (
        f"a noise multiplier of at least {rounded_up(noise)} would fit"
        if noise is not None
        else "no amount of noise would fit"
    )
    budgets = " and ".join(f"that of {of}, {budget}" for of, budget, _ in accounts)
    raise BudgetExceeded(
        f"only {len(able)} of {len(client_ids)} clients could take part in another round of "
        f"{cost.model_id} within the budget, {budgets}; the cohort needs {cohort}. At noise "
        f"multiplier {cost.terms.noise_multiplier:g} no more rounds fit for the others; {would_do}",
        clients_over=len(client_ids) - len(able),
        rounds_that_fit=0,
    )


# --- holds -------------------------------------------------------------------------------------


async def hold_releases(connection: Connection, events: Sequence[PrivacyEvent], cost: Cost) -> None:
    """Place the holds of a round's attempt, where they fit every budget.

    Args:
        connection: inside the transaction that fixes the roster.
        events: what the attempt may release, one for each client, on the terms of `cost`.

    Raises: BudgetExceeded where a client has not so much left (another round was faster);
        StateConflict where a client has a hold for the attempt already.
    """
    await ledger.lock_chain(connection, cost.model_id)
    if cost.client_budget is not None:
        await ledger.lock_all_models(connection)
    spending = await cost.read_spending(connection, [ClientId(event.client) for event in events])
    for of, budget, past in cost.accounts(spending):
        check_round(budget, past, events, of=of)
    await ledger.place_holds(
        connection,
        [
            ledger.Hold(
                RoundId(event.round),
                event.attempt,
                ClientId(event.client),
                ModelId(event.model),
                hold_payload(event),
            )
            for event in events
        ],
    )
