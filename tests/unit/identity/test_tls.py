"""The certificates in real gRPC (BoringSSL), which checks chains by its own code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from boltz_client.keystore import certificate_request
from boltz_mesh.services.identity.authority import Authority, new_root
from boltz_protocol.certificates import pem_chain
from tests.support.keys import CLIENT, make_ca, vector_rsa_key

METHOD = "/test/WhoAmI"


def now() -> datetime:
    return datetime.now(UTC)


def rooted() -> Authority:
    key, root = new_root("demo", now=now(), lifetime=timedelta(days=30))
    return Authority(mesh="demo", key=key, chain=[root], now=now())


def under_an_intermediate() -> Authority:
    lifetime = timedelta(days=3650)
    root = make_ca("outside root", lifetime=lifetime)
    middle = make_ca("issuer", issuer=root, path_length=0, lifetime=lifetime)
    return Authority(mesh="demo", key=middle[0], chain=[middle[1], root[1]], now=now())


def who_am_i(_: bytes, context: grpc.ServicerContext) -> bytes:
    """Answers with the URI name that the server sees."""
    properties: Mapping[str, Sequence[bytes]] = context.auth_context()  # type: ignore[assignment]
    (name,) = properties["peer_spiffe_id"]
    return name


HANDLERS = grpc.method_handlers_generic_handler(
    "test", {"WhoAmI": grpc.unary_unary_rpc_method_handler(who_am_i)}
)


@pytest.fixture(params=[rooted, under_an_intermediate])
def mesh(request: pytest.FixtureRequest) -> Authority:
    authority: Authority = request.param()
    return authority


@pytest.fixture
def port(mesh: Authority) -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(2), handlers=[HANDLERS])
    credential = mesh.issue_server("replica-0", ["localhost", "127.0.0.1"], now=now())
    pair = (credential.private_key_pem, credential.issued.chain_pem)
    credentials = grpc.ssl_server_credentials(
        [pair], root_certificates=mesh.root_pem, require_client_auth=True
    )
    bound = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield bound
    server.stop(None).wait()


def ask(port: int, root_pem: bytes, key_pem: bytes | None, chain_pem: bytes | None) -> str:
    credentials = grpc.ssl_channel_credentials(root_pem, key_pem, chain_pem)
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        call = channel.unary_unary(METHOD, request_serializer=bytes, response_deserializer=bytes)
        answer: bytes = call(b"", timeout=10)
        return answer.decode()


def pem(key: RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def test_clients_and_operators_are_known_by_their_names(mesh: Authority, port: int) -> None:
    issued = mesh.issue_client(certificate_request(vector_rsa_key()), CLIENT, now=now())
    seen = ask(port, mesh.root_pem, pem(vector_rsa_key()), issued.chain_pem)
    assert seen == f"spiffe://demo/client/{CLIENT}"
    operator = mesh.issue_operator("ann", now=now())
    seen = ask(port, mesh.root_pem, operator.private_key_pem, operator.issued.chain_pem)
    assert seen == "spiffe://demo/operator/ann"


def test_the_others_do_not_get_in(mesh: Authority, port: int) -> None:
    foreign = rooted().issue_operator("ann", now=now())
    server = mesh.issue_server("replica-1", ["localhost"], now=now())
    for key, chain in (
        (None, None),
        (foreign.private_key_pem, foreign.issued.chain_pem),
        (server.private_key_pem, server.issued.chain_pem),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            ask(port, mesh.root_pem, key, chain)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_client_does_not_talk_to_a_server_of_another_authority(
    mesh: Authority, port: int
) -> None:
    operator = mesh.issue_operator("ann", now=now())
    foreign_root = pem_chain([rooted().root])
    with pytest.raises(grpc.RpcError) as caught:
        ask(port, foreign_root, operator.private_key_pem, operator.issued.chain_pem)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
