"""The coordinator of the one round: facts and deadlines in, commits and effects out.

Does what `coordinator.runner`, `record` and `work` do: one transaction checks the lease and the
number of the next event, steps, charges, signs what the step fixes; effects follow the commit and
may run again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from random import Random

import numpy as np

from boltz_mesh.rounds.effect import (
    Aggregate,
    Announce,
    CleanUp,
    Effect,
    Publish,
    ScheduleDeadline,
    SelectRoster,
)
from boltz_mesh.rounds.event import (
    AbortRequested,
    AggregateReady,
    CandidatesSeen,
    DeadlineReached,
    Event,
    Recovered,
    RosterFixed,
    RoundStarted,
    VersionPublished,
)
from boltz_mesh.rounds.fact import FactKind, events_of
from boltz_mesh.rounds.selection import sample_roster
from boltz_mesh.rounds.serialise import event_payload, state_payload
from boltz_mesh.rounds.state import (
    AbortReason,
    AdvertisingKeys,
    Aggregating,
    CheckingConsistency,
    Collecting,
    Ended,
    Published,
    Releasing,
    RevealingNonces,
    RoundState,
    Selecting,
    SharingKeys,
    Unmasking,
    deadline_of,
)
from boltz_mesh.rounds.step import pending
from boltz_protocol import codec, codec_sealed
from boltz_protocol import messages as m
from boltz_protocol.errors import DealerBlamed, RoundRefused
from boltz_protocol.ids import SessionId
from boltz_protocol.packing import WIRE_MAX, add_packed24, decode_sum
from boltz_protocol.secagg import attempt as attempts
from boltz_protocol.secagg import checks, notices, recovery
from boltz_protocol.secagg.attempt import Attempt
from boltz_protocol.secagg.masks import apply_masks
from boltz_protocol.statement import digest
from tests.simulation.protocol.mesh import (
    Mesh,
    advertisements,
    dealt_of,
    entry_at,
    positions,
)
from tests.simulation.protocol.settings import MODEL, ROUND
from tests.simulation.protocol.store import Fenced, MessageKind, StatementKind, Tables
from tests.support import samples
from tests.support.secagg import client_id, make_configuration

#: What forming a sum, and making a version of it, take.
WORK_MS = 5
#: Within this the facts of several clients come to one turn.
BATCH_MS = 1


class Coordinator:
    """One holder of the lease; volatile. Starts by taking the round over."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.state: RoundState | None = None
        self.deadlines_met = 0
        self.is_fenced = False
        self.blamed: tuple[int, ...] = ()
        self._next = 0
        self._working: Effect | None = None
        self._timer_ms: int | None = None
        self._turn_is_due = False
        self._take_over()

    # --- coming in ------------------------------------------------------------------------------

    def _take_over(self) -> None:
        """Take the lease, load the round, and start it or say how long it was without us."""
        mesh = self.mesh
        with mesh.database.transaction() as tables:
            tables.lease += 1
        self._lease = mesh.database.tables.lease
        tables = mesh.database.tables
        self.state, self._next = mesh.folded(tables), len(tables.events)
        now_ms = mesh.engine.now_ms
        if self.state is None:
            parameters = mesh.setting.parameters()
            self._commit([RoundStarted(at_ms=now_ms, parameters=parameters)])
        elif not isinstance(self.state, Ended):
            last_ms: int = json.loads(tables.events[-1])["at_ms"]
            self._commit([Recovered(at_ms=now_ms, down_ms=max(0, now_ms - last_ms))])
        else:
            self._follow(pending(self.state))
        self.wake()

    def wake(self) -> None:
        """Something waits: a turn follows, after a moment in which more may come."""
        if not self._turn_is_due and not self.is_fenced:
            self._turn_is_due = True
            self.mesh.engine.after(BATCH_MS, "the coordinator takes a turn", self._due)

    def _due(self) -> None:
        self._turn_is_due = False
        if self.mesh.is_current(self):
            self.turn()

    # --- a turn ---------------------------------------------------------------------------------

    def turn(self) -> None:
        """Raises: Crash, Fenced."""
        state = self.state
        if state is None or isinstance(state, Ended):
            return
        mesh = self.mesh
        tables, now_ms = mesh.database.tables, mesh.engine.now_ms
        deadline_ms = deadline_of(state)
        overdue = deadline_ms is not None and now_ms >= deadline_ms
        facts = tables.inbox
        released = any(fact.kind is FactKind.SHARES_RELEASED for fact in facts)
        enough = released and isinstance(state, Unmasking) and self._enough(tables, state)
        events = list(events_of(facts, now_ms, enough=enough))
        if isinstance(state, Selecting) and not state.choosing:
            events.append(self._seen(tables))
        if overdue:
            self.deadlines_met += 1
            events.append(DeadlineReached(at_ms=now_ms))
        if events and (reason := self._objection(tables, events)):
            # First, so that the round ends where it stands, before anybody is charged.
            events.insert(0, AbortRequested(at_ms=now_ms, by="coordinator", reason=reason))
        if events:
            self._commit(events, taken=len(facts))

    def _objection(self, tables: Tables, events: list[Event]) -> str:
        """Why the round must not move as its rules let it, or nothing: what no client would go
        along with is not asked for, nor charged."""
        after = self.state
        for event in events:
            after, _ = self.mesh.rules.step(after, event)
        if not isinstance(after, CheckingConsistency | Unmasking) or (
            type(after) is type(self.state)
        ):
            return ""
        attempt = self.mesh.attempt(tables, after.graph_members)
        if isinstance(after, CheckingConsistency):
            try:
                attempt.agreement.graphs[0].check_survivors(positions(attempt, after.survivors))
            except RoundRefused:
                return AbortReason.TOO_FEW_UPDATES
            return ""
        sharers = positions(attempt, after.sharers)
        gone = positions(attempt, tuple(after.dropped))
        signed = {i for kind, i in tables.messages if kind is MessageKind.SURVIVORS_SEEN}
        willing = {
            holder: frozenset(attempt.dealers_of(holder)) & sharers
            for holder in (sharers - gone) & signed
            if len(signed.intersection(attempt.holders_of(holder)))
            >= attempt.graph_of(holder).threshold
        }
        survivors = positions(attempt, after.survivors)
        opens = checks.enough(attempt, sharers, willing, survivors)
        return "" if opens else AbortReason.TOO_FEW_SIGNATURES

    def _enough(self, tables: Tables, state: Unmasking) -> bool:
        attempt = self.mesh.attempt(tables, state.graph_members)
        covered = {
            holder: frozenset(share.dealer for share in released.shares)
            for holder, released in _released(tables).items()
        }
        survivors = positions(attempt, state.survivors)
        return checks.enough(attempt, positions(attempt, state.sharers), covered, survivors)

    def _seen(self, tables: Tables) -> CandidatesSeen:
        candidates = frozenset(tables.check_ins)
        return CandidatesSeen(at_ms=self.mesh.engine.now_ms, candidates=candidates)

    def _commit(
        self, events: list[Event], *, taken: int = 0, also: Callable[[Tables], None] | None = None
    ) -> None:
        """One transaction; `also` writes more in it. Raises: Crash, Fenced."""
        mesh, before = self.mesh, self.state
        state, emitted = before, list[Effect]()
        for event in events:
            state, effects = mesh.rules.step(state, event)
            emitted.extend(effects)
            mesh.engine.tell(f"  {type(event).__name__}: {type(state).__name__}")
        assert state is not None
        with mesh.database.transaction() as tables:
            self._check_lease(tables)
            tables.events += tuple(json.dumps(event_payload(event)) for event in events)
            if type(before) is not type(state):
                tables.snapshot = (len(tables.events), json.dumps(state_payload(state)))
            tables.inbox = tables.inbox[taken:]
            if also is not None:
                also(tables)
            self._charge(tables, before, state)
            if isinstance(state, Ended):
                tables.holds = frozenset()
            if isinstance(state, Published) and not isinstance(before, Published):
                tables.versions += (state.survivors,)
            self._sign_what_is_fixed(tables, before, state)
        self.state, self._next = state, len(tables.events)
        wanted = pending(state)
        self._follow(tuple(effect for effect in wanted if effect in emitted))

    def _check_lease(self, tables: Tables) -> None:
        if tables.lease != self._lease or len(tables.events) != self._next:
            raise Fenced

    def _charge(self, tables: Tables, before: RoundState | None, state: RoundState) -> None:
        if charged := self.mesh.rules.charges(before, state):
            tables.ledger += charged
            tables.holds = frozenset()

    def _sign_what_is_fixed(
        self, tables: Tables, before: RoundState | None, after: RoundState
    ) -> None:
        mesh = self.mesh
        match before, after:
            case AdvertisingKeys(), RevealingNonces(members=members):
                self._sign_key_roster(tables, members)
            case AdvertisingKeys(), SharingKeys(graph_members=members):
                self._sign_key_roster(tables, members)
            case Collecting(), CheckingConsistency():
                attempt = mesh.attempt(tables, after.graph_members)
                signed = notices.survivors_payload(attempt, positions(attempt, after.survivors))
                tables.statements[StatementKind.SURVIVORS] = mesh.sign(
                    m.SURVIVORS, codec_sealed.encode_survivors(signed)
                )

    def _sign_key_roster(self, tables: Tables, members: tuple[str, ...]) -> None:
        configuration, sha256 = self.mesh.configuration(tables)
        inside = [i for i in range(len(tables.roster)) if entry_at(tables, i).client_id in members]
        signed = attempts.key_roster(
            configuration=configuration,
            configuration_sha256=sha256,
            advertisements=advertisements(tables, tuple(inside)),
        )
        tables.statements[StatementKind.KEY_ROSTER] = self.mesh.sign(
            m.KEY_ROSTER, codec_sealed.encode_key_roster(signed)
        )

    # --- effects --------------------------------------------------------------------------------

    def _follow(self, effects: tuple[Effect, ...]) -> None:
        engine, state = self.mesh.engine, self.state
        assert state is not None
        deadline_ms = deadline_of(state)
        if deadline_ms is not None and deadline_ms != self._timer_ms:
            self._timer_ms = deadline_ms
            engine.at(deadline_ms, "a deadline", self.wake)
        if isinstance(state, Ended):
            self.mesh.tell_all()
        for effect in effects:
            match effect:
                case Announce():
                    self.mesh.tell_all()
                case ScheduleDeadline():
                    pass
                case CleanUp():
                    engine.after(WORK_MS, "what is left is destroyed", self._clean_up)
                case _:
                    self._working = effect
                    engine.after(
                        WORK_MS, f"{type(effect).__name__} is done", partial(self._work, effect)
                    )

    def _work(self, effect: Effect) -> None:
        """Raises: Crash, Fenced."""
        if not self.mesh.is_current(self) or self._working != effect:
            return
        match effect, self.state:
            case SelectRoster(count=count), Selecting():
                self._select(count)
            case Aggregate(), Aggregating():
                self._aggregate(self.state)
            case Publish(), Releasing():
                version = VersionPublished(
                    at_ms=self.mesh.engine.now_ms, version=3, model_digest="22"
                )
                self._commit([version])

    def _select(self, count: int) -> None:
        mesh = self.mesh
        tables, now_ms = mesh.database.tables, mesh.engine.now_ms
        if len(tables.check_ins) < count:
            self._commit([self._seen(tables)])
            return
        drawn = sample_roster(tables.check_ins, count, Random(mesh.random.random()))
        entries = make_entries(drawn, tables.check_ins, mesh.setting.clients)
        deadline_ms = now_ms + mesh.setting.parameters().collecting_ms
        configuration = replace(
            make_configuration(
                entries,
                coordinates=mesh.setting.coordinates,
                min_survivors=mesh.setting.min_clients,
                corrupt_fraction=mesh.setting.corrupt_fraction,
                dropout_fraction=mesh.setting.dropout_fraction,
            ),
            round_id=ROUND,
            model_id=MODEL,
            created_at_ms=now_ms,
            deadline_ms=deadline_ms,
        )
        statement = mesh.sign(
            m.ROUND_CONFIGURATION, codec.encode_round_configuration(configuration)
        )

        def write(draft: Tables) -> None:
            draft.roster = entries
            draft.statements[StatementKind.CONFIGURATION] = statement
            draft.holds |= frozenset(drawn)

        fixed = RosterFixed(
            at_ms=now_ms,
            roster=drawn,
            config_digest=digest(statement).hex(),
            deadline_ms=deadline_ms,
        )
        self._commit([fixed], also=write)

    def _aggregate(self, state: Aggregating) -> None:
        mesh, now_ms = self.mesh, self.mesh.engine.now_ms
        tables = mesh.database.tables
        attempt = mesh.attempt(tables, state.graph_members)
        survivors = positions(attempt, state.survivors)
        try:
            total = unmasked_sum(tables, attempt, survivors, positions(attempt, state.sharers))
        except DealerBlamed as error:
            self.blamed = error.dealers
            self._commit([AbortRequested(at_ms=now_ms, by="coordinator", reason="DEALER_BLAMED")])
            return
        name = hashlib.sha256(repr(total).encode()).hexdigest()

        def write(draft: Tables) -> None:
            draft.sums[name] = total

        ready = AggregateReady(
            at_ms=now_ms,
            aggregate_digest=name,
            survivors=len(survivors),
            total_weight=len(survivors),
            metrics={},
        )
        self._commit([ready], also=write)

    def _clean_up(self) -> None:
        if not self.mesh.is_current(self):
            return
        with self.mesh.database.transaction() as tables:
            self._check_lease(tables)
            tables.updates = {}
            secret = (MessageKind.RELEASED_SHARES, MessageKind.DEALT_SHARES)
            for key in [key for key in tables.messages if key[0] in secret]:
                del tables.messages[key]


def make_entries(
    drawn: Sequence[str], sessions: Mapping[str, str], clients: int
) -> tuple[bytes, ...]:
    """Serialised roster entries."""
    names: dict[str, int] = {client_id(index): index for index in range(clients)}
    return tuple(
        codec.encode_roster_entry(
            m.RosterEntry(
                index=place,
                client_id=client_id(names[name]),
                session_id=SessionId(sessions[name]),
                weight=1 + names[name] % 7,
                sample_bucket=3,
                quality_bucket=3,
                check_in=samples.STATEMENT,
                certificate_chain_der=(b"certificate %d" % names[name],),
            )
        )
        for place, name in enumerate(drawn)
    )


def unmasked_sum(
    tables: Tables, attempt: Attempt, survivors: frozenset[int], sharers: frozenset[int]
) -> tuple[int, ...]:
    """The fold of a sealed round. Raises: DealerBlamed."""
    dealt = {index: dealt_of(tables, index) for index in sharers}
    recovered = recovery.recover(attempt, dealt, _released(tables), survivors, sharers)
    streams = recovery.mask_streams_to_remove(attempt, recovered, survivors, sharers)
    total = np.zeros(attempt.configuration.coordinates, np.uint32)
    for index in survivors:
        add_packed24(total, tables.updates[index])
    apply_masks(total, 0, streams[0])
    return tuple(int(value) for value in decode_sum(total, WIRE_MAX))


def _released(tables: Tables) -> dict[int, m.SharesReleased]:
    return {
        index: said
        for (kind, index), said in tables.messages.items()
        if kind is MessageKind.RELEASED_SHARES
    }
