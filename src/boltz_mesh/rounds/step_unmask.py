"""Steps of a sealed round from frozen survivors to an opened sum: checking, unmasking.

Nobody joins or leaves the sharers or the survivors here: the clients sign, and the shares open, one
set. A client that drops out only stops being waited for. Sharers of a group without survivors are
dropped from the start: there is nothing of theirs to sign or to open.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from boltz_mesh.rounds.charge import abort_by_rules
from boltz_mesh.rounds.event import SharesReleased
from boltz_mesh.rounds.groups import GROUP_TOO_SMALL, left_out
from boltz_mesh.rounds.state import (
    AbortReason,
    Aggregating,
    CheckingConsistency,
    Collecting,
    RoundState,
    Unmasking,
)


def begin(collected: Collecting, survivors: tuple[str, ...], at_ms: int) -> RoundState:
    """Freeze who is in the sum, and ask the sharers to sign it."""
    parameters = collected.parameters
    assert parameters.is_sealed
    idle = left_out(collected.groups, survivors).intersection(collected.participants)
    # Some that uploaded have left since: who is there may be too few from the start.
    return _check(
        CheckingConsistency(
            parameters=parameters,
            graph_members=collected.graph_members,
            sharers=collected.participants,
            survivors=survivors,
            deadline_ms=at_ms + parameters.checking_ms,
            dropped={
                **dict.fromkeys(sorted(idle), GROUP_TOO_SMALL),
                **collected.dropped,
                **collected.left,
            },
            groups=collected.groups,
        ),
        at_ms,
    )


# --- CHECKING_CONSISTENCY -----------------------------------------------------------------------


def sign(state: CheckingConsistency, clients: frozenset[str], at_ms: int) -> RoundState:
    """Take signatures; a sharer that is no survivor may sign as well."""
    assert clients <= frozenset(state.sharers), "a signature of a client that shared no keys"
    return _check(replace(state, signed=state.signed | clients), at_ms)


def drop_checking(state: CheckingConsistency, reasons: Mapping[str, str], at_ms: int) -> RoundState:
    """Stop waiting for clients. A signature stays good, but who has left releases nothing."""
    leaving = _leaving(state.sharers, state.dropped, reasons)
    return _check(replace(state, dropped={**state.dropped, **leaving}), at_ms)


def close_checking(state: CheckingConsistency, at_ms: int) -> RoundState:
    """The deadline: unmask with those who have signed and are there, if they are enough."""
    if _signers(state) < state.parameters.min_clients:
        return abort_by_rules(state, AbortReason.TOO_FEW_SIGNATURES)
    return _unmask(state, at_ms)


def _check(state: CheckingConsistency, at_ms: int) -> RoundState:
    minimum = state.parameters.min_clients
    if len(state.sharers) - len(state.dropped) < minimum:
        return abort_by_rules(state, AbortReason.TOO_FEW_SIGNATURES)
    awaited = (c for c in state.survivors if c not in state.signed and c not in state.dropped)
    if _signers(state) >= minimum and not any(awaited):
        return _unmask(state, at_ms)
    return state


def _signers(state: CheckingConsistency) -> int:
    """How many have signed and can still release."""
    return len(state.signed - state.dropped.keys())


def _unmask(state: CheckingConsistency, at_ms: int) -> Unmasking:
    """The charging step: from here on the clients may release what opens the sum."""
    return Unmasking(
        parameters=state.parameters,
        graph_members=state.graph_members,
        sharers=state.sharers,
        survivors=state.survivors,
        deadline_ms=at_ms + state.parameters.unmasking_ms,
        dropped=state.dropped,
        groups=state.groups,
    )


# --- UNMASKING ----------------------------------------------------------------------------------


def release(state: Unmasking, event: SharesReleased) -> RoundState:
    """Take released shares. They count even when their client has left since."""
    assert event.clients <= frozenset(state.sharers), "a share of a client that holds none"
    dropped = {c: why for c, why in state.dropped.items() if c not in event.clients}
    after = replace(state, released=state.released | event.clients, dropped=dropped)
    if not event.enough:
        return _await_shares(after)
    return Aggregating(
        parameters=state.parameters,
        graph_members=state.graph_members,
        sharers=state.sharers,
        survivors=state.survivors,
        deadline_ms=event.at_ms + state.parameters.aggregating_ms,
        groups=state.groups,
    )


def drop_unmasking(state: Unmasking, reasons: Mapping[str, str]) -> RoundState:
    """Stop waiting for clients that have not released."""
    leaving = {
        client: reason
        for client, reason in _leaving(state.sharers, state.dropped, reasons).items()
        if client not in state.released
    }
    return _await_shares(replace(state, dropped={**state.dropped, **leaving}))


def close_unmasking(state: Unmasking) -> RoundState:
    """The deadline: were the shares enough, the sum would be open already."""
    return abort_by_rules(state, AbortReason.TOO_FEW_RELEASED)


def _await_shares(state: Unmasking) -> RoundState:
    if state.outstanding() == 0:
        return abort_by_rules(state, AbortReason.TOO_FEW_RELEASED)
    return state


def _leaving(
    sharers: tuple[str, ...], dropped: Mapping[str, str], reasons: Mapping[str, str]
) -> dict[str, str]:
    """Of `reasons`, what is news about a sharer; the first reason stands."""
    return {c: reasons[c] for c in sharers if c in reasons and c not in dropped}
