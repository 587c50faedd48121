"""Planted bugs, each with the worlds or games that provoke it.

A mutant is a change to one of the real parts (by a patch), to what the mesh does around them (by a
subclass), or to the round's rules.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import pytest
from msgspec.structs import replace as with_fields

from boltz_mesh.rounds.charge import charges
from boltz_mesh.rounds.event import ClientsDropped, Event, Recovered, SurvivorsSigned
from boltz_mesh.rounds.event import SharesDealt as DealtEvent
from boltz_mesh.rounds.fact import FactKind
from boltz_mesh.rounds.state import (
    Aggregating,
    CheckingConsistency,
    Collecting,
    Releasing,
    RoundState,
    Unmasking,
)
from boltz_mesh.rounds.step import Step, step
from boltz_protocol import messages as m
from boltz_protocol.messages import ShareKind
from boltz_protocol.secagg import agreement, checks, client_steps, graph
from boltz_protocol.secagg.attempt import Attempt
from boltz_protocol.secagg.client import SecaggClient, VerifyPeer
from boltz_protocol.secagg.client_states import Ready, Signed, State
from boltz_protocol.secagg.client_steps import Member
from boltz_protocol.secagg.dealing import HeldShare
from boltz_protocol.secagg.graph import Graph, GraphParameters
from boltz_protocol.secagg.masks import MaskStream
from boltz_protocol.statement import Statement
from tests.simulation.protocol.coordinator import Coordinator
from tests.simulation.protocol.faults import Fault
from tests.simulation.protocol.faults import Kind as F
from tests.simulation.protocol.lies import Kind as L
from tests.simulation.protocol.mesh import Mesh, Rules
from tests.simulation.protocol.provocation import Mutant, Provocation, every
from tests.simulation.protocol.settings import Misdeed, Setting
from tests.simulation.protocol.store import MessageKind, Tables

# --- the client ---------------------------------------------------------------------------------


def _any_number_of_signatures(patch: pytest.MonkeyPatch) -> None:
    real = client_steps.take_signatures

    def planted(
        me: Member, state: Signed, notice: m.SignaturesNotice, verify: VerifyPeer
    ) -> tuple[State, m.SharesReleased]:
        return real(me, replace(state, graph=replace(state.graph, threshold=1)), notice, verify)

    patch.setattr(client_steps, "take_signatures", planted)


def _any_survivors_signed(patch: pytest.MonkeyPatch) -> None:
    """Whatever the neighbours signed, it counts."""
    real = client_steps.take_signatures

    class Same:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    def planted(
        me: Member, state: Signed, notice: m.SignaturesNotice, verify: VerifyPeer
    ) -> tuple[State, m.SharesReleased]:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Signed, "expected_from", lambda *_: Same())
            return real(me, state, notice, verify)

    patch.setattr(client_steps, "take_signatures", planted)


class BelievesSignatures(SecaggClient):
    def take_signatures(
        self, notice: m.SignaturesNotice, verify_peer_statement: VerifyPeer
    ) -> m.SharesReleased:
        return super().take_signatures(notice, lambda _, statement: statement.payload)


class SignsAgain(SecaggClient):
    """A second set of survivors is signed, and shares released for it too."""

    def take_survivors(self, payload: m.Survivors) -> Statement:
        state = self._state
        if isinstance(state, Ready):
            self._ready = state
        elif isinstance(state, Signed):
            self._state = self._ready
            self._answers.pop("take_survivors", None)
        return super().take_survivors(payload)


class MasksAgain(SecaggClient):
    """Another SharesNotice gives the same masks once more."""

    def take_shares(self, notice: m.SharesNotice) -> None:
        state = self._state
        if isinstance(state, Ready) and state.streams is None:
            self._state = replace(state, streams=self._kept)
            return
        super().take_shares(notice)

    def mask_streams(self) -> tuple[MaskStream, ...]:
        self._kept = super().mask_streams()
        return self._kept


def _no_count(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Member, "check_count", lambda *_: None)
    patch.setattr(Graph, "check_survivors", lambda *_: None)


def _no_look_at_the_graph(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Graph, "check_survivors", lambda *_: None)


def _threshold_one_too_low(patch: pytest.MonkeyPatch) -> None:
    real = graph._search

    def planted(*asked: Any) -> GraphParameters | None:
        found = real(*asked)
        return None if found is None else found._replace(threshold=found.threshold - 1)

    patch.setattr(graph, "_search", planted)


def _no_look_at_nonces(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(agreement, "_check_nonces", lambda *_: None)


def _one_kind_for_all(patch: pytest.MonkeyPatch) -> None:
    real = HeldShare.released
    patch.setattr(HeldShare, "released", lambda self, dealer, _: real(self, dealer, ShareKind.SEED))


def _keys_without_context(patch: pytest.MonkeyPatch) -> None:
    """Keys that are bound to nothing: who was shown another round masks alike."""
    real = agreement.agree

    def planted(**known: Any) -> agreement.Agreement:
        return replace(real(**known), context=bytes(32))

    patch.setattr(agreement, "agree", planted)
    patch.setattr(client_steps, "agree", planted)


# --- the server's checks ------------------------------------------------------------------------


def _one_share_less(patch: pytest.MonkeyPatch) -> None:
    real = checks.enough

    def planted(
        attempt: Attempt,
        sharers: Iterable[int],
        covered: Mapping[int, frozenset[int]],
        survivors: Collection[int],
    ) -> bool:
        (graph,) = attempt.agreement.graphs
        graph = replace(graph, threshold=graph.threshold - 1)
        fewer = replace(attempt, agreement=replace(attempt.agreement, graphs=(graph,)))
        return real(fewer, tuple(sharers), covered, survivors)

    patch.setattr(checks, "enough", planted)


def _any_kind(patch: pytest.MonkeyPatch) -> None:
    real = checks.check_released

    def planted(
        attempt: Attempt, holder: int, released: m.SharesReleased, *known: Any
    ) -> frozenset[int]:
        survivors = known[1]
        right = tuple(
            share
            for share in released.shares
            if share.kind is checks.wanted_kind(share.dealer, survivors)
        )
        return real(attempt, holder, replace(released, shares=right), *known)

    patch.setattr(checks, "check_released", planted)


def _any_share(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(checks, "_opens", lambda *_: True)


def _any_survivors_seen(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(checks, "check_seen", lambda *_: None)


# --- the mesh around them -----------------------------------------------------------------------


class TakesLateUpdates(Mesh):
    def _check_collecting(self, tables: Tables, entry: m.RosterEntry) -> None:
        pass


class TakesLateDealers(Mesh):
    def _checked(
        self, tables: Tables, state: RoundState | None, entry: m.RosterEntry, message: Any
    ) -> tuple[MessageKind, FactKind] | None:
        if isinstance(state, Collecting) and isinstance(message, m.SharesDealt):
            return MessageKind.DEALT_SHARES, FactKind.SHARES_DEALT
        return super()._checked(tables, state, entry, message)


class TakesTheSecond(Mesh):
    """The last vector counts, not the first."""

    def _upload(self, stream: Any, message: Any) -> None:
        with self.database.transaction() as tables:
            for index in list(tables.updates):
                if self._entry(tables, stream).index == index:
                    tables.updates[index] = message.vector
        super()._upload(stream, message)


class ForgetsTheLease(Coordinator):
    def _check_lease(self, tables: Tables) -> None:
        pass


class ChargesInVain(Coordinator):
    """Goes by the rules, which count clients, where the graph asks for more."""

    def _objection(self, tables: Tables, events: list[Event]) -> str:
        return ""


class ChargesOnRecovery(Coordinator):
    """A commit that is replayed after a crash charges once more."""

    def _commit(self, events: list[Event], **more: Any) -> None:
        self._recovering = any(isinstance(event, Recovered) for event in events)
        super()._commit(events, **more)

    def _charge(self, tables: Tables, before: RoundState | None, state: RoundState) -> None:
        super()._charge(tables, None if self._recovering else before, state)
        if self._recovering and isinstance(state, Unmasking):
            tables.ledger += state.survivors


class SignsAfresh(Coordinator):
    """The survivors are worked out anew when a coordinator takes over."""

    def _sign_what_is_fixed(
        self, tables: Tables, before: RoundState | None, after: RoundState
    ) -> None:
        if isinstance(before, CheckingConsistency) and isinstance(after, CheckingConsistency):
            there = tuple(c for c in after.survivors if c not in after.dropped)
            shown = with_fields(after, survivors=there)
            collecting = Collecting(
                parameters=after.parameters,
                participants=after.sharers,
                config_digest="",
                deadline_ms=after.deadline_ms,
            )
            super()._sign_what_is_fixed(tables, collecting, shown)
        else:
            super()._sign_what_is_fixed(tables, before, after)


# --- the rules ----------------------------------------------------------------------------------


def charges_with_the_sum(before: RoundState | None, after: RoundState) -> tuple[str, ...]:
    """In AGGREGATING: when the shares are out."""
    late = isinstance(before, Unmasking) and isinstance(after, Aggregating)
    return after.survivors if late and isinstance(after, Aggregating) else ()


def charges_with_the_release(before: RoundState | None, after: RoundState) -> tuple[str, ...]:
    again = isinstance(before, Aggregating) and isinstance(after, Releasing)
    return after.survivors if again and isinstance(after, Releasing) else charges(before, after)


def lets_survivors_leave(state: RoundState | None, event: Event) -> Step:
    after, effects = step(state, event)
    if isinstance(event, ClientsDropped) and isinstance(after, CheckingConsistency):
        staying = tuple(c for c in after.survivors if c not in after.dropped)
        after = with_fields(after, survivors=staying)
    return after, effects


def lets_dealers_join(state: RoundState | None, event: Event) -> Step:
    if isinstance(state, Collecting) and isinstance(event, DealtEvent):
        more = [c for c in state.graph_members if c in {*state.participants, *event.clients}]
        return with_fields(state, participants=tuple(more)), ()
    return step(state, event)


def waits_for_the_deadline(state: RoundState | None, event: Event) -> Step:
    if isinstance(state, CheckingConsistency) and isinstance(event, SurvivorsSigned):
        return with_fields(state, signed=state.signed | event.clients), ()
    return step(state, event)


# --- all of them --------------------------------------------------------------------------------

_SPARSE = Setting(clients=8, target=8, sparse=True)
_CORRUPT = Setting(clients=7, target=7, min_clients=4, misdeeds={0: Misdeed.COLLUDES})
_SPARSE_CORRUPT = replace(_CORRUPT, clients=8, target=8, sparse=True, min_clients=3)


#: Shares come in one after the other.
_ONE_BY_ONE = tuple(Fault(90, F.DELAY, who, 5 * who) for who in range(6))
#: After their uploads; of six clients four are needed.
_TWO_LEAVE = (Fault(72, F.DIE, 4), Fault(72, F.DIE, 5))
#: One signature is long on its way, and meanwhile another client starts again.
_LEAVES_WHILE_CHECKING = (Fault(70, F.DELAY, 1, 60), Fault(75, F.RESTART, 2))


def _with(misdeed: Misdeed) -> Setting:
    return Setting(misdeeds={2: misdeed})


def _game(*lies: L, setting: Setting = _CORRUPT) -> Provocation:
    return Provocation(setting, lies=lies)


MUTANTS: Final = (
    Mutant("releases without enough signatures", _game(L.TOO_FEW), _any_number_of_signatures),
    Mutant("counts signatures on other survivors", _game(L.MIXED, L.SPLIT), _any_survivors_signed),
    Mutant(
        "believes signatures", _game(L.FORGED, L.SPLIT), None, {"client_class": BelievesSignatures}
    ),
    Mutant("signs a second set of survivors", _game(L.TWICE), None, {"client_class": SignsAgain}),
    Mutant("masks a second vector", _game(L.SHARES_TWICE), None, {"client_class": MasksAgain}),
    Mutant("does not count the survivors", _game(L.FEW), _no_count),
    Mutant(
        "does not look who stands next to whom",
        _game(L.CUT_OFF, setting=_SPARSE_CORRUPT),
        _no_look_at_the_graph,
    ),
    Mutant(
        "does not look at nonces", _game(L.OTHER_NONCE, setting=_SPARSE_CORRUPT), _no_look_at_nonces
    ),
    Mutant("needs a share less than is safe", _game(L.SPLIT), _threshold_one_too_low),
    Mutant("binds keys to nothing", _game(L.OTHER_KEY_ROSTER), _keys_without_context),
    Mutant(
        "releases one kind for all",
        Provocation(faults=(Fault(56, F.DIE, 1),)),
        _one_kind_for_all,
    ),
    Mutant("opens with a share less", Provocation(faults=_ONE_BY_ONE), _one_share_less),
    Mutant(
        "takes shares of any kind", Provocation(_with(Misdeed.WRONG_KIND), _TWO_LEAVE), _any_kind
    ),
    Mutant("takes any share", Provocation(_with(Misdeed.ANOTHER_SHARE), _TWO_LEAVE), _any_share),
    Mutant(
        "takes late updates",
        Provocation(Setting(target=5), (Fault(60, F.DELAY, 3, 4),)),
        None,
        {"mesh_class": TakesLateUpdates},
    ),
    Mutant(
        "takes late dealers",
        Provocation(faults=(Fault(31, F.DELAY, 3, 140), Fault(40, F.SLOW, 4, 60))),
        None,
        {"mesh_class": TakesLateDealers, "rules": Rules(step=lets_dealers_join)},
    ),
    Mutant(
        "counts the second vector",
        Provocation(_with(Misdeed.SECOND_VECTOR), (Fault(40, F.SLOW, 4, 10),)),
        None,
        {"mesh_class": TakesTheSecond},
    ),
    Mutant(
        "two coordinators commit",
        Provocation(faults=every(F.TWO_COORDINATORS, 20)),
        None,
        {"coordinator_class": ForgetsTheLease},
    ),
    Mutant(
        "charges in vain",
        Provocation(faults=tuple(Fault(73, F.DIE, who) for who in (3, 4, 5))),
        None,
        {"coordinator_class": ChargesInVain},
    ),
    Mutant(
        "charges again on recovery",
        Provocation(faults=(Fault(93, F.CRASH), Fault(97, F.CRASH))),
        None,
        {"coordinator_class": ChargesOnRecovery},
    ),
    Mutant(
        "signs the survivors anew",
        Provocation(faults=(*_LEAVES_WHILE_CHECKING, Fault(94, F.CRASH), Fault(99, F.CRASH))),
        None,
        {"coordinator_class": SignsAfresh},
    ),
    Mutant(
        "charges with the sum", Provocation(), None, {"rules": Rules(charges=charges_with_the_sum)}
    ),
    Mutant(
        "charges with the release",
        Provocation(),
        None,
        {"rules": Rules(charges=charges_with_the_release)},
    ),
    Mutant(
        "lets survivors leave",
        Provocation(faults=_LEAVES_WHILE_CHECKING),
        None,
        {"rules": Rules(step=lets_survivors_leave)},
    ),
    Mutant(
        "waits for the deadline",
        Provocation(),
        None,
        {"rules": Rules(step=waits_for_the_deadline)},
    ),
)
