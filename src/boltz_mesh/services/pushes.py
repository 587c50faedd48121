"""What a client is told on its control stream: offers, the steps of sealed rounds, outcomes.

All of it follows from the tables alone, so any replica can tell it, and a reconnected stream is
told the present step again: clients pass over what they know, and repeat their answer.
"""

from __future__ import annotations

import asyncio

from boltz_mesh.rounds.serialise import state_of
from boltz_mesh.rounds.state import AdvertisingKeys, Collecting, RoundState
from boltz_mesh.services.attempts import leaf_of
from boltz_mesh.services.keyring import KeyRing
from boltz_mesh.services.sealed_notices import SealedNotices
from boltz_mesh.services.subscriptions import Subscription, Subscriptions
from boltz_mesh.storage import roster, round_events, rounds, updates
from boltz_mesh.storage.postgres import Connection, Database
from boltz_mesh.storage.updates import UpdateState
from boltz_protocol import codec, limits
from boltz_protocol import messages as m
from boltz_protocol.ids import RoundId
from boltz_protocol.weights import prove_all


class Pushes:
    """Feeds the control streams of one replica."""

    def __init__(
        self,
        *,
        database: Database,
        keyring: KeyRing,
        subscriptions: Subscriptions,
        notices: SealedNotices,
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._subscriptions = subscriptions
        self._notices = notices

    async def catch_up(self, subscription: Subscription) -> None:
        """Tell a new stream what stands, and what its session may have missed."""

        async def body(connection: Connection) -> tuple[rounds.Round | None, rounds.Round | None]:
            return (
                await rounds.find_open_round(connection, subscription.model_id),
                await rounds.find_last_ended(
                    connection,
                    subscription.model_id,
                    subscription.client_id,
                    subscription.session_id,
                ),
            )

        standing, ended = await self._database.read("catch_up", body)
        if ended is not None:
            # Clients pass over an outcome that they know.
            await self._tell_outcome(ended, [subscription])
        if standing is not None:
            await self._tell_step(standing.round_id, [subscription])

    async def round_changed(self, round_id: RoundId) -> None:
        """Tell the streams of this replica what a round has come to."""

        async def body(connection: Connection) -> rounds.Round:
            return await rounds.get_round(connection, round_id)

        found = await self._database.read("round_changed", body)
        waiting = self._subscriptions.of_model(found.model_id)
        if found.outcome is not None:
            self._keyring.forget_round(found.round_id)
            attempt = (found.round_id, found.attempt)
            await self._tell_outcome(found, [s for s in waiting if attempt in s.offered])
        elif waiting:
            await self._tell_step(round_id, waiting)

    async def _tell_step(self, round_id: RoundId, streams: list[Subscription]) -> None:
        """Tell those of `streams` whose turn it is what the round's present step asks of them."""

        async def body(connection: Connection) -> tuple[rounds.Round, RoundState | None]:
            # The snapshot first: should the round move in between, the next wakeup tells of it.
            snapshot = await round_events.load_snapshot(connection, round_id)
            state = None if snapshot is None else state_of(snapshot.state)
            return await rounds.get_round(connection, round_id), state

        found, state = await self._database.read("round_step", body)
        match state:
            case AdvertisingKeys():
                await self._offer(found, streams)
            case Collecting() if not state.parameters.is_sealed:
                await self._offer(found, streams)
            case _ if state is not None and state.parameters.is_sealed:
                await self._tell_notices(found, state, streams)

    async def _offer(self, found: rounds.Round, streams: list[Subscription]) -> None:
        """Push the offer to those of `streams` that are in the roster and have not uploaded."""
        attempt = (found.round_id, found.attempt)
        streams = [stream for stream in streams if attempt not in stream.offered]
        if not streams:
            return
        assert found.config_statement is not None

        async def body(
            connection: Connection,
        ) -> tuple[list[roster.RosterEntry], list[updates.Update]]:
            entries = await roster.get_roster(connection, found.round_id, found.attempt)
            return entries, await updates.list_updates(connection, found.round_id, found.attempt)

        entries, known = await self._database.read("offer_round", body)
        done = {row.client_id for row in known if row.state is not UpdateState.RECEIVING}
        chosen = [
            (stream, entry)
            for stream, entry in _in_roster(streams, entries)
            if entry.client_id not in done
        ]
        if not chosen:
            return
        proofs = await asyncio.to_thread(prove_all, [leaf_of(entry) for entry in entries])
        statement = codec.parse_statement(found.config_statement)
        for subscription, entry in chosen:
            if attempt in subscription.offered:
                continue  # another wakeup was quicker
            subscription.offered.add(attempt)
            proof = tuple(m.RosterSibling(node.hash, node.total) for node in proofs[entry.position])
            trace = m.TraceContext(found.trace_context)
            subscription.push(m.RoundOffer(statement, entry.entry, proof, trace))

    async def _tell_notices(
        self, found: rounds.Round, state: RoundState, streams: list[Subscription]
    ) -> None:
        """Push what a sealed round's step shows to each of its clients, once on each stream."""
        step = (found.round_id, found.attempt, type(state).__name__)
        streams = [stream for stream in streams if step not in stream.told]
        if not streams:
            return

        async def body(connection: Connection) -> list[roster.RosterEntry]:
            return await roster.get_roster(connection, found.round_id, found.attempt)

        entries = await self._database.read("tell_step", body)
        seats = {
            entry.position: stream
            for stream, entry in _in_roster(streams, entries)
            if step not in stream.told
        }
        told = await self._notices.of_step(found, state, entries, seats.keys())
        for position, notices in told.items():
            subscription = seats[position]
            if step in subscription.told:
                continue  # another wakeup was quicker
            subscription.told.add(step)
            # Whoever is told of a round's steps is told of its end as well.
            subscription.offered.add((found.round_id, found.attempt))
            for notice in notices:
                subscription.push(notice)

    async def _tell_outcome(self, found: rounds.Round, streams: list[Subscription]) -> None:
        if not streams:
            return

        async def body(connection: Connection) -> list[updates.Update]:
            return await updates.list_updates(
                connection, found.round_id, found.attempt, UpdateState.COUNTED
            )

        counted = {row.client_id for row in await self._database.read("tell_outcome", body)}
        published = found.new_version is not None
        for subscription in streams:
            subscription.forget(found.round_id)
            subscription.push(
                m.RoundOutcome(
                    round_id=found.round_id,
                    attempt=found.attempt,
                    phase=m.Phase.PUBLISHED if published else m.Phase.ABORTED,
                    reason="" if published else (found.reason or "")[: limits.MAX_NAME_CHARS],
                    new_version=found.new_version or 0,
                    counted=published and subscription.client_id in counted,
                )
            )


def _in_roster(
    streams: list[Subscription], entries: list[roster.RosterEntry]
) -> list[tuple[Subscription, roster.RosterEntry]]:
    """Each stream that has a seat in the roster for its session, with the seat."""
    mine = {stream.client_id: stream for stream in streams}
    return [
        (mine[entry.client_id], entry)
        for entry in entries
        if entry.client_id in mine and mine[entry.client_id].session_id == entry.session_id
    ]
