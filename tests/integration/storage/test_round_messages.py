"""Messages of sealed rounds: the first of a kind stands, secrets go when they are told to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from boltz_mesh.coordinator.clean_up import rounds_to_clean
from boltz_mesh.storage import round_messages
from boltz_mesh.storage.postgres import Database
from boltz_mesh.storage.round_messages import MessageKind, RoundMessage, StatementKind
from boltz_protocol.errors import SecondMessage, StateConflict
from tests.support.rows import client_id, digest, prepare, round_id, tx


def message(
    client: int, kind: MessageKind = MessageKind.NONCE, content: bytes = b"content"
) -> RoundMessage:
    return RoundMessage(
        round_id=round_id(1),
        attempt=1,
        kind=kind,
        client_id=client_id(client),
        position=client,
        digest=round_messages.message_digest(content),
        payload=content,
        covered=None,
        at_ms=5,
    )


async def put(database: Database, row: RoundMessage) -> bool:
    (outcome,) = await tx(database, lambda c: round_messages.put_messages(c, [row]))
    if isinstance(outcome, SecondMessage):
        raise outcome
    return outcome


async def listed(
    database: Database, kind: MessageKind, positions: list[int] | None = None
) -> list[RoundMessage]:
    return await tx(
        database,
        lambda c: round_messages.list_messages(c, round_id(1), 1, kind, positions),
    )


async def test_the_first_message_of_a_kind_stands(database: Database) -> None:
    await tx(database, prepare)
    first = message(1)
    assert await put(database, first)
    assert not await put(database, replace(first, at_ms=9))
    with pytest.raises(SecondMessage, match="another nonce of this client came first"):
        await put(database, message(1, content=b"other"))
    assert await put(database, message(1, MessageKind.KEY_ADVERTISEMENT, b"other"))
    assert await put(database, message(2, content=b"other"))
    assert await listed(database, MessageKind.NONCE) == [first, message(2, content=b"other")]
    assert await listed(database, MessageKind.NONCE, [2, 7]) == [message(2, content=b"other")]
    assert await listed(database, MessageKind.SURVIVORS_SEEN) == []
    assert b"content" not in repr(first).encode()


async def test_messages_kept_together_stand_each_for_itself(database: Database) -> None:
    await tx(database, prepare)
    await put(database, message(0))
    together = [
        message(0),
        message(1),
        message(1),
        message(1, content=b"other"),
        message(0, content=b"other"),
        message(2, MessageKind.KEY_ADVERTISEMENT),
    ]
    outcomes = await tx(database, lambda c: round_messages.put_messages(c, together))
    assert [outcome for outcome in outcomes if isinstance(outcome, bool)] == [
        False,
        True,
        False,
        True,
    ]
    assert [isinstance(outcome, SecondMessage) for outcome in outcomes] == [
        False,
        False,
        False,
        True,
        True,
        False,
    ]
    assert await listed(database, MessageKind.NONCE) == [message(0), message(1)]


async def test_what_is_covered_is_told_by_holder(database: Database) -> None:
    await tx(database, prepare)
    for holder, covered in ((1, (1, 2)), (2, ())):
        row = replace(message(holder, MessageKind.RELEASED_SHARES), covered=covered)
        await put(database, row)
    await put(database, message(0, MessageKind.DEALT_SHARES))
    found = await tx(database, lambda c: round_messages.list_covered(c, round_id(1), 1))
    assert found == {1: frozenset({1, 2}), 2: frozenset()}


async def test_shares_go_and_the_rest_stays(database: Database) -> None:
    await tx(database, prepare)
    for kind in MessageKind:
        await put(database, message(1, kind))
    await tx(database, lambda c: round_messages.forget_secrets(c, round_id(1)))
    for kind in MessageKind:
        (row,) = await listed(database, kind)
        assert (row.payload is None) == (kind in round_messages.SECRET_KINDS)
        assert row.digest == round_messages.message_digest(b"content")
    # Shares are secrets, if encrypted ones; keys and signatures are for everybody.
    assert set(round_messages.SECRET_KINDS) == {
        MessageKind.DEALT_SHARES,
        MessageKind.RELEASED_SHARES,
    }


async def test_an_ended_round_with_shares_left_is_to_be_cleaned(database: Database) -> None:
    await tx(database, prepare)
    await put(database, message(1, MessageKind.DEALT_SHARES))
    assert await tx(database, rounds_to_clean) == []
    await tx(
        database,
        lambda c: c.execute(
            "UPDATE federated_aggregations SET outcome = 'aborted', ended_at_ms = 9"
        ),
    )
    assert await tx(database, rounds_to_clean) == [round_id(1)]
    await tx(database, lambda c: round_messages.forget_secrets(c, round_id(1)))
    assert await tx(database, rounds_to_clean) == []


async def test_the_mesh_signs_once(database: Database) -> None:
    await tx(database, prepare)

    async def sign(content: bytes) -> None:
        await tx(
            database,
            lambda c: round_messages.put_statement(
                c, round_id(1), 1, StatementKind.SURVIVORS, content
            ),
        )

    async def signed(kind: StatementKind) -> bytes:
        return await tx(database, lambda c: round_messages.get_statement(c, round_id(1), 1, kind))

    with pytest.raises(StateConflict, match="not signed yet"):
        await signed(StatementKind.SURVIVORS)
    await sign(digest("first"))
    with pytest.raises(StateConflict, match="signed already"):
        await sign(digest("second"))
    assert await signed(StatementKind.SURVIVORS) == digest("first")
    with pytest.raises(StateConflict):
        await signed(StatementKind.KEY_ROSTER)
