"""Enrolment and status: one token, one client, one key; and the end of who is shut out."""

from __future__ import annotations

import asyncio
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.x509.oid import NameOID

from boltz_client.keystore import certificate_request
from boltz_mesh.services.clock import system_clock
from boltz_protocol.certificates import (
    load_certificate,
    load_pinned_root,
    peer_of,
    verify_client_chain,
)
from boltz_protocol.errors import (
    AlreadyExists,
    ApprovalPending,
    ClientNotActive,
    LimitExceeded,
    MalformedMessage,
    MeshError,
    NotFound,
    PermissionDenied,
    StateConflict,
    TokenRefused,
)
from boltz_protocol.ids import new_client_id
from boltz_protocol.join import parse_join_string
from boltz_protocol.keys import public_key_id
from boltz_protocol.names import Role
from boltz_protocol.v1 import common_pb2 as common
from boltz_protocol.v1 import model_store_pb2 as store
from boltz_protocol.v1 import registry_pb2 as reg
from tests.support.calls import answered, refused
from tests.support.clients import RawClient, client_key, enrol_request, join_token
from tests.support.keys import short_rsa_key
from tests.support.mesh import Identity, Mesh, serving
from tests.support.models import PullCall, declare


def enrol(mesh: Mesh, request: reg.EnrollRequest) -> Any:
    return answered(mesh.enrolment.registry.Enroll(request))


async def shut_out(mesh: Mesh, client_id: str, how: str, reason: str = "") -> reg.Client:
    registry = mesh.operator.registry
    if how == "suspend":
        request = reg.SuspendClientRequest(client_id=client_id, reason=reason)
        return (await answered(registry.SuspendClient(request))).client
    revoke = reg.RevokeClientRequest(client_id=client_id, reason=reason)
    return (await answered(registry.RevokeClient(revoke))).client


# --- one token, one client ----------------------------------------------------------------------


async def test_a_certificate_for_a_token(mesh: Mesh) -> None:
    join = await join_token(mesh)
    parsed = parse_join_string(join.join_string)
    assert (parsed.mesh, parsed.enroll_address, parsed.mesh_address) == (
        mesh.name,
        mesh.addresses.enroll,
        mesh.addresses.mesh,
    )
    key = client_key(20)
    profile = reg.ClientProfile(display_name="Desk 7", organisation="A Firm", contact="x@y.z")
    answer = await enrol(mesh, enrol_request(join.join_string, key, profile=profile))
    assert answer.client_id == join.client_id
    root = load_pinned_root(answer.authority_certificate_der, parsed.authority_fingerprint)
    verified = verify_client_chain(
        list(answer.certificate_chain_der), root=root, mesh=mesh.name, now=datetime.now(UTC)
    )
    assert verified.client_id == join.client_id
    # And it works, for its own record alone.
    client = RawClient.of(mesh, key, answer)
    mine = await answered(
        client.stubs.registry.GetClient(reg.GetClientRequest(client_id=client.client_id))
    )
    assert mine.client.status == reg.CLIENT_STATUS_ACTIVE
    assert mine.client.key_id == public_key_id(key.public_key())
    assert mine.client.region == "eu-west"
    assert mine.client.profile == profile
    assert abs(mine.client.enrolled_at_ms - system_clock()) < 60_000


async def test_a_lost_reply_is_given_again_and_nothing_else_is(mesh: Mesh) -> None:
    join = (await join_token(mesh)).join_string
    request = enrol_request(join, client_key(21))
    first = await enrol(mesh, request)
    assert await enrol(mesh, request) == first
    # The same request signed again by the same key is still the same enrolment.
    again = reg.EnrollRequest()
    again.CopyFrom(request)
    again.csr_der = certificate_request(client_key(21))
    assert await enrol(mesh, again) == first
    with refused(TokenRefused):  # another key under the same request
        again.csr_der = certificate_request(client_key(22))
        await enrol(mesh, again)
    with refused(TokenRefused):  # the token again, by somebody else
        await enrol(mesh, enrol_request(join, client_key(22)))


async def test_two_at_once_with_one_token(mesh: Mesh) -> None:
    join = (await join_token(mesh)).join_string
    requests = [enrol_request(join, client_key(number)) for number in (23, 24)]
    results = await asyncio.gather(
        *(enrol(mesh, request) for request in requests), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == ["EnrollResponse", "TokenRefused"]


async def test_one_key_is_one_client(mesh: Mesh, clients: list[RawClient]) -> None:
    join = (await join_token(mesh)).join_string
    with refused(AlreadyExists):
        await enrol(mesh, enrol_request(join, clients[0].key))
    # A refusal leaves the token as it was.
    assert await enrol(mesh, enrol_request(join, client_key(25)))


async def test_tokens_that_are_no_tokens(mesh: Mesh) -> None:
    join = (await join_token(mesh)).join_string
    for token in (b"", b"short", secrets.token_bytes(32), secrets.token_bytes(33)):
        with refused(TokenRefused):
            await enrol(mesh, enrol_request(join, client_key(26), token=token))


@pytest.mark.parametrize("valid_for_ms", [-1, 1, 59_999, 31 * 24 * 3600 * 1000])
async def test_tokens_of_odd_lives(mesh: Mesh, valid_for_ms: int) -> None:
    with refused(MalformedMessage, "valid_for_ms"):
        await join_token(mesh, valid_for_ms=valid_for_ms)


async def test_a_token_ends(database_url: str, tmp_path: Path) -> None:
    ahead_ms = 0

    def clock() -> int:
        return system_clock() + ahead_ms

    async with serving(tmp_path / "data", database_url, clock) as mesh:
        join = await join_token(mesh, valid_for_ms=60_000)
        used = enrol_request((await join_token(mesh)).join_string, client_key(20))
        first = await enrol(mesh, used)
        ahead_ms = 60_001
        with refused(TokenRefused):
            await enrol(mesh, enrol_request(join.join_string, client_key(21)))
        # The first use counts: a lost reply may still be fetched.
        ahead_ms = 25 * 3600 * 1000
        assert await enrol(mesh, used) == first


# --- requests -----------------------------------------------------------------------------------


def request_of(key: Any, **names: str) -> bytes:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, text) for text in names.values()]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if names:
        uri = x509.UniformResourceIdentifier("spiffe://boltz/operator/local")
        builder = builder.add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        builder = builder.add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


async def test_names_in_a_request_are_ignored(mesh: Mesh) -> None:
    join = await join_token(mesh)
    csr = request_of(client_key(27), name="operator")
    answer = await enrol(mesh, enrol_request(join.join_string, client_key(27), csr_der=csr))
    leaf = load_certificate(answer.certificate_chain_der[0])
    peer = peer_of(leaf)
    assert (peer.role, peer.name) == (Role.CLIENT, join.client_id)
    constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not constraints.ca


def damaged_request() -> bytes:
    csr = bytearray(certificate_request(client_key(26)))
    csr[-1] ^= 1
    return bytes(csr)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"csr_der": b""}, MalformedMessage),
        ({"csr_der": b"garbage"}, MalformedMessage),
        ({"csr_der": bytes(9 << 10)}, LimitExceeded),
        ({"csr_der": damaged_request}, MalformedMessage),
        ({"csr_der": lambda: request_of(short_rsa_key())}, MalformedMessage),
        ({"csr_der": lambda: request_of(generate_private_key(SECP256R1()))}, MalformedMessage),
        ({"request_key": b""}, MalformedMessage),
        ({"request_key": bytes(31)}, MalformedMessage),
        ({"region": "Europe!"}, MalformedMessage),
        ({"region": "a" * 64}, MalformedMessage),
        ({"profile": reg.ClientProfile(display_name="x" * 201)}, MalformedMessage),
        ({"profile": reg.ClientProfile(contact="nul \0 byte")}, MalformedMessage),
        ({"protocol": common.ProtocolRange(min=2, max=3)}, MalformedMessage),
        ({"protocol": common.ProtocolRange(min=3, max=2)}, MalformedMessage),
    ],
)
async def test_requests_that_are_refused(
    mesh: Mesh, change: dict[str, Any], error: type[MeshError]
) -> None:
    join = (await join_token(mesh)).join_string
    made = {key: value() if callable(value) else value for key, value in change.items()}
    with refused(error):
        await enrol(mesh, enrol_request(join, client_key(26), **made))
    (row,) = await mesh.fetch(
        "SELECT count(*) AS n FROM federated_clients WHERE key_id = $1",
        public_key_id(client_key(26).public_key()),
    )
    assert row["n"] == 0


# --- approval -----------------------------------------------------------------------------------


async def test_an_operator_approves(mesh: Mesh) -> None:
    join = await join_token(mesh, requires_approval=True)
    request = enrol_request(join.join_string, client_key(28))
    for _ in range(2):
        with refused(ApprovalPending) as caught:
            await enrol(mesh, request)
        assert caught.error.retry_after_ms > 0
        assert caught.metadata["client_id"] == join.client_id
    registry = mesh.operator.registry
    pending = await answered(
        registry.ListClients(reg.ListClientsRequest(status=reg.CLIENT_STATUS_PENDING))
    )
    assert join.client_id in [client.client_id for client in pending.clients]
    approve = reg.ApproveClientRequest(client_id=join.client_id)
    approved = (await answered(registry.ApproveClient(approve))).client
    assert approved.status == reg.CLIENT_STATUS_ACTIVE
    assert approved.certificate_not_after_ms == 0
    assert await answered(registry.ApproveClient(approve))  # again: no error
    answer = await enrol(mesh, request)
    assert answer.client_id == join.client_id


async def test_a_pending_client_that_is_turned_down(mesh: Mesh) -> None:
    join = await join_token(mesh, requires_approval=True)
    request = enrol_request(join.join_string, client_key(29))
    with refused(ApprovalPending):
        await enrol(mesh, request)
    await shut_out(mesh, join.client_id, "revoke", "not known to us")
    with refused(ClientNotActive):
        await enrol(mesh, request)
    with refused(StateConflict):
        approve = reg.ApproveClientRequest(client_id=join.client_id)
        await answered(mesh.operator.registry.ApproveClient(approve))


async def test_a_mesh_that_always_asks_an_operator(database_url: str, tmp_path: Path) -> None:
    enrollment = {"always_requires_approval": True}
    async with serving(tmp_path / "data", database_url, enrollment=enrollment) as mesh:
        join = await join_token(mesh)
        with refused(ApprovalPending):
            await enrol(mesh, enrol_request(join.join_string, client_key(20)))


# --- status -------------------------------------------------------------------------------------


async def test_the_ways_between_statuses(mesh: Mesh) -> None:
    client = await RawClient.enrol(mesh, client_key(30))
    name = {"client_id": client.client_id}
    registry = mesh.operator.registry
    approve = reg.ApproveClientRequest(**name)
    reinstate = reg.ReinstateClientRequest(**name)
    assert (await shut_out(mesh, client.client_id, "suspend")).status == reg.CLIENT_STATUS_SUSPENDED
    with refused(StateConflict):  # approving is not reinstating
        await answered(registry.ApproveClient(approve))
    with refused(ClientNotActive):
        await answered(client.stubs.registry.GetServerKeys(reg.GetServerKeysRequest()))
    assert (await answered(registry.ReinstateClient(reinstate))).client.status == (
        reg.CLIENT_STATUS_ACTIVE
    )
    assert await answered(client.stubs.registry.GetServerKeys(reg.GetServerKeysRequest()))
    await shut_out(mesh, client.client_id, "revoke", "left the firm")
    with refused(StateConflict):
        await answered(registry.ReinstateClient(reinstate))
    with refused(StateConflict):
        await shut_out(mesh, client.client_id, "suspend")
    (row,) = await mesh.fetch(
        "SELECT status, status_by, status_reason FROM federated_clients WHERE client_id = $1",
        client.client_id,
    )
    assert row == {"status": "revoked", "status_by": "local", "status_reason": "left the firm"}


@pytest.mark.parametrize("reason", ["x" * 201, "nul \0 byte"])
async def test_reasons_that_cannot_be_kept(
    mesh: Mesh, clients: list[RawClient], reason: str
) -> None:
    with refused(MalformedMessage):
        await shut_out(mesh, clients[0].client_id, "suspend", reason)


async def test_clients_that_are_not_there(mesh: Mesh) -> None:
    with refused(NotFound):
        await shut_out(mesh, new_client_id(), "revoke")
    with refused(NotFound):
        request = reg.GetClientRequest(client_id=new_client_id())
        await answered(mesh.operator.registry.GetClient(request))
    with refused(MalformedMessage):
        await shut_out(mesh, "somebody", "revoke")


async def test_a_client_sees_its_own_record_alone(mesh: Mesh, clients: list[RawClient]) -> None:
    with refused(PermissionDenied):
        request = reg.GetClientRequest(client_id=clients[1].client_id)
        await answered(clients[0].stubs.registry.GetClient(request))


async def test_auditors_see_no_personal_data(mesh: Mesh) -> None:
    auditor = mesh.authority().issue_auditor("bea", now=datetime.now(UTC))
    stubs = mesh.connect(Identity.of(auditor))
    listed = await answered(stubs.registry.ListClients(reg.ListClientsRequest()))
    assert listed.clients
    assert not any(client.HasField("profile") for client in listed.clients)
    for_operators = await answered(mesh.operator.registry.ListClients(reg.ListClientsRequest()))
    assert all(client.HasField("profile") for client in for_operators.clients)


async def test_pages_of_clients(mesh: Mesh, clients: list[RawClient]) -> None:
    seen: list[str] = []
    token = ""
    while True:
        page = common.Page(size=3, token=token)
        answer = await answered(
            mesh.operator.registry.ListClients(reg.ListClientsRequest(page=page))
        )
        assert len(answer.clients) <= 3
        seen.extend(client.client_id for client in answer.clients)
        token = answer.next_page_token
        if not token:
            break
    assert seen == sorted(set(seen))
    assert {client.client_id for client in clients} <= set(seen)


@pytest.mark.parametrize(
    ("page", "error"),
    [
        (common.Page(size=1001), LimitExceeded),
        (common.Page(token="not base64 !"), MalformedMessage),
        (common.Page(token="AAAA"), MalformedMessage),  # zero bytes
        (common.Page(token="_w=="), MalformedMessage),  # not UTF-8
        (common.Page(token="A" * 300), MalformedMessage),
    ],
)
async def test_pages_that_do_not_exist(
    mesh: Mesh, page: common.Page, error: type[MeshError]
) -> None:
    with refused(error):
        await answered(mesh.operator.registry.ListClients(reg.ListClientsRequest(page=page)))


async def test_a_status_that_is_not_one(mesh: Mesh) -> None:
    with refused(MalformedMessage):
        request = reg.ListClientsRequest(status=99)  # type: ignore[arg-type]
        await answered(mesh.operator.registry.ListClients(request))


# --- open streams -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["suspend", "revoke"])
async def test_open_streams_end_at_once(mesh: Mesh, model: str, how: str) -> None:
    await declare(mesh, model)
    client = await RawClient.enrol(mesh, client_key(31 if how == "suspend" else 32))
    control = await client.participate(model)
    # A pull that waits for credits.
    big = await declare(mesh, f"{model}-big", np.zeros(1 << 20, np.float32))
    waiting = PullCall(client.stubs.models.Pull, ())
    opening = store.PullOpen(model_id=big, credits=1)
    await waiting.write(store.PullRequest(open=opening))
    for _ in range(2):
        assert await waiting.read() is not None
    started = time.monotonic()
    await shut_out(mesh, client.client_id, how)
    with refused(ClientNotActive):
        await control.next()
    with refused(ClientNotActive):
        await waiting.read()
    assert time.monotonic() - started < 1
    (row,) = await mesh.fetch(
        "SELECT count(*) AS n FROM check_ins WHERE client_id = $1", client.client_id
    )
    assert row["n"] == 0
    with refused(ClientNotActive):
        await client.participate(model)


async def test_nobody_else_is_ended(mesh: Mesh, clients: list[RawClient], model: str) -> None:
    await declare(mesh, model)
    stays = await clients[0].participate(model)
    leaves = await clients[1].participate(model)
    await shut_out(mesh, clients[1].client_id, "suspend")
    with refused(ClientNotActive):
        await leaves.next()
    reinstate = reg.ReinstateClientRequest(client_id=clients[1].client_id)
    await answered(mesh.operator.registry.ReinstateClient(reinstate))
    again = await clients[1].participate(model)
    await stays.check_in(clients[0].check_in(model))  # still open: a new check-in is taken
    stays.cancel()
    again.cancel()
