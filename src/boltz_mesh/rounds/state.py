"""Where a round stands: one frozen type for each phase, holding what that phase may know.

The types are msgspec structs, so that the value in memory and the JSON in the snapshot are one
definition. Clients are named by their ids; what else is known about them stays in the roster rows.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Final

import msgspec

from boltz_protocol import limits


class Phase(StrEnum):
    """The phases of the contract. `open` rounds skip the four cryptographic ones."""

    SELECTING = "SELECTING"
    ADVERTISING_KEYS = "ADVERTISING_KEYS"
    SHARING_KEYS = "SHARING_KEYS"
    COLLECTING = "COLLECTING"
    CHECKING_CONSISTENCY = "CHECKING_CONSISTENCY"
    UNMASKING = "UNMASKING"
    AGGREGATING = "AGGREGATING"
    RELEASING = "RELEASING"
    PUBLISHED = "PUBLISHED"
    ABORTED = "ABORTED"


class AbortReason(StrEnum):
    """Why a round ended without a result, when nobody asked for it."""

    TOO_FEW_CLIENTS = "TOO_FEW_CLIENTS"
    BUDGET_EXCEEDED = "BUDGET_EXCEEDED"
    TOO_FEW_UPDATES = "TOO_FEW_UPDATES"
    AGGREGATING_TOO_LONG = "AGGREGATING_TOO_LONG"
    RELEASING_TOO_LONG = "RELEASING_TOO_LONG"
    AGGREGATE_REJECTED = "AGGREGATE_REJECTED"
    PUBLISH_REJECTED = "PUBLISH_REJECTED"


class RoundParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is fixed when a round starts.

    Args:
        round_id, model_id: 32 hex digits; the plan's name.
        attempt: 1 for `open` rounds, which never try twice.
        base_version: the model version the clients train from.
        plan_revision: of the plan the round runs under.
        min_clients, target_clients, max_clients: 1 <= min <= target <= max.
        wanted_clients: how many to select (`selection.wanted_count`), target..max.
        selecting_ms, collecting_ms, aggregating_ms, releasing_ms: the longest these phases may
            take, 1..limits.MAX_PHASE_MS.
        recovery_extension_ms: the most that outages may add to one phase.
    """

    round_id: str
    model_id: str
    attempt: int
    base_version: int
    plan_revision: int
    min_clients: int
    target_clients: int
    max_clients: int
    wanted_clients: int
    selecting_ms: int
    collecting_ms: int
    aggregating_ms: int
    releasing_ms: int
    recovery_extension_ms: int

    def __post_init__(self) -> None:
        """Assert the relations that the plan's validation promises."""
        assert 1 <= self.min_clients <= self.target_clients
        assert self.target_clients <= self.wanted_clients <= self.max_clients
        assert self.max_clients <= limits.MAX_ROSTER
        assert 1 <= self.attempt <= limits.MAX_ATTEMPTS
        for length_ms in (
            self.selecting_ms,
            self.collecting_ms,
            self.aggregating_ms,
            self.releasing_ms,
        ):
            assert 0 < length_ms <= limits.MAX_PHASE_MS
        assert 0 <= self.recovery_extension_ms <= limits.MAX_PHASE_MS


class Selecting(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="SELECTING"
):
    """Waiting for enough clients to check in.

    `candidates` are those last seen, with budget left; `over_budget` counts the others. `choosing`
    says that the roster is being drawn; `expired`, that the deadline has passed.
    """

    phase: ClassVar[Phase] = Phase.SELECTING

    parameters: RoundParameters
    deadline_ms: int
    extended_ms: int = 0
    candidates: frozenset[str] = frozenset()
    over_budget: int = 0
    choosing: bool = False
    expired: bool = False


class Collecting(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="COLLECTING"
):
    """Clients train and upload. `stored` and `dropped` are disjoint parts of the roster."""

    phase: ClassVar[Phase] = Phase.COLLECTING

    parameters: RoundParameters
    roster: tuple[str, ...]
    config_digest: str
    deadline_ms: int
    extended_ms: int = 0
    stored: frozenset[str] = frozenset()
    dropped: dict[str, str] = {}

    def outstanding(self) -> int:
        """How many of the roster have neither uploaded nor dropped out."""
        return len(self.roster) - len(self.stored) - len(self.dropped)


class Aggregating(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="AGGREGATING"
):
    """The survivors are frozen (in roster order) and being folded."""

    phase: ClassVar[Phase] = Phase.AGGREGATING

    parameters: RoundParameters
    survivors: tuple[str, ...]
    deadline_ms: int
    extended_ms: int = 0


class Releasing(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="RELEASING"
):
    """The noised aggregate is charged; the version that comes out of it is being made.

    `total_weight` and `metrics` are as in `event.AggregateReady`.
    """

    phase: ClassVar[Phase] = Phase.RELEASING

    parameters: RoundParameters
    survivors: tuple[str, ...]
    aggregate_digest: str
    total_weight: int
    metrics: dict[str, float]
    deadline_ms: int
    extended_ms: int = 0


class Published(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="PUBLISHED"
):
    """The new version exists."""

    phase: ClassVar[Phase] = Phase.PUBLISHED

    parameters: RoundParameters
    survivors: tuple[str, ...]
    version: int
    model_digest: str


class Aborted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="ABORTED"):
    """Ended without a result. `charged` says whether the survivors' budgets were debited."""

    phase: ClassVar[Phase] = Phase.ABORTED

    parameters: RoundParameters
    reason: str
    by: str
    charged: bool = False


Running = Selecting | Collecting | Aggregating | Releasing
RoundState = Selecting | Collecting | Aggregating | Releasing | Published | Aborted
Ended = Published | Aborted

#: `by` of an abort that the rules asked for.
BY_RULES: Final = "rules"


def deadline_of(state: RoundState) -> int | None:
    """End of the phase, Unix time in milliseconds; None where there is none, or it has passed."""
    match state:
        case Published() | Aborted():
            return None
        case Selecting(expired=True):
            return None
        case _:
            return state.deadline_ms
