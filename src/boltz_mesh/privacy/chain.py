"""The ledger's events in a chain of hashes: one for each model, from its first charge on.

An event's hash covers all that the event says, its place, and the hash of the one before it. So
whoever knows the length and the head of a chain notices any later change of what was charged up to
there: a row that was altered, left out, put in or moved. It does not keep anybody who may write the
database from making a whole new chain; that such a one is another shows to whoever has kept an
earlier head.

What is hashed, in this order, numbers big-endian: the domain; the previous hash (32 bytes; zeros
before the first); the place (8); model, client and round; the attempt (8); the mechanism; noise
multiplier, sensitivity (IEEE 754, 8 each); relation, unit and period; the sampling rate (IEEE 754);
the time (8). A text is its UTF-8 with its length in bytes before it (4).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from boltz_protocol.errors import LedgerBroken
from boltz_protocol.ids import ClientId, ModelId, RoundId

_DOMAIN: Final = b"boltz-mesh privacy event 1\n"
_PLACE: Final = struct.Struct(">q")
_LENGTH: Final = struct.Struct(">I")
_ATTEMPT: Final = struct.Struct(">q")
_NOISE: Final = struct.Struct(">dd")
_LAST: Final = struct.Struct(">dq")


@dataclass(frozen=True, slots=True)
class LedgerEvent:
    """One release that one client took part in.

    `noise_multiplier` is the noise's standard deviation over `sensitivity` (L2, in integer units of
    the encoding); `relation` is the neighbouring relation; `unit` is what is protected, and
    `period` which data of the client where it is not all; `sampling_rate` is the chance to be
    selected, 1 where there is no amplification.
    """

    model_id: ModelId
    client_id: ClientId
    round_id: RoundId
    attempt: int
    mechanism: str
    noise_multiplier: float
    sensitivity: float
    relation: str
    unit: str
    sampling_rate: float
    at_ms: int
    period: str = ""


@dataclass(frozen=True, slots=True)
class ChainedEvent:
    """An event in its place, from 1, with the hash of the one before it (32 bytes) and its own."""

    seq: int
    previous_hash: bytes
    hash: bytes
    event: LedgerEvent


@dataclass(frozen=True, slots=True)
class ChainHead:
    """Where a chain ends: how many events it has, and the hash of the last (32 bytes)."""

    length: int
    hash: bytes


#: Of a model that nothing was charged for.
EMPTY: Final = ChainHead(0, bytes(32))


def event_hash(event: LedgerEvent, seq: int, previous_hash: bytes) -> bytes:
    """The hash of an event at a place (32 bytes); see the head of this module."""
    texts = [
        text.encode()
        for text in (
            event.model_id,
            event.client_id,
            event.round_id,
            event.mechanism,
            event.relation,
            event.unit,
            event.period,
        )
    ]
    model, client, round_, mechanism, relation, unit, period = (
        _LENGTH.pack(len(text)) + text for text in texts
    )
    return hashlib.sha256(
        b"".join(
            (
                _DOMAIN,
                previous_hash,
                _PLACE.pack(seq),
                model,
                client,
                round_,
                _ATTEMPT.pack(event.attempt),
                mechanism,
                _NOISE.pack(event.noise_multiplier, event.sensitivity),
                relation,
                unit,
                period,
                _LAST.pack(event.sampling_rate, event.at_ms),
            )
        )
    ).digest()


def link(events: Iterable[LedgerEvent], head: ChainHead) -> list[ChainedEvent]:
    """The events as the next ones of a chain, in the order given."""
    linked: list[ChainedEvent] = []
    for event in events:
        seq = head.length + 1
        own = event_hash(event, seq, head.hash)
        linked.append(ChainedEvent(seq, head.hash, own, event))
        head = ChainHead(seq, own)
    return linked


def verify_chain(
    model_id: ModelId, rows: Iterable[ChainedEvent], *, after: ChainHead = EMPTY
) -> ChainHead:
    """Check that rows follow each other from a head on.

    Args:
        model_id: whose chain it is.
        rows: by their places.
        after: what is known of the chain before the first of them.

    Returns: where they end. Compare it with `verify_end`, or rows left out at the end go unnoticed.

    Raises: LedgerBroken, naming the first row that does not fit.
    """
    head = after
    for row in rows:
        seq = head.length + 1
        if row.seq != seq:
            raise _broken(model_id, seq, f"is missing (the next row there is has number {row.seq})")
        if row.event.model_id != model_id:
            raise _broken(model_id, seq, f"is of model {row.event.model_id}")
        if row.previous_hash != head.hash:
            raise _broken(model_id, seq, "does not follow from the one before it")
        own = event_hash(row.event, seq, head.hash)
        if row.hash != own:
            raise _broken(
                model_id,
                seq,
                f"does not have the hash of what it says (client {row.event.client_id}, round "
                f"{row.event.round_id}, attempt {row.event.attempt}, noise multiplier "
                f"{row.event.noise_multiplier:g})",
            )
        head = ChainHead(seq, own)
    return head


def verify_end(model_id: ModelId, reached: ChainHead, noted: ChainHead) -> None:
    """Check that a chain ends where it was noted to end.

    Raises: LedgerBroken, naming the first row that is missing or too much.
    """
    if reached.length < noted.length:
        raise _broken(
            model_id, reached.length + 1, f"is missing: there must be {noted.length} rows"
        )
    if reached.length > noted.length:
        raise _broken(model_id, noted.length + 1, f"is too much: {noted.length} rows were noted")
    if reached.hash != noted.hash:
        raise _broken(model_id, noted.length, "is not the one that was noted as the last")


def _broken(model_id: ModelId, seq: int, what: str) -> LedgerBroken:
    return LedgerBroken(
        f"the privacy ledger of {model_id} does not fit together: row {seq} {what}",
        model_id=model_id,
        row=seq,
    )
