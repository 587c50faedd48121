"""What clients answer in sealed rounds: checked, kept, and told to the coordinator.

Each answer is one transaction that holds the round where it is: a message is there before the round
moves on, and counts, or it is late. Late messages are passed over: their client is a dropout of
that step, and learns the round's end like everybody else. The same message again changes nothing;
another one of its kind is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from boltz_mesh.rounds.fact import FactKind
from boltz_mesh.rounds.serialise import state_of
from boltz_mesh.rounds.state import (
    AdvertisingKeys,
    CheckingConsistency,
    RevealingNonces,
    RoundState,
    SharingKeys,
    Unmasking,
)
from boltz_mesh.services.attempts import (
    Attempts,
    configuration_of,
    read_statement,
    released_context,
)
from boltz_mesh.services.clock import Clock
from boltz_mesh.services.keyring import KeyRing
from boltz_mesh.services.signed import verified_payload
from boltz_mesh.storage import inbox, roster, round_messages, rounds
from boltz_mesh.storage.postgres import Connection, Database
from boltz_mesh.storage.round_messages import MessageKind, RoundMessage, StatementKind
from boltz_protocol import codec, codec_sealed
from boltz_protocol import messages_sealed as ms
from boltz_protocol.errors import NotInRoster
from boltz_protocol.ids import ClientId, RoundId, SessionId
from boltz_protocol.key_wrap import wrap_secret
from boltz_protocol.secagg.checks import (
    check_advertisement,
    check_dealt,
    check_released,
    check_reveal,
    check_seen,
)
from boltz_protocol.statement import Statement


@dataclass(frozen=True, slots=True)
class KeysAdvertised:
    """A KeyAdvertisement, signed."""

    statement: Statement


@dataclass(frozen=True, slots=True)
class SurvivorsSigned:
    """A SurvivorsSeen, signed."""

    statement: Statement


SealedMessage = (
    KeysAdvertised | ms.NonceReveal | ms.SharesDealt | SurvivorsSigned | ms.SharesReleased
)


@dataclass(frozen=True, slots=True)
class _Sender:
    """Whose message it is: the client of the stream, and the stream's session."""

    client_id: ClientId
    session_id: SessionId


@dataclass(frozen=True, slots=True)
class _Seat:
    """The sender's place in an attempt, and the attempt held still for the transaction."""

    found: rounds.Round
    entry: roster.RosterEntry
    state: RoundState


class SealedInbox:
    """Takes the answers of one replica's clients."""

    def __init__(
        self, *, database: Database, keyring: KeyRing, attempts: Attempts, clock: Clock
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._attempts = attempts
        self._clock = clock

    async def take(
        self, client_id: ClientId, session_id: SessionId, message: SealedMessage
    ) -> None:
        """Check and keep one message.

        Args:
            client_id: who calls, from the certificate.
            session_id: of the stream.

        Raises:
            SignatureInvalid, MalformedMessage, ShareRefused: the message is not what it must be.
            SecondMessage: another one of its kind came first.
            NotInRoster: the client, or this session of it, was not selected.
            NotFound: no such round.
        """
        sender = _Sender(client_id, session_id)

        async def body(connection: Connection) -> None:
            match message:
                case KeysAdvertised(statement):
                    await self._advertised(connection, sender, statement)
                case ms.NonceReveal():
                    await self._revealed(connection, sender, message)
                case ms.SharesDealt():
                    await self._dealt(connection, sender, message)
                case SurvivorsSigned(statement):
                    await self._seen(connection, sender, statement)
                case ms.SharesReleased():
                    await self._released(connection, sender, message)

        await self._database.run_tx("take_sealed", body)

    # --- one function a kind --------------------------------------------------------------------

    async def _advertised(
        self, connection: Connection, sender: _Sender, statement: Statement
    ) -> None:
        payload = await verified_payload(
            connection, sender.client_id, statement, ms.KEY_ADVERTISEMENT
        )
        said = codec_sealed.parse_key_advertisement(payload)
        seat = await _seat(connection, sender, said.round_id, said.attempt)
        if seat is None or not isinstance(seat.state, AdvertisingKeys):
            return
        configuration, config_digest = configuration_of(seat.found)
        check_advertisement(
            said,
            configuration=configuration,
            configuration_sha256=config_digest,
            entry=codec.parse_roster_entry(seat.entry.entry),
        )
        content = codec.encode_statement(statement)
        await self._keep(
            connection, seat, MessageKind.KEY_ADVERTISEMENT, content, FactKind.KEYS_ADVERTISED
        )

    async def _revealed(
        self, connection: Connection, sender: _Sender, said: ms.NonceReveal
    ) -> None:
        seat = await _seat(connection, sender, said.round_id, said.attempt)
        if seat is None or not isinstance(seat.state, RevealingNonces):
            return
        if sender.client_id not in seat.state.members:
            return  # it advertised too late
        configuration, _ = configuration_of(seat.found)
        key_roster = await read_statement(connection, seat.found, StatementKind.KEY_ROSTER)
        check_reveal(
            said,
            configuration=configuration,
            key_roster=codec_sealed.parse_key_roster(key_roster.payload),
            index=seat.entry.position,
        )
        await self._keep(connection, seat, MessageKind.NONCE, said.nonce, FactKind.NONCE_REVEALED)

    async def _dealt(self, connection: Connection, sender: _Sender, said: ms.SharesDealt) -> None:
        payload = await verified_payload(connection, sender.client_id, said.dealt, ms.DEALT_SHARES)
        dealt = codec_sealed.parse_dealt_shares(payload)
        seat = await _seat(connection, sender, dealt.round_id, dealt.attempt)
        if seat is None or not isinstance(seat.state, SharingKeys):
            return
        if sender.client_id not in seat.state.graph_members:
            return  # it advertised or revealed too late
        shared = await self._attempts.shared(connection, seat.found, seat.state.graph_members)
        check_dealt(shared.attempt, seat.entry.position, dealt, said.sealed_shares)
        content = codec_sealed.shares_dealt_to_proto(said).SerializeToString(deterministic=True)
        await self._keep(connection, seat, MessageKind.DEALT_SHARES, content, FactKind.SHARES_DEALT)

    async def _seen(self, connection: Connection, sender: _Sender, statement: Statement) -> None:
        payload = await verified_payload(connection, sender.client_id, statement, ms.SURVIVORS_SEEN)
        said = codec_sealed.parse_survivors_seen(payload)
        seat = await _seat(connection, sender, said.round_id, said.attempt)
        if seat is None or not isinstance(seat.state, CheckingConsistency):
            return
        if sender.client_id not in seat.state.sharers:
            return  # it dealt too late
        shared = await self._attempts.shared(connection, seat.found, seat.state.graph_members)
        survivors = await read_statement(connection, seat.found, StatementKind.SURVIVORS)
        check_seen(
            shared.attempt,
            seat.entry.position,
            said,
            codec_sealed.parse_survivors(survivors.payload).survivors,
        )
        content = codec.encode_statement(statement)
        await self._keep(
            connection, seat, MessageKind.SURVIVORS_SEEN, content, FactKind.SURVIVORS_SIGNED
        )

    async def _released(
        self, connection: Connection, sender: _Sender, said: ms.SharesReleased
    ) -> None:
        seat = await _seat(connection, sender, said.round_id, said.attempt)
        if seat is None or not isinstance(seat.state, Unmasking):
            return
        if sender.client_id not in seat.state.sharers:
            return
        shared = await self._attempts.shared(connection, seat.found, seat.state.graph_members)
        sharers = shared.positions(seat.state.sharers)
        covered = check_released(
            shared.attempt,
            seat.entry.position,
            said,
            await self._attempts.dealt(connection, seat.found, sharers),
            shared.positions(seat.state.survivors),
            sharers,
        )
        content = codec_sealed.shares_released_to_proto(said).SerializeToString(deterministic=True)
        await self._keep(
            connection,
            seat,
            MessageKind.RELEASED_SHARES,
            content,
            FactKind.SHARES_RELEASED,
            # A database backup must not open what its clients sent in confidence.
            stored=wrap_secret(
                content, self._keyring.kek, released_context(self._keyring.mesh_id, seat.entry)
            ),
            covered=tuple(sorted(covered)),
        )

    async def _keep(
        self,
        connection: Connection,
        seat: _Seat,
        kind: MessageKind,
        content: bytes,
        fact: FactKind,
        *,
        stored: bytes | None = None,
        covered: tuple[int, ...] | None = None,
    ) -> None:
        """Keep a message, and tell the coordinator of a new one."""
        entry, now_ms = seat.entry, self._clock()
        new = await round_messages.put_message(
            connection,
            RoundMessage(
                round_id=entry.round_id,
                attempt=entry.attempt,
                kind=kind,
                client_id=entry.client_id,
                position=entry.position,
                digest=round_messages.message_digest(content),
                payload=content if stored is None else stored,
                covered=covered,
                at_ms=now_ms,
            ),
        )
        if new:
            await inbox.put(
                connection,
                round_id=entry.round_id,
                attempt=entry.attempt,
                kind=fact,
                client_id=entry.client_id,
                payload={},
                at_ms=now_ms,
            )


async def _seat(
    connection: Connection, sender: _Sender, round_id: RoundId, attempt: int
) -> _Seat | None:
    """Where the sender sits and where its round stands; None where the attempt is over.

    Raises: NotInRoster, NotFound.
    """
    found = await rounds.share_round(connection, round_id)
    # After the lock, so that the snapshot is that of the round as it is held.
    seat = await roster.find_seat(connection, round_id, attempt, sender.client_id)
    if seat is None or seat[0].session_id != sender.session_id:
        raise NotInRoster("this session was not selected for this round and attempt")
    entry, snapshot = seat
    if found.outcome is not None or found.attempt != attempt or snapshot is None:
        return None
    return _Seat(found, entry, state_of(snapshot))
