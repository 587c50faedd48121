"""What each client of a roster did in a round, from the round's events alone.

The events are the record of the round, so whoever folds them again finds the same conduct.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from boltz_mesh.rounds.event import (
    ClientsDropped,
    DeadlineReached,
    Event,
    Recovered,
    RosterFixed,
    UpdatesStored,
)
from boltz_mesh.rounds.fact import DECLINED
from boltz_mesh.rounds.late import is_late
from boltz_mesh.rounds.state import (
    AdvertisingKeys,
    CheckingConsistency,
    Collecting,
    Published,
    RevealingNonces,
    RoundState,
    SharingKeys,
    Unmasking,
)
from boltz_mesh.rounds.step import step
from boltz_mesh.trust.conduct import Conduct

#: Reasons with which an update that arrived is refused for good.
REFUSED_UPDATE: Final = frozenset({"norm_exceeded", "digest_mismatch"})


def conduct_in(events: Iterable[Event]) -> dict[str, Conduct]:
    """The conduct of each client of the roster; nobody's where no roster was fixed.

    In a round that was aborted nobody is COUNTED: who did nothing amiss is NOT_NEEDED.

    Args:
        events: of one round, all of them, in order.
    """
    state: RoundState | None = None
    roster: tuple[str, ...] = ()
    noted: dict[str, Conduct] = {}
    mesh_was_away = False
    for event in events:
        before = state
        state, _ = step(before, event)
        if before is None or is_late(before, event):
            continue
        if isinstance(event, RosterFixed):
            roster = event.roster
        mesh_was_away |= isinstance(event, Recovered)
        _note(noted, before, event, state, Conduct.EXCUSED if mesh_was_away else Conduct.LATE)
    survivors = frozenset(state.survivors) if isinstance(state, Published) else frozenset()
    return {
        client: noted.get(client, Conduct.COUNTED if client in survivors else Conduct.NOT_NEEDED)
        for client in roster
    }


def _note(
    noted: dict[str, Conduct], before: RoundState, event: Event, after: RoundState, late: Conduct
) -> None:
    """Take down what an event says about clients; of several things the first stands."""
    match event:
        case DeadlineReached() if type(before) is not type(after):
            for client in _awaited(before):
                noted.setdefault(client, late)
        case ClientsDropped(clients=reasons):
            for client, reason in reasons.items():
                conduct = _of_reason(reason)
                if conduct is Conduct.REFUSED:
                    noted[client] = conduct  # to have declined before is no excuse
                elif not _is_through(before, client):
                    noted.setdefault(client, conduct)
        case UpdatesStored(clients=clients) if not before.parameters.is_sealed:
            # Whoever declined and uploaded all the same has done what was asked.
            for client in clients:
                noted.pop(client, None)
        case _:
            pass


def _awaited(state: RoundState) -> frozenset[str]:
    """From whom the phase's answer is still missing."""
    match state:
        case AdvertisingKeys():
            return frozenset(state.roster) - state.advertised
        case RevealingNonces():
            return frozenset(state.members) - state.revealed
        case SharingKeys():
            return frozenset(state.graph_members) - state.shared
        case Collecting():
            return frozenset(state.participants) - state.stored
        case CheckingConsistency():
            # Who uploaded nothing may sign as well, but is not waited for.
            return frozenset(state.survivors) - state.signed - state.dropped.keys()
        case _:
            # Before the roster and after the shares nobody is waited for by name; a round whose
            # shares were not enough comes to nothing.
            return frozenset()


def _is_through(state: RoundState, client: str) -> bool:
    """Whether nothing more is asked of the client, so that it may leave."""
    match state:
        case Collecting():
            return client in state.stored and not state.parameters.is_sealed
        case Unmasking():
            return client in state.released
        case _:
            return False


def _of_reason(reason: str) -> Conduct:
    if reason.startswith(DECLINED):
        return Conduct.DECLINED
    return Conduct.REFUSED if reason in REFUSED_UPDATE else Conduct.LEFT
