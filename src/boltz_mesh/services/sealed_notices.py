"""What each step of a sealed or grouped round shows to each of its clients, from the tables."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from boltz_mesh.rounds.groups import left_out
from boltz_mesh.rounds.state import (
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
    read_statement,
    shares_dealt,
)
from boltz_mesh.services.subscriptions import StepNotice
from boltz_mesh.storage import roster, round_messages, rounds
from boltz_mesh.storage.postgres import Connection, Database
from boltz_mesh.storage.round_messages import MessageKind, StatementKind
from boltz_protocol import codec
from boltz_protocol import messages_sealed as ms
from boltz_protocol.secagg import notices

#: Position in the roster -> what to push, in order.
Told = dict[int, tuple[StepNotice, ...]]


class SealedNotices:
    """Reads notices; `of_step` is all there is to call."""

    def __init__(self, database: Database, attempts: Attempts) -> None:
        self._database = database
        self._attempts = attempts

    async def of_step(
        self,
        found: rounds.Round,
        state: RoundState,
        entries: list[roster.RosterEntry],
        positions: Collection[int],
    ) -> Told:
        """What the round's step shows to the clients at `positions`, for those that it concerns.

        Args:
            state: where the round stands.
            entries: the roster, by position.
        """

        async def body(connection: Connection) -> Told:
            match state:
                case RevealingNonces():
                    return await self._key_roster(connection, found, state, entries, positions)
                case SharingKeys():
                    return await self._peers(connection, found, state, positions)
                case Collecting():
                    return await self._shares(connection, found, state, positions)
                case CheckingConsistency():
                    return await self._survivors(connection, found, state, entries, positions)
                case Unmasking():
                    return await self._signatures(connection, found, state, positions)
                case _:
                    return {}

        return await self._database.read("sealed_notices", body)

    async def _key_roster(
        self,
        connection: Connection,
        found: rounds.Round,
        state: RevealingNonces,
        entries: list[roster.RosterEntry],
        positions: Collection[int],
    ) -> Told:
        statement = await read_statement(connection, found, StatementKind.KEY_ROSTER)
        members = frozenset(state.members)
        notice = await asyncio.to_thread(
            notices.key_roster_notice, statement, [entry.entry for entry in entries]
        )
        return {
            entry.position: (notice,)
            for entry in entries
            if entry.client_id in members and entry.position in positions
        }

    async def _peers(
        self,
        connection: Connection,
        found: rounds.Round,
        state: SharingKeys,
        positions: Collection[int],
    ) -> Told:
        shared = await self._attempts.shared(connection, found, state.graph_members)
        return await asyncio.to_thread(_peers_notices, shared, positions)

    async def _shares(
        self,
        connection: Connection,
        found: rounds.Round,
        state: Collecting,
        positions: Collection[int],
    ) -> Told:
        shared = await self._attempts.shared(connection, found, state.graph_members)
        sharers = shared.positions(state.participants)
        dealt = await self._attempts.dealt(connection, found, sharers)
        rows = await round_messages.list_messages(
            connection, found.round_id, found.attempt, MessageKind.DEALT_SHARES, sharers
        )
        sealed = {
            row.position: (dealt[row.position], shares_dealt(row).sealed_shares) for row in rows
        }
        return {
            position: (notices.shares_notice(shared.attempt, position, sealed),)
            for position in sharers
            if position in positions
        }

    async def _survivors(
        self,
        connection: Connection,
        found: rounds.Round,
        state: CheckingConsistency,
        entries: list[roster.RosterEntry],
        positions: Collection[int],
    ) -> Told:
        statement = await read_statement(connection, found, StatementKind.SURVIVORS)
        notice = ms.SurvivorsNotice(statement)
        asked = _asked(state)
        return {
            entry.position: (notice,)
            for entry in entries
            if entry.client_id in asked and entry.position in positions
        }

    async def _signatures(
        self,
        connection: Connection,
        found: rounds.Round,
        state: Unmasking,
        positions: Collection[int],
    ) -> Told:
        shared = await self._attempts.shared(connection, found, state.graph_members)
        rows = await round_messages.list_messages(
            connection, found.round_id, found.attempt, MessageKind.SURVIVORS_SEEN
        )
        seen = {row.position: codec.parse_statement(row.payload or b"") for row in rows}
        return {
            position: (notices.signatures_notice(shared.attempt, position, seen),)
            for position in shared.positions(_asked(state))
            if position in positions
        }


def _asked(state: CheckingConsistency | Unmasking) -> frozenset[str]:
    """Who has something to sign and to release: in a group left out there is nothing."""
    return frozenset(state.sharers) - left_out(state.groups, state.survivors)


def _peers_notices(shared: SharedAttempt, positions: Collection[int]) -> Told:
    attempt = shared.attempt
    # With one complete graph there was nothing to reveal, and this is the first that members hear
    # of the key roster.
    first: tuple[StepNotice, ...] = ()
    if not attempt.nonces:
        first = (notices.key_roster_notice(shared.key_roster, attempt.roster),)
    return {
        position: (*first, notices.peers_notice(attempt, position, shared.advertisements))
        for position in attempt.graph_members
        if position in positions
    }
