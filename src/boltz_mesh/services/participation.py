"""Participate: check-ins and answers up, offers, steps and outcomes down. Nothing is polled.

What a client is told follows from the tables alone (`pushes`), so any replica can tell it and a
reconnected stream is told again. What it answers in a sealed round goes to `sealed_inbox`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from typing import Final

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from boltz_mesh.rounds.fact import DECLINED, FactKind
from boltz_mesh.rounds.state import Phase
from boltz_mesh.services.clock import Clock
from boltz_mesh.services.keyring import KeyRing
from boltz_mesh.services.patience import patiently
from boltz_mesh.services.pushes import Pushes
from boltz_mesh.services.sealed_inbox import SealedInbox, SealedMessage, Sender
from boltz_mesh.services.signed import client_key, signed_payload
from boltz_mesh.services.subscriptions import Push, Subscription, Subscriptions
from boltz_mesh.storage import check_ins, inbox, plans, roster, rounds
from boltz_mesh.storage.listen import Listener
from boltz_mesh.storage.postgres import Channel, Connection, Database
from boltz_protocol import codec, limits
from boltz_protocol import messages as m
from boltz_protocol.errors import (
    MalformedMessage,
    ReplayRefused,
    SignatureInvalid,
    StateConflict,
)
from boltz_protocol.ids import ClientId, ModelId, RoundId
from boltz_protocol.statement import Statement

#: What a client may send: check-ins, and after the first one the rest.
Incoming = Statement | m.RoundDecline | SealedMessage
#: Phases in which the round waits for its clients.
_WAITING: Final = frozenset(
    {
        Phase.ADVERTISING_KEYS,
        Phase.SHARING_KEYS,
        Phase.COLLECTING,
        Phase.CHECKING_CONSISTENCY,
        Phase.UNMASKING,
    }
)


class Participation:
    """The control streams of one replica. `serve` is one stream; `watch` feeds all of them."""

    def __init__(
        self,
        *,
        database: Database,
        keyring: KeyRing,
        subscriptions: Subscriptions,
        pushes: Pushes,
        sealed: SealedInbox,
        replica_id: str,
        clock: Clock,
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._subscriptions = subscriptions
        self._pushes = pushes
        self._sealed = sealed
        self._replica_id = replica_id
        self._clock = clock

    # --- one stream -----------------------------------------------------------------------------

    async def serve(
        self, client_id: ClientId, incoming: AsyncIterator[Incoming]
    ) -> AsyncGenerator[m.Welcome | Push, None]:
        """One control stream, from its first check-in to its end.

        Raises: the errors that Participate documents.
        """
        first = await anext(incoming, None)
        if not isinstance(first, Statement):
            raise MalformedMessage("a Participate stream starts with a check-in")

        async def read_key(connection: Connection) -> RSAPublicKey:
            return await client_key(connection, client_id)

        public_key = await self._database.read("check_in_client", read_key)
        check_in = self._verified(client_id, public_key, first)
        # Registered before it is recorded, so that an older stream that ends in between leaves its
        # row to this one.
        with self._subscriptions.open(
            client_id, check_in.model_id, check_in.session_id
        ) as subscription:
            reader: asyncio.Task[None] | None = None
            try:
                await self._record(subscription, check_in)
                sender = Sender(client_id, check_in.session_id, public_key)
                reader = asyncio.create_task(self._read(subscription, sender, incoming))
                yield self._welcome()
                await self._pushes.catch_up(subscription)
                while (message := await subscription.next()) is not None:
                    yield message
            finally:
                if reader is not None:
                    reader.cancel()
                    await asyncio.wait({reader})
                subscription.check_in = None  # nobody checks it in again from here on
                await asyncio.shield(self._check_out(subscription))

    def _welcome(self) -> m.Welcome:
        return m.Welcome(server_time_ms=self._clock(), protocol_version=m.PROTOCOL_VERSION)

    async def _read(
        self, subscription: Subscription, sender: Sender, incoming: AsyncIterator[Incoming]
    ) -> None:
        try:
            async for message in incoming:
                match message:
                    case m.RoundDecline():
                        await self._decline(subscription, message)
                    case Statement():
                        renewed = self._verified(sender.client_id, sender.public_key, message)
                        if (renewed.model_id, renewed.session_id) != (
                            subscription.model_id,
                            subscription.session_id,
                        ):
                            raise MalformedMessage("one stream serves one model and one session")
                        await self._record(subscription, renewed)
                    case _:
                        await self._sealed.take(sender, message)
        except Exception as error:
            # The stream's own coroutine raises it, so that it leaves as the stream's status.
            subscription.close(error)
        else:
            subscription.close()

    def _verified(
        self, client_id: ClientId, public_key: RSAPublicKey, statement: Statement
    ) -> check_ins.CheckIn:
        """The row of a check-in that is in order; nothing is written yet."""
        check_in = codec.parse_check_in(signed_payload(public_key, statement, m.CHECK_IN))
        self._validate(check_in, client_id)
        return check_ins.CheckIn(
            client_id=client_id,
            model_id=check_in.model_id,
            session_id=check_in.session_id,
            replica_id=self._replica_id,
            sample_bucket=check_in.sample_bucket,
            quality_bucket=check_in.quality_bucket,
            region=check_in.region,
            protocol_min=check_in.protocol.oldest,
            protocol_max=check_in.protocol.newest,
            statement=codec.encode_statement(statement),
            at_ms=check_in.at_ms,
        )

    async def _record(self, subscription: Subscription, row: check_ins.CheckIn) -> None:
        subscription.may_stand = (*subscription.may_stand[-1:], row.statement)

        async def body(connection: Connection) -> None:
            await plans.get_plan(connection, row.model_id)
            if await check_ins.put_check_in(connection, row) is not None:
                await self._report_superseded(connection, row)

        await self._database.run_tx("check_in", body)
        subscription.check_in = row

    def _validate(self, check_in: m.CheckIn, client_id: ClientId) -> None:
        if check_in.mesh_id != self._keyring.mesh_id or check_in.client_id != client_id:
            raise SignatureInvalid("the check-in is for another mesh or another client")
        if abs(check_in.at_ms - self._clock()) > limits.MAX_CLOCK_SKEW_MS:
            raise ReplayRefused(
                "the check-in was signed more than 5 minutes ago or ahead; is the clock right?",
                server_time_ms=self._clock(),
            )
        if m.Suite.V1 not in check_in.suites:
            raise MalformedMessage("the client speaks no suite that this server knows (SUITE_V1)")
        if not check_in.protocol.oldest <= m.PROTOCOL_VERSION <= check_in.protocol.newest:
            raise MalformedMessage(
                f"the client speaks protocol versions {check_in.protocol.oldest} to "
                f"{check_in.protocol.newest}; this server speaks {m.PROTOCOL_VERSION}"
            )

    async def _report_superseded(self, connection: Connection, check_in: check_ins.CheckIn) -> None:
        """A restarted client's keys and promises are gone: its old session is a dropout."""
        found = await rounds.find_open_round(connection, check_in.model_id)
        if found is None or found.phase not in _WAITING:
            return
        entry = await roster.find_roster_entry(
            connection, found.round_id, found.attempt, check_in.client_id
        )
        if entry is None or entry.session_id == check_in.session_id:
            return
        await self._put_dropped(connection, found, check_in.client_id, "superseded")

    async def _put_dropped(
        self, connection: Connection, found: rounds.Round, client_id: ClientId, reason: str
    ) -> None:
        await inbox.put(
            connection,
            round_id=found.round_id,
            attempt=found.attempt,
            kind=FactKind.CLIENT_DROPPED,
            client_id=client_id,
            payload={"reason": reason},
            at_ms=self._clock(),
        )

    async def _decline(self, subscription: Subscription, decline: m.RoundDecline) -> None:
        async def body(connection: Connection) -> None:
            found = await rounds.share_round(connection, decline.round_id)
            entry = await roster.find_roster_entry(
                connection, decline.round_id, decline.attempt, subscription.client_id
            )
            if entry is None or entry.session_id != subscription.session_id:
                raise StateConflict("this session was not selected for the round it declines")
            if found.phase in _WAITING and found.attempt == decline.attempt:
                reason = f"{DECLINED}{decline.reason}"
                await self._put_dropped(connection, found, subscription.client_id, reason)

        await self._database.run_tx("decline_round", body)

    async def _check_out(self, subscription: Subscription) -> None:
        async def body(connection: Connection) -> None:
            # A newer stream of the client checks in over this one, and learns from the row that is
            # there whether it is another session. It may also do so at this very moment, so that no
            # row but this stream's own is removed.
            streams = self._subscriptions.of_model(subscription.model_id)
            if any(
                s.client_id == subscription.client_id and s is not subscription for s in streams
            ):
                return
            await check_ins.remove_check_in(
                connection, subscription.client_id, subscription.model_id, subscription.may_stand
            )

        await self._database.run_tx("check_out", body)

    async def forget_earlier_run(self) -> None:
        """Before this replica serves: check-ins of an earlier run of it have no streams."""

        async def body(connection: Connection) -> None:
            await check_ins.clear_replica(connection, self._replica_id)

        await self._database.run_tx("forget_earlier_run", body)

    # --- what changes ---------------------------------------------------------------------------

    async def watch(self, listener: Listener) -> None:
        """Feed the streams of this replica from what changes in the database, for ever."""
        with listener.subscribe(Channel.ROUND_CHANGED) as wakeups:
            async for wakeup in wakeups:
                if wakeup.resync:
                    await patiently(self._resync)
                for round_id in wakeup.payloads:
                    await patiently(partial(self._pushes.round_changed, RoundId(round_id)))

    async def _resync(self) -> None:
        """After an outage: others may have taken this replica for dead, and rounds went on."""
        for model_id in self._subscriptions.models():
            for subscription in self._subscriptions.of_model(model_id):
                if subscription.check_in is not None:
                    await self._check_in_again(subscription, subscription.check_in)
                await self._pushes.catch_up(subscription)

    async def _check_in_again(self, subscription: Subscription, row: check_ins.CheckIn) -> None:
        async def body(connection: Connection) -> None:
            # A row that is there is this one, or a newer session's.
            known = await check_ins.find_check_in(connection, row.client_id, row.model_id)
            if known is None and subscription.check_in is not None:
                await check_ins.put_check_in(connection, row)

        await self._database.run_tx("check_in_again", body)
        if subscription.check_in is None:  # it left meanwhile, perhaps before our row was there
            await self._check_out(subscription)


async def end_streams_of(
    database: Database, subscriptions: Subscriptions, client_id: ClientId
) -> None:
    """After CLIENT_CHANGED: end the streams whose session is no longer the newest anywhere."""

    models = subscriptions.models_of(client_id)
    if not models:
        return

    async def body(connection: Connection) -> dict[ModelId, check_ins.CheckIn | None]:
        return {
            model_id: await check_ins.find_check_in(connection, client_id, model_id)
            for model_id in models
        }

    for model_id, current in (await database.read("newest_session", body)).items():
        if current is not None:
            subscriptions.end_other_sessions(client_id, model_id, current.session_id)
