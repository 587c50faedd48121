"""Events and states as JSON objects, for `round_events` and snapshots.

Each object carries its type's name under "type". Unknown fields and types are refused: a newer
server's rounds are not guessed at. Sets become sorted lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from boltz_mesh.rounds.event import Event
from boltz_mesh.rounds.state import RoundState


def event_kind(event: Event) -> str:
    """The name under which an event is stored."""
    return type(event).__name__


def event_payload(event: Event) -> dict[str, Any]:
    """An event as an object of JSON values."""
    return _plain(event)


def event_of(payload: Mapping[str, Any]) -> Event:
    """The event in an object. Raises: msgspec.ValidationError, which means a damaged database."""
    event: Event = msgspec.convert(dict(payload), Event)
    return event


def state_payload(state: RoundState) -> dict[str, Any]:
    """A state as an object of JSON values."""
    return _plain(state)


def state_of(payload: Mapping[str, Any]) -> RoundState:
    """The state in an object. Raises: msgspec.ValidationError, which means a damaged database."""
    state: RoundState = msgspec.convert(dict(payload), RoundState)
    return state


def _plain(value: Event | RoundState) -> dict[str, Any]:
    plain = msgspec.to_builtins(value, order="sorted")
    assert isinstance(plain, dict)
    return plain
