"""What can happen to a round. Every event carries its time; none carries anything secret.

Events are appended to `round_events` and never changed: folding them gives the round's state.
"""

from __future__ import annotations

import msgspec

from boltz_mesh.rounds.state import Groups, RoundParameters


class _Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """`at_ms` is Unix time in milliseconds by the coordinator's clock."""

    at_ms: int


class RoundStarted(_Event, frozen=True, kw_only=True):
    """The first event of every round."""

    parameters: RoundParameters


class CandidatesSeen(_Event, frozen=True, kw_only=True):
    """Who is checked in now: `candidates` with budget left, `over_budget` how many without."""

    candidates: frozenset[str]
    over_budget: int = 0


class RosterFixed(_Event, frozen=True, kw_only=True):
    """The roster is drawn and committed to by the signed configuration.

    Args:
        roster: client ids in roster order.
        config_digest: SHA-256 of the signed configuration, hex.
        deadline_ms: end of COLLECTING, as the configuration says.
    """

    roster: tuple[str, ...]
    config_digest: str
    deadline_ms: int


class KeysAdvertised(_Event, frozen=True, kw_only=True):
    """Signed key advertisements that are checked and durable (sealed rounds)."""

    clients: frozenset[str]


class NoncesRevealed(_Event, frozen=True, kw_only=True):
    """Nonces that fit their commitments, durable (grouped rounds, and a sparse graph)."""

    clients: frozenset[str]


class GroupsDrawn(_Event, frozen=True, kw_only=True):
    """The revealed nonces cut the graph members into groups (grouped rounds).

    It belongs to the transaction that enters SHARING_KEYS: nobody is asked for shares before.
    """

    groups: Groups


class SharesDealt(_Event, frozen=True, kw_only=True):
    """Sealed shares for all of the dealer's holders, durable (sealed rounds)."""

    clients: frozenset[str]


class UpdatesStored(_Event, frozen=True, kw_only=True):
    """Updates that are checked and durable and have a receipt.

    A whole batch is one event: were it split, the first half could end COLLECTING and the second,
    whose clients hold receipts as well, would not count.
    """

    clients: frozenset[str]


class SurvivorsSigned(_Event, frozen=True, kw_only=True):
    """Signatures over the round's one set of survivors, checked and durable (sealed rounds)."""

    clients: frozenset[str]


class SharesReleased(_Event, frozen=True, kw_only=True):
    """Released shares, each checked against its dealer's commitment, durable (sealed rounds).

    `enough`: with these and the earlier ones, every secret that the sum needs can be reconstructed.
    """

    clients: frozenset[str]
    enough: bool = False


class ClientsDropped(_Event, frozen=True, kw_only=True):
    """Clients whose session takes no further part: id -> reason (declined, superseded, left)."""

    clients: dict[str, str]


class DeadlineReached(_Event, frozen=True, kw_only=True):
    """The clock passed a deadline."""


class AbortRequested(_Event, frozen=True, kw_only=True):
    """An operator, or the coordinator on a failure, ends the round; `reason` is for the record."""

    by: str
    reason: str


class AggregateReady(_Event, frozen=True, kw_only=True):
    """The noised aggregate is durable; in `open` rounds this event's transaction charges it.

    Args:
        aggregate_digest: SHA-256 of the encrypted blob, hex.
        survivors: how many are in the sum.
        total_weight: sum of their weights, the denominator of the mean.
        metrics: lane name -> noised mean, finite.
    """

    aggregate_digest: str
    survivors: int
    total_weight: int
    metrics: dict[str, float]


class AggregateRejected(_Event, frozen=True, kw_only=True):
    """The noised sum lies beyond what clip and noise allow. Charged all the same: it was seen."""

    reason: str


class VersionPublished(_Event, frozen=True, kw_only=True):
    """The new version exists; `model_digest` is the SHA-256 of its file, hex."""

    version: int
    model_digest: str


class PublishRejected(_Event, frozen=True, kw_only=True):
    """No version can be made of the aggregate, however often one tries."""

    reason: str


class Recovered(_Event, frozen=True, kw_only=True):
    """A coordinator took the round over after `down_ms` without one."""

    down_ms: int


Event = (
    RoundStarted
    | CandidatesSeen
    | RosterFixed
    | KeysAdvertised
    | NoncesRevealed
    | GroupsDrawn
    | SharesDealt
    | UpdatesStored
    | SurvivorsSigned
    | SharesReleased
    | ClientsDropped
    | DeadlineReached
    | AbortRequested
    | AggregateReady
    | AggregateRejected
    | VersionPublished
    | PublishRejected
    | Recovered
)
