"""What clients answer in sealed rounds: checked, kept, and told to the coordinator.

What is signed is verified under the key of the stream's check-in. Then answers to the same round
that come at about the same time share one transaction, which holds the round where it is: a message
is there before the round moves on, and counts, or it is late. Late messages are passed over: their
client is a dropout of that step, and learns the round's end like everybody else. The same message
again changes nothing; another one of its kind is refused. An answer that is refused leaves the
others of its transaction as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

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
from boltz_mesh.services.combine import Combiner
from boltz_mesh.services.keyring import KeyRing
from boltz_mesh.services.signed import signed_payload
from boltz_mesh.storage import inbox, roster, round_events, round_messages, rounds
from boltz_mesh.storage.postgres import Connection, Database
from boltz_mesh.storage.round_messages import MessageKind, RoundMessage, StatementKind
from boltz_protocol import codec, codec_sealed, limits
from boltz_protocol import messages_sealed as ms
from boltz_protocol.errors import MeshError, NotInRoster
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
class Sender:
    """Whose message it is.

    Attributes:
        client_id: of the stream, from its certificate.
        session_id: of the stream.
        public_key: that the client enrolled with.
    """

    client_id: ClientId
    session_id: SessionId
    public_key: RSAPublicKey


_Said = ms.KeyAdvertisement | ms.NonceReveal | ms.DealtShares | ms.SurvivorsSeen | ms.SharesReleased


@dataclass(frozen=True, slots=True)
class _Answer:
    """A message whose signature, if it has one, is verified.

    Attributes:
        said: what it says; for dealt shares what is signed of them.
        content: the message as it is kept.
        sealed_shares: of dealt shares, as they were sent.
    """

    sender: Sender
    said: _Said
    content: bytes = field(repr=False)
    sealed_shares: tuple[bytes, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class _Kept:
    """What of an answer goes into its row, beside what every answer has."""

    payload: bytes = field(repr=False)
    covered: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class _Held:
    """A round that stays as it is until the transaction ends.

    Attributes:
        state: as its newest snapshot has it; None where it has ended or never began.
        seats: by attempt and client, of those who answer.
        statements: of its attempt, read once.
    """

    connection: Connection
    found: rounds.Round
    state: RoundState | None
    seats: Mapping[tuple[int, ClientId], roster.RosterEntry]
    statements: dict[StatementKind, Statement] = field(default_factory=dict)

    async def statement(self, kind: StatementKind) -> Statement:
        """What the mesh signed for the attempt."""
        known = self.statements.get(kind)
        if known is None:
            known = await read_statement(self.connection, self.found, kind)
            self.statements[kind] = known
        return known


#: The step that waits for a kind of answer, how the answer is kept and told to the coordinator.
_KINDS: Final[dict[type[_Said], tuple[type[RoundState], MessageKind, FactKind]]] = {
    ms.KeyAdvertisement: (
        AdvertisingKeys,
        MessageKind.KEY_ADVERTISEMENT,
        FactKind.KEYS_ADVERTISED,
    ),
    ms.NonceReveal: (RevealingNonces, MessageKind.NONCE, FactKind.NONCE_REVEALED),
    ms.DealtShares: (SharingKeys, MessageKind.DEALT_SHARES, FactKind.SHARES_DEALT),
    ms.SurvivorsSeen: (
        CheckingConsistency,
        MessageKind.SURVIVORS_SEEN,
        FactKind.SURVIVORS_SIGNED,
    ),
    ms.SharesReleased: (Unmasking, MessageKind.RELEASED_SHARES, FactKind.SHARES_RELEASED),
}


class SealedInbox:
    """Takes the answers of one replica's clients."""

    def __init__(
        self, *, database: Database, keyring: KeyRing, attempts: Attempts, clock: Clock
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._attempts = attempts
        self._clock = clock
        self._together = Combiner(self._take_all, most=limits.MAX_ANSWERS_TOGETHER)

    async def take(self, sender: Sender, message: SealedMessage) -> None:
        """Check and keep one message.

        Raises:
            SignatureInvalid, MalformedMessage, ShareRefused: the message is not what it must be.
            SecondMessage: another one of its kind came first.
            NotInRoster: the client, or this session of it, was not selected.
            NotFound: no such round.
        """
        answer = _understood(sender, message)
        await self._together.submit(answer.said.round_id, answer)

    async def _take_all(
        self, round_id: RoundId, answers: Sequence[_Answer]
    ) -> list[Exception | None]:
        async def body(connection: Connection) -> list[Exception | None]:
            return await self._take_held(await _hold(connection, round_id, answers), answers)

        return await self._database.run_tx("take_sealed", body)

    async def _take_held(self, held: _Held, answers: Sequence[_Answer]) -> list[Exception | None]:
        """Check and keep what is in order; for each answer None, or why it is refused."""
        outcomes: list[Exception | None] = [None] * len(answers)
        rows: dict[int, RoundMessage] = {}
        now_ms = self._clock()
        for number, answer in enumerate(answers):
            try:
                row = await self._row(held, answer, now_ms)
            except MeshError as error:
                # So that whoever notes the refusal can tell the round.
                error.metadata.setdefault("round_id", held.found.round_id)
                outcomes[number] = error
            else:
                if row is not None:
                    rows[number] = row
        if not rows:
            return outcomes
        kept = await round_messages.put_messages(held.connection, list(rows.values()))
        new: list[RoundMessage] = []
        for number, outcome in zip(rows, kept, strict=True):
            if isinstance(outcome, Exception):
                outcomes[number] = outcome
            elif outcome:
                new.append(rows[number])
        if new:
            # All of one kind: the step that the round is in waits for no other.
            _, _, fact = _KINDS[type(answers[next(iter(rows))].said)]
            await inbox.put_all(
                held.connection,
                round_id=held.found.round_id,
                attempt=held.found.attempt,
                kind=fact,
                clients=[row.client_id for row in new],
                at_ms=now_ms,
            )
        return outcomes

    async def _row(self, held: _Held, answer: _Answer, now_ms: int) -> RoundMessage | None:
        """The row of an answer that is in order; None for one that is late.

        Raises: as `take`.
        """
        sender, said = answer.sender, answer.said
        entry = held.seats.get((said.attempt, sender.client_id))
        if entry is None or entry.session_id != sender.session_id:
            raise NotInRoster("this session was not selected for this round and attempt")
        step, kind, _ = _KINDS[type(said)]
        if held.found.attempt != said.attempt or not isinstance(held.state, step):
            return None
        kept = await self._checked(held, entry, answer)
        if kept is None:
            return None
        return RoundMessage(
            round_id=entry.round_id,
            attempt=entry.attempt,
            kind=kind,
            client_id=entry.client_id,
            position=entry.position,
            digest=round_messages.message_digest(answer.content),
            payload=kept.payload,
            covered=kept.covered,
            at_ms=now_ms,
        )

    async def _checked(
        self, held: _Held, entry: roster.RosterEntry, answer: _Answer
    ) -> _Kept | None:
        """What to keep; None where the client missed an earlier step. Raises: as `take`."""
        client_id, position = entry.client_id, entry.position
        match held.state, answer.said:
            case AdvertisingKeys(), ms.KeyAdvertisement() as advertised:
                configuration, config_digest = configuration_of(held.found)
                check_advertisement(
                    advertised,
                    configuration=configuration,
                    configuration_sha256=config_digest,
                    entry=codec.parse_roster_entry(entry.entry),
                )
            case RevealingNonces() as state, ms.NonceReveal() as revealed:
                if client_id not in state.members:
                    return None
                configuration, _ = configuration_of(held.found)
                key_roster = await held.statement(StatementKind.KEY_ROSTER)
                check_reveal(
                    revealed,
                    configuration=configuration,
                    key_roster=codec_sealed.parse_key_roster(key_roster.payload),
                    index=position,
                )
            case SharingKeys() as state, ms.DealtShares() as dealt:
                if client_id not in state.graph_members:
                    return None
                shared = await self._attempts.shared(
                    held.connection, held.found, state.graph_members
                )
                check_dealt(shared.attempt, position, dealt, answer.sealed_shares)
            case CheckingConsistency() as state, ms.SurvivorsSeen() as seen:
                if client_id not in state.sharers:
                    return None
                shared = await self._attempts.shared(
                    held.connection, held.found, state.graph_members
                )
                survivors = await held.statement(StatementKind.SURVIVORS)
                check_seen(
                    shared.attempt,
                    position,
                    seen,
                    codec_sealed.parse_survivors(survivors.payload).survivors,
                )
            case Unmasking() as state, ms.SharesReleased() as released:
                if client_id not in state.sharers:
                    return None
                return await self._released(held, entry, state, released, answer.content)
        return _Kept(answer.content)

    async def _released(
        self,
        held: _Held,
        entry: roster.RosterEntry,
        state: Unmasking,
        released: ms.SharesReleased,
        content: bytes,
    ) -> _Kept:
        shared = await self._attempts.shared(held.connection, held.found, state.graph_members)
        sharers = shared.positions(state.sharers)
        covered = check_released(
            shared.attempt,
            entry.position,
            released,
            await self._attempts.dealt(held.connection, held.found, sharers),
            shared.positions(state.survivors),
            sharers,
        )
        # A database backup must not open what its clients sent in confidence.
        context = released_context(self._keyring.mesh_id, entry)
        wrapped = wrap_secret(content, self._keyring.kek, context)
        return _Kept(wrapped, tuple(sorted(covered)))


def _understood(sender: Sender, message: SealedMessage) -> _Answer:
    """Verify and parse. Raises: SignatureInvalid, MalformedMessage."""

    def signed(statement: Statement, expected_type: str) -> bytes:
        return signed_payload(sender.public_key, statement, expected_type)

    match message:
        case KeysAdvertised(statement):
            advertised = codec_sealed.parse_key_advertisement(
                signed(statement, ms.KEY_ADVERTISEMENT)
            )
            return _Answer(sender, advertised, codec.encode_statement(statement))
        case ms.NonceReveal():
            return _Answer(sender, message, message.nonce)
        case ms.SharesDealt():
            dealt = codec_sealed.parse_dealt_shares(signed(message.dealt, ms.DEALT_SHARES))
            content = codec_sealed.shares_dealt_to_proto(message).SerializeToString(
                deterministic=True
            )
            return _Answer(sender, dealt, content, message.sealed_shares)
        case SurvivorsSigned(statement):
            seen = codec_sealed.parse_survivors_seen(signed(statement, ms.SURVIVORS_SEEN))
            return _Answer(sender, seen, codec.encode_statement(statement))
        case ms.SharesReleased():
            content = codec_sealed.shares_released_to_proto(message).SerializeToString(
                deterministic=True
            )
            return _Answer(sender, message, content)


async def _hold(connection: Connection, round_id: RoundId, answers: Sequence[_Answer]) -> _Held:
    """Lock the round, and read where it stands. Raises: NotFound."""
    found = await rounds.share_round(connection, round_id)
    seats = await roster.find_seats(
        connection, round_id, {answer.sender.client_id for answer in answers}
    )
    # After the lock, so that the snapshot is that of the round as it is held.
    snapshot = await round_events.load_snapshot(connection, round_id)
    state = None
    if snapshot is not None and found.outcome is None:
        state = state_of(snapshot.state)
    return _Held(connection, found, state, seats)
