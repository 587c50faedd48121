"""Enrolment over real TLS: the root by its fingerprint, lost replies, approval, refusals."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from boltz_client import MeshClient, Profile, enroll
from boltz_client.authority import fetch_root
from boltz_client.keystore import KeyStore
from boltz_protocol import limits
from boltz_protocol.errors import (
    ApprovalPending,
    CertificateInvalid,
    MalformedMessage,
    StateConflict,
    TokenRefused,
    Unavailable,
)
from boltz_protocol.join import JoinString, parse_join_string
from tests.integration.client.conftest import Clients
from tests.support.mini_mesh import MESH, MiniMesh
from tests.support.mini_mesh_server import running


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_a_join_string_becomes_a_key_store(mesh: MiniMesh, tmp_path: Path) -> None:
    join = mesh.join_string()
    done = await enroll(join, tmp_path / "store", region="eu-west", profile=Profile("desk 1"))
    assert done.mesh == MESH
    with KeyStore.open(tmp_path / "store") as store:
        assert store.client_id == done.client_id
    # Again, with everything done: nothing is asked of the mesh.
    assert await enroll(join, tmp_path / "store") == done


async def test_a_lost_reply_is_made_up_for(mesh: MiniMesh, tmp_path: Path) -> None:
    mesh.faults.lose_enrol_replies = 1
    done = await enroll(mesh.join_string(), tmp_path / "store")
    assert list(mesh.clients) == [done.client_id]


async def test_an_operators_approval_can_be_waited_for(mesh: MiniMesh, tmp_path: Path) -> None:
    mesh.faults.pending = 1
    join = mesh.join_string()
    with pytest.raises(ApprovalPending):
        await enroll(join, tmp_path / "store")
    mesh.faults.pending = 2 + limits.MAX_ENROL_TRIES
    done = await enroll(join, tmp_path / "store", wait=True)
    assert list(mesh.clients) == [done.client_id]


async def test_a_token_serves_one_client(mesh: MiniMesh, tmp_path: Path) -> None:
    join = mesh.join_string()
    await enroll(join, tmp_path / "one")
    with pytest.raises(TokenRefused):
        await enroll(join, tmp_path / "two")


async def test_another_authority_gets_no_token(mesh: MiniMesh, tmp_path: Path) -> None:
    async with running() as other:
        honest = parse_join_string(mesh.join_string())
        lured = JoinString(
            honest.mesh,
            other.enroll_address,
            other.mesh_address,
            honest.authority_fingerprint,
            honest.token,
        )
        with pytest.raises(CertificateInvalid, match="another mesh, or an attack"):
            await enroll(lured.encode(), tmp_path / "store")
        assert not other.clients
        # The folder is now bound to the first mesh's authority.
        with pytest.raises(StateConflict):
            await enroll(other.join_string(), tmp_path / "store")


async def test_a_mesh_that_is_not_there_is_said_to_be(mesh: MiniMesh, tmp_path: Path) -> None:
    join = parse_join_string(mesh.join_string())
    gone = f"127.0.0.1:{_free_port()}"
    nowhere = JoinString(MESH, gone, gone, join.authority_fingerprint, join.token)
    with pytest.raises(Unavailable, match=gone):
        await enroll(nowhere.encode(), tmp_path / "store")


def test_a_port_without_tls_is_no_mesh() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        server.close()
        with pytest.raises(Unavailable):
            fetch_root(f"127.0.0.1:{port}", "00" * 32)


async def test_what_is_no_join_string_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MalformedMessage):
        await enroll("boltz1.nonsense", tmp_path / "store")
    assert not (tmp_path / "store").exists()


async def test_a_store_that_is_not_enrolled_makes_no_client(mesh: MiniMesh, tmp_path: Path) -> None:
    mesh.faults.pending = 1
    with pytest.raises(ApprovalPending):
        await enroll(mesh.join_string(), tmp_path / "store")
    with pytest.raises(StateConflict):
        async with MeshClient.open(tmp_path / "store"):
            pass


async def test_status_and_budget(clients: Clients) -> None:
    client = await clients.open()
    assert await client.status() == "ACTIVE"
    budget = await client.privacy_budget("toy")
    assert (budget.epsilon_spent, budget.epsilon_budget, budget.rounds_left) == (1.5, 2.0, 3)
    assert client.client_id in repr(client)
