"""A client: a device with what is on its disk, and the sessions that run on it.

A session drives the real machine of the client library (`boltz_client.participant`) and a `Part`.
Its secrets are in memory: when it dies, the device starts another session, with other keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from boltz_client import participant as p
from boltz_client.owner import OwnerLimits
from boltz_protocol import codec
from boltz_protocol import messages as m
from boltz_protocol.errors import MeshError, NotInRoster, RoundClosed, RoundRefused
from boltz_protocol.ids import RoundId, SessionId
from boltz_protocol.secagg.client import Floors, SecaggClient
from boltz_protocol.statement import digest
from tests.simulation.protocol import wire
from tests.simulation.protocol.engine import Engine, Network, Stream
from tests.simulation.protocol.eye import Eye, Int32Array
from tests.simulation.protocol.part import NOTICES, Part, verified
from tests.support.secagg import cheap_sign, client_id, stream_of

TRAINING_MS = 20
#: How long a client waits for an answer to its upload, and before it comes back.
PATIENCE_MS = 80
BACKOFF_MS = 10


class Host(Protocol):
    """What a session finds around it."""

    engine: Engine
    network: Network
    eye: Eye
    mesh_key: Ed25519PublicKey

    @property
    def is_up(self) -> bool:
        """Whether the mesh can be reached."""
        ...

    def receive(self, stream: Stream, message: Any) -> None:
        """Bring the mesh a message."""

    def died(self, session: Session, *, restarts: bool) -> None:
        """A session's process is gone."""

    def saw_refusal(self, session: Session, error: MeshError) -> None:
        """A session has refused what the mesh has shown it."""


_Attempt = tuple[RoundId, int]


@dataclass(frozen=True, slots=True)
class Sealed:
    """A vector on the disk: its bytes are fixed."""

    session: str
    vector: bytes = field(repr=False)


@dataclass(slots=True)
class Device:
    """What outlives a client's process.

    Attributes:
        floors: of the owner; more than the configuration promises is refused at the offer in truth,
            and here when the survivors are known.
        ledger: round and attempt of each charge.
    """

    index: int
    floors: Floors
    owner: OwnerLimits
    ledger: list[_Attempt] = field(default_factory=list)
    spool: dict[_Attempt, Sealed] = field(default_factory=dict)

    def copied(self) -> Device:
        """Somebody has copied the key store to another machine."""
        return Device(self.index, self.floors, self.owner, list(self.ledger), dict(self.spool))


def session_of(index: int, number: int) -> SessionId:
    return SessionId(hashlib.sha256(b"session %d of %d" % (number, index)).hexdigest()[:32])


def values_of(session: str, coordinates: int) -> Int32Array:
    """What a session's training gives: never twice the same."""
    seed = int.from_bytes(hashlib.sha256(session.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).integers(-99, 100, coordinates, dtype=np.int32)


class Session:
    """One run of a client. `crash_*` say when it dies in the middle of sealing its update."""

    is_hostile = False

    def __init__(self, device: Device, number: int, host: Host) -> None:
        self.device = device
        self.number = number
        self.session_id = session_of(device.index, number)
        self.host = host
        self.state = p.Participant()
        self.part: Part | None = None
        self.key: p.RoundKey | None = None
        self.configuration: m.RoundConfiguration | None = None
        self.is_dead = False
        self.slower_ms = 0
        self.control: Stream | None = None
        self.crash_before_charge = self.crash_after_charge = self.crash_after_sending = False
        self._trained = False
        self._late = False

    def __repr__(self) -> str:
        return f"client {self.device.index}/{self.number}"

    # --- coming and going -----------------------------------------------------------------------

    def start(self) -> None:
        for (round_id, attempt), sealed in list(self.device.spool.items()):
            # Sealed by an earlier session, and perhaps not sent: only what is charged may be.
            if (round_id, attempt) in self.device.ledger:
                self._upload((round_id, attempt), sealed, told=None)
        self._connect()

    def die(self, *, restarts: bool) -> None:
        """The process is gone, and all its secrets."""
        if not self.is_dead:
            self.host.engine.tell(f"{self} dies")
            self._end()
            self.host.died(self, restarts=restarts)

    def stop(self) -> None:
        """The owner wants out."""
        if not self.is_dead:
            self._handle(p.StopRequested())
            self._end()

    def _end(self) -> None:
        self.is_dead = True
        if self.part is not None:
            self.part.wipe()
        if self.control is not None:
            self.host.network.close(self.control)

    def _connect(self) -> None:
        if self.is_dead:
            return
        if not self.host.is_up:
            self._after(BACKOFF_MS, "tries again", self._connect)
            return
        self.control = self._open(self._receive, self._lost)
        self._handle(p.StreamOpened())

    def _open(self, take: Callable[[Stream, Any], None], cut: Callable[[Stream], None]) -> Stream:
        host = self.host
        stream = Stream(self.device.index, self.session_id, host.receive, take, cut)
        stream.slower_ms = self.slower_ms
        return host.network.open(stream)

    def _lost(self, stream: Stream) -> None:
        if not self.is_dead and stream is self.control:
            self._handle(p.StreamLost())

    def _after(self, delay_ms: int, what: str, action: Callable[[], None]) -> None:
        self.host.engine.after(
            delay_ms + self.slower_ms, f"{self} {what}", lambda: None if self.is_dead else action()
        )

    # --- what comes in --------------------------------------------------------------------------

    def _receive(self, stream: Stream, message: Any) -> None:
        if self.is_dead or stream is not self.control:
            return
        match message:
            case wire.Welcome():
                self._handle(p.Welcomed())
            case wire.Offer():
                self._take_offer(message)
            case wire.Outcome() if self.key is not None:
                self._handle(p.Ended(self.key))
            case wire.Closed(error=None):
                self._end()  # a newer session has taken over
            case wire.Closed(error=error):
                self.host.network.close(stream)
                assert error is not None
                self._refuse(error)
                self._handle(p.StreamLost())
            case _ if isinstance(message, NOTICES):
                self._take_notice(message)

    def _take_offer(self, offer: wire.Offer) -> None:
        payload = verified(offer.configuration, m.ROUND_CONFIGURATION, self.host.mesh_key)
        configuration = codec.parse_round_configuration(payload)
        key = p.RoundKey(configuration.round_id, configuration.attempt)
        if self.part is not None and (again := self.part.advertisement_again()) is not None:
            self.send(wire.Advertisement(again))
        if self.key is None:
            self.key, self.configuration = key, configuration
            self._offer = offer
        self._handle(p.Offered(key))

    def _take_notice(self, notice: Any) -> None:
        part, key = self.part, self.key
        if part is None or key is None or self.state.work is None:
            return
        try:
            answer = part.take(notice)
        except MeshError as error:
            self.host.saw_refusal(self, error)
            self._refuse(error)
            return
        if answer is not None:
            self.send(answer)
        if part.is_left_out:
            self._be_late()
        elif isinstance(notice, m.SharesNotice):
            self._seal()

    def _refuse(self, error: MeshError) -> None:
        self.host.engine.tell(f"  {self} refuses: {error.message}")
        if self.part is not None:
            self.part.wipe()
        if self.key is not None:
            self._handle(p.Failed(self.key, error.reason))

    def _be_late(self) -> None:
        assert self.key is not None
        self._late = True
        self._handle(p.Late(self.key))

    # --- effects --------------------------------------------------------------------------------

    def send(self, message: Any) -> None:
        """To the mesh, on the control stream."""
        if self.control is not None:
            self.host.network.send(self.control, message, down=False)

    def _handle(self, event: p.Event) -> None:
        self.state, effects = p.step(self.state, event)
        for effect in effects:
            self._perform(effect)

    def _perform(self, effect: p.Effect) -> None:
        match effect:
            case p.SendCheckIn():
                self.send(wire.CheckIn())
            case p.Examine(key):
                self._examine(key)
            case p.Train():
                self._after(TRAINING_MS, "has trained", self._has_trained)
                assert self.configuration is not None
                left_ms = self.configuration.deadline_ms - self.host.engine.now_ms
                self._after(left_ms, "sees the deadline", self._time_is_up)
            case p.Upload(key):
                where = (key.round_id, key.attempt)
                if self.part is not None:
                    self.part.uploading = True
                self._upload(where, self.device.spool[where], told=key)
            case p.SendDecline(_, reason):
                self.send(wire.Decline(reason))
            case p.Abandon():
                self._late = True
            case p.Forget(key):
                self.device.spool.pop((key.round_id, key.attempt), None)
                if self.part is not None:
                    self.part.wipe()
            case p.Reconnect():
                self._after(BACKOFF_MS, "comes back", self._connect)
            case p.Close():
                pass

    def _examine(self, key: p.RoundKey) -> None:
        assert self.configuration is not None
        entry = codec.parse_roster_entry(self._offer.entry)
        try:
            if entry.session_id != self.session_id or entry.client_id != client_id(
                self.device.index
            ):
                raise RoundRefused("the round was offered to another run of this client")
            if (key.round_id, key.attempt) in self.device.ledger:
                raise RoundRefused("this attempt is charged already: nothing more of it")
            self.device.owner.check(self.configuration, entry.weight)
        except MeshError as error:
            self._refuse(error)
            return
        secagg = SecaggClient(
            configuration=self.configuration,
            configuration_sha256=digest(self._offer.configuration),
            entry=entry,
            sign=lambda type, payload: cheap_sign(entry.client_id, type, payload),
            floors=self.device.floors,
            randomness=stream_of(1000 * self.device.index + self.number),
        )
        self.part = self.take_part(secagg)
        self.send(wire.Advertisement(self.part.advertise()))
        self._handle(p.Accepted(key))

    def take_part(self, secagg: SecaggClient) -> Part:
        return Part(secagg, self.host.mesh_key, self.host.eye)

    def _time_is_up(self) -> None:
        work = self.state.work
        if work is None or work.stage is p.Stage.WAITING:
            return
        if self.part is not None and self.part.is_sharer:
            self._be_late()
        else:
            self._refuse(RoundClosed("the round's deadline is over"))

    # --- the one vector -------------------------------------------------------------------------

    def _has_trained(self) -> None:
        self._trained = True
        self._seal()

    def _seal(self) -> None:
        """Once trained, and once the masks are there: fix the bytes, charge, send."""
        part, key, configuration = self.part, self.key, self.configuration
        work = self.state.work
        if part is None or key is None or configuration is None or work is None or self._late:
            return
        if not self._trained or not part.is_ready or work.stage is not p.Stage.TRAINING:
            return
        try:
            vector = part.mask(values_of(self.session_id, configuration.coordinates))
        except MeshError as error:
            self._refuse(error)
            return
        where = (key.round_id, key.attempt)
        self.device.spool[where] = Sealed(self.session_id, vector)
        if self.crash_before_charge:
            self.die(restarts=True)
            return
        self.device.ledger.append(where)
        if self.crash_after_charge:
            self.die(restarts=True)
            return
        self._handle(p.Sealed(key))

    def _upload(
        self,
        where: _Attempt,
        sealed: Sealed,
        told: p.RoundKey | None,
        patience_ms: int = PATIENCE_MS,
    ) -> None:
        """Send the vector until there is a receipt, or a refusal. `told`: this session's own."""
        if self.is_dead or (told is not None and self._late):
            return
        assert self.device.ledger.count(where) == 1, "sent without a charge, or charged twice"
        answered: list[Any] = []

        def again() -> None:
            if not answered:
                take(stream, None)
                self._upload(where, sealed, told, 2 * patience_ms)

        def take(_: Stream, message: Any) -> None:
            if not answered:
                answered.append(message)
                self.host.network.close(stream)
                self._uploaded(message, told)

        stream = self._open(take, lambda _: again())
        if self.host.is_up:
            message = wire.Upload(sealed.session, sealed.vector)
            self.host.network.send(stream, message, down=False)
        self._after(patience_ms, "asks for its receipt", again)
        if self.crash_after_sending and told is not None:
            self.die(restarts=True)

    def _uploaded(self, message: Any, told: p.RoundKey | None) -> None:
        if self.is_dead or told is None:
            return
        match message:
            case wire.Receipt():
                if self.state.work is not None and self.state.work.stage is p.Stage.UPLOADING:
                    self._handle(p.Receipted(told))
            case wire.Closed(error=error):
                assert error is not None
                if isinstance(error, RoundClosed) and self.part is not None and self.part.is_sharer:
                    self._be_late()
                else:
                    assert isinstance(error, RoundClosed | NotInRoster), error.message
                    self._refuse(error)
