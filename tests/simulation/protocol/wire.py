"""What goes over the network beside the messages of the protocol itself (`messages_sealed`)."""

from __future__ import annotations

from dataclasses import dataclass

from boltz_protocol.errors import MeshError
from boltz_protocol.statement import Statement

# --- up -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CheckIn:
    """The first message of a control stream."""


@dataclass(frozen=True, slots=True)
class Advertisement:
    """A signed KeyAdvertisement."""

    statement: Statement


@dataclass(frozen=True, slots=True)
class Seen:
    """A signed SurvivorsSeen."""

    statement: Statement


@dataclass(frozen=True, slots=True)
class Decline:
    """The client sits the round out."""

    reason: str


@dataclass(frozen=True, slots=True)
class Upload:
    """A whole vector, on a stream of its own. `session` is that of the signed manifest."""

    session: str
    vector: bytes


# --- down ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Welcome:
    """The check-in is recorded."""


@dataclass(frozen=True, slots=True)
class Offer:
    """An invitation: the signed configuration, and the receiver's entry."""

    configuration: Statement
    entry: bytes


@dataclass(frozen=True, slots=True)
class Receipt:
    """The vector is durable and counts."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The round has ended."""

    published: bool


@dataclass(frozen=True, slots=True)
class Closed:
    """The mesh ends the stream with an error; None where a newer session took over."""

    error: MeshError | None
