"""Sealed rounds of the library's own clients against a real server, on a network that breaks."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from boltz_client import (
    MeshClient,
    NoticeKind,
    OwnerLimits,
    RoundContext,
    sealed_round,
)
from boltz_client import client as client_module
from boltz_client.sealed_round import NOTICES
from boltz_client.spool import Spool
from boltz_protocol import messages as m
from boltz_protocol.certificates import certificate_fingerprint
from boltz_protocol.errors import Unavailable
from boltz_protocol.statement import Statement
from boltz_protocol.v1 import aggregator_pb2 as pb
from tests.integration.client.heard import Heard
from tests.integration.client.party import ADVERTISE, SHORT, Party, declare_sealed, secrets_left
from tests.integration.services.playing import live
from tests.support.clients import aborted, published


async def test_the_published_model_is_the_plain_weighted_mean(party: Party, model: str) -> None:
    members = await party.add(3)
    await declare_sealed(party, model)
    round_id = await party.start(model)
    assert (await published(party.mesh, round_id)).received == 3
    await party.check_model(model, round_id, members)
    for member in members:
        assert member.task is not None
        summary = await member.task
        assert (summary.published, summary.counted, summary.submitted) == (1, 1, 1)
        assert not member.heard.all(NoticeKind.IGNORED)
        assert list(member.client.spool.folder.iterdir()) == []
    assert not secrets_left(party)


@pytest.mark.parametrize("step", [ADVERTISE, *sorted(NOTICES)])
async def test_a_reconnection_in_the_middle_of_a_step(party: Party, model: str, step: str) -> None:
    members = await party.add(3)
    await declare_sealed(party, model)
    for member in members[:2]:
        member.cut_at(step)
    round_id = await party.start(model)
    assert (await published(party.mesh, round_id)).received == 3
    await party.check_model(model, round_id, members)
    for member in members:
        assert len(member.heard.all(NoticeKind.TRAINED)) == 1
        assert not member.heard.all(NoticeKind.DECLINED)
        # Two shares are enough, so a stream that is cut before the last answer may miss the end.
        if step != "signatures":
            assert member.task is not None
            assert (await member.task).counted == 1
    assert any(member.proxy.connections >= 2 for member in members[:2])


async def test_clients_that_die_in_each_phase(party: Party, model: str) -> None:
    """Of seven, one dies after advertising, one after sharing, one after its upload."""
    members = await party.add(7)
    await declare_sealed(party, model, **SHORT)
    advertised, shared, uploaded, *living = members
    advertised.die_at("peers")
    shared.die_at("shares")
    uploaded.die_at("survivors")
    # A cut beside all that.
    living[0].cut_at("survivors")
    round_id = await party.start(model)
    assert (await published(party.mesh, round_id)).received == 5
    await party.check_model(model, round_id, [uploaded, *living])
    for member in living:
        assert member.task is not None
        assert (await member.task).counted == 1
    # Whoever left a step undone has lost trust by it, whether its update is in the sum or not.
    assert await party.conduct(round_id) == [*["late"] * 3, *["counted"] * 4]


async def test_who_is_late_helps_the_others(party: Party, model: str) -> None:
    members = await party.add(4)
    await declare_sealed(party, model, target=3, over_selection=1.3)
    stopped = threading.Event()

    def dawdle(round: RoundContext) -> None:
        assert round.stopped.wait(30)
        stopped.set()

    late = members[0]
    late.train = dawdle
    # Without the late one the shares of these would not be enough.
    members[1].die_at("signatures")
    round_id = await party.start(model)
    assert (await published(party.mesh, round_id)).received == 3
    await party.check_model(model, round_id, members[1:])
    assert late.task is not None
    summary = await late.task
    assert (summary.published, summary.counted, summary.declined) == (1, 0, 0)
    assert len(late.heard.all(NoticeKind.LATE)) == 1
    assert (await party.conduct(round_id))[0] == "not-needed"
    assert await asyncio.to_thread(stopped.wait, 10)
    assert not secrets_left(party)


async def test_the_deadline_makes_a_late_client_of_a_slow_one(party: Party, model: str) -> None:
    members = await party.add(4)
    await declare_sealed(party, model, **SHORT)
    members[0].train = assert_stopped
    round_id = await party.start(model)
    assert (await published(party.mesh, round_id)).received == 3
    await party.check_model(model, round_id, members[1:])
    assert members[0].task is not None
    assert (await members[0].task).declined == 0
    assert len(members[0].heard.all(NoticeKind.LATE)) == 1
    assert await party.conduct(round_id) == ["late", *["counted"] * 3]


def assert_stopped(round: RoundContext) -> None:
    assert round.stopped.wait(30)


async def test_a_training_that_fails_is_a_dropout(party: Party, model: str) -> None:
    members = await party.add(4)
    await declare_sealed(party, model)

    def explode(round: RoundContext) -> None:
        raise ZeroDivisionError("no rows today")

    members[0].train = explode
    round_id = await party.start(model)
    assert (await published(party.mesh, round_id)).received == 3
    await party.check_model(model, round_id, members[1:])
    assert members[0].task is not None
    assert (await members[0].task).declined == 1


async def test_noise_comes_from_the_clients(party: Party, model: str) -> None:
    members = await party.add(3)
    tables = "[budget]\nepsilon = 50\ndelta = 1e-5\n"
    await declare_sealed(party, model, privacy="client-dp", noise=0.5, tables=tables)
    round_id = await party.start(model)
    await published(party.mesh, round_id)
    mean = await party.weighted_mean(round_id, members)
    noise = await live(party.mesh, model) - mean
    # A standard deviation of about a quarter in each of eight coordinates.
    assert 0.02 < float(np.sqrt(np.mean(np.square(noise)))) < 3


async def test_an_owner_who_wants_known_peers_gets_them_or_declines(
    party: Party, model: str
) -> None:
    members = await party.add(3)
    known = certificate_fingerprint(members[1].client.store.chain[0])
    members[0].client.owner = OwnerLimits(known_peers=frozenset({known}), least_known_peers=1)
    stranger = "ab" * 32
    members[2].client.owner = OwnerLimits(known_peers=frozenset({stranger}), least_known_peers=1)
    await declare_sealed(party, model)
    round_id = await party.start(model)
    await aborted(party.mesh, round_id)
    summaries = [await member.task for member in members if member.task is not None]
    assert [summary.declined for summary in summaries] == [0, 0, 1]
    (notice,) = members[2].heard.all(NoticeKind.DECLINED)
    assert notice.error is not None
    assert "known to the owner" in notice.error.message
    assert not secrets_left(party)


async def test_who_would_weigh_too_much_among_the_survivors_releases_nothing(
    party: Party, model: str
) -> None:
    members = await party.add(4)
    for member in members:
        member.samples = 64
    # A quarter of the roster, a third of three survivors.
    members[0].client.owner = OwnerLimits(largest_weight_share=0.3)

    def explode(round: RoundContext) -> None:
        raise ZeroDivisionError("no rows today")

    members[3].train = explode
    # It says so, and nobody waits for its signature up to the deadline.
    await declare_sealed(party, model, checking="10m")
    round_id = await party.start(model)
    # Two signatures are below the floor of three, and nothing was opened.
    assert (await aborted(party.mesh, round_id)).reason == "TOO_FEW_SIGNATURES"
    summaries = [await member.task for member in members if member.task is not None]
    assert [summary.declined for summary in summaries] == [0, 0, 0, 1]
    assert [summary.refused for summary in summaries] == [1, 0, 0, 0]
    (notice,) = members[0].heard.all(NoticeKind.WITHHELD)
    assert notice.error is not None
    assert "weight" in notice.error.message
    assert not secrets_left(party)


async def test_a_client_that_stops_takes_its_secrets_along(party: Party, model: str) -> None:
    members = await party.add(4)
    await declare_sealed(party, model, **SHORT)
    stopping: list[asyncio.Task[None]] = []

    async def stop() -> None:
        stopping.append(asyncio.create_task(members[0].client.stop()))
        (participation,) = members[0].client._participations
        await participation.stopped()
        assert not [client for client in secrets_left(party) if client is members[0].client]

    async def stop_soon() -> None:
        stopping.append(asyncio.create_task(stop()))

    members[0].actions["survivors"] = stop_soon
    round_id = await party.start(model)
    await published(party.mesh, round_id)
    await party.check_model(model, round_id, members)
    for task in stopping:
        await task
    assert len(stopping) == 2


async def test_a_restarted_client_holds_no_secrets_and_answers_nothing(
    party: Party, model: str
) -> None:
    members = await party.add(4)
    await declare_sealed(party, model, **SHORT)
    gone = members[0]
    fell = asyncio.Event()

    async def fall() -> None:
        gone.proxy.kill()
        fell.set()

    gone.actions["shares"] = fall
    round_id = await party.start(model)
    await fell.wait()
    spool = gone.client.spool
    await asyncio.to_thread(_until_sealed, spool.folder)
    assert gone.task is not None
    gone.task.cancel()
    await asyncio.gather(gone.task, return_exceptions=True)
    folder = gone.client.store.folder
    await gone.client.close()
    gone.proxy.revive()
    gone.client = await party.stack.enter_async_context(MeshClient.open(folder))
    gone.heard = Heard()
    gone.join(model)
    # What was sealed is sent; whether it comes before the mesh hears of the restart is open.
    received = (await published(party.mesh, round_id)).received
    await party.check_model(model, round_id, members if received == 4 else members[1:])
    told = {notice.kind for notice in gone.heard.notices}
    assert told <= {NoticeKind.CHECKED_IN, NoticeKind.ENDED}


def _until_sealed(folder: Path) -> None:
    """Wait for a whole spool file; whoever asks is a thread."""
    spool = Spool(folder)
    waited = threading.Event()
    for _ in range(500):
        if spool.find_all():
            return
        waited.wait(0.02)
    raise AssertionError("nothing was sealed")


async def test_a_round_leaves_spans_of_its_cryptography(
    party: Party, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for module in (sealed_round, client_module):
        monkeypatch.setattr(module, "tracer", lambda: provider.get_tracer("test"))
    members = await party.add(3)
    await declare_sealed(party, model)
    await published(party.mesh, await party.start(model))
    for member in members:
        assert member.task is not None
        await member.task
    spans = exporter.get_finished_spans()
    steps = Counter(
        (span.name, (span.attributes or {}).get("boltz.step"))
        for span in spans
        if span.name.startswith("boltz.client.")
    )
    agreement = "boltz.client.key_agreement"
    for step in (ADVERTISE, "key_roster", "peers", "shares"):
        assert steps[agreement, step] == 3
    for step in ("survivors", "signatures"):
        assert steps["boltz.client.unmask", step] == 3
    masked = [span for span in spans if span.name == "boltz.client.mask"]
    assert [(span.attributes or {})["boltz.masks"] for span in masked] == [3, 3, 3]


async def test_a_notice_out_of_its_turn_is_told_and_costs_nothing(party: Party, model: str) -> None:
    members = await party.add(3)
    await declare_sealed(party, model)

    async def out_of_turn() -> None:
        (participation,) = members[0].client._participations
        (key,) = participation._rounds
        early = pb.SharesNotice(round_id=key.round_id, attempt=key.attempt)
        await participation._receive(pb.ParticipateResponse(shares=early))

    members[0].actions["key_roster"] = out_of_turn
    round_id = await party.start(model)
    assert (await published(party.mesh, round_id)).received == 3
    (notice,) = members[0].heard.all(NoticeKind.IGNORED)
    assert notice.error is not None
    assert "out of its turn" in notice.error.message


async def test_keys_that_cannot_be_fetched_are_asked_for_again(party: Party, model: str) -> None:
    members = await party.add(3)
    await declare_sealed(party, model)
    client = members[0].client
    verified = client.verified
    failures = [m.KEY_ROSTER, m.SURVIVORS]

    async def flaky(statement: Statement, expected_type: str) -> bytes:
        if expected_type in failures:
            failures.remove(expected_type)
            raise Unavailable("the mesh's keys cannot be fetched")
        return await verified(statement, expected_type)

    client.verified = flaky  # type: ignore[method-assign]
    round_id = await party.start(model)
    assert (await published(party.mesh, round_id)).received == 3
    assert not failures
    assert len(members[0].heard.all(NoticeKind.DISCONNECTED)) == 2
