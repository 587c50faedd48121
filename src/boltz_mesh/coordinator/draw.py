"""Drawing a roster: one transaction that fixes who takes part, what they weigh, and the holds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from boltz_mesh.coordinator import record
from boltz_mesh.coordinator.candidates import read_candidates
from boltz_mesh.coordinator.configure import fix_roster
from boltz_mesh.coordinator.parts import Parts
from boltz_mesh.coordinator.record import Position, Turn
from boltz_mesh.rounds.event import Event, RosterFixed
from boltz_mesh.rounds.plan import Plan
from boltz_mesh.rounds.selection import sample_roster
from boltz_mesh.rounds.state import Selecting
from boltz_mesh.services.budgets import cost_of, hold_releases
from boltz_mesh.storage import clients, models, roster
from boltz_mesh.storage.postgres import Connection
from boltz_mesh.storage.round_events import SignedConfig
from boltz_protocol import codec
from boltz_protocol.errors import BudgetExceeded, StateConflict
from boltz_protocol.ids import ClientId, RoundId
from boltz_protocol.statement import Statement


async def draw_roster(
    connection: Connection,
    parts: Parts,
    position: Position,
    *,
    count: int,
    plan: Plan,
    encryption_key: Statement,
    now_ms: int,
    fencing_token: int,
) -> Turn:
    """Draw among those who are checked in now; fewer than `count` are only reported.

    Args:
        position: of a round that is choosing.
        encryption_key: announcement of the key that updates will be encrypted for.

    Raises: StateConflict.
    """
    assert isinstance(position.state, Selecting)
    parameters = position.state.parameters
    round_id = RoundId(parameters.round_id)
    found = await record.lock(connection, round_id, position, fencing_token=fencing_token)
    cost = cost_of(plan, parts.policy)
    candidates = await read_candidates(connection, plan, cost, now_ms=now_ms)
    if len(candidates.able) < count:
        seen: list[Event] = [candidates.event(now_ms)]
        return await record.commit(
            connection, round_id, position, seen, fencing_token=fencing_token
        )
    base = await models.get_model_version(connection, found.model_id, parameters.base_version)
    size = min(len(candidates.able), parameters.wanted_clients)
    drawn = sample_roster(candidates.able, size, parts.random)
    chains = await _chains(connection, drawn) if parameters.is_sealed else {}
    # In a thread: thousands of entries are encoded and hashed.
    fixed = await asyncio.to_thread(
        lambda: fix_roster(
            [candidates.able[client] for client in drawn],
            trust_256=candidates.trust_256,
            parameters=parameters,
            plan=plan,
            base=base,
            encryption_key=encryption_key,
            chains=chains,
            mesh_id=parts.keyring.mesh_id,
            now_ms=now_ms,
            sign=parts.keyring.sign_statement,
        )
    )
    await roster.insert_roster(connection, fixed.entries)
    try:
        await hold_releases(connection, fixed.holds, cost)
    except BudgetExceeded as error:
        # A round of another model took it since the candidates were read: draw again without them.
        raise StateConflict(error.message, round_id=round_id) from error
    event = RosterFixed(
        at_ms=now_ms,
        roster=drawn,
        config_digest=fixed.config_digest.hex(),
        deadline_ms=fixed.deadline_ms,
    )
    return await record.commit(
        connection,
        round_id,
        position,
        [event],
        fencing_token=fencing_token,
        config=SignedConfig(codec.encode_statement(fixed.configuration), fixed.config_digest),
    )


async def _chains(connection: Connection, drawn: Sequence[str]) -> dict[str, bytes]:
    """Certificate chains (PEM) by client."""
    found = await clients.get_clients(connection, [ClientId(client) for client in drawn])
    assert len(found) == len(drawn), "whoever is checked in is enrolled"
    return {client.client_id: client.certificate_chain or b"" for client in found}
