"""Ledger rows for the accountant, and who of the checked-in clients has budget left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import msgspec

from boltz_mesh.privacy.budget import Budget, affordable
from boltz_mesh.privacy.mechanisms import PrivacyEvent
from boltz_mesh.rounds.plan_sealed import ReleaseTerms
from boltz_mesh.storage import ledger
from boltz_mesh.storage.postgres import Connection
from boltz_protocol.ids import ClientId, ModelId, RoundId


def hold_payload(event: PrivacyEvent) -> dict[str, object]:
    """What a hold's row keeps of an event."""
    payload = msgspec.to_builtins(event)
    assert isinstance(payload, dict)
    return payload


def ledger_entry(event: PrivacyEvent, at_ms: int) -> ledger.PrivacyEvent:
    """The row that charges an event."""
    return ledger.PrivacyEvent(
        model_id=ModelId(event.model),
        client_id=ClientId(event.client),
        round_id=RoundId(event.round),
        attempt=event.attempt,
        mechanism=event.mechanism,
        noise_multiplier=event.noise_multiplier,
        sensitivity=event.sensitivity,
        relation=event.relation,
        unit=event.unit,
        sampling_rate=event.sampling_rate,
        at_ms=at_ms,
    )


Events = dict[str, list[PrivacyEvent]]


async def charged_events(
    connection: Connection, model_id: ModelId, client_ids: Sequence[ClientId]
) -> Events:
    """What each client has spent on a model: client id -> events."""
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
                "model": model_id,
                # Many rounds that are alike: which ones does not matter to the sum.
                "round": "",
                "attempt": 1,
                "client": spent.client_id,
            },
            PrivacyEvent,
        )
        charged[spent.client_id].extend([event] * spent.count)
    return dict(charged)


async def held_events(
    connection: Connection, model_id: ModelId, client_ids: Sequence[ClientId]
) -> Events:
    """What running rounds may still spend: client id -> events."""
    held: defaultdict[str, list[PrivacyEvent]] = defaultdict(list)
    for hold in await ledger.list_holds(connection, model_id, client_ids):
        held[hold.client_id].append(msgspec.convert(dict(hold.event), PrivacyEvent))
    return dict(held)


async def past_events(
    connection: Connection, model_id: ModelId, client_ids: Sequence[ClientId]
) -> Mapping[str, Sequence[PrivacyEvent]]:
    """What each client has spent on a model, holds of running rounds included."""
    charged = await charged_events(connection, model_id, client_ids)
    held = await held_events(connection, model_id, client_ids)
    return {
        client: [*charged.get(client, ()), *held.get(client, ())]
        for client in charged.keys() | held.keys()
    }


async def clients_with_budget(
    connection: Connection,
    model_id: ModelId,
    client_ids: Sequence[ClientId],
    *,
    budget: Budget | None,
    terms: ReleaseTerms,
) -> frozenset[str]:
    """Those for whom one more release on these terms fits; all where the plan has no budget."""
    if budget is None:
        return frozenset(client_ids)
    past = await past_events(connection, model_id, client_ids)
    next_events = [
        terms.event(model=model_id, round="", attempt=1, client=client_id)
        for client_id in client_ids
    ]
    return affordable(budget, past, next_events)
