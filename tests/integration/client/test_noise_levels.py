"""The noise that really lies on a published model is the noise that the ledger accounts for.

Clients that change nothing take part in rounds of the whole stack; what is left of the published
versions is noise, which is measured and held against the events of the ledger.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np
import pytest

from boltz_client import NoticeKind, OwnerLimits, RoundContext, TrainResult
from boltz_client.adapters.numpy import FunctionTrainer
from boltz_client.owner import ALL_MODES
from boltz_protocol import codec
from boltz_protocol import messages as m
from boltz_protocol.model_file import Vector
from tests.integration.client.party import Party
from tests.integration.services.playing import live
from tests.support.clients import published, start_round
from tests.support.mesh import Mesh
from tests.support.models import declare

SIZE = 8_000
ROUNDS = 5
#: The variance of so many normal numbers is off by this much, relative, once in a few million runs.
TOLERANCE = 5 * math.sqrt(2 / (SIZE * ROUNDS))
PLAN: dict[str, Any] = {
    "privacy": "client-dp",
    "noise": 1.5,
    "clip_norm": 0.1,
    "size": SIZE,
}
TABLES = "[budget]\nepsilon = 20\ndelta = 1e-5\n"
LIARS = "[secure_aggregation]\ncorrupt_fraction = 0.2\n"
GROUPS = "[grouping]\ncount = 2\nmin_survivors = 5\n"


def _idle(tensors: dict[str, Vector], round: RoundContext) -> TrainResult:
    return TrainResult(delta={"weights": np.zeros(SIZE, np.float32)})


async def _accounted_variance(mesh: Mesh, round_id: str) -> float:
    """The noise on a sum that each client's event states, in squared ring units."""
    rows = await mesh.fetch(
        "SELECT DISTINCT noise_multiplier, sensitivity, unit, relation FROM privacy_events"
        " WHERE round_id = $1",
        round_id,
    )
    (row,) = rows
    assert (row["unit"], row["relation"]) == ("client", "contribution-set-to-zero")
    return float(row["noise_multiplier"] * row["sensitivity"]) ** 2


async def _configuration(mesh: Mesh, round_id: str) -> m.RoundConfiguration:
    (row,) = await mesh.fetch(
        "SELECT config_statement FROM federated_aggregations WHERE round_id = $1", round_id
    )
    statement = codec.parse_statement(row["config_statement"])
    return codec.parse_round_configuration(statement.payload)


@pytest.mark.parametrize(
    ("clients", "plan", "shares_accounted"),
    [
        # The mesh adds what the ledger says.
        pytest.param(3, {"mode": "open", "min": 2, "tables": TABLES}, 3, id="open"),
        # Each of seven adds a share that is made for six, of whom one may collude and know its own.
        pytest.param(7, {"mode": "sealed", "min": 6, "tables": TABLES + LIARS}, 5, id="sealed"),
        # Each group's sum has all of the noise, made for the five survivors that a group may have.
        pytest.param(
            12, {"mode": "grouped", "min": 10, "tables": TABLES + GROUPS}, 5, id="grouped"
        ),
    ],
)
async def test_noise_is_as_accounted(
    party: Party, model: str, clients: int, plan: dict[str, Any], shares_accounted: int
) -> None:
    members = await party.add(clients, owner=OwnerLimits(modes=ALL_MODES, smallest_cohort=1))
    start = np.zeros(SIZE, np.float32)
    cohort = {"target": clients, "max": clients}
    await declare(party.mesh, model, start, **(PLAN | plan | cohort))
    taking_part = [
        asyncio.create_task(
            member.client.participate(
                FunctionTrainer(_idle, 10), model, rounds=ROUNDS, notify=member.heard
            )
        )
        for member in members
    ]
    for member in members:
        await member.heard.until(NoticeKind.CHECKED_IN)
    measured = 0.0
    before = start
    accounted = 0.0
    for _ in range(ROUNDS):
        round_id = (await start_round(party.mesh, model)).round_id
        assert (await published(party.mesh, round_id)).received == clients
        after = await live(party.mesh, model, SIZE)
        configuration = await _configuration(party.mesh, round_id)
        # All weights are equal, so that the denominator is `clients`.
        assert configuration.total_weight == clients * configuration.max_weight
        ring = (after.astype(np.float64) - before) * configuration.scale * clients
        measured += float(ring @ ring) / (SIZE * ROUNDS)
        before = after
        accounted = await _accounted_variance(party.mesh, round_id)
    for task in taking_part:
        assert (await task).counted == ROUNDS
    assert measured == pytest.approx(accounted * clients / shares_accounted, rel=TOLERANCE)
    assert measured >= accounted * (1 - TOLERANCE)
