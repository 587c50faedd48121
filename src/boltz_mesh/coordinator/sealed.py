"""What a sealed round's coordinator does beside stepping: it signs what a step fixes, and finds out
whether enough shares are there.
"""

from __future__ import annotations

from boltz_mesh.coordinator.parts import Parts
from boltz_mesh.rounds.state import (
    AbortReason,
    AdvertisingKeys,
    CheckingConsistency,
    Collecting,
    RevealingNonces,
    RoundState,
    SharingKeys,
    Unmasking,
)
from boltz_mesh.services.attempts import (
    Attempts,
    SharedAttempt,
    configuration_of,
    read_advertisements,
    read_attempt,
)
from boltz_mesh.storage import roster, round_messages, rounds
from boltz_mesh.storage.postgres import Connection
from boltz_mesh.storage.round_messages import MessageKind, StatementKind
from boltz_protocol import codec, codec_sealed
from boltz_protocol import messages_sealed as ms
from boltz_protocol.errors import InvalidPlan, MalformedMessage, RoundRefused
from boltz_protocol.secagg.server import enough, key_roster, survivors_payload
from boltz_protocol.statement import Statement


async def sign_what_is_fixed(
    connection: Connection,
    found: rounds.Round,
    before: RoundState | None,
    after: RoundState,
    parts: Parts,
) -> None:
    """Sign the key roster or the survivors, in the transaction that fixes them for good.

    Args:
        found: the round, locked.
        before, after: where it stands before and after the transaction.
    """
    match before, after:
        case AdvertisingKeys(), RevealingNonces(members=members):
            await _sign_key_roster(connection, found, members, parts)
        case AdvertisingKeys(), SharingKeys(graph_members=members):
            # The graph is complete: every member is in it.
            await _sign_key_roster(connection, found, members, parts)
        case Collecting(), CheckingConsistency():
            await _sign_survivors(connection, found, after, parts)


async def objection(
    connection: Connection,
    found: rounds.Round,
    before: RoundState | None,
    after: RoundState,
    parts: Parts,
) -> str:
    """Why a round must not move as its rules let it, or nothing.

    The round machine counts clients; the graph asks for more. What it cannot give is found out here
    before anybody deals, signs or is charged in vain.

    Args:
        before, after: where the round stands before and after the transaction that is being made.
    """
    match before, after:
        case ((AdvertisingKeys() | RevealingNonces()), SharingKeys(graph_members=members)):
            try:
                # Not kept: the transaction may be made again, with more members.
                await read_attempt(connection, found, members)
            except (InvalidPlan, MalformedMessage) as error:
                return f"{AbortReason.TOO_FEW_KEYS}: {error.message}"
        case Collecting(), CheckingConsistency():
            shared = await parts.attempts.shared(connection, found, after.graph_members)
            try:
                # Every client holds the survivors against this, and signs nothing else.
                shared.attempt.graph.check_survivors(shared.positions(after.survivors))
            except RoundRefused as error:
                return f"{AbortReason.TOO_FEW_UPDATES}: {error.message}"
        case CheckingConsistency(), Unmasking():
            shared = await parts.attempts.shared(connection, found, after.graph_members)
            signed = await _signers(connection, found)
            left = shared.positions(set(after.sharers) - after.dropped.keys())
            if not _can_open(shared, shared.positions(after.sharers), left, signed):
                return f"{AbortReason.TOO_FEW_SIGNATURES}: the shares would not open the sum"
    return ""


async def _signers(connection: Connection, found: rounds.Round) -> frozenset[int]:
    rows = await round_messages.list_messages(
        connection, found.round_id, found.attempt, MessageKind.SURVIVORS_SEEN
    )
    return frozenset(row.position for row in rows)


def _can_open(
    shared: SharedAttempt, sharers: frozenset[int], left: frozenset[int], signed: frozenset[int]
) -> bool:
    """Whether those who are left, and are shown enough signatures, hold enough shares."""
    attempt = shared.attempt
    willing = {
        holder: frozenset(attempt.dealers_of(holder)) & sharers
        for holder in left & signed
        if len(signed.intersection(attempt.holders_of(holder))) >= attempt.threshold
    }
    return enough(attempt, sharers, willing)


async def enough_released(
    connection: Connection, found: rounds.Round, state: Unmasking, attempts: Attempts
) -> bool:
    """Whether every secret that the sum needs can be reconstructed from what was released."""
    shared = await attempts.shared(connection, found, state.graph_members)
    covered = await round_messages.list_covered(connection, found.round_id, found.attempt)
    return enough(shared.attempt, shared.positions(state.sharers), covered)


async def _sign_key_roster(
    connection: Connection, found: rounds.Round, members: tuple[str, ...], parts: Parts
) -> None:
    configuration, config_digest = configuration_of(found)
    entries = await roster.get_roster(connection, found.round_id, found.attempt)
    inside = frozenset(members)
    positions = [entry.position for entry in entries if entry.client_id in inside]
    signed = key_roster(
        configuration=configuration,
        configuration_sha256=config_digest,
        advertisements=await read_advertisements(connection, found, positions),
    )
    payload = codec_sealed.encode_key_roster(signed)
    statement = parts.keyring.sign_statement(ms.KEY_ROSTER, payload)
    await _put(connection, found, StatementKind.KEY_ROSTER, statement)


async def _sign_survivors(
    connection: Connection, found: rounds.Round, state: CheckingConsistency, parts: Parts
) -> None:
    shared = await parts.attempts.shared(connection, found, state.graph_members)
    signed = survivors_payload(shared.attempt, shared.positions(state.survivors))
    payload = codec_sealed.encode_survivors(signed)
    statement = parts.keyring.sign_statement(ms.SURVIVORS, payload)
    await _put(connection, found, StatementKind.SURVIVORS, statement)


async def _put(
    connection: Connection, found: rounds.Round, kind: StatementKind, statement: Statement
) -> None:
    await round_messages.put_statement(
        connection, found.round_id, found.attempt, kind, codec.encode_statement(statement)
    )
