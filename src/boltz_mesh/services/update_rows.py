"""What SubmitUpdate writes: an upload begins, is stored with its receipt, or is dropped.

Each of them holds the round where it is, so that what was taken while the round collects counts and
nothing is taken later. Those of one round that come at about the same time share a transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from boltz_mesh.rounds.fact import FactKind
from boltz_mesh.rounds.serialise import state_of
from boltz_mesh.rounds.state import Collecting, Phase
from boltz_mesh.services.clock import Clock
from boltz_mesh.services.combine import Combiner
from boltz_mesh.storage import inbox, round_events, rounds, updates
from boltz_mesh.storage.postgres import Connection, Database
from boltz_mesh.storage.updates import NewUpdate, Update, UpdateState
from boltz_protocol import limits
from boltz_protocol.errors import MeshError, RoundClosed, StateConflict
from boltz_protocol.ids import ClientId, RoundId


@dataclass(frozen=True, slots=True)
class StoredNow:
    """An update that is checked and durable, with what its row gets."""

    round_id: RoundId
    attempt: int
    client_id: ClientId
    blob_digest: bytes
    receipt: bytes = field(repr=False)
    received_at_ms: int


class UpdateRows:
    """The rows of one replica's uploads."""

    def __init__(self, *, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._beginning = Combiner(self._begin_all, most=limits.MAX_ANSWERS_TOGETHER)
        self._storing = Combiner(self._store_all, most=limits.MAX_ANSWERS_TOGETHER)

    async def begin(self, new: NewUpdate) -> Update:
        """Make the row of an upload, or find it.

        Raises: RoundClosed, SecondDigest; StateConflict where another key was announced.
        """
        return await self._beginning.submit(new.round_id, new)

    async def store(self, stored: StoredNow) -> Update:
        """Keep the receipt, and tell the coordinator. Repeated, the first receipt stays.

        Raises: RoundClosed; StateConflict where the update was dropped.
        """
        return await self._storing.submit(stored.round_id, stored)

    async def drop(self, round_id: RoundId, attempt: int, client_id: ClientId, reason: str) -> None:
        """Refuse an arriving update for good, and tell the coordinator. Raises: RoundClosed."""

        async def body(connection: Connection) -> None:
            check_collecting(await rounds.share_round(connection, round_id), attempt)
            await updates.mark_dropped(connection, round_id, attempt, client_id)
            await inbox.put(
                connection,
                round_id=round_id,
                attempt=attempt,
                kind=FactKind.CLIENT_DROPPED,
                client_id=client_id,
                payload={"reason": reason},
                at_ms=self._clock(),
            )

        await self._database.run_tx("drop_update", body)

    async def _begin_all(
        self, round_id: RoundId, new: Sequence[NewUpdate]
    ) -> list[Update | Exception]:
        async def body(connection: Connection) -> list[Update | Exception]:
            held = await rounds.share_round(connection, round_id)
            snapshot = await round_events.load_snapshot(connection, round_id)
            state = None if snapshot is None else state_of(snapshot.state)
            outcomes: list[Update | Exception] = []
            for one in new:
                try:
                    row = await updates.begin_update(connection, one)
                    if row.receipt is None:
                        check_collecting(held, one.attempt)
                        assert isinstance(state, Collecting), "held so by the transaction"
                        _check_participant(state, one)
                    _check_same(row, one)
                except MeshError as error:
                    outcomes.append(error)
                else:
                    outcomes.append(row)
            return outcomes

        return await self._database.run_tx("begin_update", body)

    async def _store_all(
        self, round_id: RoundId, stored: Sequence[StoredNow]
    ) -> list[Update | Exception]:
        async def body(connection: Connection) -> list[Update | Exception]:
            held = await rounds.share_round(connection, round_id)
            outcomes: list[Update | Exception] = []
            clients: list[ClientId] = []
            for one in stored:
                try:
                    check_collecting(held, one.attempt)
                    row = await updates.mark_stored(
                        connection,
                        round_id,
                        one.attempt,
                        one.client_id,
                        blob_digest=one.blob_digest,
                        receipt=one.receipt,
                        received_at_ms=one.received_at_ms,
                    )
                except MeshError as error:
                    outcomes.append(error)
                else:
                    outcomes.append(row)
                    clients.append(one.client_id)
            if clients:
                await inbox.put_all(
                    connection,
                    round_id=round_id,
                    attempt=held.attempt,
                    kind=FactKind.UPDATE_STORED,
                    clients=clients,
                    at_ms=self._clock(),
                )
            return outcomes

        return await self._database.run_tx("store_update", body)


def check_collecting(found: rounds.Round, attempt: int) -> None:
    """Raises: RoundClosed where the attempt takes no updates."""
    if found.outcome is not None or found.phase != Phase.COLLECTING or found.attempt != attempt:
        raise RoundClosed(
            f"round {found.round_id} is {found.phase.lower()} and takes no updates",
            round_id=found.round_id,
            phase=found.phase,
        )


def _check_participant(state: Collecting, new: NewUpdate) -> None:
    """In a sealed round a vector is taken of those alone who have dealt shares of its masks."""
    if new.client_id not in state.participants:
        raise RoundClosed(
            "this client dealt no shares in time: the round goes on without it",
            round_id=new.round_id,
        )


def _check_same(row: Update, new: NewUpdate) -> None:
    if row.state is UpdateState.DROPPED:
        raise RoundClosed("this update was refused before; nothing more is taken for it")
    if row.receipt is None and row.key_commitment != new.key_commitment:
        raise StateConflict("the manifest's key is not the one announced first")
