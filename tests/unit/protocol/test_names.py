from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boltz_protocol.errors import MalformedMessage
from boltz_protocol.names import Peer, Role, parse_peer_uri

HEX = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("role", "name"),
    [
        (Role.CLIENT, HEX),
        (Role.STATEMENT, HEX),
        (Role.OPERATOR, "ann"),
        (Role.AUDITOR, "b-2"),
        (Role.SERVER, "replica-0.mesh"),
    ],
)
def test_round_trip(role: Role, name: str) -> None:
    peer = Peer("demo", role, name)
    assert peer.uri == f"spiffe://demo/{role.value}/{name}"
    assert parse_peer_uri(peer.uri) == peer


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://demo/client",
        f"spiffe://demo/client/{HEX}/",
        f"spiffe://demo/client/{HEX}/x",
        f"spiffe://demo/client/{HEX}?x=1",
        f"spiffe://demo/client/{HEX}#x",
        f"spiffe://demo/client/{HEX}\n",
        f"spiffe://demo/client/{HEX.upper()}",
        f"spiffe://demo/client/{HEX[:-1]}",
        f"SPIFFE://demo/client/{HEX}",
        f"https://demo/client/{HEX}",
        f"spiffe://demo:80/client/{HEX}",
        f"spiffe://user@demo/client/{HEX}",
        f"spiffe://Demo/client/{HEX}",
        f"spiffe:///client/{HEX}",
        f"spiffe://demo//client/{HEX}",
        f"spiffe://demo/Client/{HEX}",
        "spiffe://demo/root/ann",
        "spiffe://demo/operator/a%6en",
        "spiffe://demo/operator/../ann",
        "spiffe://demo/operator/änn",
        "spiffe://demo/operator/-ann",
        "spiffe://demo/operator/" + "a" * 64,
        "spiffe://demo/statement/ann",
        " spiffe://demo/operator/ann",
    ],
)
def test_anything_else_is_refused(uri: str) -> None:
    with pytest.raises(MalformedMessage):
        parse_peer_uri(uri)


@given(st.text(max_size=80))
def test_no_other_error_escapes(text: str) -> None:
    for uri in (text, f"spiffe://demo/operator/{text}", f"spiffe://{text}/operator/ann"):
        try:
            peer = parse_peer_uri(uri)
        except MalformedMessage:
            continue
        assert peer.uri == uri
