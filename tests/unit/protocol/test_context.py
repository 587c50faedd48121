from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boltz_protocol import limits
from boltz_protocol.context import BlobContext, context_hash
from boltz_protocol.errors import MalformedMessage
from boltz_protocol.framing import length_prefixed
from tests.unit.protocol.test_envelope import CONTEXT, OTHER_CONTEXTS


@given(st.lists(st.lists(st.binary(max_size=5), max_size=4), unique_by=tuple, min_size=2))
def test_length_prefixes_are_injective(lists: list[list[bytes]]) -> None:
    assert len({length_prefixed(*fields) for fields in lists}) == len(lists)


def test_contexts_differ() -> None:
    contexts = [CONTEXT, *OTHER_CONTEXTS]
    assert len({context_hash(context) for context in contexts}) == len(contexts)


def test_blob_ids_do_not_run_together() -> None:
    ids = [("ab",), ("a", "b"), ("b", "a"), ("a", "b", "c"), ("a", "bc")]
    assert len({BlobContext("demo", "model", part).encode() for part in ids}) == len(ids)


@pytest.mark.parametrize(
    "change",
    [
        {"mesh": "Not a name"},
        {"round_id": "11"},
        {"client_id": "x" * 32},
        {"session_id": ""},
        {"recipient_key_id": "AA" * 16},
        {"attempt": 0},
        {"attempt": limits.MAX_ATTEMPTS + 1},
        {"model_digest": bytes(31)},
        {"config_digest": bytes(33)},
    ],
)
def test_malformed_update_contexts(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage):
        replace(CONTEXT, **change)


@pytest.mark.parametrize(
    ("mesh", "kind", "ids"),
    [
        ("Demo", "model", ("a",)),
        ("demo", "", ("a",)),
        ("demo", "model", ()),
        ("demo", "model", ("a",) * 9),
        ("demo", "model", ("",)),
        ("demo", "model", ("a" * (limits.MAX_NAME_CHARS + 1),)),
    ],
)
def test_malformed_blob_contexts(mesh: str, kind: str, ids: tuple[str, ...]) -> None:
    with pytest.raises(MalformedMessage):
        BlobContext(mesh, kind, ids)
