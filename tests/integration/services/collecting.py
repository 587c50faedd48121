"""A round that waits for updates, for tests that send it what it should refuse."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from boltz_protocol import limits
from boltz_protocol.errors import (
    MeshError,
)
from boltz_protocol.model_file import read_vector
from boltz_protocol.v1 import aggregator_pb2 as agg
from tests.support.clients import (
    ControlStream,
    Offer,
    RawClient,
    Sealed,
    published,
    seal,
    start_round,
    submit,
)
from tests.support.mesh import Mesh
from tests.support.models import declare, pull, tensors

#: Three chunks, the last one short.
SIZE = 2 * limits.CHUNK_PARAMETERS + 5
DELTAS = (0.0001, 0.0002, -0.0004)


@dataclass(slots=True)
class Collecting:
    """A round that waits for three updates; the first client misbehaves."""

    mesh: Mesh
    model: str
    round_id: str
    clients: list[RawClient]
    streams: list[ControlStream]
    offers: list[Offer]
    size: int

    @property
    def client(self) -> RawClient:
        return self.clients[0]

    @property
    def offer(self) -> Offer:
        return self.offers[0]

    def sealed(self, number: int = 0, **options: Any) -> Sealed:
        delta = np.full(self.size, DELTAS[number], np.float32)
        return seal(self.offers[number], delta, **options)

    async def publishes(self, counted: Iterable[int] = (0, 1, 2)) -> agg.Round:
        """The others upload, the round publishes the mean of exactly these; returns it."""
        for number in (1, 2):
            await submit(self.clients[number], self.sealed(number))
        ended = await published(self.mesh, self.round_id)
        chosen = list(counted)
        assert ended.received == len(chosen)
        pulled = await pull(self.mesh.operator, self.model)
        vector = read_vector(bytes(pulled.data), tensors(self.size))
        mean = np.mean([DELTAS[number] for number in chosen])
        np.testing.assert_allclose(vector, mean, atol=1e-5)
        for number, stream in enumerate(self.streams):
            outcome = await stream.outcome()
            assert outcome.counted is (number in chosen)
            stream.cancel()
        return ended

    async def count(self, error: type[MeshError]) -> int:
        return (await self.mesh.refusals()).get(("Aggregator/SubmitUpdate", error.reason), 0)


async def collecting(
    mesh: Mesh, clients: list[RawClient], model: str, size: int = SIZE
) -> Collecting:
    await declare(mesh, model, np.zeros(size, np.float32))
    chosen = clients[:3]
    streams = [await client.participate(model) for client in chosen]
    started = await start_round(mesh, model)
    offers = [await stream.offer() for stream in streams]
    return Collecting(mesh, model, started.round_id, chosen, streams, offers, size)
