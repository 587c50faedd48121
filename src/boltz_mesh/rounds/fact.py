"""Facts: what handlers on any replica put into a round's inbox, and the events made of a batch.

A fact says what happened to one client or what one operator asked for; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from boltz_mesh.rounds.event import AbortRequested, ClientsDropped, Event, UpdatesStored


class FactKind(StrEnum):
    """The `kind` of an inbox row; each says what its payload holds."""

    #: An update is checked and durable and has its receipt. Payload: empty.
    UPDATE_STORED = "update-stored"
    #: A client will not upload. Payload: `reason`, machine-readable.
    CLIENT_DROPPED = "client-dropped"
    #: Somebody wants the round to end. Payload: `by`, `reason`.
    ABORT_REQUESTED = "abort-requested"


#: Reasons for CLIENT_DROPPED that the server gives; a client's own come with its decline.
SUPERSEDED: Final = "SUPERSEDED"
LEFT: Final = "LEFT"


@dataclass(frozen=True, slots=True)
class Fact:
    """One inbox row. `client_id` is None for what is not about a client."""

    kind: FactKind
    client_id: str | None
    payload: Mapping[str, Any]


def events_of(facts: Iterable[Fact], at_ms: int) -> tuple[Event, ...]:
    """The events of a whole batch, at most one of each kind.

    Updates come first: what has a receipt counts, even when its client, the deadline or an abort
    arrived in the same batch. Of several reasons for one client, and of several aborts, the first
    stands.
    """
    stored: set[str] = set()
    dropped: dict[str, str] = {}
    abort: AbortRequested | None = None
    for fact in facts:
        match fact.kind:
            case FactKind.UPDATE_STORED:
                assert fact.client_id is not None
                stored.add(fact.client_id)
            case FactKind.CLIENT_DROPPED:
                assert fact.client_id is not None
                dropped.setdefault(fact.client_id, str(fact.payload["reason"]))
            case FactKind.ABORT_REQUESTED:
                abort = abort or AbortRequested(
                    at_ms=at_ms, by=str(fact.payload["by"]), reason=str(fact.payload["reason"])
                )
    events: list[Event] = []
    if stored:
        events.append(UpdatesStored(at_ms=at_ms, clients=frozenset(stored)))
    if dropped:
        events.append(ClientsDropped(at_ms=at_ms, clients=dropped))
    if abort is not None:
        events.append(abort)
    return tuple(events)
