"""What a sealed or grouped round's coordinator does beside stepping: it signs what a step fixes,
draws the groups, and finds out whether enough shares are there.
"""

from __future__ import annotations

from dataclasses import dataclass

from boltz_mesh.coordinator.parts import Parts
from boltz_mesh.rounds.event import GroupsDrawn
from boltz_mesh.rounds.state import (
    AbortReason,
    AdvertisingKeys,
    CheckingConsistency,
    Collecting,
    Group,
    Groups,
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


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the graph says to a step.

    Attributes:
        objection: why the round must not move as its rules let it, or nothing.
        groups: drawn by this step; () where there is nothing to draw.
    """

    objection: str = ""
    groups: Groups = ()

    def events(self, at_ms: int) -> tuple[GroupsDrawn, ...]:
        """What the round machine is told at the end of the step."""
        return (GroupsDrawn(at_ms=at_ms, groups=self.groups),) if self.groups else ()


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


async def judge(
    connection: Connection,
    found: rounds.Round,
    before: RoundState | None,
    after: RoundState,
    parts: Parts,
) -> Verdict:
    """Hold a step against the graph, which is drawn by the step into SHARING_KEYS.

    The round machine counts clients; the graph asks for more. What it cannot give is found out here
    before anybody deals, signs or is charged in vain.

    Args:
        before, after: where the round stands before and after the transaction that is being made.
    """
    match before, after:
        case ((AdvertisingKeys() | RevealingNonces()), SharingKeys(graph_members=members)):
            try:
                # Not kept: the transaction may be made again, with more members.
                shared = await read_attempt(connection, found, members)
            except (InvalidPlan, MalformedMessage) as error:
                return Verdict(f"{AbortReason.TOO_FEW_KEYS}: {error.message}")
            if after.parameters.is_grouped:
                return Verdict(groups=_groups_of(shared))
        case Collecting(), CheckingConsistency():
            shared = await parts.attempts.shared(connection, found, after.graph_members)
            try:
                # Every client holds the survivors against this, and signs nothing else.
                shared.attempt.check_survivors(shared.positions(after.survivors))
            except RoundRefused as error:
                return Verdict(f"{AbortReason.TOO_FEW_UPDATES}: {error.message}")
        case CheckingConsistency(), Unmasking():
            shared = await parts.attempts.shared(connection, found, after.graph_members)
            signed = await _signers(connection, found)
            if not _can_open(shared, after, signed):
                return Verdict(
                    f"{AbortReason.TOO_FEW_SIGNATURES}: the shares would not open the sum"
                )
    return Verdict()


def _groups_of(shared: SharedAttempt) -> Groups:
    entries = shared.attempt.entries
    return tuple(
        Group(
            clients=tuple(entries[position].client_id for position in graph.members),
            threshold=graph.threshold,
        )
        for graph in shared.attempt.agreement.graphs
    )


async def _signers(connection: Connection, found: rounds.Round) -> frozenset[int]:
    rows = await round_messages.list_messages(
        connection, found.round_id, found.attempt, MessageKind.SURVIVORS_SEEN
    )
    return frozenset(row.position for row in rows)


def _can_open(shared: SharedAttempt, state: Unmasking, signed: frozenset[int]) -> bool:
    """Whether those who are left, and are shown enough signatures, hold enough shares."""
    attempt = shared.attempt
    sharers = shared.positions(state.sharers)
    left = shared.positions(set(state.sharers) - state.dropped.keys())
    willing = {
        holder: frozenset(attempt.dealers_of(holder)) & sharers
        for holder in left & signed
        if len(signed.intersection(attempt.holders_of(holder)))
        >= attempt.graph_of(holder).threshold
    }
    return enough(attempt, sharers, willing, shared.positions(state.survivors))


async def enough_released(
    connection: Connection, found: rounds.Round, state: Unmasking, attempts: Attempts
) -> bool:
    """Whether every secret that the sums need can be reconstructed from what was released."""
    shared = await attempts.shared(connection, found, state.graph_members)
    covered = await round_messages.list_covered(connection, found.round_id, found.attempt)
    return enough(
        shared.attempt,
        shared.positions(state.sharers),
        covered,
        shared.positions(state.survivors),
    )


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
