"""Clients that stop: in order, and with their last words said."""

from __future__ import annotations

import asyncio
import threading

from boltz_client import OwnerLimits, RoundContext, TrainResult
from boltz_client.adapters.numpy import FunctionTrainer
from boltz_protocol.model_file import Vector
from tests.integration.client.conftest import Clients
from tests.integration.client.test_rounds import join_in, toward
from tests.support.mini_mesh import MiniMesh


async def test_many_clients_stop_in_order(mesh: MiniMesh, clients: Clients) -> None:
    many = [await clients.open() for _ in range(5)]
    tasks = [join_in(client, toward(1.0)) for client in many]
    await mesh.wait(lambda: len(mesh.streams) == 5)
    await asyncio.gather(*(client.stop() for client in many))
    assert [task.done() for task in tasks] == [True] * 5
    assert [(await task).published for task in tasks] == [0] * 5


async def test_no_rounds_means_none(clients: Clients) -> None:
    assert (await join_in(await clients.open(), toward(1.0), rounds=0)).published == 0


async def test_a_client_that_leaves_says_so(mesh: MiniMesh, clients: Clients) -> None:
    started = threading.Event()

    def train(model: dict[str, Vector], round: RoundContext) -> TrainResult:
        started.set()
        round.stopped.wait(10)
        return TrainResult(weights=dict(model))

    client = await clients.open()
    task = join_in(client, FunctionTrainer(train, 5))
    round = await mesh.start_round(1)
    await asyncio.to_thread(started.wait, 10)
    await client.stop()
    await task
    await mesh.wait(lambda: bool(round.declined))
    assert list(round.declined.values()) == ["CLIENT_LEFT"]


async def test_the_last_decline_goes_out_before_the_client_leaves(
    mesh: MiniMesh, clients: Clients
) -> None:
    task = join_in(await clients.open(owner=OwnerLimits(smallest_cohort=9)), toward(1.0), rounds=1)
    round = await mesh.start_round(1)
    assert (await task).declined == 1
    await mesh.wait(lambda: bool(round.declined))
    assert list(round.declined.values()) == ["ROUND_REFUSED"]
