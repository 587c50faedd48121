"""Plans and model files for tests: declared, published and pulled through the generated stubs."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from boltz_client.connection import Duplex
from boltz_protocol import limits
from boltz_protocol import messages as m
from boltz_protocol.ids import ModelId
from boltz_protocol.model_file import encode_model
from boltz_protocol.v1 import aggregator_pb2 as agg
from boltz_protocol.v1 import model_store_pb2 as store
from tests.support.calls import answered
from tests.support.mesh import Mesh, Stubs

Vector = npt.NDArray[np.float32]

PLAN = """\
model = "{model}"
mode = "{mode}"
clip_norm = {clip_norm}
privacy = "{privacy}"
noise_multiplier = {noise}
promotion = "{promotion}"
{top}
[cohort]
min = {min}
target = {target}
max = {max}
over_selection = {over_selection}
[deadlines]
selecting = "{selecting}"
advertising = "{advertising}"
sharing = "{sharing}"
collecting = "{collecting}"
checking = "{checking}"
unmasking = "{unmasking}"
[[tensors]]
name = "weights"
shape = [{size}]
{tables}
"""
LOSS = '[[lanes]]\nname = "loss"\nscale = 0.01\n'


def plan_toml(model: str, **changes: object) -> str:
    """A plan of one tensor, open and without noise unless something else is asked for."""
    settings: dict[str, object] = {
        "mode": "open",
        "clip_norm": 1.0,
        "privacy": "none",
        "noise": 0.0,
        "promotion": "automatic",
        "top": "",
        "min": 2,
        "target": 3,
        "max": 6,
        "over_selection": 1.0,
        "selecting": "30s",
        "advertising": "30s",
        "sharing": "30s",
        "collecting": "30s",
        "checking": "30s",
        "unmasking": "30s",
        "size": 8,
        "tables": "",
    }
    return PLAN.format(model=model, **(settings | changes))


def tensors(size: int) -> tuple[m.TensorSpec, ...]:
    """The tensors of `plan_toml`."""
    return (m.TensorSpec("weights", (size,), m.Dtype.FLOAT32),)


# --- models -------------------------------------------------------------------------------------


def publish_requests(
    model: str,
    content: bytes,
    *,
    chunk_bytes: int = limits.MODEL_CHUNK_BYTES,
    header: dict[str, Any] | None = None,
    promote: bool = True,
) -> list[store.PublishRequest]:
    """A whole Publish, in order."""
    fields: dict[str, Any] = {
        "model_id": model,
        "sha256": hashlib.sha256(content).digest(),
        "size_bytes": len(content),
        "promote": promote,
    }
    requests = [store.PublishRequest(header=store.PublishHeader(**(fields | (header or {}))))]
    for offset in range(0, len(content), chunk_bytes):
        chunk = store.ModelChunk(offset=offset, data=content[offset : offset + chunk_bytes])
        requests.append(store.PublishRequest(chunk=chunk))
    return requests


async def publish(stubs: Stubs, requests: Iterable[store.PublishRequest]) -> store.ModelVersion:
    async def sent() -> AsyncIterator[store.PublishRequest]:
        for request in requests:
            yield request

    return (await answered(stubs.models.Publish(sent()))).version


async def declare(mesh: Mesh, model: str, start: Vector | None = None, **plan: object) -> ModelId:
    """Apply a plan; publish and promote its first version."""
    vector = np.zeros(8, np.float32) if start is None else start
    text = plan_toml(model, **({"size": vector.size} | plan))
    await answered(mesh.operator.aggregator.ApplyPlan(agg.ApplyPlanRequest(plan_toml=text)))
    content = encode_model(tensors(vector.size), vector)
    await publish(mesh.operator, publish_requests(model, content))
    return ModelId(model)


PullCall = Duplex[store.PullRequest, store.PullResponse]


@dataclass(slots=True)
class Pulled:
    """What a pull brought: the version, and bytes from `offset` on."""

    version: store.ModelVersion
    offset: int
    data: bytearray = field(default_factory=bytearray)


async def pull(
    stubs: Stubs,
    model: str,
    *,
    version: int = 0,
    offset: int = 0,
    credits: int = 16,
    stop_after: int | None = None,
) -> Pulled:
    """Pull to the end, giving back each credit; or cancel after so many chunks."""
    call = PullCall(stubs.models.Pull, ())
    opening = store.PullOpen(model_id=model, version=version, offset=offset, credits=credits)
    await call.write(store.PullRequest(open=opening))
    first = await call.read()
    assert first is not None
    assert first.WhichOneof("message") == "header"
    pulled = Pulled(first.header.version, offset)
    manifest = store.ModelManifest.FromString(pulled.version.manifest.payload)
    taken, granted = 0, credits
    while (left := manifest.size_bytes - offset - len(pulled.data)) > 0:
        if stop_after is not None and taken >= stop_after:
            call.cancel()
            return pulled
        response = await call.read()
        assert response is not None
        assert response.chunk.offset == offset + len(pulled.data)
        pulled.data += response.chunk.data
        taken += 1
        left -= len(response.chunk.data)
        # Only where the server cannot have sent everything: a write to a call that the server has
        # ended can replace its status.
        if left > (granted - taken) * limits.MODEL_CHUNK_BYTES:
            granted += 1
            await call.write(store.PullRequest(credit=store.PullCredit(chunks=1)))
    assert await call.read() is None
    return pulled
