"""When a round ends: what its clients did becomes evidence, in the transaction that ends it.

Everything comes from the round's events and from the security events that name it, so that the
rows can be made again from the log.
"""

from __future__ import annotations

import asyncio

from boltz_mesh.rounds.conduct import conduct_in
from boltz_mesh.rounds.serialise import event_of
from boltz_mesh.storage import round_events, rounds, security_events, trust
from boltz_mesh.storage.postgres import Connection
from boltz_mesh.trust.conduct import MISCONDUCT, conduct_inputs, judge_conduct
from boltz_protocol.ids import ClientId, RoundId


async def record_conduct(connection: Connection, round_id: RoundId, at_ms: int) -> None:
    """Write the conduct of everybody in the roster of a round that has just ended; nothing where
    no roster was fixed.

    Args:
        connection: in the transaction that ended the round, after its last events were appended.
        at_ms: of the last of them.

    Raises: StateConflict where it is written already.
    """
    found = await rounds.get_round(connection, round_id)
    assert found.outcome is not None, "conduct is judged at the end"
    if found.config_digest is None:
        return
    outcome = found.outcome.value
    stored = await round_events.load_events(connection, round_id)
    # In a thread: of a large round these are thousands of clients in each of many events.
    conduct = await asyncio.to_thread(
        lambda: conduct_in(event_of(event.payload) for event in stored)
    )
    incidents = await security_events.list_incidents(connection, round_id, MISCONDUCT)
    evidence = {
        ClientId(client): judge_conduct(
            conduct_inputs(outcome, did, incidents.get(ClientId(client), ()))
        )
        for client, did in conduct.items()
    }
    await trust.append_all(
        connection,
        found.model_id,
        evidence,
        round_id=round_id,
        attempt=found.attempt,
        ordinal=await trust.ended_rounds(connection, found.model_id),
        at_ms=at_ms,
    )
