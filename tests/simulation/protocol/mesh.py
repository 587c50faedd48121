"""The mesh: handlers of what clients say, and the notices that they are told.

Does over `store` what `services` and `coordinator` do over PostgreSQL, with the same real parts:
the round machine, `secagg.checks`, `attempt`, `notices`. What a process keeps in memory is in
`Mesh` and its `Coordinator`, and goes with a crash.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from boltz_mesh.rounds.charge import charges
from boltz_mesh.rounds.event import Event
from boltz_mesh.rounds.fact import SUPERSEDED, Fact, FactKind
from boltz_mesh.rounds.serialise import event_of, state_of
from boltz_mesh.rounds.state import (
    AdvertisingKeys,
    CheckingConsistency,
    Collecting,
    Ended,
    Published,
    RevealingNonces,
    RoundState,
    SharingKeys,
    Unmasking,
)
from boltz_mesh.rounds.step import Step, step
from boltz_protocol import codec, codec_sealed
from boltz_protocol import messages as m
from boltz_protocol.errors import (
    MeshError,
    NotInRoster,
    RoundClosed,
    SecondDigest,
    SecondMessage,
)
from boltz_protocol.secagg import checks, notices
from boltz_protocol.secagg.attempt import Attempt
from boltz_protocol.secagg.bitmap import indexes
from boltz_protocol.statement import Statement, digest, sign_ed25519
from tests.simulation.protocol import wire
from tests.simulation.protocol.engine import Engine, Network, Stream
from tests.simulation.protocol.settings import Setting
from tests.simulation.protocol.store import Database, MessageKind, StatementKind, Tables
from tests.support.secagg import cheap_verify, client_id


@dataclass(frozen=True, slots=True)
class Rules:
    """The round's rules; mutants are others."""

    step: Callable[[RoundState | None, Event], Step] = step
    charges: Callable[[RoundState | None, RoundState], tuple[str, ...]] = charges


class Refused(Exception):
    """A client was refused; the world judges whether it deserved it."""

    def __init__(self, stream: Stream, error: MeshError) -> None:
        super().__init__(error.message)
        self.stream = stream
        self.error = error


@dataclass(slots=True)
class Told:
    """What a control stream has been told in this process."""

    stream: Stream
    steps: set[str] = field(default_factory=set)


class Mesh:
    """One process of the mesh. `wake` is called when facts or check-ins wait."""

    def __init__(
        self,
        *,
        setting: Setting,
        engine: Engine,
        network: Network,
        database: Database,
        key: Ed25519PrivateKey,
        rules: Rules,
        random: Random,
        wake: Callable[[], None],
    ) -> None:
        self.setting = setting
        self.engine = engine
        self.network = network
        self.database = database
        self.key = key
        self.rules = rules
        self.random = random
        self._wake = wake
        self._streams: dict[str, Told] = {}
        self._attempt: Attempt | None = None
        #: The coordinator that runs in this process.
        self.coordinator: object = None

    def is_current(self, coordinator: object) -> bool:
        """Whether it still runs; timers of a dead one do nothing."""
        return self.coordinator is coordinator

    def sign(self, type: str, payload: bytes) -> Statement:
        return sign_ed25519(type=type, payload=payload, private_key=self.key)

    # --- handlers -------------------------------------------------------------------------------

    def receive(self, stream: Stream, message: Any) -> None:
        """One message of a client. Raises: Crash, Refused."""
        try:
            match message:
                case wire.CheckIn():
                    self._check_in(stream)
                case wire.Upload():
                    self._upload(stream, message)
                case wire.Decline():
                    self._decline(stream, message)
                case _:
                    self._answer(stream, message)
        except MeshError as error:
            self.network.send(stream, wire.Closed(error), down=True)
            self._streams.pop(stream.session, None)
            raise Refused(stream, error) from error

    def _check_in(self, stream: Stream) -> None:
        client = client_id(stream.client)
        with self.database.transaction() as tables:
            older = tables.check_ins.get(client)
            tables.check_ins[client] = stream.session
            state = self.state_in(tables)
            seat = _seat_of(tables, client)
            is_other = seat is not None and seat.session_id != stream.session
            if is_other and not isinstance(state, Ended):
                _put(tables, FactKind.CLIENT_DROPPED, client, reason=SUPERSEDED)
        if older is not None and older != stream.session and older in self._streams:
            self.network.send(self._streams.pop(older).stream, wire.Closed(None), down=True)
        self._streams[stream.session] = told = Told(stream)
        self.network.send(stream, wire.Welcome(), down=True)
        self._tell(told)
        self._wake()

    def _decline(self, stream: Stream, message: wire.Decline) -> None:
        with self.database.transaction() as tables:
            entry = self._entry(tables, stream)
            if not isinstance(self.state_in(tables), Ended):
                reason = f"declined: {message.reason}"
                _put(tables, FactKind.CLIENT_DROPPED, entry.client_id, reason=reason)
        self._wake()

    def _upload(self, stream: Stream, message: wire.Upload) -> None:
        """The signed manifest names the session, which may be an earlier one of the same client."""
        with self.database.transaction() as tables:
            entry = _seat_of(tables, client_id(stream.client))
            if entry is None or entry.session_id != message.session:
                raise NotInRoster("the manifest names another session than the one that checked in")
            first = tables.updates.get(entry.index)
            if first is not None and first != message.vector:
                raise SecondDigest("another vector was announced first")
            if entry.index not in tables.receipts:
                self._check_collecting(tables, entry)
                tables.updates[entry.index] = message.vector
                tables.receipts |= {entry.index}
                _put(tables, FactKind.UPDATE_STORED, entry.client_id)
        self.network.send(stream, wire.Receipt(), down=True)
        self._wake()

    def _check_collecting(self, tables: Tables, entry: m.RosterEntry) -> None:
        state = self.state_in(tables)
        if not isinstance(state, Collecting):
            raise RoundClosed("the round takes no updates")
        if entry.client_id not in state.participants:
            raise RoundClosed("this client dealt no shares in time: the round goes on without it")

    def _answer(self, stream: Stream, message: Any) -> None:
        with self.database.transaction() as tables:
            entry = self._entry(tables, stream)
            state = self.state_in(tables)
            kept = self._checked(tables, state, entry, message)
            if kept is not None:
                self._keep(tables, kept, entry, message)
        self._wake()

    def _checked(
        self, tables: Tables, state: RoundState | None, entry: m.RosterEntry, message: Any
    ) -> tuple[MessageKind, FactKind] | None:
        """What kind of answer it is; None where it is late."""
        name = entry.client_id
        match message, state:
            case wire.Advertisement(statement), AdvertisingKeys():
                said = codec_sealed.parse_key_advertisement(cheap_verify(entry, statement))
                configuration, sha256 = self.configuration(tables)
                checks.check_advertisement(
                    said, configuration=configuration, configuration_sha256=sha256, entry=entry
                )
                return MessageKind.KEY_ADVERTISEMENT, FactKind.KEYS_ADVERTISED
            case m.NonceReveal(), RevealingNonces() if name in state.members:
                key_roster = tables.statements[StatementKind.KEY_ROSTER]
                checks.check_reveal(
                    message,
                    configuration=self.configuration(tables)[0],
                    key_roster=codec_sealed.parse_key_roster(key_roster.payload),
                    index=entry.index,
                )
                return MessageKind.NONCE, FactKind.NONCE_REVEALED
            case m.SharesDealt(), SharingKeys() if name in state.graph_members:
                dealt = codec_sealed.parse_dealt_shares(cheap_verify(entry, message.dealt))
                attempt = self.attempt(tables, state.graph_members)
                checks.check_dealt(attempt, entry.index, dealt, message.sealed_shares)
                return MessageKind.DEALT_SHARES, FactKind.SHARES_DEALT
            case wire.Seen(statement), CheckingConsistency() if name in state.sharers:
                seen = codec_sealed.parse_survivors_seen(cheap_verify(entry, statement))
                survivors = tables.statements[StatementKind.SURVIVORS]
                checks.check_seen(
                    self.attempt(tables, state.graph_members),
                    entry.index,
                    seen,
                    codec_sealed.parse_survivors(survivors.payload).survivors,
                )
                return MessageKind.SURVIVORS_SEEN, FactKind.SURVIVORS_SIGNED
            case m.SharesReleased(), Unmasking() if name in state.sharers:
                attempt = self.attempt(tables, state.graph_members)
                sharers = positions(attempt, state.sharers)
                checks.check_released(
                    attempt,
                    entry.index,
                    message,
                    {index: dealt_of(tables, index) for index in sharers},
                    positions(attempt, state.survivors),
                    sharers,
                )
                return MessageKind.RELEASED_SHARES, FactKind.SHARES_RELEASED
        return None

    def _keep(
        self,
        tables: Tables,
        kinds: tuple[MessageKind, FactKind],
        entry: m.RosterEntry,
        message: Any,
    ) -> None:
        """Keep the first message of a kind, and tell the coordinator of it."""
        kind, fact = kinds
        known = tables.messages.setdefault((kind, entry.index), message)
        if _essence(known) != _essence(message):
            raise SecondMessage(f"a second, different {kind}")
        if known is message:
            _put(tables, fact, entry.client_id)

    def _entry(self, tables: Tables, stream: Stream) -> m.RosterEntry:
        entry = _seat_of(tables, client_id(stream.client))
        if entry is None or entry.session_id != stream.session:
            raise NotInRoster("this session was not selected for this round and attempt")
        return entry

    # --- what follows from the tables -----------------------------------------------------------

    def state_in(self, tables: Tables) -> RoundState | None:
        """Where the round stands: the snapshot, which is written when the phase changes."""
        return None if tables.snapshot is None else state_of(json.loads(tables.snapshot[1]))

    def folded(self, tables: Tables) -> RoundState | None:
        """The fold of all events from the snapshot on."""
        first = 0 if tables.snapshot is None else tables.snapshot[0]
        state = self.state_in(tables)
        for text in tables.events[first:]:
            state, _ = self.rules.step(state, event_of(json.loads(text)))
        return state

    def configuration(self, tables: Tables) -> tuple[m.RoundConfiguration, bytes]:
        statement = tables.statements[StatementKind.CONFIGURATION]
        return codec.parse_round_configuration(statement.payload), digest(statement)

    def attempt(self, tables: Tables, graph_members: tuple[str, ...]) -> Attempt:
        """Built once in a process: none of what it is built from changes any more."""
        if self._attempt is None:
            configuration, sha256 = self.configuration(tables)
            key_roster = tables.statements[StatementKind.KEY_ROSTER]
            signed = codec_sealed.parse_key_roster(key_roster.payload)
            members = indexes(signed.members, configuration.roster_size)
            self._attempt = Attempt.build(
                configuration=configuration,
                configuration_sha256=sha256,
                roster=tables.roster,
                advertisements={
                    index: statement.payload
                    for index, statement in advertisements(tables, members).items()
                },
                key_roster=key_roster,
                nonces={
                    index: said.nonce
                    for (kind, index), said in tables.messages.items()
                    if kind is MessageKind.NONCE
                    and entry_at(tables, index).client_id in graph_members
                },
            )
        return self._attempt

    # --- notices --------------------------------------------------------------------------------

    def tell_all(self) -> None:
        """Tell every stream what the round's step asks of it, once."""
        for told in list(self._streams.values()):
            self._tell(told)

    def _tell(self, told: Told) -> None:
        if not told.stream.is_open:
            del self._streams[told.stream.session]
            return
        tables = self.database.tables
        state = self.state_in(tables)
        entry = _seat_of(tables, client_id(told.stream.client))
        name = type(state).__name__
        if entry is None or entry.session_id != told.stream.session or name in told.steps:
            return
        told.steps.add(name)
        for message in self.messages_for(tables, state, entry):
            self.network.send(told.stream, message, down=True)

    def messages_for(
        self, tables: Tables, state: RoundState | None, entry: m.RosterEntry
    ) -> tuple[Any, ...]:
        """What a step shows to one client."""
        index, name = entry.index, entry.client_id
        match state:
            case AdvertisingKeys():
                statement = tables.statements[StatementKind.CONFIGURATION]
                return (wire.Offer(statement, tables.roster[index]),)
            case RevealingNonces() if name in state.members:
                return (self._key_roster(tables),)
            case SharingKeys() if name in state.graph_members:
                attempt = self.attempt(tables, state.graph_members)
                shown = notices.peers_notice(
                    attempt, index, advertisements(tables, attempt.agreement.graphs[0].members)
                )
                return (shown,) if attempt.nonces else (self._key_roster(tables), shown)
            case Collecting() if name in state.participants:
                attempt = self.attempt(tables, state.graph_members)
                sealed = {
                    sharer: (
                        dealt_of(tables, sharer),
                        tables.messages[MessageKind.DEALT_SHARES, sharer].sealed_shares,
                    )
                    for sharer in positions(attempt, state.participants)
                }
                return (notices.shares_notice(attempt, index, sealed),)
            case CheckingConsistency() if name in state.sharers:
                return (m.SurvivorsNotice(tables.statements[StatementKind.SURVIVORS]),)
            case Unmasking() if name in state.sharers:
                seen = {
                    position: said.statement
                    for (kind, position), said in tables.messages.items()
                    if kind is MessageKind.SURVIVORS_SEEN
                }
                attempt = self.attempt(tables, state.graph_members)
                return (notices.signatures_notice(attempt, index, seen),)
            case _ if isinstance(state, Ended):
                return (wire.Outcome(isinstance(state, Published)),)
        return ()

    def _key_roster(self, tables: Tables) -> m.KeyRosterNotice:
        statement = tables.statements[StatementKind.KEY_ROSTER]
        return notices.key_roster_notice(statement, tables.roster)


@lru_cache
def _entry_of(raw: bytes) -> m.RosterEntry:
    return codec.parse_roster_entry(raw)


def entry_at(tables: Tables, index: int) -> m.RosterEntry:
    return _entry_of(tables.roster[index])


def positions(attempt: Attempt, clients: tuple[str, ...]) -> frozenset[int]:
    return frozenset(e.index for e in attempt.entries if e.client_id in clients)


def advertisements(tables: Tables, members: tuple[int, ...]) -> dict[int, Statement]:
    return {i: tables.messages[MessageKind.KEY_ADVERTISEMENT, i].statement for i in members}


def dealt_of(tables: Tables, index: int) -> m.DealtShares:
    said = tables.messages[MessageKind.DEALT_SHARES, index]
    return codec_sealed.parse_dealt_shares(said.dealt.payload)


def _seat_of(tables: Tables, client: str) -> m.RosterEntry | None:
    entries = map(_entry_of, tables.roster)
    return next((entry for entry in entries if entry.client_id == client), None)


def _put(tables: Tables, kind: FactKind, client: str, **payload: str) -> None:
    tables.inbox += (Fact(kind, client, payload),)


def _essence(message: Any) -> Any:
    """What two messages are compared by: a repeated signature may be another."""
    match message:
        case wire.Advertisement(statement) | wire.Seen(statement):
            return digest(statement)
        case _:
            return message
