"""Facts: what handlers on any replica put into a round's inbox, and the events made of a batch.

A fact says what happened to one client or what one operator asked for; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from boltz_mesh.rounds.event import (
    AbortRequested,
    ClientsDropped,
    Event,
    KeysAdvertised,
    NoncesRevealed,
    SharesDealt,
    SharesReleased,
    SurvivorsSigned,
    UpdatesStored,
)


class FactKind(StrEnum):
    """The `kind` of an inbox row; each says what its payload holds."""

    #: A client's key advertisement is checked and durable. Payload: empty, as of the next two.
    KEYS_ADVERTISED = "keys-advertised"
    #: A client's nonce fits its commitment and is durable.
    NONCE_REVEALED = "nonce-revealed"
    #: A client's sealed shares for all its holders are durable.
    SHARES_DEALT = "shares-dealt"
    #: An update is checked and durable and has its receipt. Payload: empty.
    UPDATE_STORED = "update-stored"
    #: A client's signature over the survivors is checked and durable. Payload: empty.
    SURVIVORS_SIGNED = "survivors-signed"
    #: Shares that a client released are checked and durable. Payload: empty.
    SHARES_RELEASED = "shares-released"
    #: A client's session takes no further part. Payload: `reason`, machine-readable.
    CLIENT_DROPPED = "client-dropped"
    #: Somebody wants the round to end. Payload: `by`, `reason`.
    ABORT_REQUESTED = "abort-requested"


#: Reasons for CLIENT_DROPPED that the server gives; a client's own come with its decline.
SUPERSEDED: Final = "SUPERSEDED"
LEFT: Final = "LEFT"
#: How the reason of a client's own decline begins; what comes after is the client's.
DECLINED: Final = "declined: "


@dataclass(frozen=True, slots=True)
class Fact:
    """One inbox row. `client_id` is None for what is not about a client."""

    kind: FactKind
    client_id: str | None
    payload: Mapping[str, Any]


def events_of(facts: Iterable[Fact], at_ms: int, *, enough: bool = False) -> tuple[Event, ...]:
    """The events of a whole batch, at most one of each kind.

    What clients have done comes first, in the order of the phases: an update has a receipt and
    counts, and an answer is there, even when its client, the deadline or an abort arrived in the
    same batch. Of several reasons for one client, and of several aborts, the first stands.

    Args:
        facts: of one round and attempt.
        enough: with the released shares among `facts` and the earlier ones, every secret that the
            sum needs can be reconstructed; the caller has found that out. Without such shares it
            means nothing.
    """
    clients: dict[FactKind, set[str]] = {}
    dropped: dict[str, str] = {}
    abort: AbortRequested | None = None
    for fact in facts:
        match fact.kind:
            case FactKind.ABORT_REQUESTED:
                abort = abort or AbortRequested(
                    at_ms=at_ms, by=str(fact.payload["by"]), reason=str(fact.payload["reason"])
                )
            case FactKind.CLIENT_DROPPED:
                assert fact.client_id is not None
                dropped.setdefault(fact.client_id, str(fact.payload["reason"]))
            case _:
                assert fact.client_id is not None
                clients.setdefault(fact.kind, set()).add(fact.client_id)
    events: list[Event] = [
        _event(kind, frozenset(clients[kind]), at_ms, enough=enough)
        for kind in FactKind
        if kind in clients
    ]
    if dropped:
        events.append(ClientsDropped(at_ms=at_ms, clients=dropped))
    if abort is not None:
        events.append(abort)
    return tuple(events)


def _event(kind: FactKind, clients: frozenset[str], at_ms: int, *, enough: bool) -> Event:
    match kind:
        case FactKind.KEYS_ADVERTISED:
            return KeysAdvertised(at_ms=at_ms, clients=clients)
        case FactKind.NONCE_REVEALED:
            return NoncesRevealed(at_ms=at_ms, clients=clients)
        case FactKind.SHARES_DEALT:
            return SharesDealt(at_ms=at_ms, clients=clients)
        case FactKind.UPDATE_STORED:
            return UpdatesStored(at_ms=at_ms, clients=clients)
        case FactKind.SURVIVORS_SIGNED:
            return SurvivorsSigned(at_ms=at_ms, clients=clients)
        case FactKind.SHARES_RELEASED:
            return SharesReleased(at_ms=at_ms, clients=clients, enough=enough)
        case FactKind.CLIENT_DROPPED | FactKind.ABORT_REQUESTED:
            raise AssertionError("made elsewhere: these have payloads")
