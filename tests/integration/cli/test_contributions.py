"""What clients contributed, from sealed updates to the table of `boltz-mesh round show`."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest_asyncio

from boltz_mesh.app.embedded_postgres import EmbeddedPostgres
from tests.integration.cli.running import Cli
from tests.support.clients import RawClient, client_key, seal, submit
from tests.support.mesh import Mesh, serving
from tests.support.models import declare
from tests.support.postgres import execute, with_database

MODEL = "measured"
OTHER = "of-another-size"
TRUTH = np.ones(8, np.float32)


@pytest_asyncio.fixture
async def measuring(postgres: EmbeddedPostgres, tmp_path: Path) -> AsyncIterator[Mesh]:
    """A mesh with validation sets: one whose best parameters are all 1, one that fits no model."""
    folder = tmp_path / "validation"
    folder.mkdir()
    inputs = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
    np.savez(folder / f"{MODEL}.npz", inputs=inputs, targets=inputs @ TRUTH)
    np.savez(folder / f"{OTHER}.npz", inputs=inputs[:, :5], targets=inputs @ TRUTH)
    name = f"mesh_{secrets.token_hex(6)}"
    await execute(postgres.url, f"CREATE DATABASE {name} TEMPLATE boltz_template")
    async with serving(
        tmp_path / "data",
        with_database(postgres.url, name),
        validation={"folder": str(folder)},
    ) as running:
        yield running


async def _round(cli: Cli, mesh: Mesh, model: str, count: int = 6) -> tuple[list[RawClient], str]:
    """One round, in which the last client sends the opposite of what the others do."""
    clients = [await RawClient.enrol(mesh, client_key(number)) for number in range(count)]
    streams = [await client.participate(model) for client in clients]
    running = asyncio.create_task(cli.on(mesh, "round", "start", model, "--wait"))
    offers = [await stream.offer() for stream in streams]
    rng = np.random.default_rng(2)
    for number, (client, offer) in enumerate(zip(clients, offers, strict=True)):
        sign = -1 if number == count - 1 else 1
        delta = sign * (0.1 + 0.02 * rng.normal(size=8)).astype(np.float32)
        await submit(client, seal(offer, delta))
    result = await running
    assert result.code == 0, result.err
    for stream in streams:
        stream.cancel()
    return clients, offers[0].configuration.round_id


async def test_a_round_shows_who_contributed_what(cli: Cli, measuring: Mesh) -> None:
    await declare(measuring, MODEL, np.zeros(8, np.float32), min=6, target=6, max=6)
    clients, round_id = await _round(cli, measuring, MODEL)
    (document,) = (await cli.on(measuring, "round", "show", round_id, "--json")).document
    rows = document["contributions"]
    assert sorted(row["row"] for row in rows) == sorted(c.client_id for c in clients)
    assert all(row["clients"] == [row["row"]] for row in rows)
    assert abs(sum(row["share"] for row in rows) - 1) < 1e-9
    *others, worst = rows
    assert worst["row"] == clients[-1].client_id
    assert worst["agreement"] < 0
    assert worst["influence"] < 0 < min(row["influence"] for row in others)
    assert worst["verdict"] == "far-and-against-the-others"
    shown = await cli.on(measuring, "round", "show", round_id)
    lines = [line.strip() for line in shown.out.splitlines()]
    table = lines[lines.index("contributions") + 1 :]
    assert table[0].split() == ["client", "share", "agreement", "influence", "looks"]
    assert table[-1].startswith(clients[-1].client_id)
    assert "16.7%" in table[-1]
    assert "far and against the others" in table[-1]


async def test_a_set_that_does_not_fit_costs_no_round(cli: Cli, measuring: Mesh) -> None:
    await declare(measuring, OTHER, np.zeros(8, np.float32), min=6, target=6, max=6)
    _, round_id = await _round(cli, measuring, OTHER)
    (document,) = (await cli.on(measuring, "round", "show", round_id, "--json")).document
    assert len(document["contributions"]) == 6
    assert all("influence" not in row for row in document["contributions"])
    table = (await cli.on(measuring, "round", "show", round_id)).out
    assert "agreement" in table
    assert "influence" not in table


async def test_with_noise_nothing_is_shown(cli: Cli, measuring: Mesh) -> None:
    budget = "[budget]\nepsilon = 50.0\ndelta = 1e-6\n"
    await declare(
        measuring,
        MODEL,
        np.zeros(8, np.float32),
        min=6,
        target=6,
        max=6,
        privacy="client-dp",
        noise=1.0,
        tables=budget,
    )
    _, round_id = await _round(cli, measuring, MODEL)
    (document,) = (await cli.on(measuring, "round", "show", round_id, "--json")).document
    assert document["phase"] == "PHASE_PUBLISHED"
    assert "contributions" not in document
    assert "contributions" not in (await cli.on(measuring, "round", "show", round_id)).out
