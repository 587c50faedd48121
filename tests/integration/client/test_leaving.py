"""Clients that stop: in order, and with their last words said."""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import replace

from boltz_client import NoticeKind, RoundContext, TrainResult
from boltz_client.adapters.numpy import FunctionTrainer
from boltz_protocol.errors import Unavailable
from boltz_protocol.model_file import Vector
from tests.integration.client.conftest import ANY_MODE, Clients
from tests.integration.client.heard import Heard
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
    task = join_in(
        await clients.open(owner=replace(ANY_MODE, smallest_cohort=9)), toward(1.0), rounds=1
    )
    round = await mesh.start_round(1)
    assert (await task).declined == 1
    await mesh.wait(lambda: bool(round.declined))
    assert list(round.declined.values()) == ["ROUND_REFUSED"]


async def test_who_takes_part_again_sends_what_was_sealed(mesh: MiniMesh, clients: Clients) -> None:
    client = await clients.open()
    heard = Heard()
    mesh.faults.refuse_uploads = [Unavailable("down", retry_after_ms=60_000)]
    task = join_in(client, toward(1.0), notify=heard)
    round = await mesh.start_round(1)
    await mesh.wait(lambda: "submit" in mesh.calls)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await mesh.wait(lambda: not mesh.streams)
    again = Heard()
    second = join_in(client, toward(-1.0), rounds=1, notify=again)
    await mesh.finish_round()
    assert (await second).counted == 1
    assert not again.all(NoticeKind.TRAINED)
    assert len(round.updates) == 1
    assert (mesh.vector > 0).all()


async def test_long_trainings_do_not_keep_other_clients_waiting(
    mesh: MiniMesh, clients: Clients
) -> None:
    """More of them than the event loop's own pool has threads."""
    many = min(32, (os.cpu_count() or 1) + 4) + 2
    together = threading.Barrier(many)

    def train(model: dict[str, Vector], round: RoundContext) -> TrainResult:
        together.wait(30)
        return TrainResult(weights=dict(model))

    tasks = [
        join_in(await clients.open(), FunctionTrainer(train, 5), rounds=1) for _ in range(many)
    ]
    await mesh.start_round(many)
    await mesh.finish_round()
    assert [summary.counted for summary in await asyncio.gather(*tasks)] == [1] * many
