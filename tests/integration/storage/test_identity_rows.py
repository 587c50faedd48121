"""Clients, tokens, server keys."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import asyncpg
import pytest

from boltz_mesh.storage import clients, server_keys, tokens
from boltz_mesh.storage.clients import ClientStatus
from boltz_mesh.storage.listen import Listener
from boltz_mesh.storage.postgres import Channel, Connection, Database
from boltz_mesh.storage.server_keys import ServerKey, ServerKeyKind
from boltz_mesh.storage.tokens import NewToken, Role
from boltz_protocol.errors import (
    AlreadyExists,
    NotFound,
    StateConflict,
    TokenRefused,
    UnknownKey,
)
from boltz_protocol.ids import KeyId
from tests.support.rows import call, client_id, digest, new_client, tx


async def test_a_client_is_found_by_everything_it_has(database: Database) -> None:
    new = new_client(1)
    stored = await tx(database, lambda c: clients.insert_client(c, new))
    assert (stored.client_id, stored.status) == (new.client_id, ClientStatus.ACTIVE)
    assert stored.certificate_not_after_ms == 9_000
    assert stored.status_at_ms == stored.enrolled_at_ms == new.enrolled_at_ms
    assert await tx(database, lambda c: clients.get_client(c, client_id(1))) == stored
    assert await tx(database, lambda c: clients.get_clients(c, [client_id(1), client_id(2)])) == [
        stored
    ]
    assert (
        await tx(database, lambda c: clients.find_client_by_request(c, new.request_key_hash))
        == stored
    )
    assert await tx(database, lambda c: clients.find_client_by_request(c, b"other")) is None
    with pytest.raises(NotFound):
        await tx(database, lambda c: clients.get_client(c, client_id(9)))


@pytest.mark.parametrize("same", ["client_id", "key_id", "request_key_hash"])
async def test_what_must_be_unique(database: Database, same: str) -> None:
    first, second = new_client(1), new_client(2)
    await tx(database, lambda c: clients.insert_client(c, first))
    clash = replace(second, **{same: getattr(first, same)})
    with pytest.raises(AlreadyExists):
        await tx(database, lambda c: clients.insert_client(c, clash))


async def test_pages_of_clients(database: Database) -> None:
    for n in range(5):
        status = ClientStatus.PENDING if n == 3 else ClientStatus.ACTIVE
        pending = replace(new_client(n, status), certificate=None)
        await call(database, clients.insert_client, pending)
    page = await tx(database, lambda c: clients.list_clients(c, limit=2))
    assert [row.client_id for row in page] == [client_id(0), client_id(1)]
    page = await tx(database, lambda c: clients.list_clients(c, limit=9, after=client_id(1)))
    assert [row.client_id for row in page] == [client_id(2), client_id(3), client_id(4)]
    (only,) = await tx(
        database, lambda c: clients.list_clients(c, limit=9, status=ClientStatus.PENDING)
    )
    assert only.certificate_chain is None
    pending_ids = await call(database, clients.list_client_ids, status=ClientStatus.PENDING)
    assert pending_ids == [client_id(3)]


ALLOWED = {
    ("pending", "active"),
    ("pending", "revoked"),
    ("active", "suspended"),
    ("active", "revoked"),
    ("suspended", "active"),
    ("suspended", "revoked"),
}


@pytest.mark.parametrize("start", list(ClientStatus))
@pytest.mark.parametrize("end", list(ClientStatus))
async def test_every_move_of_a_client(
    database: Database, start: ClientStatus, end: ClientStatus
) -> None:
    await tx(database, lambda c: clients.insert_client(c, new_client(1, start)))

    async def move(connection: Connection) -> clients.Client:
        return await clients.set_client_status(
            connection, client_id(1), end, at_ms=7, by="ann", reason="why"
        )

    if start is end:
        assert (await tx(database, move)).status_by == "operator/ann"
    elif (start, end) in ALLOWED:
        moved = await tx(database, move)
        assert (moved.status, moved.status_at_ms, moved.status_by) == (end, 7, "ann")
        assert moved.status_reason == "why"
    else:
        with pytest.raises(StateConflict, match=f"a {start} client cannot become {end}"):
            await tx(database, move)


async def test_changes_of_a_client_reach_every_replica(database: Database) -> None:
    await tx(database, lambda c: clients.insert_client(c, new_client(1)))
    certificate = clients.Certificate(b"new chain", digest("new"), 10_000)

    async def renew(connection: Connection) -> clients.Client:
        return await clients.set_client_certificate(connection, client_id(1), certificate)

    async def restrict(connection: Connection) -> clients.Client:
        return await clients.set_processing_restricted(connection, client_id(1), True)

    async def revoke(connection: Connection) -> clients.Client:
        return await clients.set_client_status(
            connection, client_id(1), ClientStatus.REVOKED, at_ms=7, by="ann"
        )

    async with await Listener.open(database.url) as listener:
        with listener.subscribe(Channel.CLIENT_CHANGED) as wakeups:
            await anext(wakeups)
            for change in (renew, restrict, revoke):
                client = await tx(database, change)
                assert (await anext(wakeups)).payloads == {client_id(1)}
    assert client.certificate_fingerprint == digest("new")
    assert client.processing_restricted
    assert client.status is ClientStatus.REVOKED


async def test_unknown_clients_cannot_be_changed(database: Database) -> None:
    certificate = clients.Certificate(b"c", digest("n"), 1)
    with pytest.raises(NotFound):
        await tx(database, lambda c: clients.set_client_certificate(c, client_id(1), certificate))
    with pytest.raises(NotFound):
        await tx(database, lambda c: clients.set_processing_restricted(c, client_id(1), True))


async def test_personal_data_is_in_one_place_and_can_go(database: Database) -> None:
    new = new_client(1)
    await tx(database, lambda c: clients.insert_client(c, new))
    found = await call(database, clients.get_personals, [client_id(1), client_id(2)])
    assert found == {client_id(1): new.personal}
    assert "Desk" not in repr(new)
    assert await tx(database, lambda c: clients.erase_personal(c, client_id(1)))
    assert not await tx(database, lambda c: clients.erase_personal(c, client_id(1)))
    assert await call(database, clients.get_personals, [client_id(1)]) == {}
    assert (await tx(database, lambda c: clients.get_client(c, client_id(1)))).region == "eu-west"


def token(role: Role = Role.CLIENT, subject: str | None = None) -> NewToken:
    return NewToken(
        token_hash=digest("token"),
        role=role,
        requires_approval=True,
        created_by="ann",
        created_at_ms=1,
        expires_at_ms=100,
        subject=subject,
    )


async def redeem(
    database: Database, request: str, *, at: int = 50, client: int | None = 1
) -> tokens.Token:
    return await tx(
        database,
        lambda c: tokens.redeem_token(
            c,
            digest("token"),
            request_key_hash=digest(request),
            new_client_id=None if client is None else client_id(client),
            now_ms=at,
        ),
    )


async def test_a_token_works_once_and_again_for_the_same_request(database: Database) -> None:
    await tx(database, lambda c: tokens.insert_token(c, token()))
    first = await redeem(database, "a", client=1)
    assert (first.client_id, first.used_at_ms, first.role) == (client_id(1), 50, Role.CLIENT)
    # The reply was lost; the client asks again, even after the token's end.
    assert await redeem(database, "a", client=2, at=500) == first
    with pytest.raises(TokenRefused):
        await redeem(database, "b")


async def test_refused_tokens_all_look_alike(database: Database) -> None:
    with pytest.raises(TokenRefused) as unknown:
        await redeem(database, "a")
    await tx(database, lambda c: tokens.insert_token(c, token()))
    with pytest.raises(TokenRefused) as expired:
        await redeem(database, "a", at=100)
    await redeem(database, "a", at=99)
    with pytest.raises(TokenRefused) as used:
        await redeem(database, "b", at=99)
    assert str(unknown.value) == str(expired.value) == str(used.value)


async def test_a_token_raced_for_goes_to_one(database: Database) -> None:
    await tx(database, lambda c: tokens.insert_token(c, token()))
    results = await asyncio.gather(
        *(redeem(database, f"request {n}", client=n) for n in range(5)), return_exceptions=True
    )
    winners = [result for result in results if isinstance(result, tokens.Token)]
    assert len(winners) == 1
    assert sum(isinstance(result, TokenRefused) for result in results) == 4


async def test_tokens_bound_beforehand_and_for_operators(database: Database) -> None:
    await tx(
        database,
        lambda c: tokens.insert_token(c, replace(token(), client_id=client_id(7))),
    )
    assert (await redeem(database, "a", client=1)).client_id == client_id(7)
    operator = replace(token(Role.OPERATOR, "bob"), token_hash=digest("other"))
    await tx(database, lambda c: tokens.insert_token(c, operator))
    with pytest.raises(AlreadyExists):
        await tx(database, lambda c: tokens.insert_token(c, operator))
    nameless = replace(token(Role.OPERATOR), token_hash=digest("third"))
    with pytest.raises(asyncpg.CheckViolationError):
        await tx(database, lambda c: tokens.insert_token(c, nameless))
    assert await tx(database, lambda c: tokens.prune_tokens(c, expired_before_ms=100)) == 0
    assert await tx(database, lambda c: tokens.prune_tokens(c, expired_before_ms=101)) == 2


def server_key(n: int, begins: int, ends: int) -> ServerKey:
    return ServerKey(
        key_id=KeyId(f"{n:032x}"),
        kind=ServerKeyKind.ENCRYPTION,
        algorithm="RSA-3072-OAEP-SHA256",
        public=b"public",
        wrapped_private=b"wrapped",
        kek_id=None,
        statement=b"statement",
        certificate=None,
        not_before_ms=begins,
        not_after_ms=ends,
    )


async def test_keys_are_valid_in_their_time_and_then_destroyed(database: Database) -> None:
    early, late = server_key(1, 0, 100), server_key(2, 50, 150)
    for key in (early, late):
        await call(database, server_keys.insert_server_key, key)
    with pytest.raises(AlreadyExists):
        await tx(database, lambda c: server_keys.insert_server_key(c, early))
    kind = ServerKeyKind.ENCRYPTION

    async def valid(at_ms: int) -> list[ServerKey]:
        return await tx(database, lambda c: server_keys.valid_server_keys(c, kind, at_ms))

    assert await valid(49) == [early]
    assert await valid(50) == [late, early]
    assert await valid(100) == [late]
    assert await valid(150) == []
    other = ServerKeyKind.KEK
    assert await tx(database, lambda c: server_keys.valid_server_keys(c, other, 60)) == []
    gone = await tx(database, lambda c: server_keys.destroy_expired_server_keys(c, kind, 100))
    assert gone == [early.key_id]
    stored = await tx(database, lambda c: server_keys.get_server_key(c, early.key_id))
    assert (stored.wrapped_private, stored.destroyed_at_ms) == (None, 100)
    assert await tx(database, lambda c: server_keys.destroy_server_key(c, late.key_id, 60))
    assert not await tx(database, lambda c: server_keys.destroy_server_key(c, late.key_id, 61))
    assert await valid(60) == []
    with pytest.raises(UnknownKey):
        await tx(database, lambda c: server_keys.get_server_key(c, KeyId("none")))
    assert "wrapped" not in repr(late).replace("wrapped_private", "")
