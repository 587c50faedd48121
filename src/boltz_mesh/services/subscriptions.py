"""The control streams that this replica holds, and the bounded queue behind each of them."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager

from boltz_mesh.storage.check_ins import CheckIn
from boltz_protocol import limits
from boltz_protocol.errors import LimitExceeded, MeshError, Superseded
from boltz_protocol.ids import ClientId, ModelId, SessionId
from boltz_protocol.messages import RoundOffer, RoundOutcome
from boltz_protocol.messages_sealed import (
    KeyRosterNotice,
    PeersNotice,
    SharesNotice,
    SignaturesNotice,
    SurvivorsNotice,
)

#: What a step of a sealed round shows to a client.
StepNotice = KeyRosterNotice | PeersNotice | SharesNotice | SurvivorsNotice | SignaturesNotice
Push = RoundOffer | RoundOutcome | StepNotice


class Subscription:
    """One client's stream for one model: what waits to be sent, and why it ended."""

    def __init__(self, client_id: ClientId, model_id: ModelId, session_id: SessionId) -> None:
        self.client_id = client_id
        self.model_id = model_id
        self.session_id = session_id
        #: The check-in as it was recorded, to record it again after an outage.
        self.check_in: CheckIn | None = None
        #: Statements that may stand as this stream's check-in: the last one that was recorded, and
        #: the one that is being recorded.
        self.may_stand: tuple[bytes, ...] = ()
        #: (round id, attempt) pairs that were offered on this stream.
        self.offered: set[tuple[str, int]] = set()
        #: (round id, attempt, step) of the steps of sealed rounds that were told on this stream.
        self.told: set[tuple[str, int, str]] = set()
        self._waiting: deque[Push] = deque()
        self._wake = asyncio.Event()
        self._error: Exception | None = None
        self._done = False

    def push(self, message: Push) -> None:
        """Queue a message; a stream that does not read is ended rather than buffered for ever."""
        if len(self._waiting) >= limits.MAX_STREAM_QUEUE:
            self.close(LimitExceeded("this control stream does not read what is pushed to it"))
            return
        self._waiting.append(message)
        self._wake.set()

    def forget(self, round_id: str) -> None:
        """A round has ended: nothing more of it is told here."""
        self.offered = {told for told in self.offered if told[0] != round_id}
        self.told = {told for told in self.told if told[0] != round_id}

    def close(self, error: Exception | None = None) -> None:
        """End the stream, with an error or in peace."""
        if not self._done:
            self._done, self._error = True, error
            self._wake.set()

    async def next(self) -> Push | None:
        """The next message, in order; None when the stream ended in peace.

        Raises: the error that the stream was closed with, at once.
        """
        while True:
            if self._error is not None:
                raise self._error
            if self._waiting:
                return self._waiting.popleft()
            if self._done:
                return None
            self._wake.clear()
            await self._wake.wait()


class Subscriptions:
    """All streams of this replica, by model and client. The newest stream of a client wins."""

    def __init__(self) -> None:
        self._by_model: defaultdict[ModelId, dict[str, Subscription]] = defaultdict(dict)

    @contextmanager
    def open(
        self, client_id: ClientId, model_id: ModelId, session_id: SessionId
    ) -> Iterator[Subscription]:
        """Register a stream for as long as the context lasts; an older one ends as Superseded."""
        subscription = Subscription(client_id, model_id, session_id)
        older = self._by_model[model_id].get(client_id)
        self._by_model[model_id][client_id] = subscription
        if older is not None:
            older.close(Superseded("a newer stream of this client took this one's place"))
        try:
            yield subscription
        finally:
            if self._by_model[model_id].get(client_id) is subscription:
                del self._by_model[model_id][client_id]
            if not self._by_model[model_id]:
                del self._by_model[model_id]

    def of_model(self, model_id: ModelId) -> list[Subscription]:
        """The streams of a model's clients."""
        return list(self._by_model.get(model_id, {}).values())

    def models(self) -> list[ModelId]:
        """Models that this replica has streams for."""
        return list(self._by_model)

    def models_of(self, client_id: str) -> list[ModelId]:
        """Models that a client has a stream for, on this replica."""
        return [model for model, streams in self._by_model.items() if client_id in streams]

    def end_other_sessions(self, client_id: str, model_id: str, newest: SessionId) -> None:
        """End a client's stream if it is of another session than the newest, on another replica."""
        subscription = self._by_model.get(ModelId(model_id), {}).get(client_id)
        if subscription is not None and subscription.session_id != newest:
            subscription.close(Superseded("a newer session of this client took this one's place"))

    def close_all(self, error: MeshError) -> None:
        """End every stream, when the server stops."""
        for streams in list(self._by_model.values()):
            for subscription in list(streams.values()):
                subscription.close(error)
