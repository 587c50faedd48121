from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from boltz_protocol.errors import MalformedMessage
from boltz_protocol.limits import MAX_BITMAP_BYTES
from boltz_protocol.secagg.context import MaskContext
from tests.support.keys import load_vectors

CONTEXT = MaskContext(
    configuration_sha256=b"c" * 32,
    model_sha256=b"m" * 32,
    key_roster_sha256=b"k" * 32,
    graph_members_bitmap=b"\x05",
    nonces=(b"0" * 32, b"2" * 32),
)


@pytest.mark.parametrize(
    "change",
    [
        {"configuration_sha256": b"C" * 32},
        {"model_sha256": b"M" * 32},
        {"key_roster_sha256": b"K" * 32},
        {"configuration_sha256": b"m" * 32, "model_sha256": b"c" * 32},
        {"graph_members_bitmap": b"\x06"},
        {"graph_members_bitmap": b"\x05\x00"},
        {"nonces": (b"2" * 32, b"0" * 32)},
        {"nonces": ()},
    ],
)
def test_every_field_counts(change: dict[str, Any]) -> None:
    assert len(CONTEXT.digest) == 32
    assert replace(CONTEXT, **change).digest != CONTEXT.digest


@pytest.mark.parametrize(
    "change",
    [
        {"configuration_sha256": b"c" * 31},
        {"model_sha256": b""},
        {"key_roster_sha256": b"k" * 33},
        {"graph_members_bitmap": b""},
        {"graph_members_bitmap": b"\x01" * (MAX_BITMAP_BYTES + 1)},
        {"nonces": (b"0" * 32,)},
        {"nonces": (b"0" * 32, b"2" * 31)},
    ],
)
def test_what_does_not_have_its_form_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage) as refusal:
        replace(CONTEXT, **change)
    assert refusal.value.metadata["field"] == next(iter(change))


def test_vectors() -> None:
    vectors = load_vectors("secagg_graph")
    for case in (vectors["complete"], *vectors["graphs"]):
        context = MaskContext(
            configuration_sha256=bytes.fromhex(case["configuration_sha256"]),
            model_sha256=bytes.fromhex(case["model_sha256"]),
            key_roster_sha256=bytes.fromhex(case["key_roster_sha256"]),
            graph_members_bitmap=bytes.fromhex(case["graph_members_bitmap"]),
            nonces=tuple(map(bytes.fromhex, case.get("nonces", []))),
        )
        assert context.digest.hex() == case["mask_context"]
