"""What is said in a sealed round between the offer and the sum, by clients and by the mesh.

A client's first message of a kind stands for its attempt; the same bytes again change nothing, and
other bytes are refused. What the mesh signs for an attempt is signed once.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import asyncpg

from boltz_mesh.storage.postgres import Connection
from boltz_mesh.storage.rows import build
from boltz_protocol.errors import SecondMessage, StateConflict
from boltz_protocol.ids import ClientId, RoundId


class MessageKind(enum.StrEnum):
    """What a client says, one of each in an attempt."""

    KEY_ADVERTISEMENT = "key-advertisement"
    NONCE = "nonce"
    DEALT_SHARES = "dealt-shares"
    SURVIVORS_SEEN = "survivors-seen"
    RELEASED_SHARES = "released-shares"


class StatementKind(enum.StrEnum):
    """What the mesh signs, one of each in an attempt."""

    KEY_ROSTER = "key-roster"
    SURVIVORS = "survivors"


#: Kinds that hold secrets of clients, if encrypted ones: they go when the round ends.
SECRET_KINDS = (MessageKind.DEALT_SHARES, MessageKind.RELEASED_SHARES)


@dataclass(frozen=True, slots=True)
class RoundMessage:
    """One row of `round_messages`.

    Attributes:
        position: in the roster.
        digest: SHA-256 of the message as it came.
        payload: the message; released shares are encrypted, None once the round has ended.
        covered: for released shares, the positions of the dealers whose shares were checked.
    """

    round_id: RoundId
    attempt: int
    kind: MessageKind
    client_id: ClientId
    position: int
    digest: bytes
    payload: bytes | None = field(repr=False)
    covered: tuple[int, ...] | None
    at_ms: int


def message_digest(message: bytes) -> bytes:
    """What tells the same message from another one."""
    return hashlib.sha256(message).digest()


def _message(row: asyncpg.Record) -> RoundMessage:
    covered = None if row["covered"] is None else tuple(row["covered"])
    return build(RoundMessage, row, kind=MessageKind(row["kind"]), covered=covered)


async def put_messages(
    connection: Connection, messages: Sequence[RoundMessage]
) -> list[bool | SecondMessage]:
    """Keep messages. For each in order: True where it is new, False where it is there already, and
    the error to raise for it where another one of its kind came first.
    """
    rows = await connection.fetchmany(
        "-- put_messages\n"
        "INSERT INTO round_messages (round_id, attempt, kind, client_id, position, digest,"
        " payload, covered, at_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
        " ON CONFLICT DO NOTHING RETURNING round_id, attempt, kind, client_id, digest",
        [
            (
                *_key(message),
                message.position,
                message.digest,
                message.payload,
                None if message.covered is None else list(message.covered),
                message.at_ms,
            )
            for message in messages
        ],
    )
    new = {tuple(row) for row in rows}
    outcomes: list[bool | SecondMessage] = []
    for message in messages:
        if (*_key(message), message.digest) in new:
            # The same message twice among these is new once.
            new.remove((*_key(message), message.digest))
            outcomes.append(True)
        else:
            outcomes.append(await _known(connection, message))
    return outcomes


def _key(message: RoundMessage) -> tuple[str, int, str, str]:
    return message.round_id, message.attempt, message.kind.value, message.client_id


async def _known(connection: Connection, message: RoundMessage) -> bool | SecondMessage:
    first = await connection.fetchval(
        "-- first_message\n"
        "SELECT digest FROM round_messages"
        " WHERE round_id = $1 AND attempt = $2 AND kind = $3 AND client_id = $4",
        *_key(message),
    )
    if first == message.digest:
        return False
    return SecondMessage(
        f"another {message.kind} of this client came first",
        round_id=message.round_id,
        kind=message.kind.value,
    )


async def list_messages(
    connection: Connection,
    round_id: RoundId,
    attempt: int,
    kind: MessageKind,
    positions: Collection[int] | None = None,
) -> list[RoundMessage]:
    """The messages of a kind by position, of some clients or of all."""
    rows = await connection.fetch(
        "-- list_messages\n"
        "SELECT * FROM round_messages WHERE round_id = $1 AND attempt = $2 AND kind = $3"
        " AND ($4::integer[] IS NULL OR position = ANY($4)) ORDER BY position",
        round_id,
        attempt,
        kind.value,
        None if positions is None else list(positions),
    )
    return [_message(row) for row in rows]


async def list_covered(
    connection: Connection, round_id: RoundId, attempt: int
) -> dict[int, frozenset[int]]:
    """Who released what: holder's position -> positions of the dealers."""
    rows = await connection.fetch(
        "-- list_covered\n"
        "SELECT position, covered FROM round_messages"
        " WHERE round_id = $1 AND attempt = $2 AND kind = $3",
        round_id,
        attempt,
        MessageKind.RELEASED_SHARES.value,
    )
    return {row["position"]: frozenset(row["covered"]) for row in rows}


async def forget_secrets(connection: Connection, round_id: RoundId) -> None:
    """Destroy the shares of a round, dealt and released."""
    await connection.execute(
        "-- forget_secrets\n"
        "UPDATE round_messages SET payload = NULL"
        " WHERE round_id = $1 AND kind = ANY($2::text[]) AND payload IS NOT NULL",
        round_id,
        [kind.value for kind in SECRET_KINDS],
    )


async def put_statement(
    connection: Connection, round_id: RoundId, attempt: int, kind: StatementKind, statement: bytes
) -> None:
    """Keep what the mesh signed. Raises: StateConflict where one is kept already."""
    try:
        await connection.execute(
            "-- put_statement\n"
            "INSERT INTO round_statements (round_id, attempt, kind, statement)"
            " VALUES ($1, $2, $3, $4)",
            round_id,
            attempt,
            kind.value,
            statement,
        )
    except asyncpg.UniqueViolationError as error:
        raise StateConflict(f"the attempt's {kind} is signed already") from error


async def get_statement(
    connection: Connection, round_id: RoundId, attempt: int, kind: StatementKind
) -> bytes:
    """What the mesh signed for an attempt. Raises: StateConflict where it has not yet."""
    found = await connection.fetchval(
        "-- get_statement\n"
        "SELECT statement FROM round_statements"
        " WHERE round_id = $1 AND attempt = $2 AND kind = $3",
        round_id,
        attempt,
        kind.value,
    )
    if found is None:
        raise StateConflict(f"the attempt's {kind} is not signed yet", round_id=round_id)
    return bytes(found)
