"""What tests of whole rounds say again and again."""

from __future__ import annotations

import numpy as np

from boltz_protocol.model_file import read_vector
from boltz_protocol.v1 import aggregator_pb2 as agg
from tests.support.calls import answered
from tests.support.clients import (
    ControlStream,
    RawClient,
)
from tests.support.mesh import Mesh
from tests.support.models import Vector, pull, tensors


def constant(value: float, size: int = 8) -> Vector:
    return np.full(size, value, np.float32)


async def live(mesh: Mesh, model: str, size: int = 8) -> Vector:
    """The parameters of the live version."""
    return read_vector(bytes((await pull(mesh.operator, model)).data), tensors(size))


async def all_in(clients: list[RawClient], model: str) -> list[ControlStream]:
    return [await client.participate(model) for client in clients]


async def leave(streams: list[ControlStream]) -> None:
    for stream in streams:
        stream.cancel()


async def budget(mesh: Mesh, model: str, client_id: str = "") -> agg.GetPrivacyBudgetResponse:
    request = agg.GetPrivacyBudgetRequest(model_id=model, client_id=client_id)
    return await answered(mesh.operator.aggregator.GetPrivacyBudget(request))


async def abort(mesh: Mesh, round_id: str, reason: str = "wrong data") -> agg.Round:
    request = agg.AbortRoundRequest(round_id=round_id, reason=reason)
    return (await answered(mesh.operator.aggregator.AbortRound(request))).round
