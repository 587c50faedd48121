"""A mesh that does not keep to the contract gets a typed error, never a hang or a wrong result."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from boltz_client import MeshClient, NoticeKind, RoundContext, TrainResult
from boltz_client.adapters.numpy import FunctionTrainer
from boltz_protocol import codec, limits
from boltz_protocol import messages as m
from boltz_protocol.errors import (
    ChunkOutOfOrder,
    LimitExceeded,
    MalformedMessage,
    MeshError,
    RoundClosed,
    SecondMessage,
    Unavailable,
)
from boltz_protocol.model_file import Vector
from boltz_protocol.v1 import aggregator_pb2, model_store_pb2
from tests.integration.client.conftest import Clients
from tests.integration.client.heard import Heard
from tests.integration.client.test_rounds import join_in, toward
from tests.support.mini_mesh import MODEL, MiniMesh
from tests.support.mini_mesh_server import running


def _header(mesh: MiniMesh, version: int = 1) -> model_store_pb2.PullResponse:
    statement = codec.statement_to_proto(mesh.models[version][0])
    header = model_store_pb2.PullHeader(version=model_store_pb2.ModelVersion(manifest=statement))
    return model_store_pb2.PullResponse(header=header)


def _chunk(offset: int, data: bytes) -> model_store_pb2.PullResponse:
    return model_store_pb2.PullResponse(chunk=model_store_pb2.ModelChunk(offset=offset, data=data))


PULLS: dict[str, tuple[Any, type[MeshError]]] = {
    "nothing at all": (lambda mesh: [], Unavailable),
    "no header": (lambda mesh: [_chunk(0, b"x")], MalformedMessage),
    "an empty message": (lambda mesh: [model_store_pb2.PullResponse()], MalformedMessage),
    "an empty header": (
        lambda mesh: [model_store_pb2.PullResponse(header=model_store_pb2.PullHeader())],
        MeshError,
    ),
    "two headers": (lambda mesh: [_header(mesh), _header(mesh)], MalformedMessage),
    "an empty chunk": (lambda mesh: [_header(mesh), _chunk(0, b"")], MalformedMessage),
    "a chunk of another place": (lambda mesh: [_header(mesh), _chunk(8, b"x")], ChunkOutOfOrder),
    "more than the whole": (
        lambda mesh: [_header(mesh), _chunk(0, mesh.models[1][1] + b"x")],
        LimitExceeded,
    ),
    "another version": (lambda mesh: [_header(mesh, 2)], MalformedMessage),
    "half": (lambda mesh: [_header(mesh), _chunk(0, b"x")], Unavailable),
}


@pytest.mark.parametrize("name", PULLS)
async def test_pulls(
    mesh: MiniMesh, clients: Clients, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_TRANSFER_TRIES", 1)
    mesh.publish(np.ones(8, dtype=np.float32))
    script, error = PULLS[name]
    client = await clients.open()
    mesh.faults.pull_script = script(mesh)
    with pytest.raises(error):
        await client.pull_model(MODEL, 1)


async def test_a_manifest_that_changes_in_the_middle(clients: Clients, mesh: MiniMesh) -> None:
    client = await clients.open()
    mesh.faults.cut_pulls = [0]

    def mangle(content: bytes) -> bytes:
        # The first call was cut; the promoted version is another one when the second opens.
        mesh.models[1] = mesh.models[2]
        return content

    mesh.publish(np.ones(8, dtype=np.float32))
    mesh.faults.mangle_model = mangle
    with pytest.raises(MalformedMessage):
        await client.pull_model(MODEL, 1)


def _progress(committed: int) -> aggregator_pb2.SubmitUpdateResponse:
    progress = aggregator_pb2.UploadProgress(committed_bytes=committed)
    return aggregator_pb2.SubmitUpdateResponse(progress=progress)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ([aggregator_pb2.SubmitUpdateResponse()], "MALFORMED_MESSAGE"),
        ([_progress(7)], "MALFORMED_MESSAGE"),
        ([_progress(1 << 40)], "MALFORMED_MESSAGE"),
        (
            [
                aggregator_pb2.SubmitUpdateResponse(
                    receipt=codec.statement_to_proto(codec.parse_statement(b""))
                )
            ],
            "UNKNOWN_KEY",
        ),
    ],
    ids=["empty", "no boundary", "beyond the end", "an empty receipt"],
)
async def test_uploads(
    mesh: MiniMesh,
    clients: Clients,
    script: list[aggregator_pb2.SubmitUpdateResponse],
    reason: str,
) -> None:
    mesh.faults.upload_script = script
    task = join_in(await clients.open(), toward(1.0), rounds=1)
    heard_decline = await mesh.start_round(1)
    assert (await task).declined == 1
    assert not heard_decline.updates


async def test_an_upload_that_ends_without_a_receipt_is_tried_again(
    mesh: MiniMesh, clients: Clients
) -> None:
    mesh.faults.upload_script = []
    task = join_in(await clients.open(), toward(1.0), rounds=1)
    await mesh.start_round(1)
    await mesh.wait(lambda: mesh.calls.count("submit") >= 2)
    mesh.faults.upload_script = None
    await mesh.finish_round()
    assert (await task).counted == 1


async def test_a_spool_file_that_loses_bytes_is_no_update(tmp_path: Any) -> None:
    tensors = (m.TensorSpec("w", (700_000,)),)
    async with running(tensors, np.zeros(700_000, dtype=np.float32)) as mesh:
        clients = Clients(mesh, tmp_path)
        client = await clients.open()
        heard = Heard()
        mesh.faults.cut_uploads = [1]
        mesh.faults.refuse_uploads = [Unavailable("wait", retry_after_ms=1500)]
        task = join_in(client, toward(0.001), rounds=1, notify=heard)
        round = await mesh.start_round(1)
        await mesh.wait(lambda: "submit" in mesh.calls)
        (path,) = [p for p in client.spool.folder.iterdir() if p.suffix == ".update"]
        with path.open("r+b") as file:
            file.truncate(limits.CHUNK_CIPHER_BYTES + 5)
        notice = await heard.until(NoticeKind.DECLINED)
        assert notice.error is not None
        assert notice.error.reason == "DIGEST_MISMATCH"
        assert not any(update.receipt for update in round.updates.values())
        await task
        await clients.stack.aclose()


async def test_pushes_that_are_not_known_are_passed_over(mesh: MiniMesh, clients: Clients) -> None:
    mesh.faults.push_script = [aggregator_pb2.ParticipateResponse()]
    task = join_in(await clients.open(), toward(1.0), rounds=1)
    await mesh.start_round(1)
    await mesh.finish_round()
    assert (await task).counted == 1


async def test_a_protocol_version_that_was_not_offered_ends_it(
    mesh: MiniMesh, clients: Clients
) -> None:
    welcome = codec.welcome_to_proto(m.Welcome(mesh.clock.now_ms(), 2))
    mesh.faults.push_script = [aggregator_pb2.ParticipateResponse(welcome=welcome)]
    with pytest.raises(MalformedMessage, match="version 2"):
        await join_in(await clients.open(), toward(1.0))


async def test_a_server_clock_from_nowhere_is_not_believed(
    mesh: MiniMesh, clients: Clients
) -> None:
    client = await clients.open()
    now_ms = mesh.clock.now_ms()
    client.saw_server_time(now_ms + limits.MAX_CLOCK_SKEW_MS * 2)
    assert abs(client.server_time_ms() - now_ms) < 10_000
    client.saw_server_time(now_ms + 60_000)
    assert client.server_time_ms() - now_ms >= 50_000


async def test_a_broken_invariant_of_ours_is_raised(mesh: MiniMesh, clients: Clients) -> None:
    client = await clients.open()

    def sabotage(model: dict[str, Vector], round: RoundContext) -> TrainResult:
        # What only a bug could do: the client's own seal is gone.
        client.seal_update = None  # type: ignore[method-assign,assignment]
        return TrainResult(weights=dict(model))

    task = join_in(client, FunctionTrainer(sabotage, 5))
    await mesh.start_round(1)
    with pytest.raises(TypeError):
        await task


async def test_a_full_disk_is_a_decline(
    mesh: MiniMesh, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    client: MeshClient = await clients.open()
    await client.pull_model(MODEL)
    client.spool.folder.rmdir()
    task = join_in(client, toward(1.0), rounds=1)
    round = await mesh.start_round(1)
    await mesh.wait(lambda: bool(round.declined) or task.done())
    assert (await task).declined == 1


async def test_notices_of_sealed_rounds_where_none_is_in_work(
    mesh: MiniMesh, clients: Clients
) -> None:
    client = await clients.open()
    heard = Heard()
    task = join_in(client, toward(1.0), rounds=1, notify=heard)
    await heard.until(NoticeKind.CHECKED_IN)
    stray = aggregator_pb2.ParticipateResponse(peers=aggregator_pb2.PeersNotice(round_id="x"))
    mesh.push(client.client_id, stray)
    await mesh.start_round(1)
    # And in an open round.
    mesh.push(client.client_id, stray)
    await mesh.finish_round()
    assert (await task).counted == 1
    assert not heard.all(NoticeKind.IGNORED)


@pytest.mark.parametrize("error", [RoundClosed("too late"), SecondMessage("another came first")])
async def test_an_error_about_the_round_ends_the_round_and_not_the_client(
    mesh: MiniMesh, clients: Clients, error: MeshError
) -> None:
    started = threading.Event()

    def train(model: dict[str, Vector], round: RoundContext) -> TrainResult:
        started.set()
        round.stopped.wait(10)
        return TrainResult(weights=dict(model))

    client = await clients.open()
    heard = Heard()
    task = join_in(client, FunctionTrainer(train, 5), rounds=2, notify=heard)
    round = await mesh.start_round(1)
    await asyncio.to_thread(started.wait, 10)
    mesh.push(client.client_id, error)
    notice = await heard.until(NoticeKind.DECLINED)
    assert notice.error is not None
    # The offer that is repeated on the next stream is declined.
    await mesh.wait(lambda: bool(round.declined))
    assert list(round.declined.values()) == [error.reason]
    # The same with nothing in work.
    mesh.push(client.client_id, error)
    await heard.until(NoticeKind.CHECKED_IN, 3)
    assert not task.done()
    task.cancel()
