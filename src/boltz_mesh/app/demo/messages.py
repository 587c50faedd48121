"""What the demo and its broker processes say to each other: one JSON object a line.

Orders go to a broker's standard input, news come from its standard output. The end of the input
ends the broker, so that none outlives the demo, however the demo ends.
"""

from __future__ import annotations

from typing import Final

import msgspec

from boltz_mesh.app.demo.settings import ModelKind, Preset, TrainerKind

#: A line holds at most a broker's join strings, 0.3 KiB each.
MAX_LINE_BYTES: Final = 1 << 20


class Setup(msgspec.Struct, frozen=True, kw_only=True, tag="setup"):
    """First order: who the broker is. Prices and key stores lie in `folder`."""

    folder: str
    kind: ModelKind
    trainer: TrainerKind
    preset: Preset
    smallest_cohort: int
    """Of the owner's limits: with fewer desks in the sum none of this broker's takes part."""


class Enrol(msgspec.Struct, frozen=True, kw_only=True, tag="enrol"):
    """Enrol the desks, newest first, each with a join string of its own (a secret)."""

    join_strings: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Enrol({len(self.join_strings)} join strings, hidden)"


class Join(msgspec.Struct, frozen=True, kw_only=True, tag="join"):
    """Take part, with every desk, in so many rounds of a model."""

    model_id: str
    rounds: int


class Measure(msgspec.Struct, frozen=True, kw_only=True, tag="measure"):
    """Tell how many bytes went over the connections to the mesh so far."""

    number: int


class Enrolled(msgspec.Struct, frozen=True, kw_only=True, tag="enrolled"):
    """Every desk has its certificate."""


class Joined(msgspec.Struct, frozen=True, kw_only=True, tag="joined"):
    """Every desk is checked in for the model."""

    model_id: str


class Left(msgspec.Struct, frozen=True, kw_only=True, tag="left"):
    """The model's rounds are over for every desk; `counted` updates became part of a version."""

    model_id: str
    counted: int


class Measured(msgspec.Struct, frozen=True, kw_only=True, tag="measured"):
    """Answer to `Measure`: bytes of all desks since the broker's start, enrolment left out."""

    number: int
    sent: int
    received: int


class Declined(msgspec.Struct, frozen=True, kw_only=True, tag="declined"):
    """A desk sits a round out, or does no more for it, and why."""

    model_id: str
    desk: int
    why: str


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The broker gives up, and why."""

    why: str


Order = Setup | Enrol | Join | Measure
News = Enrolled | Joined | Left | Measured | Declined | Failed


def line_of(message: Order | News) -> bytes:
    """The message as a line."""
    return msgspec.json.encode(message) + b"\n"


def parse_order(line: bytes) -> Order:
    """Raises: msgspec.DecodeError for anything else: a defect of the demo, not of its user."""
    order: Order = msgspec.json.decode(line, type=Order)
    return order


def parse_news(line: bytes) -> News:
    """Raises: msgspec.DecodeError, as `parse_order`."""
    news: News = msgspec.json.decode(line, type=News)
    return news
