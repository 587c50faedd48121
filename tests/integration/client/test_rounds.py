"""Rounds against a real gRPC mesh: the usual way, cuts, restarts, refusals, stops."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltz_client import MeshClient, NoticeKind, RoundContext, TrainResult
from boltz_client.adapters.numpy import FunctionTrainer
from boltz_protocol import messages as m
from boltz_protocol.errors import (
    ClientNotActive,
    MeshError,
    NormExceeded,
    NotFound,
    RoundClosed,
    StateConflict,
    Superseded,
    Unavailable,
)
from boltz_protocol.model_file import Vector
from tests.integration.client.conftest import ANY_MODE, Clients
from tests.integration.client.heard import Heard
from tests.support.mini_mesh import MODEL, MiniMesh, with_mode
from tests.support.mini_mesh_server import restart, running

LARGE = (m.TensorSpec("w", (1_000_000,)),)


def toward(target: float, samples: int = 57) -> FunctionTrainer:
    """Moves every weight a little towards a target."""

    def train(model: dict[str, Vector], round: RoundContext) -> TrainResult:
        rate = round.number("rate", 0.1)
        with np.errstate(over="ignore"):
            moved = {name: array + rate * (target - array) for name, array in model.items()}
        return TrainResult(weights=moved, metrics={"loss": 2.0})

    return FunctionTrainer(train, samples)


def join_in(client: MeshClient, trainer: Any, **arguments: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(client.participate(trainer, MODEL, **arguments))


async def test_clients_move_the_model_together(mesh: MiniMesh, clients: Clients) -> None:
    both = [await clients.open(), await clients.open()]
    tasks = [join_in(client, toward(4.0), rounds=2) for client in both]
    for _ in range(2):
        await mesh.start_round(2, hyperparameters={"rate": 0.05})
        await mesh.finish_round()
    for summary in await asyncio.gather(*tasks):
        assert (summary.published, summary.counted, summary.declined) == (2, 2, 0)
    np.testing.assert_allclose(mesh.vector, np.full(8, 4 * (1 - 0.95**2)), rtol=1e-3)
    assert all(list(client.spool.folder.iterdir()) == [] for client in both)


async def test_metrics_travel_as_lanes(mesh: MiniMesh, clients: Clients) -> None:
    task = join_in(await clients.open(), toward(0.5), rounds=1)
    await mesh.start_round(1, lanes=(m.Lane("loss", 0.125),))
    await mesh.finish_round()
    await task
    assert mesh.lanes == pytest.approx((0.25,), abs=1e-3)


async def test_a_delta_beyond_the_clip_norm_is_clipped(mesh: MiniMesh, clients: Clients) -> None:
    task = join_in(await clients.open(), toward(1000.0), rounds=1)
    await mesh.start_round(1)
    await mesh.finish_round()
    await task
    assert np.linalg.norm(mesh.vector) == pytest.approx(1.0, rel=1e-3)


async def test_a_cut_upload_goes_on_with_the_same_bytes(tmp_path: Path) -> None:
    async with running(LARGE, np.zeros(1_000_000, dtype=np.float32)) as mesh:
        clients = Clients(mesh, tmp_path)
        mesh.faults.cut_uploads = [1, 0, 2, 1]
        task = join_in(await clients.open(), toward(0.001), rounds=1)
        round = await mesh.start_round(1, hyperparameters={"rate": 1.0})
        await mesh.finish_round()
        await task
        (update,) = round.updates.values()
        assert len(update.chunks) == 4
        np.testing.assert_allclose(mesh.vector, 0.001, atol=2e-5)
        await clients.stack.aclose()


async def test_a_server_that_restarts_gets_the_same_bytes(tmp_path: Path) -> None:
    async with running(LARGE, np.zeros(1_000_000, dtype=np.float32)) as mesh:
        clients = Clients(mesh, tmp_path)
        heard = Heard()
        task = join_in(await clients.open(), toward(0.001), rounds=1, notify=heard)
        round = await mesh.start_round(1)
        await mesh.wait(lambda: mesh.round is round and bool(mesh.streams))
        await heard.until(NoticeKind.TRAINED)
        await restart(mesh)
        await mesh.finish_round()
        assert (await task).counted == 1
        assert len(heard.all(NoticeKind.TRAINED)) == 1
        assert len(round.updates) == 1
        await clients.stack.aclose()


async def test_a_restarted_client_sends_what_it_sealed(mesh: MiniMesh, clients: Clients) -> None:
    path = await clients.enrol()
    mesh.faults.refuse_uploads = [Unavailable("down", retry_after_ms=60_000)]
    heard = Heard()
    async with MeshClient.open(path, owner=ANY_MODE) as first:
        task = join_in(first, toward(1.0), notify=heard)
        round = await mesh.start_round(1)
        await heard.until(NoticeKind.TRAINED)
        await mesh.wait(lambda: "submit" in mesh.calls)
        sealed = await asyncio.to_thread(first.spool.find, round.configuration.round_id, 1)
        assert sealed is not None
    await task
    mesh.faults.refuse_uploads = []
    client = await clients.open(path)
    again = join_in(client, toward(-1.0))
    await mesh.finish_round()
    await client.stop()
    await again
    assert round.updates[sealed.manifest.client_id].manifest == sealed.manifest
    assert (mesh.vector > 0).all()


async def test_a_restarted_client_without_a_spool_sits_the_round_out(
    mesh: MiniMesh, clients: Clients
) -> None:
    path = await clients.enrol()
    release = threading.Event()

    def train(model: dict[str, Vector], round: RoundContext) -> TrainResult:
        release.wait(10)
        assert round.should_stop()
        return TrainResult(weights=dict(model))

    heard = Heard()
    async with MeshClient.open(path, owner=ANY_MODE) as first:
        task = join_in(first, FunctionTrainer(train, 5), notify=heard)
        await mesh.start_round(1)
        await heard.until(NoticeKind.OFFERED)
    release.set()
    await task
    second = Heard()
    client = await clients.open(path)
    join_in(client, toward(1.0), rounds=1, notify=second)
    await second.until(NoticeKind.CHECKED_IN)
    mesh.offer(client.client_id)
    notice = await second.until(NoticeKind.DECLINED)
    assert notice.error is not None
    assert "earlier run" in notice.error.message


DECLINED: list[tuple[dict[str, Any], str]] = [
    ({"change": with_mode(m.RoundMode.SEALED)}, "ROUND_REFUSED"),
    ({"change": lambda c: replace(c, bound_l2=c.bound_l2 + 1)}, "ROUND_REFUSED"),
    ({"change": lambda c: replace(c, roster_root=b"z" * 32)}, "WEIGHT_REFUSED"),
    ({"change": lambda c: replace(c, model_sha256=b"z" * 32)}, "ROUND_REFUSED"),
    ({"change": lambda c: replace(c, base_version=7)}, "NOT_FOUND"),
    ({"lanes": (m.Lane("profit", 1.0),)}, "TRAINING_FAILED"),
    ({"hyperparameters": {"rate": "fast"}}, "CONFIGURATION"),
    ({"hyperparameters": {"rate": 1e300}}, "NOT_FINITE"),
]


@pytest.mark.parametrize(("start", "reason"), DECLINED, ids=[reason for _, reason in DECLINED])
async def test_what_cannot_be_done_is_declined(
    mesh: MiniMesh, clients: Clients, start: dict[str, Any], reason: str
) -> None:
    client = await clients.open()
    task = join_in(client, toward(1.0), rounds=2)
    round = await mesh.start_round(1, **start)
    await mesh.wait(lambda: bool(round.declined))
    assert list(round.declined.values()) == [reason]
    assert not round.updates
    # The next round finds the client unharmed.
    await mesh.start_round(1)
    await mesh.finish_round()
    assert (await task).declined == 1
    assert list(client.spool.folder.iterdir()) == []


async def test_the_owners_limits_decline(mesh: MiniMesh, clients: Clients) -> None:
    owner = replace(ANY_MODE, least_noise_multiplier=1.0)
    task = join_in(await clients.open(owner=owner), toward(1.0))
    round = await mesh.start_round(1)
    await mesh.wait(lambda: bool(round.declined))
    assert list(round.declined.values()) == ["ROUND_REFUSED"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_whatever_a_trainer_raises_is_declined_and_told(
    mesh: MiniMesh, clients: Clients
) -> None:
    def explode(model: dict[str, Vector], round: RoundContext) -> TrainResult:
        raise ZeroDivisionError("no rows today")

    heard = Heard()
    join_in(await clients.open(), FunctionTrainer(explode, 5), rounds=1, notify=heard)
    await mesh.start_round(1)
    error = (await heard.until(NoticeKind.DECLINED)).error
    assert error is not None
    assert "ZeroDivisionError: no rows today" in error.message
    assert isinstance(error.__cause__, ZeroDivisionError)


async def test_a_trainer_must_return_a_result(mesh: MiniMesh, clients: Clients) -> None:
    class Wrong:
        def sample_count(self) -> int:
            return 1

        def train(self, model: Any, round: Any) -> Any:
            return 5

    task = join_in(await clients.open(), Wrong())
    round = await mesh.start_round(1)
    await mesh.wait(lambda: bool(round.declined))
    assert list(round.declined.values()) == ["TRAINING_FAILED"]
    task.cancel()


async def test_a_trainer_that_cannot_count_is_told_at_once(
    mesh: MiniMesh, clients: Clients
) -> None:
    def count() -> int:
        raise OSError("the disk is gone")

    with pytest.raises(MeshError, match="the disk is gone"):
        await join_in(await clients.open(), FunctionTrainer(lambda m, r: {}, count))


async def test_other_samples_are_told_by_a_new_check_in(mesh: MiniMesh, clients: Clients) -> None:
    def train(model: dict[str, Vector], round: RoundContext) -> TrainResult:
        return TrainResult(weights=dict(model), samples=5000)

    client = await clients.open()
    task = join_in(client, FunctionTrainer(train, 57))
    round = await mesh.start_round(1)
    assert round.entries[client.client_id][1].sample_bucket == 5
    await mesh.finish_round()
    await mesh.wait(lambda: mesh.streams[client.client_id].check_in.sample_bucket == 12)
    await client.stop()
    await task


async def test_a_deadline_ends_the_training(mesh: MiniMesh, clients: Clients) -> None:
    stopped = threading.Event()

    def train(model: dict[str, Vector], round: RoundContext) -> TrainResult:
        if round.stopped.wait(10):
            stopped.set()
        return TrainResult(weights=dict(model))

    task = join_in(await clients.open(), FunctionTrainer(train, 5), rounds=1)
    await mesh.start_round(1, deadline_ms=300)
    assert (await task).declined == 1
    assert await asyncio.to_thread(stopped.wait, 5)


async def test_a_newer_round_takes_the_place_of_an_older(mesh: MiniMesh, clients: Clients) -> None:
    started, release = threading.Event(), threading.Event()
    calls: list[str] = []

    def train(model: dict[str, Vector], round: RoundContext) -> TrainResult:
        calls.append(round.round_id)
        started.set()
        if len(calls) == 1:
            release.wait(10)
        return TrainResult(weights=dict(model))

    task = join_in(await clients.open(), FunctionTrainer(train, 5), rounds=2)
    first = await mesh.start_round(1)
    await asyncio.to_thread(started.wait, 10)
    second = await mesh.start_round(1)
    await mesh.finish_round()
    release.set()
    summary = await task
    assert (summary.published, len(calls)) == (1, 2)
    assert (len(first.updates), len(second.updates)) == (0, 1)


@pytest.mark.parametrize(
    "error", [ClientNotActive("revoked"), Superseded("a newer run"), NotFound("no such model")]
)
async def test_errors_after_which_coming_back_is_useless_end_it(
    mesh: MiniMesh, clients: Clients, error: MeshError
) -> None:
    client = await clients.open()
    mesh.faults.refuse_participate = [Unavailable("starting"), error]
    with pytest.raises(type(error)):
        await join_in(client, toward(1.0))
    # The same in the middle of a stream.
    task = join_in(client, toward(1.0))
    await mesh.wait(lambda: bool(mesh.streams))
    mesh.push(client.client_id, error)
    with pytest.raises(type(error)):
        await task


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RoundClosed("too late"), "ROUND_CLOSED"),
        (NormExceeded("too long"), "NORM_EXCEEDED"),
    ],
)
async def test_an_upload_that_the_mesh_refuses_is_given_up(
    mesh: MiniMesh, clients: Clients, error: MeshError, reason: str
) -> None:
    mesh.faults.refuse_uploads = [StateConflict("the last call is still here"), error]
    task = join_in(await clients.open(), toward(1.0))
    round = await mesh.start_round(1)
    await mesh.wait(lambda: bool(round.declined))
    assert list(round.declined.values()) == [reason]
    task.cancel()


@pytest.mark.parametrize(
    "change", [{"sha256": b"z" * 32}, {"client_id": "99" * 16}, {"mesh_id": "other"}], ids=str
)
async def test_a_receipt_for_another_update_is_none(
    mesh: MiniMesh, clients: Clients, change: dict[str, Any]
) -> None:
    mesh.faults.mangle_receipt = lambda receipt: replace(receipt, **change)
    heard = Heard()
    task = join_in(await clients.open(), toward(1.0), notify=heard)
    await mesh.start_round(1)
    error = (await heard.until(NoticeKind.DECLINED)).error
    assert error is not None
    assert "another update" in error.message
    task.cancel()


async def test_an_offer_that_the_mesh_did_not_sign_is_ignored(
    mesh: MiniMesh, clients: Clients
) -> None:
    def forge(offer: m.RoundOffer) -> m.RoundOffer:
        signature = bytes(64)
        return replace(offer, configuration=replace(offer.configuration, signature=signature))

    mesh.faults.mangle_offer = forge
    heard = Heard()
    client = await clients.open()
    task = join_in(client, toward(1.0), rounds=1, notify=heard)
    round = await mesh.start_round(1)
    await heard.until(NoticeKind.IGNORED)
    assert not round.declined
    mesh.faults.mangle_offer = lambda offer: offer
    mesh.offer(client.client_id)
    await mesh.finish_round()
    assert (await task).counted == 1


async def test_submit_update_fixes_the_bytes_once(mesh: MiniMesh, clients: Clients) -> None:
    client = await clients.open()
    offers: list[m.RoundOffer] = []

    def keep(offer: m.RoundOffer) -> m.RoundOffer:
        offers.append(offer)
        return offer

    def never(model: dict[str, Vector], round: RoundContext) -> TrainResult:
        round.stopped.wait(10)
        return TrainResult(weights=dict(model))

    mesh.faults.mangle_offer = keep
    task = join_in(client, FunctionTrainer(never, 57))
    round = await mesh.start_round(1)
    accepted = await client.accept(offers[0], MODEL)
    base = await client.pull_model(MODEL, accepted.configuration.base_version)
    first = await client.submit_update(accepted, base, TrainResult(delta=np.ones(8, np.float32)))
    again = await client.submit_update(accepted, base, TrainResult(delta=-np.ones(8, np.float32)))
    assert first == again
    assert round.updates[client.client_id].manifest.sha256 == first.sha256
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_rounds_trace_goes_on_in_the_client(mesh: MiniMesh, clients: Clients) -> None:
    task = join_in(await clients.open(), toward(1.0), rounds=1)
    await mesh.start_round(1)
    await mesh.finish_round()
    await task
    # Without an SDK the remote context is handed on as it came.
    carried = [found["traceparent"] for found in mesh.metadata if "traceparent" in found]
    assert carried
    assert all("0af7651916cd43dd8448eb211c80319c" in parent for parent in carried)


async def test_the_end_of_an_earlier_runs_round_is_no_round_of_this_run(
    mesh: MiniMesh, clients: Clients
) -> None:
    path = await clients.enrol()
    async with MeshClient.open(path, owner=ANY_MODE) as first:
        task = join_in(first, toward(1.0), rounds=1)
        await mesh.start_round(1)
        await mesh.finish_round()
        await task
    await mesh.wait(lambda: not mesh.streams)
    heard = Heard()
    client = await clients.open(path)
    task = join_in(client, toward(1.0), rounds=1, notify=heard)
    await heard.until(NoticeKind.CHECKED_IN)
    mesh.tell_outcome(client.client_id, 2, counted=True)
    await heard.until(NoticeKind.ENDED)
    assert not task.done()
    await mesh.start_round(1)
    await mesh.finish_round()
    assert (await task).published == 1
