"""SubmitUpdate: what is wrong is refused by its name, counted, and harms nobody's round."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from boltz_protocol import limits
from boltz_protocol import messages as m
from boltz_protocol.errors import (
    DecryptionFailed,
    DigestMismatch,
    MalformedMessage,
    MeshError,
    NotFound,
    NotInRoster,
    ReplayRefused,
    RoundClosed,
    SecondDigest,
    ShapeMismatch,
    SignatureInvalid,
    StateConflict,
    Superseded,
    UnknownKey,
    WeightRefused,
)
from boltz_protocol.ids import new_round_id, new_session_id
from boltz_protocol.statement import Statement, sign_rsa_pss
from boltz_protocol.v1 import aggregator_pb2 as agg
from boltz_protocol.v1 import common_pb2 as common
from tests.integration.services.collecting import Collecting, collecting
from tests.support.calls import answered, refused
from tests.support.clients import (
    RawClient,
    Sealed,
    Upload,
    client_key,
    seal,
    start_round,
    submit,
)
from tests.support.mesh import Mesh

# --- manifests ----------------------------------------------------------------------------------

Manifest = Callable[[Collecting, Sealed], Statement]


def says(**fields: Any) -> Manifest:
    return lambda round, sealed: sealed.statement(round.client, **fields)


def altered(alter: Callable[[Statement], Statement]) -> Manifest:
    return lambda round, sealed: alter(sealed.statement(round.client))


def before_the_round(round: Collecting, sealed: Sealed) -> Statement:
    at_ms = round.offer.configuration.created_at_ms - 1
    return sealed.statement(round.client, at_ms=at_ms)


def of_another_client(round: Collecting, _: Sealed) -> Statement:
    """Another's manifest, word for word as it signed it."""
    return round.sealed(1).statement(round.clients[1])


def signed_by_another(round: Collecting, sealed: Sealed) -> Statement:
    statement = sealed.statement(round.client)
    return sign_rsa_pss(type=statement.type, payload=statement.payload, private_key=client_key(1))


@pytest.mark.parametrize(
    ("manifest", "error"),
    [
        (says(encryption_key_id="00" * 16), UnknownKey),
        (before_the_round, ReplayRefused),
        (says(at_ms=4_000_000_000_000), ReplayRefused),
        (says(size_bytes=5), ShapeMismatch),
        (says(size_bytes=limits.MAX_UPDATE_BYTES), ShapeMismatch),
        (says(weight=1), WeightRefused),
        (says(configuration_sha256=bytes(32)), RoundClosed),
        (says(attempt=2), NotInRoster),
        (says(session_id=new_session_id()), NotInRoster),
        (says(round_id=new_round_id()), NotFound),
        (of_another_client, SignatureInvalid),
        (signed_by_another, SignatureInvalid),
        (altered(lambda s: replace(s, payload=s.payload[:-1])), SignatureInvalid),
        (altered(lambda s: replace(s, algorithm="ed25519")), SignatureInvalid),
        (altered(lambda s: replace(s, algorithm="rsa-pkcs1-sha1")), SignatureInvalid),
        (altered(lambda s: replace(s, type=m.CHECK_IN)), SignatureInvalid),
        (says(wrapped_content_key=bytes(384)), DecryptionFailed),
        (says(wrapped_content_key=secrets.token_bytes(384)), DecryptionFailed),
        (says(key_commitment=bytes(32)), DecryptionFailed),
    ],
)
async def test_manifests_that_are_refused(
    mesh: Mesh,
    clients: list[RawClient],
    model: str,
    manifest: Manifest,
    error: type[MeshError],
) -> None:
    round = await collecting(mesh, clients, model, 8)
    sealed = round.sealed()
    before = await round.count(error)
    with refused(error):
        await Upload(round.client.stubs).announce(manifest(round, sealed))
    assert await round.count(error) == before + 1
    # Nothing was fixed by it: the true manifest is taken.
    await submit(round.client, sealed)
    await round.publishes()


async def test_a_manifest_for_another_clients_place(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    round = await collecting(mesh, clients, model, 8)
    theirs = round.sealed(1)
    with refused(NotInRoster):
        await Upload(round.client.stubs).announce(theirs.statement(round.client))
    await submit(round.client, round.sealed())
    await round.publishes()


async def test_a_client_that_was_not_selected(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    round = await collecting(mesh, clients, model, 8)
    outsider = clients[3]
    entry = replace(round.offer.entry, client_id=outsider.client_id, session_id=outsider.session_id)
    sealed = seal(replace(round.offer, entry=entry), np.zeros(8, np.float32))
    with refused(NotInRoster):
        await Upload(outsider.stubs).announce(sealed.statement(outsider))
    await submit(round.client, round.sealed())
    await round.publishes()


@pytest.mark.parametrize(
    "first",
    [
        agg.SubmitUpdateRequest(),
        agg.SubmitUpdateRequest(chunk=agg.UpdateChunk(offset=0, data=b"x" * 100)),
        agg.SubmitUpdateRequest(manifest=common.SignedStatement(type="x", payload=b"y")),
        None,
    ],
)
async def test_uploads_that_do_not_begin_with_a_manifest(
    clients: list[RawClient], first: agg.SubmitUpdateRequest | None
) -> None:
    upload = Upload(clients[0].stubs)
    if first is None:
        await upload.call.done_writing()
    else:
        await upload.call.write(first)
    with refused(MalformedMessage):
        await upload.answer()


# --- digests ------------------------------------------------------------------------------------


async def test_a_second_digest(mesh: Mesh, clients: list[RawClient], model: str) -> None:
    round = await collecting(mesh, clients, model, 8)
    first, second = round.sealed(), round.sealed()
    upload = Upload(round.client.stubs)
    assert await upload.announce(first.statement(round.client)) == 0
    with refused(SecondDigest) as caught:
        await Upload(round.client.stubs).announce(second.statement(round.client))
    assert caught.metadata["first_digest"] == first.manifest.sha256.hex()
    # The first one goes on, undisturbed.
    await upload.send(first.messages())
    await upload.receipt()
    with refused(SecondDigest):
        await Upload(round.client.stubs).announce(second.statement(round.client))
    await round.publishes()


async def test_the_same_digest_under_another_key(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    round = await collecting(mesh, clients, model, 8)
    first, second = round.sealed(), round.sealed()
    await Upload(round.client.stubs).announce(first.statement(round.client))
    other = {
        "wrapped_content_key": second.manifest.wrapped_content_key,
        "key_commitment": second.manifest.key_commitment,
    }
    with refused(StateConflict):
        await Upload(round.client.stubs).announce(first.statement(round.client, **other))
    await submit(round.client, first)
    await round.publishes()


async def test_the_same_manifest_gives_the_same_receipt(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    round = await collecting(mesh, clients, model, 8)
    sealed = round.sealed()
    receipts = [await submit(round.client, sealed)]
    receipts.append(await submit(round.client, sealed))
    await round.publishes()
    receipts.append(await submit(round.client, sealed))  # even when the round is over
    assert receipts[0] == receipts[1] == receipts[2]
    assert receipts[0].sha256 == sealed.manifest.sha256


async def test_a_digest_that_is_not_the_bytes(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    round = await collecting(mesh, clients, model, 8)
    sealed = round.sealed()
    lie = sealed.statement(round.client, sha256=secrets.token_bytes(32))
    before = await round.count(DigestMismatch)
    with refused(DigestMismatch):
        await submit(round.client, sealed, statement=lie)
    assert await round.count(DigestMismatch) == before + 1
    with refused(RoundClosed):
        await submit(round.client, sealed, statement=lie)
    # Nobody waits for what cannot come.
    assert (await round.publishes((1, 2))).dropped == 1


# --- times and streams --------------------------------------------------------------------------


async def test_a_round_that_is_over(mesh: Mesh, clients: list[RawClient], model: str) -> None:
    round = await collecting(mesh, clients, model, 8)
    late = round.sealed()
    await round.streams[0].decline(round.offer)
    await round.publishes((1, 2))
    with refused(RoundClosed):
        await submit(round.client, late)


async def test_a_manifest_of_the_round_before(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    first = await collecting(mesh, clients, model, 8)
    old = first.sealed()
    receipt = await submit(first.client, old)
    await first.publishes()
    streams = [await client.participate(model) for client in clients[:3]]
    started = await start_round(mesh, model)
    offers = [await stream.offer() for stream in streams]
    assert await submit(first.client, old) == receipt  # the old receipt, and nothing else
    forged = old.statement(first.client, round_id=started.round_id)
    with refused(RoundClosed):
        await submit(first.client, old, statement=forged)
    abort = agg.AbortRoundRequest(round_id=started.round_id, reason="the test is over")
    shown = await answered(mesh.operator.aggregator.AbortRound(abort))
    assert shown.round.received == 0
    assert len(offers) == 3
    for stream in streams:
        stream.cancel()


async def test_the_newer_of_two_streams_goes_on(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    round = await collecting(mesh, clients, model, 8)
    sealed = round.sealed()
    older, newer = Upload(round.client.stubs), Upload(round.client.stubs)
    assert await older.announce(sealed.statement(round.client)) == 0
    assert await newer.announce(sealed.statement(round.client)) == 0
    with refused(Superseded):
        await older.answer()
    await newer.send(sealed.messages())
    await newer.receipt()
    await round.publishes()
