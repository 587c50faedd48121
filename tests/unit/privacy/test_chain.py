"""The ledger's chain of hashes: what is hashed, and that every change shows, at its row."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boltz_mesh.privacy.chain import (
    EMPTY,
    ChainedEvent,
    ChainHead,
    LedgerEvent,
    event_hash,
    link,
    verify_chain,
    verify_end,
)
from boltz_protocol.errors import LedgerBroken
from boltz_protocol.ids import ClientId, ModelId, RoundId

MODEL = ModelId("rates")
PINNED = "83f9359add2183274e30aa8b0a75f31f09c7d2f6428cfe71712b6321cb2f4b84"
EVENT = LedgerEvent(
    model_id=MODEL,
    client_id=ClientId("c" * 32),
    round_id=RoundId("d" * 32),
    attempt=1,
    mechanism="discrete-gaussian",
    noise_multiplier=1.1,
    sensitivity=1000.0,
    relation="contribution-set-to-zero",
    unit="client",
    sampling_rate=1.0,
    at_ms=1_790_000_000_000,
)
texts = st.text(max_size=6)
numbers = st.floats(allow_nan=False)
integers = st.integers(-(1 << 63), (1 << 63) - 1)
events = st.builds(
    LedgerEvent,
    model_id=st.just(MODEL),
    client_id=texts,
    round_id=texts,
    attempt=integers,
    mechanism=texts,
    noise_multiplier=numbers,
    sensitivity=numbers,
    relation=texts,
    unit=texts,
    sampling_rate=numbers,
    at_ms=integers,
    period=texts,
)


def naive_hash(event: LedgerEvent, seq: int, before: bytes) -> bytes:
    """What the module's head says, once more."""
    content = b"boltz-mesh privacy event 1\n" + before + struct.pack(">q", seq)
    for name in (event.model_id, event.client_id, event.round_id):
        content += struct.pack(">I", len(name.encode())) + name.encode()
    content += struct.pack(">q", event.attempt)
    content += struct.pack(">I", len(event.mechanism.encode())) + event.mechanism.encode()
    content += struct.pack(">d", event.noise_multiplier) + struct.pack(">d", event.sensitivity)
    for text in (event.relation, event.unit, event.period):
        content += struct.pack(">I", len(text.encode())) + text.encode()
    content += struct.pack(">d", event.sampling_rate) + struct.pack(">q", event.at_ms)
    return hashlib.sha256(content).digest()


@given(event=events, seq=st.integers(1, 1 << 60), before=st.binary(min_size=32, max_size=32))
def test_the_hash_is_of_what_is_said(event: LedgerEvent, seq: int, before: bytes) -> None:
    assert event_hash(event, seq, before) == naive_hash(event, seq, before)


def test_a_hash_that_must_never_change() -> None:
    assert event_hash(EVENT, 1, bytes(32)).hex() == PINNED


@given(st.lists(events, max_size=6), st.integers(0, 6))
def test_a_chain_fits_and_may_be_checked_in_parts(all_: list[LedgerEvent], cut: int) -> None:
    rows = link(all_, EMPTY)
    head = verify_chain(MODEL, rows)
    assert head.length == len(all_)
    assert head.hash == (rows[-1].hash if rows else bytes(32))
    part = verify_chain(MODEL, rows[:cut])
    assert verify_chain(MODEL, rows[cut:], after=part) == head
    assert link(all_[cut:], part) == rows[cut:]
    verify_end(MODEL, head, head)


def _other(value: object) -> object:
    return value + "x" if isinstance(value, str) else value + 1  # type: ignore[operator]


CHAIN = link([replace(EVENT, attempt=n) for n in range(1, 6)], EMPTY)


@pytest.mark.parametrize("name", [field.name for field in fields(LedgerEvent)])
@pytest.mark.parametrize("place", [1, 3, 5])
def test_any_change_of_an_event_shows_at_its_row(name: str, place: int) -> None:
    rows = list(CHAIN)
    event = rows[place - 1].event
    changed = replace(event, **{name: _other(getattr(event, name))})  # type: ignore[arg-type]
    rows[place - 1] = replace(rows[place - 1], event=changed)
    broken(rows, place)


@pytest.mark.parametrize("place", [1, 3, 5])
def test_a_change_with_a_new_hash_shows_at_the_next_row(place: int) -> None:
    rows = list(CHAIN)
    row = rows[place - 1]
    changed = replace(row.event, noise_multiplier=99.0)
    rows[place - 1] = ChainedEvent(
        row.seq, row.previous_hash, event_hash(changed, row.seq, row.previous_hash), changed
    )
    # At the last row only what was noted of the end tells.
    broken(rows, min(place + 1, 5))


@pytest.mark.parametrize(
    ("rows", "place"),
    [
        (CHAIN[1:], 1),
        (CHAIN[:2] + CHAIN[3:], 3),
        (CHAIN[:4], 5),
        ([], 1),
        ([*CHAIN[:2], CHAIN[3], CHAIN[2], CHAIN[4]], 3),
        ([*CHAIN, CHAIN[4]], 6),
        ([*CHAIN, *link([EVENT], ChainHead(5, CHAIN[4].hash))], 6),
        ([CHAIN[0], CHAIN[0], *CHAIN[1:]], 2),
        ([replace(CHAIN[0], previous_hash=bytes(31) + b"x"), *CHAIN[1:]], 1),
        ([replace(CHAIN[0], hash=CHAIN[1].hash), *CHAIN[1:]], 1),
    ],
)
def test_rows_left_out_added_or_moved_show(rows: list[ChainedEvent], place: int) -> None:
    broken(rows, place)


def test_another_models_chain_is_not_this_ones() -> None:
    with pytest.raises(LedgerBroken, match="row 1 is of model rates"):
        verify_chain(ModelId("other"), CHAIN)


def broken(rows: list[ChainedEvent], place: int) -> None:
    noted = ChainHead(5, CHAIN[4].hash)
    with pytest.raises(LedgerBroken) as found:
        verify_end(MODEL, verify_chain(MODEL, rows), noted)
    assert found.value.metadata == {"model_id": MODEL, "row": str(place)}
    assert f"row {place} " in found.value.message
