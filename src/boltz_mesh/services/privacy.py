"""GetPrivacyBudget: what was spent, from the ledger's events."""

from __future__ import annotations

import math
from dataclasses import dataclass

from boltz_mesh.privacy import accountant
from boltz_mesh.privacy.budget import Budget, counted
from boltz_mesh.privacy.chain import ChainHead
from boltz_mesh.privacy.mechanisms import PrivacyEvent
from boltz_mesh.privacy.periods import midnight_ms
from boltz_mesh.rounds.plan import Plan
from boltz_mesh.rounds.plan_policy import PrivacyPolicy
from boltz_mesh.services.budgets import Spending, cost_of, read_spending
from boltz_mesh.services.clip_norms import plan_in_force
from boltz_mesh.services.ledger_checks import LedgerChecks
from boltz_mesh.storage import ledger, plans
from boltz_mesh.storage.postgres import Connection, Database
from boltz_protocol.ids import ClientId, ModelId
from boltz_protocol.v1 import aggregator_pb2 as pb


@dataclass(frozen=True, slots=True)
class _Found:
    """What the tables hold of a model, and of its clients in all models."""

    plan: Plan
    spending: Spending
    head: ChainHead


class PrivacyBudgets:
    """One instance a server."""

    def __init__(self, database: Database, ledger: LedgerChecks, policy: PrivacyPolicy) -> None:
        self._database = database
        self._ledger = ledger
        self._policy = policy

    async def read(
        self, model_id: ModelId, client_id: ClientId | None, *, verify_chain: bool = False
    ) -> pb.GetPrivacyBudgetResponse:
        """The budget of one client, or of the one that has spent most on the model.

        Args:
            verify_chain: check the model's whole chain first.

        Raises: NotFound where there is no plan for the model; LedgerBroken.
        """

        async def body(connection: Connection) -> _Found:
            row = await plans.get_plan(connection, model_id)
            wanted = [client_id] if client_id is not None else None
            if wanted is None:
                on_model = await read_spending(connection, model_id)
                wanted = [ClientId(client) for client in sorted(on_model.past())]
            spending = await read_spending(connection, None, wanted)
            plan = await plan_in_force(connection, row)
            return _Found(plan, spending, await ledger.read_head(connection, model_id))

        if verify_chain:
            await self._ledger.check_all(model_id)
        found = await self._database.read("read_budget", body)
        answer = _answer(model_id, client_id, found, self._policy)
        answer.chain_length = found.head.length
        answer.chain_head = found.head.hash
        answer.chain_verified = verify_chain
        return answer


def _answer(
    model_id: ModelId, client_id: ClientId | None, found: _Found, policy: PrivacyPolicy
) -> pb.GetPrivacyBudgetResponse:
    budget, spending = found.plan.budget, found.spending.on_model(model_id)
    client = client_id or _most_spent(spending, budget)
    answer = pb.GetPrivacyBudgetResponse(
        model_id=model_id,
        client_id=client,
        unit="client",
        relation="contribution-set-to-zero",
        rounds_lifetime=len(spending.charged.get(client, ())),
    )
    if policy.client_budget is not None:
        answer.epsilon_all_models_budget = policy.client_budget.epsilon
        answer.delta_all_models = policy.client_budget.delta
    elif budget is not None:
        answer.delta_all_models = budget.delta
    everywhere = found.spending.of(client)
    if answer.delta_all_models:
        answer.epsilon_all_models = accountant.epsilon_of(everywhere, answer.delta_all_models)
    elif everywhere:
        answer.epsilon_all_models = math.inf
    if budget is None:
        answer.rounds_charged = answer.rounds_lifetime
        # One round without noise and there is no guarantee left, at any delta.
        if spending.charged.get(client):
            answer.epsilon_spent = answer.epsilon_replace_one = answer.epsilon_lifetime = math.inf
        if spending.of(client):
            answer.epsilon_held = math.inf
        return answer
    spent = counted(budget, spending.charged.get(client, []))
    replaced = accountant.spent(spent, budget.delta, relation="contribution-replaced")
    answer.unit = budget.unit
    answer.period = budget.period
    if budget.start is not None:
        answer.starts_at_ms = midnight_ms(budget.start)
    if budget.end is not None:
        answer.ends_at_ms = midnight_ms(budget.end)
    answer.epsilon_spent = accountant.epsilon_of(spent, budget.delta)
    answer.epsilon_held = _epsilon(budget, spending.of(client))
    answer.epsilon_budget = budget.epsilon
    answer.delta = budget.delta
    answer.epsilon_replace_one = replaced.epsilon
    answer.rounds_charged = len(spent)
    answer.rounds_left = cost_of(found.plan, policy).rounds_left(found.spending, client)
    answer.epsilon_lifetime = accountant.epsilon_of(spending.charged.get(client, ()), budget.delta)
    return answer


def _epsilon(budget: Budget, events: list[PrivacyEvent]) -> float:
    """What a client has spent of a budget."""
    return accountant.epsilon_of(counted(budget, events), budget.delta)


def _most_spent(spending: Spending, budget: Budget | None) -> str:
    """The client with the largest epsilon, holds included; empty where nobody has any."""
    past = spending.past()
    if budget is None:
        # Infinite for all of them.
        return max(sorted(past), key=lambda client: len(past[client]), default="")
    return max(sorted(past), key=lambda client: _epsilon(budget, past[client]), default="")
