"""SubmitUpdate, the bytes: what does not authenticate, follow or fit is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from boltz_protocol.errors import (
    ChunkOutOfOrder,
    DecryptionFailed,
    LimitExceeded,
    MalformedMessage,
    MeshError,
    NormExceeded,
    RoundClosed,
    SecondDigest,
)
from boltz_protocol.v1 import aggregator_pb2 as agg
from tests.integration.services.collecting import collecting
from tests.support.calls import refused
from tests.support.clients import (
    RawClient,
    Upload,
    submit,
)
from tests.support.mesh import Mesh

# --- chunks -------------------------------------------------------------------------------------

Chunks = Callable[[list[agg.UpdateChunk]], list[agg.UpdateChunk]]


def flipped(chunk: agg.UpdateChunk, at: int) -> agg.UpdateChunk:
    data = bytearray(chunk.data)
    data[at] ^= 1
    return agg.UpdateChunk(offset=chunk.offset, data=bytes(data))


def swapped(chunks: list[agg.UpdateChunk]) -> list[agg.UpdateChunk]:
    """The second chunk's bytes in the first one's place."""
    return [agg.UpdateChunk(offset=0, data=chunks[1].data)]


def oversize(chunks: list[agg.UpdateChunk]) -> list[agg.UpdateChunk]:
    return [agg.UpdateChunk(offset=0, data=chunks[0].data + b"x")]


@pytest.mark.parametrize(
    ("chunks", "error"),
    [
        (oversize, LimitExceeded),
        (lambda c: [c[1]], ChunkOutOfOrder),
        (lambda c: [c[0], c[2]], ChunkOutOfOrder),
        (lambda c: [c[0], c[0]], ChunkOutOfOrder),
        (lambda c: c[:2], ChunkOutOfOrder),
        (lambda c: [], ChunkOutOfOrder),
        (lambda c: [agg.UpdateChunk(offset=1, data=c[0].data)], ChunkOutOfOrder),
        (lambda c: [agg.UpdateChunk(offset=0, data=c[0].data[:-1])], MalformedMessage),
        (lambda c: [agg.UpdateChunk(offset=0)], MalformedMessage),
        (lambda c: [flipped(c[0], 0)], DecryptionFailed),
        (lambda c: [c[0], flipped(c[1], -1)], DecryptionFailed),
        (lambda c: [c[0], c[1], flipped(c[2], 3)], DecryptionFailed),
        (swapped, DecryptionFailed),
    ],
)
async def test_chunks_that_are_refused(
    mesh: Mesh,
    clients: list[RawClient],
    model: str,
    chunks: Chunks,
    error: type[MeshError],
) -> None:
    round = await collecting(mesh, clients, model)
    sealed = round.sealed()
    before = await round.count(error)
    with refused(error):
        await submit(round.client, sealed, chunks=chunks(sealed.messages()))
    assert await round.count(error) == before + 1
    # The update is where it was: it goes on from what was good.
    upload = Upload(round.client.stubs)
    held = await upload.announce(sealed.statement(round.client))
    assert isinstance(held, int)
    await upload.send(sealed.messages(held))
    await upload.receipt()
    await round.publishes()


async def test_a_manifest_in_the_middle(mesh: Mesh, clients: list[RawClient], model: str) -> None:
    round = await collecting(mesh, clients, model)
    sealed = round.sealed()
    upload = Upload(round.client.stubs)
    await upload.announce(sealed.statement(round.client))
    with refused(MalformedMessage):
        await upload.announce(sealed.statement(round.client))
    await submit(round.client, sealed)
    await round.publishes()


async def test_bytes_for_another_context(mesh: Mesh, clients: list[RawClient], model: str) -> None:
    """Sealed for another model: the commitment itself does not fit."""
    round = await collecting(mesh, clients, model, 8)
    strange = round.sealed(context=lambda context: replace(context, model_digest=bytes(32)))
    with refused(DecryptionFailed):
        await submit(round.client, strange)
    await submit(round.client, round.sealed())
    await round.publishes()


def too_long(values: Any) -> None:
    values[:] = (1 << 22) - 1


def one_unit_too_long(values: Any) -> None:
    """As short a lie as there is in one coordinate."""
    values[:] = 0
    values[-1] = (1 << 23) - 1


@pytest.mark.parametrize("integers", [too_long, one_unit_too_long])
async def test_a_vector_that_is_too_long(
    mesh: Mesh, clients: list[RawClient], model: str, integers: Callable[[Any], None]
) -> None:
    round = await collecting(mesh, clients, model)
    long = round.sealed(integers=integers)
    before = await round.count(NormExceeded)
    # Sent to where it is certain, so that nothing is written to a call that has ended.
    enough = long.messages()[:1] if integers is too_long else long.messages()
    with refused(NormExceeded):
        await submit(round.client, long, chunks=enough)
    assert await round.count(NormExceeded) == before + 1
    with refused(RoundClosed):
        await submit(round.client, long)
    with refused(SecondDigest):  # and no second try with a better one
        await submit(round.client, round.sealed())
    assert (await round.publishes((1, 2))).dropped == 1
