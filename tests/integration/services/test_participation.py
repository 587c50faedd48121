"""Control streams: who is let in, which of two wins, and what they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from boltz_mesh.services.clock import system_clock
from boltz_mesh.storage.postgres import Channel
from boltz_protocol import limits
from boltz_protocol import messages as m
from boltz_protocol.errors import (
    LimitExceeded,
    MalformedMessage,
    MeshError,
    NotFound,
    ReplayRefused,
    SignatureInvalid,
    StateConflict,
    Superseded,
)
from boltz_protocol.ids import new_client_id, new_round_id, new_session_id
from boltz_protocol.statement import Statement, sign_rsa_pss
from boltz_protocol.v1 import aggregator_pb2 as agg
from boltz_protocol.v1 import common_pb2 as common
from tests.support.calls import refused
from tests.support.clients import (
    ControlStream,
    RawClient,
    client_key,
    published,
    reached,
    seal,
    start_round,
    submit,
)
from tests.support.mesh import Mesh
from tests.support.models import declare

SKEW_MS = limits.MAX_CLOCK_SKEW_MS


async def checked_in(mesh: Mesh, model: str) -> dict[str, str]:
    """Client -> session of the check-ins for a model."""
    rows = await mesh.fetch(
        "SELECT client_id, session_id FROM check_ins WHERE model_id = $1", model
    )
    return {row["client_id"]: row["session_id"] for row in rows}


async def until_gone(mesh: Mesh, model: str, client: RawClient) -> None:
    """Streams check out when they end; the row is what others see of it."""

    async def gone() -> bool:
        return client.client_id not in await checked_in(mesh, model)

    await mesh.wait(Channel.CHECK_IN_CHANGED, gone)


async def test_a_stream_is_a_check_in(mesh: Mesh, clients: list[RawClient], model: str) -> None:
    await declare(mesh, model)
    stream = ControlStream(clients[0].stubs)
    await stream.check_in(clients[0].check_in(model))
    welcome = await stream.welcome()
    assert abs(welcome.server_time_ms - system_clock()) < 10_000
    assert welcome.protocol_version == 1
    assert await checked_in(mesh, model) == {clients[0].client_id: clients[0].session_id}
    stream.cancel()
    await until_gone(mesh, model, clients[0])
    # Half-closing is leaving as well, in peace.
    stream = await clients[0].participate(model)
    await stream.call.done_writing()
    assert await stream.call.read() is None
    assert await checked_in(mesh, model) == {}


def with_key(statement: Statement, number: int) -> Statement:
    return sign_rsa_pss(
        type=statement.type, payload=statement.payload, private_key=client_key(number)
    )


CheckIn = Callable[[RawClient, str], Statement]


def changed(**fields: Any) -> CheckIn:
    return lambda client, model: client.check_in(model, **fields)


def altered(alter: Callable[[Statement], Statement]) -> CheckIn:
    return lambda client, model: alter(client.check_in(model))


def late(by_ms: int) -> CheckIn:
    return lambda client, model: client.check_in(model, at_ms=system_clock() + by_ms)


@pytest.mark.parametrize(
    "case",
    [
        (late(-SKEW_MS - 1000), ReplayRefused, "clock"),
        (late(SKEW_MS + 60_000), ReplayRefused, "clock"),
        (changed(client_id=new_client_id()), SignatureInvalid, "another client"),
        (changed(mesh_id="other"), SignatureInvalid, "another mesh"),
        (changed(model_id="no-such-model"), NotFound, "no-such-model"),
        (changed(protocol=m.ProtocolRange(2, 3)), MalformedMessage, "protocol"),
        (changed(suites=()), MalformedMessage, None),
        (altered(lambda s: replace(s, payload=s.payload + b"\0")), SignatureInvalid, "verify"),
        (altered(lambda s: replace(s, signature=s.signature[:-1])), SignatureInvalid, "verify"),
        (altered(lambda s: replace(s, signature=b"")), SignatureInvalid, "verify"),
        (altered(lambda s: replace(s, signature=bytes(600))), LimitExceeded, None),
        (altered(lambda s: replace(s, algorithm="ed25519")), SignatureInvalid, "algorithm"),
        (altered(lambda s: replace(s, algorithm="none")), SignatureInvalid, "algorithm"),
        (altered(lambda s: replace(s, type=m.UPDATE_MANIFEST)), SignatureInvalid, "type"),
        (altered(lambda s: with_key(s, 1)), SignatureInvalid, "key"),
        (altered(lambda s: replace(s, key_id="00" * 16)), SignatureInvalid, "key"),
    ],
)
async def test_check_ins_that_are_refused(
    mesh: Mesh,
    clients: list[RawClient],
    model: str,
    case: tuple[CheckIn, type[MeshError], str | None],
) -> None:
    check_in, error, match = case
    await declare(mesh, model)
    key = ("Aggregator/Participate", error.reason)
    before = (await mesh.refusals()).get(key, 0)
    try:
        statement = check_in(clients[0], model)
    except MeshError:  # cannot even be said with our own types
        payload = agg.CheckIn.FromString(clients[0].check_in(model).payload)
        payload.ClearField("suites")
        statement = clients[0].sign(m.CHECK_IN, payload.SerializeToString())
    stream = ControlStream(clients[0].stubs)
    await stream.check_in(statement)
    with refused(error, match):
        await stream.next()
    assert (await mesh.refusals())[key] == before + 1
    assert await checked_in(mesh, model) == {}


@pytest.mark.parametrize(
    "request_",
    [
        agg.ParticipateRequest(),
        agg.ParticipateRequest(decline=agg.RoundDecline(round_id="00" * 16, attempt=1, reason="X")),
        agg.ParticipateRequest(check_in=common.SignedStatement()),
    ],
)
async def test_streams_that_do_not_begin_with_a_check_in(
    clients: list[RawClient], request_: agg.ParticipateRequest
) -> None:
    stream = ControlStream(clients[0].stubs)
    await stream.call.write(request_)
    with pytest.raises(MeshError) as caught:
        await stream.next()
    assert isinstance(caught.value, MalformedMessage | LimitExceeded)


async def test_the_newest_stream_wins(mesh: Mesh, clients: list[RawClient], model: str) -> None:
    await declare(mesh, model)
    first = await clients[0].participate(model)
    second = await clients[0].participate(model)
    with refused(Superseded):
        await first.next()
    other = replace(clients[0], session_id=new_session_id())
    third = await other.participate(model)
    with refused(Superseded):
        await second.next()
    assert await checked_in(mesh, model) == {other.client_id: other.session_id}
    third.cancel()
    await until_gone(mesh, model, other)


async def test_reconnecting_again_and_again_stays_checked_in(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    """The end of the old stream and the check-in of the new one cross on the server."""
    await declare(mesh, model)
    stream = await clients[0].participate(model)
    for _ in range(20):
        opening = asyncio.create_task(clients[0].participate(model))
        stream.cancel()
        stream = await opening
        assert clients[0].client_id in await checked_in(mesh, model)
    # Everything that old streams still had to do was done before this answer.
    await stream.check_in(clients[0].check_in(model, sample_bucket=3))
    await until_bucket(mesh, model, 3)
    stream.cancel()


async def until_bucket(mesh: Mesh, model: str, bucket: int) -> None:
    async def there() -> bool:
        rows = await mesh.fetch("SELECT sample_bucket FROM check_ins WHERE model_id = $1", model)
        return [row["sample_bucket"] for row in rows] == [bucket]

    await mesh.wait(Channel.CHECK_IN_CHANGED, there)


async def test_a_stream_serves_one_session(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model)
    stream = await clients[0].participate(model)
    await stream.check_in(clients[0].check_in(model, session_id=new_session_id()))
    with refused(MalformedMessage, "one session"):
        await stream.next()
    assert await checked_in(mesh, model) == {}


async def test_two_models_at_once(mesh: Mesh, clients: list[RawClient], model: str) -> None:
    models = [f"{model}-a", f"{model}-b"]
    for name in models:
        await declare(mesh, name)
    streams = [[await client.participate(name) for client in clients[:3]] for name in models]
    rounds = [await start_round(mesh, name) for name in models]
    for group in streams:
        for client, stream in zip(clients, group, strict=False):
            await submit(client, seal(await stream.offer(), np.ones(8, np.float32)))
    for round in rounds:
        assert (await published(mesh, round.round_id)).received == 3
    for stream in (stream for group in streams for stream in group):
        assert (await stream.outcome()).counted
        stream.cancel()


# --- declines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("attempt", [1, 2])
async def test_declines_that_are_nobodys(
    mesh: Mesh, clients: list[RawClient], model: str, attempt: int
) -> None:
    await declare(mesh, model)
    streams = [await client.participate(model) for client in clients[:4]]
    started = await start_round(mesh, model)
    await reached(mesh, started.round_id, agg.PHASE_COLLECTING)
    chosen = await asyncio.gather(
        *(asyncio.wait_for(stream.next(), 2) for stream in streams), return_exceptions=True
    )
    (out,) = [
        stream
        for stream, answer in zip(streams, chosen, strict=True)
        if not isinstance(answer, agg.ParticipateResponse)
    ]
    outsider = clients[streams.index(out)]
    out = await outsider.participate(model)
    decline = agg.RoundDecline(round_id=started.round_id, attempt=attempt, reason="NO")
    await out.call.write(agg.ParticipateRequest(decline=decline))
    with refused(StateConflict, "not selected"):
        await out.next()
    for stream in streams:
        stream.cancel()
    # The round is none the worse.
    state = await reached(mesh, started.round_id, agg.PHASE_COLLECTING)
    assert (state.selected, state.dropped) == (3, 0)


async def test_a_decline_of_a_round_that_is_not_there(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model)
    stream = await clients[0].participate(model)
    decline = agg.RoundDecline(round_id=new_round_id(), attempt=1, reason="NO")
    await stream.call.write(agg.ParticipateRequest(decline=decline))
    with refused(NotFound):
        await stream.next()


@pytest.mark.parametrize(
    "decline",
    [
        agg.RoundDecline(round_id="nonsense", attempt=1, reason="NO"),
        agg.RoundDecline(round_id="00" * 16, attempt=1, reason="not upper case"),
        agg.RoundDecline(round_id="00" * 16, attempt=0, reason="NO"),
        agg.RoundDecline(round_id="00" * 16, attempt=(1 << 32) - 1, reason="NO"),
    ],
)
async def test_declines_that_are_malformed(
    mesh: Mesh, clients: list[RawClient], model: str, decline: agg.RoundDecline
) -> None:
    await declare(mesh, model)
    stream = await clients[0].participate(model)
    await stream.call.write(agg.ParticipateRequest(decline=decline))
    with refused(MalformedMessage):
        await stream.next()
