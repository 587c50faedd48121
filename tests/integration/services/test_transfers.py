"""Transfers of 100 MB, cut in the middle, go on from what the other end has, byte for byte."""

from __future__ import annotations

import hashlib

import numpy as np

from boltz_protocol import limits
from boltz_protocol.statement import Statement
from boltz_protocol.v1 import model_store_pb2 as store
from tests.integration.services.playing import all_in
from tests.support.clients import RawClient, Sealed, Upload, published, seal, start_round, submit
from tests.support.mesh import Mesh
from tests.support.models import declare, pull

#: 102 MB on the wire at 3 bytes a coordinate; 136 MB as a model.
SIZE = 130 * limits.CHUNK_PARAMETERS
CUT_AFTER = 67


async def cut_in_the_middle(client: RawClient, sealed: Sealed) -> int:
    """Send some chunks and cut the call. Returns the last offset that was acknowledged."""
    upload = Upload(client.stubs)
    assert await upload.announce(sealed.statement(client)) == 0
    await upload.send(sealed.messages()[:CUT_AFTER])
    # The server acknowledges every few chunks, so there is an answer to wait for behind this.
    while upload.acknowledged[-1] < limits.CHUNK_CIPHER_BYTES * (CUT_AFTER // 2):
        await upload.answer()
    upload.call.cancel()
    return upload.acknowledged[-1]


async def test_a_large_upload_and_a_large_pull_are_cut(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    alone = {"min": 1, "target": 1, "max": 1, "collecting": "2m"}
    await declare(mesh, model, np.zeros(SIZE, np.float32), **alone)
    client = clients[0]
    (stream,) = await all_in([client], model)
    started = await start_round(mesh, model)
    sealed = seal(await stream.offer(), np.full(SIZE, 1e-6, np.float32))
    assert sealed.manifest.size_bytes > 100_000_000

    acknowledged = await cut_in_the_middle(client, sealed)
    assert acknowledged % limits.CHUNK_CIPHER_BYTES == 0
    again = Upload(client.stubs)
    held = await again.announce(sealed.statement(client))
    assert not isinstance(held, Statement)
    assert acknowledged <= held <= CUT_AFTER * limits.CHUNK_CIPHER_BYTES
    again.call.cancel()
    # Cut once more before a single byte: nothing is lost by that either.
    receipt = await submit(client, sealed)
    assert receipt.sha256 == sealed.manifest.sha256
    assert (await published(mesh, started.round_id)).new_version == 2
    stream.cancel()

    first = await pull(client.stubs, model, stop_after=CUT_AFTER)
    assert len(first.data) == CUT_AFTER * limits.MODEL_CHUNK_BYTES
    rest = await pull(client.stubs, model, version=2, offset=len(first.data))
    manifest = store.ModelManifest.FromString(first.version.manifest.payload)
    assert manifest.size_bytes == len(first.data) + len(rest.data)
    digest = hashlib.sha256(first.data)
    digest.update(rest.data)
    assert digest.digest() == manifest.sha256
