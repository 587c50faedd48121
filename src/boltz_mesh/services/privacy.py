"""GetPrivacyBudget: what was spent on a model, from the ledger's events."""

from __future__ import annotations

import math

from boltz_mesh.privacy import accountant
from boltz_mesh.privacy.budget import rounds_that_fit
from boltz_mesh.privacy.mechanisms import PrivacyEvent
from boltz_mesh.rounds.plan import Plan, validate_encoding
from boltz_mesh.rounds.plan_sealed import release_terms
from boltz_mesh.services.budgets import Events, charged_events, held_events
from boltz_mesh.services.clip_norms import plan_in_force
from boltz_mesh.storage import ledger, plans
from boltz_mesh.storage.postgres import Connection, Database
from boltz_protocol.ids import ClientId, ModelId
from boltz_protocol.v1 import aggregator_pb2 as pb


async def read_budget(
    database: Database, model_id: ModelId, client_id: ClientId | None
) -> pb.GetPrivacyBudgetResponse:
    """The budget of one client, or of the one that has spent most.

    Raises: NotFound where there is no plan for the model.
    """

    async def body(connection: Connection) -> tuple[Plan, Events, Events]:
        row = await plans.get_plan(connection, model_id)
        if client_id is None:
            spent = {event.client_id for event in await ledger.list_spent(connection, model_id)}
            holds = {hold.client_id for hold in await ledger.list_holds(connection, model_id)}
            wanted = sorted(spent | holds)
        else:
            wanted = [client_id]
        charged = await charged_events(connection, model_id, wanted)
        held = await held_events(connection, model_id, wanted)
        return await plan_in_force(connection, row), charged, held

    plan, charged, held = await database.read("read_budget", body)
    return _answer(model_id, client_id, plan, charged, held)


def _answer(
    model_id: ModelId, client_id: ClientId | None, plan: Plan, charged: Events, held: Events
) -> pb.GetPrivacyBudgetResponse:
    answer = pb.GetPrivacyBudgetResponse(
        model_id=model_id,
        client_id=client_id or "",
        unit="client",
        relation="contribution-set-to-zero",
    )
    if plan.budget is None:
        answer.rounds_charged = max((len(events) for events in charged.values()), default=0)
        # One round without noise and there is no guarantee left, at any delta.
        if charged:
            answer.epsilon_spent = answer.epsilon_replace_one = math.inf
        if charged or held:
            answer.epsilon_held = math.inf
        return answer
    delta = plan.budget.delta

    def with_holds(client: str) -> list[PrivacyEvent]:
        return [*charged.get(client, ()), *held.get(client, ())]

    if client_id is None and (charged or held):
        answer.client_id = max(
            sorted(charged.keys() | held.keys()),
            key=lambda client: accountant.epsilon_of(with_holds(client), delta),
        )
    else:
        answer.client_id = client_id or ""
    spent = charged.get(answer.client_id, [])
    replaced = accountant.spent(spent, delta, relation="contribution-replaced")
    terms = release_terms(plan, validate_encoding(plan))
    next_event = terms.event(model=model_id, round="", attempt=1, client=answer.client_id)
    answer.epsilon_spent = accountant.epsilon_of(spent, delta)
    answer.epsilon_held = accountant.epsilon_of(with_holds(answer.client_id), delta)
    answer.epsilon_budget = plan.budget.epsilon
    answer.delta = delta
    answer.epsilon_replace_one = replaced.epsilon
    answer.rounds_charged = len(spent)
    answer.rounds_left = rounds_that_fit(plan.budget, with_holds(answer.client_id), next_event)
    return answer
