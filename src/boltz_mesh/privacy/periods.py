"""Periods of data: what a budget of the unit "client-period" is about, and when two are apart.

A period is a range of days, its end left out, in UTC. Its text is the interval of ISO 8601
(`2026-10-01/2027-01-01`); the empty text stands for no period: a whole client.

Budgets of two periods are apart only while no data belongs to both. Periods that overlap share what
was spent in either, and so does whatever overlaps them in turn: otherwise a window that is moved on
by a day would renew a budget for data that has spent it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time

from boltz_protocol.errors import InvalidPlan

#: The text of no period.
WHOLE_CLIENT = ""


@dataclass(frozen=True, slots=True, order=True)
class Period:
    """Days from `start` up to, and without, `end`.

    Raises: InvalidPlan where there is no day in it.
    """

    start: date
    end: date

    def __post_init__(self) -> None:
        """Refuse a period without a day."""
        if self.end <= self.start:
            raise InvalidPlan(
                f"period {self.start}/{self.end} has no day; an end after its start would do",
                setting="period",
            )

    def __str__(self) -> str:
        """The interval of ISO 8601."""
        return f"{self.start.isoformat()}/{self.end.isoformat()}"

    def overlaps(self, other: Period) -> bool:
        """Whether a day belongs to both."""
        return self.start < other.end and other.start < self.end


def parse_period(text: str) -> Period:
    """Read what `str(Period)` wrote. Raises: InvalidPlan."""
    try:
        start, end = text.split("/")
        period = Period(date.fromisoformat(start), date.fromisoformat(end))
    except ValueError as error:
        raise InvalidPlan(
            f"period {text[:40]!r} is no interval of days; 2026-10-01/2027-01-01 would do",
            setting="period",
        ) from error
    if str(period) != text:
        # `fromisoformat` reads other spellings; one period must have one name.
        raise InvalidPlan(f"period {text!r} is not written as {period}", setting="period")
    return period


def sharing(period: str, others: Iterable[str]) -> frozenset[str]:
    """The periods that share a budget with `period`: all that overlap it, step by step, and itself.

    A whole client (the empty text) has data in every period, and every period is part of it.

    Raises: InvalidPlan for a text that is no period.
    """
    known = frozenset(others) | {period}
    if period == WHOLE_CLIENT:
        return known
    rest = {parse_period(text) for text in known - {WHOLE_CLIENT, period}}
    found = {parse_period(period)}
    while joining := {one for one in rest if any(one.overlaps(other) for other in found)}:
        found |= joining
        rest -= joining
    return frozenset(map(str, found)) | (known & {WHOLE_CLIENT})


def midnight_ms(day: date) -> int:
    """Unix milliseconds of the beginning of a day in UTC."""
    return int(datetime.combine(day, time(), UTC).timestamp() * 1000)


def day_of(at_ms: int) -> date:
    """The day in UTC that a Unix time in milliseconds falls on."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).date()
