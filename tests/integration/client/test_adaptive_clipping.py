"""The clip norm of a real mesh follows what the library's own clients tell, round after round."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from boltz_client import NoticeKind, RoundContext
from boltz_mesh.app.cli.rounds import clip_norm, progress_line
from boltz_mesh.privacy.adaptive_clip import AdaptiveClipping, next_clip_norm
from boltz_protocol import codec
from boltz_protocol import messages as m
from boltz_protocol.clip_indicator import LANE
from boltz_protocol.model_file import encode_model
from boltz_protocol.v1 import aggregator_pb2 as agg
from tests.integration.client.conftest import ANY_MODE
from tests.integration.client.party import SIZE, Member, Party
from tests.integration.services.playing import abort
from tests.support.calls import answered
from tests.support.clients import aborted, published, reached, start_round
from tests.support.mesh import Mesh
from tests.support.models import declare, plan_toml, publish, publish_requests, tensors

ROUNDS = 12
SETTINGS = AdaptiveClipping(learning_rate=1.5, bit_share=1.0)
TABLE = "[adaptive_clipping]\nlearning_rate = 1.5\nbit_share = 1.0\n"
BUDGET = "[budget]\nepsilon = 14\ndelta = 1e-5\n"


async def add(party: Party, count: int) -> list[Member]:
    """Members of equal weight, the norms of whose deltas lie around 1."""
    members = await party.add(count, owner=ANY_MODE)
    for number, member in enumerate(members):
        member.samples = 1024
        member.value = math.exp(1.2 * number / (count - 1) - 0.6) / math.sqrt(SIZE)
    return members


async def one_more(party: Party, model: str) -> agg.Round:
    return await published(party.mesh, (await start_round(party.mesh, model)).round_id)


async def configuration(mesh: Mesh, round_id: str) -> m.RoundConfiguration:
    (row,) = await mesh.fetch(
        "SELECT config_statement FROM federated_aggregations WHERE round_id = $1", round_id
    )
    statement = codec.parse_statement(bytes(row["config_statement"]))
    return codec.parse_round_configuration(statement.payload)


async def check_charges(mesh: Mesh, round_id: str, bound_l2: int, members: int) -> None:
    rows = await mesh.fetch(
        "SELECT sensitivity, noise_multiplier FROM privacy_events WHERE round_id = $1", round_id
    )
    assert len(rows) == members
    assert {row["sensitivity"] for row in rows} == {bound_l2}
    for row in rows:
        assert row["noise_multiplier"] == pytest.approx(1.5, rel=1e-6)


@pytest.mark.parametrize("mode", ["open", "sealed"])
@pytest.mark.parametrize("start", [100.0, 0.01], ids=["above", "below"])
async def test_the_clip_norm_moves_to_the_quantile_by_the_formula(
    party: Party, model: str, mode: str, start: float
) -> None:
    members = await add(party, 6)
    await declare(
        party.mesh,
        model,
        mode=mode,
        min=6,
        target=6,
        max=6,
        clip_norm=start,
        privacy="client-dp",
        noise=1.5,
        tables=TABLE + BUDGET,
    )
    settings = SETTINGS.resolved(start)
    expected = start
    round_id = await party.start(model, rounds=ROUNDS)
    for number in range(ROUNDS):
        if number:
            round_id = (await start_round(party.mesh, model)).round_id
        shown = await published(party.mesh, round_id)
        config = await configuration(party.mesh, round_id)
        assert shown.clip_norm == config.clip_norm == expected
        assert config.indicator_scale == expected
        # From nothing but what is published.
        assert set(shown.metrics) == {LANE}
        expected = next_clip_norm(settings, expected, shown.metrics[LANE])
        assert shown.next_clip_norm == expected
        assert clip_norm(shown) == f"{config.clip_norm:.4g} -> {expected:.4g}"
        assert progress_line(shown).endswith(f"; clip norm {clip_norm(shown)}")
        await check_charges(party.mesh, round_id, config.bound_l2, len(members))
    # The middle norm is 1, C' = 1 at C = 1.155; noise leaves it within a factor of 7.4 of that in
    # all of 200 000 simulated runs; it began a factor of 100 away.
    assert abs(math.log(expected / 1.155)) < 2.5
    for member in members:
        assert member.task is not None
        assert (await member.task).counted == ROUNDS


async def test_the_groups_of_a_round_tell_together(party: Party, model: str) -> None:
    members = await add(party, 10)
    # Without noise: six of ten are within 1.3 * sqrt(1 - 1/4) = 1.126.
    await declare(
        party.mesh,
        model,
        mode="grouped",
        min=10,
        target=10,
        max=10,
        clip_norm=1.3,
        tables=TABLE
        + "[grouping]\ncount = 2\n"
        + "[secure_aggregation]\ncorrupt_fraction = 0.0\nadversary = 'semi-honest'\n",
    )
    shown = await published(party.mesh, await party.start(model))
    within = sum(math.sqrt(SIZE) * member.value <= 1.126 for member in members)
    assert shown.metrics[LANE] == pytest.approx(within / 10 - 0.5, abs=1e-4)
    expected = next_clip_norm(SETTINGS.resolved(1.3), 1.3, shown.metrics[LANE])
    assert shown.next_clip_norm == expected


def _until_stopped(round: RoundContext) -> None:
    assert round.stopped.wait(20)


def _at_once(round: RoundContext) -> None:
    assert round.lanes == ()


async def test_only_a_published_round_of_the_revision_moves_it(party: Party, model: str) -> None:
    members = await add(party, 3)
    plan: dict[str, Any] = {"min": 3, "target": 3, "max": 3, "clip_norm": 8.0}
    tables = "[adaptive_clipping]\nlearning_rate = 1.0\n"
    await declare(party.mesh, model, **plan, tables=tables)
    idle = (await start_round(party.mesh, model)).round_id
    await abort(party.mesh, idle)
    assert (await aborted(party.mesh, idle)).clip_norm == 0  # it had no roster
    first = await published(party.mesh, await party.start(model, rounds=9))
    # No noise: all three are within, and 0.5 was asked for.
    assert first.metrics[LANE] == pytest.approx(0.5, abs=1e-4)
    assert first.clip_norm == 8.0
    assert first.next_clip_norm == pytest.approx(8 * math.exp(-0.5), rel=1e-3)
    # A version that an operator publishes has no round (and this one the first one's parameters,
    # which the clients have), and a round that is aborted has no version.
    content = encode_model(tensors(SIZE), np.zeros(SIZE, np.float32))
    await publish(party.mesh.operator, publish_requests(model, content))
    for member in members:
        member.train = _until_stopped
    idle = (await start_round(party.mesh, model)).round_id
    await reached(party.mesh, idle, agg.PHASE_COLLECTING)
    await abort(party.mesh, idle)
    lost = await aborted(party.mesh, idle)
    assert (lost.clip_norm, lost.next_clip_norm) == (first.next_clip_norm, 0)
    for member in members:
        await member.heard.until(NoticeKind.ENDED, 2)
        member.train = _at_once
    second = await one_more(party, model)
    assert second.clip_norm == first.next_clip_norm
    changed = plan_toml(model, size=SIZE, **plan, tables=tables + "quantile = 0.9\n")
    request = agg.ApplyPlanRequest(plan_toml=changed)
    assert (await answered(party.mesh.operator.aggregator.ApplyPlan(request))).changed
    third = await one_more(party, model)
    assert third.clip_norm == 8.0
    assert third.next_clip_norm == pytest.approx(8 * math.exp(-0.1), rel=1e-3)


async def test_a_client_whose_owner_allows_less_declines(party: Party, model: str) -> None:
    """The mesh may raise the clip norm, and each owner still has the last word."""
    await party.add(1, owner=replace(ANY_MODE, largest_clip_norm=0.02))
    await party.add(2, owner=ANY_MODE)
    cautious = party.members[0]
    # All updates are longer than this, so that it grows by exp(0.5) a round.
    plan: dict[str, Any] = {"min": 2, "target": 3, "max": 3, "clip_norm": 0.0095}
    tables = "[adaptive_clipping]\nlearning_rate = 1.0\n"
    await declare(party.mesh, model, **plan, tables=tables)
    first = await published(party.mesh, await party.start(model, rounds=3))
    second = await one_more(party, model)
    third = await one_more(party, model)
    assert first.clip_norm < second.clip_norm < 0.02 < third.clip_norm
    assert (second.received, third.received, third.dropped) == (3, 2, 1)
    (declined,) = cautious.heard.all(NoticeKind.DECLINED)
    assert "the round's clip norm is 0.0258237; the owner allows 0.02" in str(declined.error)
