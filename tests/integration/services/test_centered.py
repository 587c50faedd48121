"""Centered clipping over real gRPC: rounds that are measured against the round before."""

from __future__ import annotations

import math

import numpy as np
import pytest

from boltz_protocol.errors import InvalidPlan
from boltz_protocol.v1 import aggregator_pb2 as agg
from tests.integration.services.playing import all_in, constant, leave, live
from tests.support.calls import answered, refused
from tests.support.clients import ControlStream, RawClient, published, seal, start_round, submit
from tests.support.mesh import Mesh
from tests.support.models import LOSS, Vector, declare, plan_toml

TOP = 'rule = "centered-clipping"\ncentered_radius = {radius}'


async def play(
    mesh: Mesh,
    playing: list[tuple[RawClient, ControlStream]],
    model: str,
    deltas: list[Vector],
    lanes: tuple[float, ...] = (),
) -> tuple[agg.Round, float]:
    """One round; also the units of its integers, 1 / scale."""
    started = await start_round(mesh, model)
    scale = 1.0
    for (client, stream), delta in zip(playing, deltas, strict=True):
        offer = await stream.offer()
        scale = offer.configuration.scale
        await submit(client, seal(offer, delta, lanes=lanes))
    return await published(mesh, started.round_id), 1 / scale


async def test_each_round_is_centred_on_the_last_published_mean(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(
        mesh,
        model,
        top=TOP.format(radius=0.5),
        tables=f"{LOSS}[server_optimizer]\nlearning_rate = 2.0\n",
    )
    streams = await all_in(clients[:3], model)
    playing = list(zip(clients, streams, strict=False))
    # Nothing is published: all are brought within 0.5 of zero. The norm of each delta is 0.8.
    far = constant(0.8 / math.sqrt(8))
    first, unit = await play(mesh, playing, model, [far] * 3, (0.0,))
    mean = far * (0.5 / 0.8)
    np.testing.assert_allclose(await live(mesh, model), 2.0 * mean, atol=8 * unit)
    assert first.new_version == 2
    # Now 0.8 is within reach, and the one who turns round is held near what was published.
    second, unit = await play(mesh, playing, model, [far, far, -far], (1.0,))
    moved = (far + far + (mean - 0.5 / math.sqrt(8))) / 3
    np.testing.assert_allclose(await live(mesh, model), 2.0 * (mean + moved), atol=0.01)
    # Lanes are shortened with the rest: of the third loss 0.5 / 1.3 counts.
    assert second.metrics["loss"] == pytest.approx((1 + 1 + 0.5 / 1.3) / 3, abs=0.01)
    await leave(streams)


async def test_another_revision_of_the_plan_starts_from_zero(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model, top=TOP.format(radius=0.5))
    streams = await all_in(clients[:3], model)
    playing = list(zip(clients, streams, strict=False))
    near = constant(0.4 / math.sqrt(8))
    await play(mesh, playing, model, [near] * 3)
    text = plan_toml(model, top=TOP.format(radius=0.25))
    await answered(mesh.operator.aggregator.ApplyPlan(agg.ApplyPlanRequest(plan_toml=text)))
    _, unit = await play(mesh, playing, model, [near] * 3)
    wanted = near + constant(0.25 / math.sqrt(8))
    np.testing.assert_allclose(await live(mesh, model), wanted, atol=8 * unit)
    await leave(streams)


async def test_noise_and_ledger_are_those_of_a_term(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    """Noise that is really added equals what is accounted: z times the declared sensitivity."""
    z, n, size = 0.6, 3, 20  # z sqrt(20) = 2.7 clients: a mean one can centre on
    await declare(
        mesh,
        model,
        np.zeros(size, np.float32),
        privacy="client-dp",
        noise=z,
        min=n,
        top=TOP.format(radius=0.25),
        tables="[budget]\nepsilon = 25.0\ndelta = 1e-5\n",
    )
    streams = await all_in(clients[:n], model)
    playing = list(zip(clients, streams, strict=False))
    noises = []
    before = np.zeros(size, np.float32)
    for _ in range(4):
        await play(mesh, playing, model, [constant(0.0, size)] * n)
        after = await live(mesh, model, size)
        noises.append(after - before)
        before = after
    rows = await mesh.fetch(
        "SELECT DISTINCT sensitivity, noise_multiplier FROM privacy_events WHERE model_id = $1",
        model,
    )
    assert len(rows) == 1
    assert rows[0]["noise_multiplier"] == z
    plan = await answered(mesh.operator.aggregator.GetPlan(agg.GetPlanRequest(model_id=model)))
    accounted = z * rows[0]["sensitivity"] / plan.plan.scale / n
    assert accounted == pytest.approx(z * 0.25 / n, rel=0.01)
    # The first round's mean is noise alone; later ones are drawn towards the deltas, which are 0,
    # as far as the radius goes. All 80 samples of noise are there: 0.7 to 1.5 but for one in 10^4.
    seen = float(np.std(noises))
    assert 0.6 * accounted < seen < 1.6 * accounted
    await leave(streams)


async def test_a_plan_that_the_rule_cannot_serve_is_refused(mesh: Mesh, model: str) -> None:
    text = plan_toml(model, top=TOP.format(radius=0.5), mode="sealed", min=3)
    with refused(InvalidPlan, match="rule: in mode"):
        await answered(mesh.operator.aggregator.ApplyPlan(agg.ApplyPlanRequest(plan_toml=text)))
