"""Method x identity: who may call what, for every method that the server says it serves.

The roles come from the contract's comments, the methods from the server's own descriptors; so a new
method that nobody thought of fails here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import grpc
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc_health.v1 import health_pb2, health_pb2_grpc

from boltz_client.keystore import certificate_request
from boltz_mesh.services.access import ACCESS
from boltz_mesh.services.identity.authority import Authority, Lifetimes, new_root
from boltz_protocol.errors import ApprovalPending
from boltz_protocol.ids import ClientId, new_client_id
from boltz_protocol.v1 import registry_pb2 as reg
from tests.support.calls import answered, refused
from tests.support.clients import RawClient, client_key, enrol_request, join_token, key_pem
from tests.support.mesh import Identity, Mesh, expired, with_lifetimes
from tests.support.reflected import Answer, Method, call, documented_roles, served_methods

ALL = frozenset({"client", "operator", "auditor"})
OPERATOR = frozenset({"operator"})
#: Services that are not of our contract.
STANDARD = {
    "grpc.health.v1.Health": ALL,
    "grpc.reflection.v1alpha.ServerReflection": ALL,
    "grpc.channelz.v1.Channelz": OPERATOR,
}
Matrix = Callable[[Identity], Awaitable[dict[Method, Answer]]]


@pytest_asyncio.fixture(scope="session")
async def methods(mesh: Mesh) -> list[Method]:
    return await served_methods(mesh.operator.channel)


@pytest.fixture
def ask_all(mesh: Mesh, methods: list[Method]) -> Matrix:
    """Call every method under an identity."""

    async def ask(identity: Identity) -> dict[Method, Answer]:
        channel = mesh.connect(identity).channel
        return {method: await call(channel, method) for method in methods}

    return ask


def roles_of(method: Method) -> frozenset[str]:
    if method.service in STANDARD:
        return STANDARD[method.service]
    return documented_roles()[method.path]


def check_role(answers: dict[Method, Answer], role: str) -> None:
    """Methods of the role went through the guard; all others were refused for the role."""
    for method, answer in answers.items():
        if role in roles_of(method):
            assert answer.passed_the_guard, f"{role} {method.path}: {answer}"
        else:
            denied = Answer(grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
            assert answer == denied, f"{role} {method.path}: {answer}"


def check_refused(
    answers: dict[Method, Answer], *, where: str, code: grpc.StatusCode, reason: str
) -> None:
    """Refused with this code where the role would have been right, and refused elsewhere."""
    for method, answer in answers.items():
        if where in roles_of(method):
            assert answer == Answer(code, reason), f"{method.path}: {answer}"
        else:
            assert answer.code is grpc.StatusCode.PERMISSION_DENIED, f"{method.path}: {answer}"


# --- the table ----------------------------------------------------------------------------------


def test_all_services_of_the_contract_are_served(methods: list[Method]) -> None:
    served = {method.path for method in methods}
    assert set(documented_roles()) <= served
    assert {method.service for method in methods} == {
        "boltz_mesh.v1.Registry",
        "boltz_mesh.v1.ModelStore",
        "boltz_mesh.v1.Aggregator",
        *STANDARD,
    }


def test_the_table_says_what_the_contract_says(methods: list[Method]) -> None:
    for method in methods:
        table = frozenset(str(role) for role in ACCESS.get(method.path, ()))
        assert table == roles_of(method), method.path
    assert set(ACCESS) == {m.path for m in methods if roles_of(m)}


# --- the right roles, each with everything that is not theirs ------------------------------------


async def test_operators(mesh: Mesh, ask_all: Matrix) -> None:
    credential = mesh.authority().issue_operator("ann", now=datetime.now(UTC))
    check_role(await ask_all(Identity.of(credential)), "operator")


async def test_auditors(mesh: Mesh, ask_all: Matrix) -> None:
    credential = mesh.authority().issue_auditor("bea", now=datetime.now(UTC))
    check_role(await ask_all(Identity.of(credential)), "auditor")


async def test_clients(ask_all: Matrix, clients: list[RawClient]) -> None:
    check_role(await ask_all(clients[0].identity), "client")


# --- clients that may not call now ---------------------------------------------------------------


async def moved_client(mesh: Mesh, number: int, status: str) -> Identity:
    """A client of that status, with a certificate that is good in itself."""
    key = client_key(number)
    join = await join_token(mesh, requires_approval=status == "pending")
    request = enrol_request(join.join_string, key)
    if status == "pending":
        with refused(ApprovalPending):
            await answered(mesh.enrolment.registry.Enroll(request))
    else:
        await answered(mesh.enrolment.registry.Enroll(request))
        client_id = join.client_id
        registry = mesh.operator.registry
        if status == "suspended":
            await answered(registry.SuspendClient(reg.SuspendClientRequest(client_id=client_id)))
        else:
            await answered(registry.RevokeClient(reg.RevokeClientRequest(client_id=client_id)))
    return issued_to(mesh, number, ClientId(join.client_id))


def issued_to(mesh: Mesh, number: int, client_id: ClientId) -> Identity:
    key = client_key(number)
    issued = mesh.authority().issue_client(
        certificate_request(key), client_id, now=datetime.now(UTC)
    )
    return Identity(key_pem(key), issued.chain_pem)


@pytest.mark.parametrize(
    ("number", "status"), [(10, "pending"), (11, "suspended"), (12, "revoked")]
)
async def test_clients_that_are_not_active(
    mesh: Mesh, ask_all: Matrix, number: int, status: str
) -> None:
    answers = await ask_all(await moved_client(mesh, number, status))
    check_refused(
        answers,
        where="client",
        code=grpc.StatusCode.PERMISSION_DENIED,
        reason="CLIENT_NOT_ACTIVE",
    )


async def test_a_client_that_is_not_there(mesh: Mesh, ask_all: Matrix) -> None:
    answers = await ask_all(issued_to(mesh, 13, new_client_id()))
    check_refused(
        answers,
        where="client",
        code=grpc.StatusCode.UNAUTHENTICATED,
        reason="UNAUTHENTICATED",
    )


# --- those who do not get a connection, or no name -----------------------------------------------


async def check_no_connection(ask_all: Matrix, identity: Identity) -> None:
    for method, answer in (await ask_all(identity)).items():
        assert answer.code is grpc.StatusCode.UNAVAILABLE, f"{method.path}: {answer}"


async def test_no_certificate(ask_all: Matrix) -> None:
    await check_no_connection(ask_all, Identity())


async def test_a_foreign_authority_of_the_same_name(mesh: Mesh, ask_all: Matrix) -> None:
    now = datetime.now(UTC)
    key, root = new_root(mesh.name, now=now, lifetime=timedelta(days=1))
    foreign = Authority(mesh=mesh.name, key=key, chain=[root], now=now)
    await check_no_connection(ask_all, Identity.of(foreign.issue_operator("local", now=now)))


@pytest.mark.parametrize("role", ["operator", "auditor", "client"])
async def test_expired_certificates(
    mesh: Mesh, ask_all: Matrix, clients: list[RawClient], role: str
) -> None:
    past, moment = expired(mesh.authority())
    if role == "client":
        client = clients[0]
        issued = past.issue_client(certificate_request(client.key), client.client_id, now=moment)
        identity = Identity(key_pem(client.key), issued.chain_pem)
    else:
        issue = past.issue_operator if role == "operator" else past.issue_auditor
        identity = Identity.of(issue("local", now=moment))
    await check_no_connection(ask_all, identity)


async def test_a_servers_certificate(mesh: Mesh, ask_all: Matrix) -> None:
    now = datetime.now(UTC)
    credential = mesh.authority().issue_server("replica-2", ["localhost"], now=now)
    await check_no_connection(ask_all, Identity.of(credential))


async def test_a_statement_keys_certificate(mesh: Mesh, ask_all: Matrix) -> None:
    key = Ed25519PrivateKey.generate()
    issued = mesh.authority().certify_statement_key(key.public_key(), now=datetime.now(UTC))
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    await check_no_connection(ask_all, Identity(pem, issued.chain_pem))


async def test_another_mesh_under_the_same_authority(mesh: Mesh, ask_all: Matrix) -> None:
    other = with_lifetimes(mesh.authority(), Lifetimes(), mesh="other")
    answers = await ask_all(Identity.of(other.issue_operator("local", now=datetime.now(UTC))))
    for method, answer in answers.items():
        unknown = Answer(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
        assert answer == unknown, f"{method.path}: {answer}"


# --- the other ports -----------------------------------------------------------------------------


async def test_the_enrolment_port_serves_enrol_alone(mesh: Mesh, methods: list[Method]) -> None:
    folder = mesh.operator_folder
    operator = Identity((folder / "key.pem").read_bytes(), (folder / "chain.pem").read_bytes())
    for identity in (Identity(), operator):
        channel = mesh.connect(identity, address=mesh.addresses.enroll).channel
        for method in methods:
            answer = await call(channel, method)
            if method.path == "/boltz_mesh.v1.Registry/Enroll":
                assert answer == Answer(grpc.StatusCode.PERMISSION_DENIED, "TOKEN_REFUSED")
            else:
                assert answer.code is grpc.StatusCode.UNIMPLEMENTED, method.path


async def test_the_health_port_tells_health_alone(mesh: Mesh, methods: list[Method]) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh.health_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        for method in methods:
            if method.service != "grpc.health.v1.Health":
                assert (await call(channel, method)).code is grpc.StatusCode.UNIMPLEMENTED


async def test_refusals_are_counted_and_attacks_written_down(
    mesh: Mesh, clients: list[RawClient]
) -> None:
    before = await mesh.refusals()
    method = Method("boltz_mesh.v1.Registry", "ListClients", False, False)
    await call(clients[0].stubs.channel, method)
    after = await mesh.refusals()
    key = ("Registry/ListClients", "PERMISSION_DENIED")
    assert after[key] == before.get(key, 0) + 1
    (event,) = await mesh.fetch(
        "SELECT kind, client_id FROM security_events ORDER BY id DESC LIMIT 1"
    )
    assert event == {"kind": "permission_denied", "client_id": clients[0].client_id}


async def test_bytes_that_are_no_message(mesh: Mesh, clients: list[RawClient]) -> None:
    malformed = Answer(grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")
    for name, streams in (("GetServerKeys", False), ("Pull", True)):
        service = "ModelStore" if streams else "Registry"
        method = Method(f"boltz_mesh.v1.{service}", name, streams, streams)
        assert await call(clients[0].stubs.channel, method, b"\xff\xff\xff") == malformed
    # Who calls is checked first.
    method = Method("boltz_mesh.v1.Registry", "RevokeClient", False, False)
    denied = Answer(grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
    assert await call(clients[0].stubs.channel, method, b"\xff\xff\xff") == denied
