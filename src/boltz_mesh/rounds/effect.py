"""What a step asks the driver to do once the step is committed.

Every effect is idempotent: after a crash the driver does not know whether it ran, and runs it
again.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScheduleDeadline:
    """Send DeadlineReached at `at_ms`; replaces the round's earlier deadline."""

    at_ms: int


@dataclass(frozen=True, slots=True)
class SelectRoster:
    """Draw `count` of `candidates`, commit to them and report RosterFixed.

    Where some have left meanwhile, report CandidatesSeen instead.
    """

    candidates: frozenset[str]
    count: int


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell every replica that clients are awaited, so that offers and notices go out."""


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Fold the survivors' updates, add noise, and report AggregateReady or AggregateRejected."""

    survivors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Publish:
    """Make the next version from the charged aggregate and report VersionPublished."""

    aggregate_digest: str


@dataclass(frozen=True, slots=True)
class CleanUp:
    """Destroy the updates' blobs and keys, and the aggregate's."""


Effect = ScheduleDeadline | SelectRoster | Announce | Aggregate | Publish | CleanUp
