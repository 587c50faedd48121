"""Where a round stands: one frozen type for each phase, holding what that phase may know.

The types are msgspec structs, so that the value in memory and the JSON in the snapshot are one
definition. Clients are named by their ids; what else is known about them stays in the roster rows.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Final, Literal

import msgspec

from boltz_protocol import limits
from boltz_protocol.secagg.graph import Adversary


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
    TOO_FEW_KEYS = "TOO_FEW_KEYS"
    TOO_FEW_SHARES = "TOO_FEW_SHARES"
    TOO_FEW_UPDATES = "TOO_FEW_UPDATES"
    TOO_FEW_SIGNATURES = "TOO_FEW_SIGNATURES"
    TOO_FEW_RELEASED = "TOO_FEW_RELEASED"
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
        mode: what the server may see; `sealed` rounds have the four cryptographic phases, and
            `grouped` ones are sealed rounds whose clients are cut into groups.
        advertising_ms, sharing_ms, checking_ms, unmasking_ms: the longest the phases of sealed
            rounds may take, 1..limits.MAX_PHASE_MS; revealing nonces may take `advertising_ms` too.
        corrupt_fraction, dropout_fraction, adversary: what the graph of a sealed round withstands.
        groups: of a `grouped` round, at least 2; 0 in other modes, as `min_group_survivors`.
        min_group_survivors: fewest survivors of a group whose sum is opened.
        least_groups: fewest such groups that make a version; more than one where the plan's rule
            compares them.
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
    mode: Literal["open", "sealed", "grouped"] = "open"
    advertising_ms: int = 30_000
    sharing_ms: int = 30_000
    checking_ms: int = 30_000
    unmasking_ms: int = 30_000
    corrupt_fraction: float = 0.05
    dropout_fraction: float = 0.1
    adversary: Adversary = Adversary.SEMI_MALICIOUS
    groups: int = 0
    min_group_survivors: int = 0
    least_groups: int = 0

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
            self.advertising_ms,
            self.sharing_ms,
            self.checking_ms,
            self.unmasking_ms,
        ):
            assert 0 < length_ms <= limits.MAX_PHASE_MS
        assert 0 <= self.recovery_extension_ms <= limits.MAX_PHASE_MS
        if self.is_grouped:
            assert limits.MIN_GROUP * self.groups <= self.wanted_clients
            assert self.max_clients <= limits.MAX_COMPLETE_GRAPH * self.groups
            assert self.min_group_survivors >= limits.MIN_SEALED_COHORT
            assert 0 <= self.least_groups <= self.groups
        else:
            assert self.groups == self.min_group_survivors == self.least_groups == 0

    @property
    def is_sealed(self) -> bool:
        """Whether updates are masked, so that the server learns their sum alone, or that of each
        group in a grouped round."""
        return self.mode != "open"

    @property
    def is_grouped(self) -> bool:
        """Whether the clients are cut into groups, each of which has a sum of its own."""
        return self.mode == "grouped"

    @property
    def least_members(self) -> int:
        """The fewest clients with which a round goes on until its updates are collected.

        More than `min_clients` where fewer could not fill the groups.
        """
        return max(self.min_clients, limits.MIN_GROUP * self.groups)


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One group of a grouped round, as drawn.

    Args:
        clients: ids in roster order.
        threshold: shares that give a secret of one of them back.
    """

    clients: tuple[str, ...]
    threshold: int


#: Of a grouped round, all groups; () in other modes, and until they are drawn.
Groups = tuple[Group, ...]


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


class AdvertisingKeys(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="ADVERTISING_KEYS"
):
    """The roster is fixed; its clients train, and advertise their keys.

    `advertised` and `dropped` are disjoint parts of the roster. The end of COLLECTING, which the
    configuration names, is carried along with what outages have added to it.
    """

    phase: ClassVar[Phase] = Phase.ADVERTISING_KEYS

    parameters: RoundParameters
    roster: tuple[str, ...]
    config_digest: str
    collecting_deadline_ms: int
    deadline_ms: int
    collecting_extended_ms: int = 0
    extended_ms: int = 0
    advertised: frozenset[str] = frozenset()
    dropped: dict[str, str] = {}


class RevealingNonces(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="REVEALING_NONCES"
):
    """The key roster is signed; its `members` (in roster order) reveal the nonces that choose the
    graph, or the groups. Skipped where the graph is complete and one. `revealed` and `dropped` are
    disjoint parts of `members`.
    """

    phase: ClassVar[Phase] = Phase.ADVERTISING_KEYS

    parameters: RoundParameters
    roster: tuple[str, ...]
    config_digest: str
    members: tuple[str, ...]
    collecting_deadline_ms: int
    deadline_ms: int
    collecting_extended_ms: int = 0
    extended_ms: int = 0
    revealed: frozenset[str] = frozenset()
    dropped: dict[str, str] = {}


class SharingKeys(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="SHARING_KEYS"
):
    """The graph stands over `graph_members` (in roster order), who deal shares of their secrets.

    `shared` and `dropped` are disjoint parts of `graph_members`, and so are the `groups` together.
    """

    phase: ClassVar[Phase] = Phase.SHARING_KEYS

    parameters: RoundParameters
    roster: tuple[str, ...]
    config_digest: str
    graph_members: tuple[str, ...]
    collecting_deadline_ms: int
    deadline_ms: int
    collecting_extended_ms: int = 0
    extended_ms: int = 0
    shared: frozenset[str] = frozenset()
    dropped: dict[str, str] = {}
    groups: Groups = ()


class Collecting(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="COLLECTING"
):
    """Clients train and upload.

    Args:
        participants: who may upload, in roster order: the roster in `open` rounds, the sharers in
            sealed ones.
        stored, dropped: disjoint parts of `participants`.
        left: of `stored`, those that dropped out all the same: their updates count, but they will
            neither sign nor release anything.
        graph_members, groups: as in SharingKeys; empty in `open` rounds, here and in all later
            states.
    """

    phase: ClassVar[Phase] = Phase.COLLECTING

    parameters: RoundParameters
    participants: tuple[str, ...]
    config_digest: str
    deadline_ms: int
    extended_ms: int = 0
    stored: frozenset[str] = frozenset()
    dropped: dict[str, str] = {}
    left: dict[str, str] = {}
    graph_members: tuple[str, ...] = ()
    groups: Groups = ()

    def outstanding(self) -> int:
        """How many of the participants have neither uploaded nor dropped out."""
        return len(self.participants) - len(self.stored) - len(self.dropped)


class CheckingConsistency(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag="CHECKING_CONSISTENCY",
):
    """The mesh has signed who survived; the clients sign that they all saw the same survivors.

    From here on membership is frozen: `survivors` are those of `sharers` whose update counts, both
    in roster order. `signed` are the sharers whose signature is there; `dropped`, those that left.
    A client may be in both: its signature stays good, but it will release nothing. Of a group that
    became too small nobody survives, and all its sharers are dropped.
    """

    phase: ClassVar[Phase] = Phase.CHECKING_CONSISTENCY

    parameters: RoundParameters
    graph_members: tuple[str, ...]
    sharers: tuple[str, ...]
    survivors: tuple[str, ...]
    deadline_ms: int
    extended_ms: int = 0
    signed: frozenset[str] = frozenset()
    dropped: dict[str, str] = {}
    groups: Groups = ()


class Unmasking(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="UNMASKING"
):
    """The survivors are charged; the sharers release the shares that open the sum.

    `released` and `dropped` are disjoint parts of `sharers`.
    """

    phase: ClassVar[Phase] = Phase.UNMASKING

    parameters: RoundParameters
    graph_members: tuple[str, ...]
    sharers: tuple[str, ...]
    survivors: tuple[str, ...]
    deadline_ms: int
    extended_ms: int = 0
    released: frozenset[str] = frozenset()
    dropped: dict[str, str] = {}
    groups: Groups = ()

    def outstanding(self) -> int:
        """How many of the sharers may still release."""
        return len(self.sharers) - len(self.released) - len(self.dropped)


class Aggregating(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="AGGREGATING"
):
    """The survivors are frozen (in roster order) and being folded.

    `graph_members`, `sharers` and `groups` tell which masks are in which sum; they are empty in
    `open` rounds.
    """

    phase: ClassVar[Phase] = Phase.AGGREGATING

    parameters: RoundParameters
    survivors: tuple[str, ...]
    deadline_ms: int
    extended_ms: int = 0
    graph_members: tuple[str, ...] = ()
    sharers: tuple[str, ...] = ()
    groups: Groups = ()


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


KeyPhase = AdvertisingKeys | RevealingNonces | SharingKeys
Running = (
    Selecting
    | AdvertisingKeys
    | RevealingNonces
    | SharingKeys
    | Collecting
    | CheckingConsistency
    | Unmasking
    | Aggregating
    | Releasing
)
Ended = Published | Aborted
RoundState = Running | Ended

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
