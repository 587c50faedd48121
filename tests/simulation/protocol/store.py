"""A database in memory: transactions, crashes at their end, and the fencing of coordinators."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from boltz_mesh.rounds.fact import Fact
from boltz_protocol.statement import Statement


class Crash(Exception):
    """The process that was about to commit, or just did, is gone."""


class Fenced(Exception):
    """Another coordinator has the lease, or the round has moved on."""


class MessageKind(StrEnum):
    """Kinds of answers; each client may give one of each."""

    KEY_ADVERTISEMENT = "key-advertisement"
    NONCE = "nonce"
    DEALT_SHARES = "dealt-shares"
    SURVIVORS_SEEN = "survivors-seen"
    RELEASED_SHARES = "released-shares"


class StatementKind(StrEnum):
    """What the mesh signs for an attempt."""

    CONFIGURATION = "configuration"
    KEY_ROSTER = "key-roster"
    SURVIVORS = "survivors"


@dataclass(slots=True)
class Tables:
    """All that outlives the mesh's process. Values are never changed in place.

    Attributes:
        lease: token of the coordinator that holds the round.
        check_ins: client -> session.
        roster: serialised entries.
        messages: (kind, position) -> what was said first.
        updates: position -> the vector that was announced first.
        receipts: positions of updates with a receipt.
        inbox: facts with a running number.
        events: as JSON.
        snapshot: number of events before it, and the state as JSON.
        ledger: clients, once for each charge.
        sums: what the aggregate of each fold was, by its digest.
        versions: survivors of each version published.
    """

    lease: int = 0
    check_ins: dict[str, str] = field(default_factory=dict)
    roster: tuple[bytes, ...] = ()
    statements: dict[StatementKind, Statement] = field(default_factory=dict)
    messages: dict[tuple[MessageKind, int], Any] = field(default_factory=dict)
    updates: dict[int, bytes] = field(default_factory=dict)
    receipts: frozenset[int] = frozenset()
    inbox: tuple[Fact, ...] = ()
    events: tuple[str, ...] = ()
    snapshot: tuple[int, str] | None = None
    holds: frozenset[str] = frozenset()
    ledger: tuple[str, ...] = ()
    sums: dict[str, tuple[int, ...]] = field(default_factory=dict)
    versions: tuple[tuple[str, ...], ...] = ()

    def draft(self) -> Tables:
        """A copy that may be changed and thrown away."""
        return Tables(**{each.name: copy(getattr(self, each.name)) for each in fields(self)})


class Database:
    """See the head of this module. `crash_before`, `crash_after`: the next commit's fate."""

    def __init__(self) -> None:
        self.tables = Tables()
        self.crash_before = False
        self.crash_after = False

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Tables]:
        """All of it, or nothing where the body raises. Raises: Crash."""
        draft = self.tables.draft()
        yield draft
        if draft == self.tables:
            return
        if self.crash_before:
            self.crash_before = False
            raise Crash
        self.tables = draft
        if self.crash_after:
            self.crash_after = False
            raise Crash
