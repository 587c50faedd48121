"""Whether a client may call now; and the end of its open calls when it may not any more."""

from __future__ import annotations

from functools import partial

from boltz_mesh.services.guard import OpenCalls
from boltz_mesh.services.participation import end_streams_of
from boltz_mesh.services.patience import patiently
from boltz_mesh.services.subscriptions import Subscriptions
from boltz_mesh.storage import clients
from boltz_mesh.storage.clients import ClientStatus
from boltz_mesh.storage.listen import Listener
from boltz_mesh.storage.postgres import Channel, Connection, Database
from boltz_protocol.errors import ClientNotActive, NotFound, Unauthenticated
from boltz_protocol.ids import ClientId


class Membership:
    """Looks up statuses; one instance a server."""

    def __init__(
        self, database: Database, open_calls: OpenCalls, subscriptions: Subscriptions
    ) -> None:
        self._database = database
        self._open_calls = open_calls
        self._subscriptions = subscriptions

    async def check(self, client_id: str) -> None:
        """Raises: Unauthenticated for a client that is not there, ClientNotActive."""

        async def body(connection: Connection) -> ClientStatus:
            return await clients.get_client_status(connection, ClientId(client_id))

        try:
            status = await self._database.read("client_status", body)
        except NotFound as error:
            raise Unauthenticated(f"this mesh has no client {client_id}") from error
        if status is not ClientStatus.ACTIVE:
            raise ClientNotActive(f"client {client_id} is {status}", client_status=status)

    async def watch(self, listener: Listener) -> None:
        """End the calls of clients that are shut out, and streams that are superseded, for ever."""
        with listener.subscribe(Channel.CLIENT_CHANGED) as wakeups:
            async for wakeup in wakeups:
                changed = self._open_calls.clients() if wakeup.resync else wakeup.payloads
                for client_id in changed:
                    await patiently(partial(self._changed, client_id))

    async def _changed(self, client_id: str) -> None:
        try:
            await self.check(client_id)
        except (Unauthenticated, ClientNotActive):
            self._open_calls.end(client_id)
        else:
            await end_streams_of(self._database, self._subscriptions, ClientId(client_id))
