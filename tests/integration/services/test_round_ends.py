"""How rounds end: dropouts, declines, deadlines, aborts; and what operators see of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from boltz_mesh.storage.postgres import Channel
from boltz_protocol import messages as m
from boltz_protocol.errors import (
    MalformedMessage,
    NotFound,
    RoundClosed,
    StateConflict,
)
from boltz_protocol.ids import new_round_id, new_session_id
from boltz_protocol.v1 import aggregator_pb2 as agg
from boltz_protocol.v1 import common_pb2 as common
from tests.integration.services.playing import abort, all_in, constant, leave, live
from tests.support.calls import answered, refused
from tests.support.clients import (
    ControlStream,
    Offer,
    RawClient,
    Upload,
    aborted,
    published,
    reached,
    seal,
    start_round,
    submit,
)
from tests.support.mesh import Mesh
from tests.support.models import declare

# --- dropouts -----------------------------------------------------------------------------------


async def test_a_decline_does_not_hold_anybody_up(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model)
    streams = await all_in(clients[:3], model)
    started = await start_round(mesh, model)
    offers = [await stream.offer() for stream in streams]
    await streams[0].decline(offers[0])
    for number in (1, 2):
        await submit(clients[number], seal(offers[number], constant(0.5 / number)))
    ended = await published(mesh, started.round_id)
    assert (ended.received, ended.dropped) == (2, 1)
    assert [(await stream.outcome()).counted for stream in streams] == [False, True, True]
    np.testing.assert_allclose(await live(mesh, model), (0.5 + 0.25) / 2 / 1.0, atol=0.2)
    await leave(streams)


async def test_too_many_declines_end_the_round(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model)
    streams = await all_in(clients[:3], model)
    started = await start_round(mesh, model)
    offers = [await stream.offer() for stream in streams]
    for number in (0, 1):
        await streams[number].decline(offers[number])
    ended = await aborted(mesh, started.round_id)
    assert "too few updates" in ended.reason.lower().replace("_", " ").replace("-", " ")
    for stream in streams:
        outcome = await stream.outcome()
        assert (outcome.phase, outcome.counted) == (m.Phase.ABORTED, False)
    assert not await mesh.fetch("SELECT * FROM privacy_events WHERE model_id = $1", model)
    await leave(streams)


async def test_a_dropout_ends_at_the_deadline(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model, collecting="1500ms")
    streams = await all_in(clients[:3], model)
    started = await start_round(mesh, model)
    offers = [await stream.offer() for stream in streams]
    for number in (1, 2):
        await submit(clients[number], seal(offers[number], constant(0.1)))
    ended = await published(mesh, started.round_id)
    assert ended.received == 2
    assert ended.ended_at_ms >= offers[0].configuration.deadline_ms
    assert ended.ended_at_ms - offers[0].configuration.deadline_ms < 5_000
    assert not (await streams[0].outcome()).counted
    late = seal(offers[0], constant(0.1))
    with refused(RoundClosed):
        await submit(clients[0], late)
    await leave(streams)


async def test_too_few_at_the_deadline(mesh: Mesh, clients: list[RawClient], model: str) -> None:
    await declare(mesh, model, collecting="1s", selecting="1s")
    lonely = await start_round(mesh, model)
    assert (await aborted(mesh, lonely.round_id)).selected == 0
    streams = await all_in(clients[:3], model)
    started = await start_round(mesh, model)
    offers = [await stream.offer() for stream in streams]
    await submit(clients[0], seal(offers[0], constant(0.1)))
    ended = await aborted(mesh, started.round_id)
    assert (ended.received, ended.new_version) == (1, 0)
    assert not await mesh.fetch("SELECT * FROM privacy_events WHERE model_id = $1", model)
    await leave(streams)


async def test_a_restarted_client_is_a_dropout(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model)
    streams = await all_in(clients[:3], model)
    started = await start_round(mesh, model)
    offers = [await stream.offer() for stream in streams]
    restarted = replace(clients[0], session_id=new_session_id())
    again = await restarted.participate(model)
    for number in (1, 2):
        await submit(clients[number], seal(offers[number], constant(0.1)))
    ended = await published(mesh, started.round_id)
    assert (ended.received, ended.dropped) == (2, 1)
    await leave([*streams, again])


async def test_a_client_that_reconnects_is_offered_the_round_again(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model)
    streams = await all_in(clients[:3], model)
    started = await start_round(mesh, model)
    offers = [await stream.offer() for stream in streams]
    streams[0].cancel()
    streams[0] = await clients[0].participate(model)
    again = await streams[0].offer()
    assert again.digest == offers[0].digest
    for client, offer in zip(clients, [again, *offers[1:]], strict=False):
        await submit(client, seal(offer, constant(0.1)))
    # Who has its receipt is not asked again.
    assert (await published(mesh, started.round_id)).received == 3
    assert (await streams[0].outcome()).counted
    await leave(streams)


async def test_over_selection_closes_at_the_target(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model, target=2, over_selection=2.0)
    streams = await all_in(clients, model)
    started = await start_round(mesh, model)
    offers = [await stream.offer() for stream in streams]
    assert offers[0].configuration.roster_size == 4
    sealed = [seal(offer, constant(0.1)) for offer in offers]
    for number in (0, 1):
        await submit(clients[number], sealed[number])
    ended = await published(mesh, started.round_id)
    assert (ended.selected, ended.received) == (4, 2)
    with refused(RoundClosed):
        await submit(clients[2], sealed[2])
    assert [(await stream.outcome()).counted for stream in streams] == [True, True, False, False]
    await leave(streams)


async def test_a_late_client_waits_for_the_next_round(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model)
    streams = await all_in(clients[:3], model)
    started = await start_round(mesh, model)
    offers = [await stream.offer() for stream in streams]
    late = await clients[3].participate(model)
    for client, offer in zip(clients, offers, strict=False):
        await submit(client, seal(offer, constant(0.1)))
    assert (await published(mesh, started.round_id)).selected == 3
    await leave(streams[:1])

    async def two_left() -> bool:
        rows = await mesh.fetch("SELECT client_id FROM check_ins WHERE model_id = $1", model)
        return len(rows) == 3

    await mesh.wait(Channel.CHECK_IN_CHANGED, two_left)
    second = await start_round(mesh, model)
    offer = await late.offer()
    assert offer.configuration.round_id == second.round_id
    await abort(mesh, second.round_id)
    await leave([*streams, late])


# --- operators ----------------------------------------------------------------------------------


async def test_watching_a_round(mesh: Mesh, clients: list[RawClient], model: str) -> None:
    await declare(mesh, model)
    started = await start_round(mesh, model)
    phases: list[str] = []
    received: list[int] = []

    async def watch() -> None:
        request = agg.WatchRoundRequest(round_id=started.round_id)
        async for answer in mesh.operator.aggregator.WatchRound(request):
            phases.append(agg.Phase.Name(answer.round.phase).removeprefix("PHASE_"))
            received.append(answer.round.received)

    watching = asyncio.create_task(watch())
    await reached(mesh, started.round_id, agg.PHASE_SELECTING)
    streams = await all_in(clients[:3], model)
    for client, stream in zip(clients, streams, strict=False):
        await submit(client, seal(await stream.offer(), constant(0.1)))
    await asyncio.wait_for(watching, 30)  # ends with the round
    distinct = list(dict.fromkeys(phases))
    order = ["SELECTING", "COLLECTING", "AGGREGATING", "RELEASING", "PUBLISHED"]
    assert distinct == [phase for phase in order if phase in distinct]
    assert {"SELECTING", "COLLECTING", "PUBLISHED"} <= set(distinct)
    assert received == sorted(received)
    await leave(streams)


@pytest.mark.parametrize("phase", [agg.PHASE_SELECTING, agg.PHASE_COLLECTING])
async def test_aborting(
    mesh: Mesh, clients: list[RawClient], model: str, phase: agg.Phase.ValueType
) -> None:
    await declare(mesh, model)
    streams: list[ControlStream] = []
    offers: list[Offer] = []
    if phase == agg.PHASE_COLLECTING:
        streams = await all_in(clients[:3], model)
    started = await start_round(mesh, model)
    offers = [await stream.offer() for stream in streams]
    if offers:
        await submit(clients[0], seal(offers[0], constant(0.1)))
        half = Upload(clients[1].stubs)
        sealed = seal(offers[1], constant(0.1))
        await half.announce(sealed.statement(clients[1]))
    await abort(mesh, started.round_id, "wrong data")
    ended = await aborted(mesh, started.round_id)
    assert (ended.reason, ended.new_version) == ("wrong data", 0)
    assert ended.ended_at_ms >= ended.started_at_ms
    for stream in streams:
        outcome = await stream.outcome()
        assert (outcome.phase, outcome.reason) == (m.Phase.ABORTED, "wrong data")
    if offers:
        with refused(RoundClosed):
            await half.send(sealed.messages())
            await half.receipt()
    with refused(StateConflict):
        await abort(mesh, started.round_id)
    assert not await mesh.fetch("SELECT * FROM privacy_events WHERE model_id = $1", model)
    await leave(streams)
    # And the next round may begin.
    await abort(mesh, (await start_round(mesh, model)).round_id)


@pytest.mark.parametrize("reason", ["", "x" * 201, "nul \0 byte"])
async def test_reasons_that_cannot_be_kept(mesh: Mesh, model: str, reason: str) -> None:
    await declare(mesh, model)
    started = await start_round(mesh, model)
    with refused(MalformedMessage, "reason"):
        await abort(mesh, started.round_id, reason)
    await abort(mesh, started.round_id)


async def test_one_round_at_a_time(mesh: Mesh, model: str) -> None:
    await declare(mesh, model)
    started = await start_round(mesh, model)
    with refused(StateConflict):
        await start_round(mesh, model)
    await abort(mesh, started.round_id)
    await aborted(mesh, started.round_id)
    await abort(mesh, (await start_round(mesh, model)).round_id)


async def test_rounds_that_are_not_there(mesh: Mesh) -> None:
    with refused(NotFound):
        await start_round(mesh, "no-such-model")
    with refused(NotFound):
        await abort(mesh, new_round_id())
    with refused(NotFound):
        await reached(mesh, new_round_id(), agg.PHASE_PUBLISHED)
    with refused(NotFound):
        request = agg.GetRoundRequest(round_id=new_round_id())
        await answered(mesh.operator.aggregator.GetRound(request))
    with refused(MalformedMessage):
        await reached(mesh, "round one", agg.PHASE_PUBLISHED)


async def test_pages_of_rounds(mesh: Mesh, model: str) -> None:
    await declare(mesh, model)
    made = []
    for _ in range(5):
        started = await start_round(mesh, model)
        await abort(mesh, started.round_id)
        await aborted(mesh, started.round_id)
        made.append(started.round_id)
    seen: list[str] = []
    token = ""
    for _ in range(4):
        page = common.Page(size=2, token=token)
        answer = await answered(
            mesh.operator.aggregator.ListRounds(agg.ListRoundsRequest(model_id=model, page=page))
        )
        seen.extend(round.round_id for round in answer.rounds)
        token = answer.next_page_token
        if not token:
            break
    assert seen == made[::-1]
    everything = await answered(mesh.operator.aggregator.ListRounds(agg.ListRoundsRequest()))
    assert set(made) <= {round.round_id for round in everything.rounds}
