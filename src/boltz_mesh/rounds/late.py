"""Facts that were on their way when a phase ended: ignored on purpose, each with its reason.

What is neither a move of the diagram nor listed here is a defect, and asserts in `step`.
"""

from __future__ import annotations

from boltz_mesh.rounds.event import (
    AbortRequested,
    CandidatesSeen,
    ClientsDropped,
    DeadlineReached,
    Event,
    KeysAdvertised,
    NoncesRevealed,
    SharesDealt,
    SharesReleased,
    SurvivorsSigned,
    UpdatesStored,
)
from boltz_mesh.rounds.groups import left_out
from boltz_mesh.rounds.state import (
    Aborted,
    AdvertisingKeys,
    Aggregating,
    CheckingConsistency,
    Published,
    Releasing,
    RevealingNonces,
    RoundState,
    Selecting,
    SharingKeys,
    Unmasking,
)


def is_late(state: RoundState, event: Event) -> bool:
    """Whether `event` comes too late to change anything. Asserts where it could not have come."""
    match state, event:
        case _, DeadlineReached():
            return _is_stale_timer(state, event)
        case ((Releasing() | Published() | Aborted()), AbortRequested()):
            # It crossed with the charge of an open round, with the release, or with the end:
            # there is nothing left to stop.
            return True
        case Selecting(), CandidatesSeen():
            return False
        case _, CandidatesSeen():
            # Check-ins after the roster was fixed are for the next round.
            return True
        case (
            (Selecting() | Aggregating() | Releasing() | Published() | Aborted()),
            ClientsDropped(),
        ):
            # Before the roster check-ins say who is there; once the shares are in, nothing is
            # awaited from any client.
            return True
        case (
            (
                CheckingConsistency()
                | Unmasking()
                | Aggregating()
                | Releasing()
                | Published()
                | Aborted()
            ),
            UpdatesStored(clients=clients),
        ):
            # The same fact again. A new one would be a receipt that does not count: a defect.
            assert _may_have_receipts(state, clients), "a receipt after the survivors were frozen"
            return True
        case _, (
            KeysAdvertised()
            | NoncesRevealed()
            | SharesDealt()
            | SurvivorsSigned()
            | SharesReleased()
        ):
            return state.parameters.is_sealed and _is_late_answer(state, event)
    return False


def _may_have_receipts(
    state: CheckingConsistency | Unmasking | Aggregating | Releasing | Published | Aborted,
    clients: frozenset[str],
) -> bool:
    """Survivors have receipts; in a grouped round, so may the clients of groups left out."""
    match state:
        case Aborted():
            # Without a result nothing counts.
            return True
        case Releasing() | Published():
            # The groups are known no more.
            return state.parameters.is_grouped or clients <= frozenset(state.survivors)
        case _:
            return clients <= left_out(state.groups, state.survivors).union(state.survivors)


def _is_stale_timer(state: RoundState, event: DeadlineReached) -> bool:
    match state:
        case Published() | Aborted():
            # The timer of a phase that ended before its time.
            return True
        case Selecting(expired=True):
            # Once the selection has expired, its deadline is over for good.
            return True
        case _:
            # A timer set before an outage extended the phase, or of an earlier phase, rings too
            # early; one rings again.
            return event.at_ms < state.deadline_ms


def _is_late_answer(
    state: RoundState,
    event: KeysAdvertised | NoncesRevealed | SharesDealt | SurvivorsSigned | SharesReleased,
) -> bool:
    """Answers of a sealed round's clients; none has been promised to count."""
    match event:
        case KeysAdvertised():
            # The key roster is signed without them: their clients are no members.
            return not isinstance(state, Selecting | AdvertisingKeys)
        case NoncesRevealed():
            # The graph stands without them.
            return not isinstance(state, Selecting | AdvertisingKeys | RevealingNonces)
        case SharesDealt():
            # The others were told whose masks count; these dealers' do not.
            return not isinstance(
                state, Selecting | AdvertisingKeys | RevealingNonces | SharingKeys
            )
        case SurvivorsSigned():
            # There were enough signatures; the clients need no more of them to release.
            return isinstance(state, Unmasking | Aggregating | Releasing | Published | Aborted)
        case SharesReleased():
            # The sum is open, or never will be.
            return isinstance(state, Aggregating | Releasing | Published | Aborted)
