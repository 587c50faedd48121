"""Whole rounds over real gRPC."""

from __future__ import annotations

import asyncio

import numpy as np

from boltz_protocol import messages as m
from boltz_protocol.model_file import read_vector
from tests.support.clients import RawClient, published, seal, start_round, submit
from tests.support.mesh import Mesh
from tests.support.models import LOSS, declare, pull, tensors


async def test_a_round_adds_the_weighted_mean(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    start = np.arange(8, dtype=np.float32)
    await declare(mesh, model, start, tables=LOSS)
    streams = [
        await client.participate(model, sample_bucket=bucket)
        for client, bucket in zip(clients, (10, 9, 9), strict=False)
    ]
    started = await start_round(mesh, model)
    offers = [await stream.offer() for stream in streams]
    deltas = [np.full(8, value, np.float32) for value in (0.1, 0.2, -0.1)]
    receipts = await asyncio.gather(
        *(
            submit(client, seal(offer, delta, lanes=[1.0]))
            for client, offer, delta in zip(clients, offers, deltas, strict=False)
        )
    )
    assert [r.client_id for r in receipts] == [c.client_id for c in clients[:3]]
    ended = await published(mesh, started.round_id)
    assert (ended.new_version, ended.received, ended.selected) == (2, 3, 3)
    for stream in streams:
        outcome = await stream.outcome()
        assert outcome.phase is m.Phase.PUBLISHED
        assert outcome.counted
        stream.cancel()
    pulled = await pull(clients[0].stubs, model)
    vector = read_vector(bytes(pulled.data), tensors(8))
    mean = (128 * 0.1 + 64 * 0.2 - 64 * 0.1) / 256
    np.testing.assert_allclose(vector, start + mean, atol=1e-4)
