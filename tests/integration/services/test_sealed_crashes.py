"""kill -9 of the server in each step of a sealed round: nothing is asked twice in two ways, the sum
is the survivors', and the ledger is charged once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from boltz_protocol.v1 import aggregator_pb2 as agg
from tests.integration.services.playing import all_in, constant, live
from tests.integration.services.test_sealed import SEALED, advertise, release, share, sign
from tests.support.clients import RawClient, Sealed, client_key, published, start_round, submit
from tests.support.mesh import Mesh, MeshProcess, observed, opened
from tests.support.models import declare
from tests.support.sealed_clients import SealedClient

Step = Callable[[SealedClient], Awaitable[None]]
VALUES = (0.25, 0.3, -0.1, 0.15)


class Playing:
    """Four clients of one sealed round, and a server that may be killed."""

    def __init__(self) -> None:
        self.members: list[SealedClient] = []
        self.round_id = ""
        self._updates: dict[str, Sealed] = {}

    async def start(self, mesh: Mesh) -> None:
        await declare(mesh, "model", np.zeros(8, np.float32), **SEALED)
        clients = [await RawClient.enrol(mesh, client_key(number)) for number in range(4)]
        streams = await all_in(clients, "model")
        self.round_id = (await start_round(mesh, "model")).round_id
        self.members = [
            await SealedClient.join(client, stream)
            for client, stream in zip(clients, streams, strict=True)
        ]

    async def come_back(self, mesh: Mesh) -> None:
        """The same sessions on the server that was started again."""
        for member in self.members:
            member.client = member.client.on(mesh)
            member.stream = await member.client.participate("model")

    async def take(self, step: Step, members: Sequence[SealedClient]) -> None:
        await asyncio.gather(*(step(member) for member in members))

    async def upload(self, member: SealedClient) -> None:
        client_id = member.client.client_id
        if client_id not in self._updates:
            value = VALUES[self.members.index(member)]
            self._updates[client_id] = member.masked(constant(value))
        await submit(member.client, self._updates[client_id])

    async def repeated(self, member: SealedClient, step: Step) -> None:
        """What the restarted server tells of the step, where the step itself does not take it."""
        if step is advertise:
            await member.stream.offer()
        elif step == self.upload:
            await member.shares()

    def steps(self) -> list[Step]:
        return [advertise, share, SealedClient.shares, self.upload, sign, release]

    async def check(self, mesh: Mesh) -> None:
        ended = await published(mesh, self.round_id)
        assert (ended.received, ended.new_version) == (4, 2)
        np.testing.assert_allclose(
            await live(mesh, "model"), np.full(8, np.mean(VALUES)), atol=1e-5
        )
        charges = await mesh.fetch(
            "SELECT count(*) AS n FROM privacy_events WHERE round_id = $1 GROUP BY client_id",
            self.round_id,
        )
        assert [row["n"] for row in charges] == [1, 1, 1, 1]
        assert not await mesh.fetch("SELECT 1 FROM privacy_holds")


@pytest_asyncio.fixture
async def process(database_url: str, tmp_path: Path) -> AsyncIterator[MeshProcess]:
    running = MeshProcess(tmp_path / "data", database_url)
    try:
        yield running
    finally:
        await running.close()


@pytest.mark.parametrize(
    "phase",
    ["ADVERTISING_KEYS", "SHARING_KEYS", "COLLECTING", "CHECKING_CONSISTENCY", "UNMASKING"],
)
async def test_killed_in_the_middle_of_a_step(
    process: MeshProcess, database_url: str, phase: str
) -> None:
    """One client of four has done the step when the server dies."""
    playing = Playing()
    number = {
        "ADVERTISING_KEYS": 0,
        "SHARING_KEYS": 1,
        "COLLECTING": 3,
        "CHECKING_CONSISTENCY": 4,
        "UNMASKING": 5,
    }[phase]
    step = playing.steps()[number]
    async with observed(database_url) as (database, listener):
        async with opened(process, database, listener) as mesh:
            await playing.start(mesh)
            for earlier in playing.steps()[:number]:
                await playing.take(earlier, playing.members)
            await playing.take(step, playing.members[:1])
            await phase_is(mesh, playing.round_id, phase)
            await process.kill()
        async with opened(process, database, listener) as mesh:
            await playing.come_back(mesh)
            for member in playing.members:
                await playing.repeated(member, step)
            for later in playing.steps()[number:]:
                await playing.take(later, playing.members)
            await playing.check(mesh)


async def phase_is(mesh: Mesh, round_id: str, phase: str) -> None:
    request = agg.GetRoundRequest(round_id=round_id)
    found = await mesh.operator.aggregator.GetRound(request)
    assert agg.Phase.Name(found.round.phase) == f"PHASE_{phase}"
