"""Steps of the key phases of a sealed round: advertising, revealing, sharing.

All three go alike: some clients are asked, the phase ends when nobody is outstanding or at its
deadline, and those that have answered and are still there are asked the next thing. A dropout is
final: the secrets of its session are gone, so what it has sent helps nobody, and it leaves.

In a grouped round nonces are always revealed, and the groups drawn from them come in with an event
of their own. Sharers of a group that has become too small are not taken along.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from boltz_mesh.rounds.charge import abort_by_rules
from boltz_mesh.rounds.event import GroupsDrawn, RosterFixed
from boltz_mesh.rounds.groups import in_strong_groups
from boltz_mesh.rounds.state import (
    Aborted,
    AbortReason,
    AdvertisingKeys,
    Collecting,
    KeyPhase,
    RevealingNonces,
    RoundParameters,
    RoundState,
    SharingKeys,
)
from boltz_protocol import limits


def begin(parameters: RoundParameters, event: RosterFixed) -> AdvertisingKeys:
    """Ask the roster for its keys."""
    return AdvertisingKeys(
        parameters=parameters,
        roster=event.roster,
        config_digest=event.config_digest,
        collecting_deadline_ms=event.deadline_ms,
        deadline_ms=min(event.at_ms + parameters.advertising_ms, event.deadline_ms),
    )


def answer(state: KeyPhase, clients: frozenset[str], at_ms: int) -> RoundState:
    """Take the answers of `clients`."""
    assert clients <= frozenset(_asked(state)), "an answer from a client that was not asked"
    answered = _answered(state) | (clients - state.dropped.keys())
    return _go_on(_having(state, answered, state.dropped), at_ms)


def drop(state: KeyPhase, reasons: Mapping[str, str], at_ms: int) -> RoundState:
    """Leave out the clients of `reasons`, as far as they were asked; the first reason stands."""
    leaving = {
        client: reasons[client]
        for client in _asked(state)
        if client in reasons and client not in state.dropped
    }
    answered = _answered(state) - leaving.keys()
    return _go_on(_having(state, answered, {**state.dropped, **leaving}), at_ms)


def draw(state: SharingKeys, event: GroupsDrawn) -> RoundState:
    """Take the groups. Who has left since the nonces were revealed is missing in its own."""
    assert state.parameters.is_grouped, "groups in a round that has none"
    assert not state.groups, "groups are drawn once"
    assert len(event.groups) == state.parameters.groups
    drawn = sorted(client for group in event.groups for client in group.clients)
    assert drawn == sorted(state.graph_members), "each graph member is in one group"
    return _go_on(replace(state, groups=event.groups), event.at_ms)


def close(state: KeyPhase, at_ms: int) -> RoundState:
    """The deadline: go on with those who have answered, if they are enough."""
    if len(_fit(state, _answered(state))) < _least(state):
        return _too_few(state)
    return _next(state, at_ms)


def _go_on(state: KeyPhase, at_ms: int) -> RoundState:
    """Move on, give up or wait."""
    there = frozenset(_asked(state)) - state.dropped.keys()
    if len(_fit(state, there)) < _least(state):
        return _too_few(state)
    return state if there != _answered(state) else _next(state, at_ms)


def _least(state: KeyPhase) -> int:
    """How many must have answered: once the groups stand, losing one of them is no matter."""
    parameters = state.parameters
    return parameters.min_clients if isinstance(state, SharingKeys) else parameters.least_members


def _fit(state: KeyPhase, clients: frozenset[str]) -> frozenset[str]:
    """Those of `clients` that can be of use together."""
    if isinstance(state, SharingKeys):
        return in_strong_groups(state.parameters, state.groups, clients)
    return clients


def _next(state: KeyPhase, at_ms: int) -> RoundState:
    answered = _fit(state, _answered(state))
    on = tuple(client for client in _asked(state) if client in answered)
    assert len(on) >= _least(state)
    grouped = state.parameters.is_grouped
    match state:
        case AdvertisingKeys() if grouped or len(on) > limits.MAX_COMPLETE_GRAPH:
            return RevealingNonces(
                parameters=state.parameters,
                roster=state.roster,
                config_digest=state.config_digest,
                members=on,
                collecting_deadline_ms=state.collecting_deadline_ms,
                collecting_extended_ms=state.collecting_extended_ms,
                deadline_ms=_deadline_ms(state, at_ms + state.parameters.advertising_ms),
            )
        case AdvertisingKeys() | RevealingNonces():
            return SharingKeys(
                parameters=state.parameters,
                roster=state.roster,
                config_digest=state.config_digest,
                graph_members=on,
                collecting_deadline_ms=state.collecting_deadline_ms,
                collecting_extended_ms=state.collecting_extended_ms,
                deadline_ms=_deadline_ms(state, at_ms + state.parameters.sharing_ms),
            )
        case SharingKeys():
            assert bool(state.groups) is grouped, "groups are drawn before shares are dealt"
            # The configuration promised this deadline: what the key phases left of it is for
            # training.
            return Collecting(
                parameters=state.parameters,
                participants=on,
                config_digest=state.config_digest,
                deadline_ms=state.collecting_deadline_ms,
                extended_ms=state.collecting_extended_ms,
                graph_members=state.graph_members,
                groups=state.groups,
            )


def _deadline_ms(state: KeyPhase, wanted_ms: int) -> int:
    """A key phase that outlives COLLECTING would end in a round without updates all the same."""
    return min(wanted_ms, state.collecting_deadline_ms)


def _too_few(state: KeyPhase) -> Aborted:
    sharing = isinstance(state, SharingKeys)
    return abort_by_rules(
        state, AbortReason.TOO_FEW_SHARES if sharing else AbortReason.TOO_FEW_KEYS
    )


def _asked(state: KeyPhase) -> tuple[str, ...]:
    match state:
        case AdvertisingKeys():
            return state.roster
        case RevealingNonces():
            return state.members
        case SharingKeys():
            return state.graph_members


def _answered(state: KeyPhase) -> frozenset[str]:
    match state:
        case AdvertisingKeys():
            return state.advertised
        case RevealingNonces():
            return state.revealed
        case SharingKeys():
            return state.shared


def _having(state: KeyPhase, answered: frozenset[str], dropped: dict[str, str]) -> KeyPhase:
    match state:
        case AdvertisingKeys():
            return replace(state, advertised=answered, dropped=dropped)
        case RevealingNonces():
            return replace(state, revealed=answered, dropped=dropped)
        case SharingKeys():
            return replace(state, shared=answered, dropped=dropped)
