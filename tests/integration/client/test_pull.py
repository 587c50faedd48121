"""Pulls: verified, resumable, and refused when anything is not as signed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from boltz_protocol import limits
from boltz_protocol import messages as m
from boltz_protocol.errors import (
    DigestMismatch,
    NotFound,
    SignatureInvalid,
    Unavailable,
    UnknownKey,
)
from boltz_protocol.model_file import Vector
from tests.integration.client.conftest import Clients
from tests.support.mini_mesh import MODEL, MiniMesh
from tests.support.mini_mesh_server import running

LARGE = (m.TensorSpec("w", (1200, 1000)),)
LARGE_VECTOR: Vector = np.arange(1_200_000, dtype=np.float32)


async def test_a_small_model_stays_in_memory(clients: Clients, tmp_path: Path) -> None:
    client = await clients.open()
    model = await client.pull_model(MODEL)
    assert model.path is None
    assert model.manifest.version == 1
    assert {name: array.shape for name, array in model.tensors().items()} == {
        "w": (3, 2),
        "b": (2,),
    }
    model.save(tmp_path / "out.safetensors")
    assert safetensors.numpy.load_file(tmp_path / "out.safetensors").keys() == {"w", "b"}
    assert list(client.spool.folder.iterdir()) == []


async def test_versions(mesh: MiniMesh, clients: Clients) -> None:
    client = await clients.open()
    mesh.publish(np.ones(8, dtype=np.float32))
    assert (await client.pull_model(MODEL)).manifest.version == 2
    assert (await client.pull_model(MODEL, 1)).manifest.version == 1
    with pytest.raises(NotFound):
        await client.pull_model(MODEL, 9)
    with pytest.raises(NotFound):
        await client.pull_model("other")
    # The mesh's keys were asked for once.
    assert mesh.calls.count("keys") == 1


async def test_a_large_model_goes_on_after_cuts(tmp_path: Path) -> None:
    async with running(LARGE, LARGE_VECTOR) as mesh:
        clients = Clients(mesh, tmp_path)
        client = await clients.open()
        mesh.faults.cut_pulls = [2, 0, 1]
        model = await client.pull_model(MODEL)
        np.testing.assert_array_equal(model.vector, LARGE_VECTOR)
        assert not model.vector.flags.writeable
        chunk = limits.MODEL_CHUNK_BYTES
        assert mesh.calls[1:] == [f"pull from {at * chunk}" for at in (0, 2, 2, 3)]
        assert model.path is not None
        # A whole file is not fetched again: one call, which brings the header.
        del mesh.calls[:]
        again = await client.pull_model(MODEL)
        np.testing.assert_array_equal(again.vector, LARGE_VECTOR)
        assert mesh.calls == ["pull from 0"]
        # Another version takes the place of the first, which stays readable.
        mesh.publish(LARGE_VECTOR + 1)
        newer = await client.pull_model(MODEL)
        assert [newer.path] == list(client.spool.folder.iterdir())
        np.testing.assert_array_equal(model.vector, LARGE_VECTOR)
        await clients.stack.aclose()


async def test_a_restarted_client_goes_on_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_TRANSFER_TRIES", 1)
    async with running(LARGE, LARGE_VECTOR) as mesh:
        clients = Clients(mesh, tmp_path)
        path = await clients.enrol()
        client = await clients.open(path)
        # Progress allows another try; the one without progress is the last.
        mesh.faults.cut_pulls = [3, 0]
        with pytest.raises(Unavailable):
            await client.pull_model(MODEL)
        await clients.stack.aclose()
        client = await clients.open(path)
        del mesh.calls[:]
        model = await client.pull_model(MODEL)
        np.testing.assert_array_equal(model.vector, LARGE_VECTOR)
        assert mesh.calls[-1] == f"pull from {3 * limits.MODEL_CHUNK_BYTES}"
        await clients.stack.aclose()


@pytest.mark.parametrize("at", [0, 100])
async def test_other_bytes_than_promised_are_refused(
    mesh: MiniMesh, clients: Clients, at: int
) -> None:
    client = await clients.open()

    def flip(content: bytes) -> bytes:
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    mesh.faults.mangle_model = flip
    with pytest.raises(DigestMismatch):
        await client.pull_model(MODEL)
    mesh.faults.mangle_model = lambda content: content
    assert (await client.pull_model(MODEL)).manifest.version == 1


async def test_a_manifest_of_a_new_key_is_accepted_of_a_strange_one_not(
    mesh: MiniMesh, clients: Clients
) -> None:
    client = await clients.open()
    await client.pull_model(MODEL)
    mesh.rotate_statement_key()
    mesh.publish(np.ones(8, dtype=np.float32))
    assert (await client.pull_model(MODEL)).manifest.version == 2
    mesh.rotate_statement_key()
    del mesh.certificates[-1]
    mesh.publish(np.ones(8, dtype=np.float32))
    with pytest.raises(UnknownKey):
        await client.pull_model(MODEL)


async def test_a_forged_manifest_is_refused(mesh: MiniMesh, clients: Clients) -> None:
    client = await clients.open()
    statement, content = mesh.models[1]
    forged = type(statement)(
        statement.type,
        statement.payload + b"\xa0\x1f\x01",
        statement.key_id,
        statement.algorithm,
        statement.signature,
    )
    mesh.models[1] = (forged, content)
    with pytest.raises(SignatureInvalid):
        await client.pull_model(MODEL)
