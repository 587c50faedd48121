"""A world of sealed rounds: clients that answer, a network that loses, delays and repeats.

The handlers here are laxer than real ones about late messages: whatever a known session says about
a phase that is over becomes a fact all the same, so that the machine sees late facts of every kind.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random

from msgspec.structs import replace

from boltz_mesh.rounds.charge import charges
from boltz_mesh.rounds.fact import SUPERSEDED, Fact, FactKind
from boltz_mesh.rounds.state import (
    Aborted,
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
)
from boltz_mesh.rounds.step import step
from tests.simulation.clients import Ask, Notice, Reply, Session
from tests.simulation.ops import Kind, Op
from tests.simulation.world import (
    CLIENTS,
    PARAMETERS,
    ChargeFunction,
    StepFunction,
    World,
)

SEALED = replace(
    PARAMETERS,
    mode="sealed",
    min_clients=3,
    target_clients=4,
    wanted_clients=5,
    advertising_ms=400,
    # Two of six may be missing from a sparse graph, as from the target.
    dropout_fraction=0.34,
    sharing_ms=400,
    checking_ms=400,
    unmasking_ms=400,
)
#: Clients whose shares open a secret.
THRESHOLD = 3
#: Which set each notice brings, beside those before it.
_ORDER = (Ask.KEY_ROSTER, Ask.PEERS, Ask.SHARES, Ask.SURVIVORS, Ask.SIGNATURES)


@dataclass(slots=True)
class Tables:
    """What a sealed round keeps beside the tables of `world.Durable`."""

    sessions: dict[str, int] = field(default_factory=dict)
    answers: dict[FactKind, set[str]] = field(default_factory=lambda: {k: set() for k in FactKind})
    signed_sets: dict[Ask, tuple[str, ...]] = field(default_factory=dict)


class SealedWorld(World):
    """One sealed round, and six clients on a bad network."""

    parameters = SEALED

    def __init__(
        self,
        seed: int,
        machine: StepFunction = step,
        *,
        batches: bool = True,
        charges: ChargeFunction = charges,
    ) -> None:
        super().__init__(seed, machine, batches=batches, charges=charges)
        self.network = Random(seed + 1)
        self.tables = Tables()
        self.sessions: dict[tuple[str, int], Session] = {}
        self.newest: Counter[str] = Counter()
        self.wire: list[Notice | Reply] = []
        self.nudged: set[str] = set()
        self.read: tuple[int, RoundState | None] | None = None
        for client in CLIENTS:
            self._start_session(client)

    # --- clients and network --------------------------------------------------------------------

    def _start_session(self, client: str) -> None:
        self.newest[client] += 1
        session = Session(client, self.newest[client], floor=self.parameters.min_clients)
        self.sessions[client, session.number] = session

    def _play_client(self, op: Op, client: str) -> None:
        """Faults of clients and network, and the deliveries between."""
        number = self.newest[client]
        match op.kind:
            case Kind.DELIVER:
                self._deliver_one()
            case Kind.LOSE if self.wire:
                del self.wire[op.number % len(self.wire)]
            case Kind.DUPLICATE if self.wire:
                self.wire.append(self.wire[op.number % len(self.wire)])
            case Kind.RECONNECT:
                self._push(self._stored_state(), client)
            case Kind.RESTART | Kind.COPY:
                if op.kind is Kind.RESTART:
                    self.sessions.pop((client, number), None)
                self._start_session(client)
                self._supersede(client)
            case Kind.DIE:
                self.sessions.pop((client, number), None)
            case Kind.OUTAGE:
                # Half of the clients at once, so that minima and thresholds are missed.
                first = CLIENTS.index(client)
                for other in (CLIENTS * 2)[first : first + 3]:
                    self.sessions.pop((other, self.newest[other]), None)
            case Kind.SLOW:
                if (session := self.sessions.get((client, number))) is not None:
                    session.slow_ms = 50 + op.number * 20
            case _:
                pass

    def _supersede(self, client: str) -> None:
        """A newer session has checked in: the older one is a dropout."""
        if client in self.tables.sessions and not isinstance(self._stored_state(), Ended):
            reason = {"reason": SUPERSEDED}
            self.durable.inbox.append(Fact(FactKind.CLIENT_DROPPED, client, reason))

    def _deliver_one(self) -> bool:
        """Deliver any one message that has had its time; messages overtake one another."""
        ready = [m for m in self.wire if m.ready_ms <= self.now_ms]
        if not ready:
            return False
        message = self.network.choice(ready)
        self.wire.remove(message)
        if isinstance(message, Reply):
            self._receive(message)
        elif (session := self.sessions.get((message.client, message.session))) is not None:
            self.wire.extend(session.take(message, self.now_ms))
        return True

    def _stored_state(self) -> RoundState | None:
        """Read before every delivery: kept as long as nothing is committed."""
        count = len(self.durable.events)
        if self.read is None or self.read[0] != count:
            self.read = (count, super()._stored_state())
        return self.read[1]

    # --- handlers -------------------------------------------------------------------------------

    def _receive(self, reply: Reply) -> None:
        """A handler's transaction: row and fact together. Told twice, the fact is there twice."""
        if self.tables.sessions.get(reply.client) != reply.session:
            return
        if reply.kind is FactKind.UPDATE_STORED:
            self._upload(reply.client)
            return
        if reply.kind in (FactKind.SURVIVORS_SIGNED, FactKind.SHARES_RELEASED):
            assert reply.about == frozenset(self.tables.signed_sets[Ask.SURVIVORS])
        if reply.kind is FactKind.SHARES_RELEASED:
            # The client has let go of its shares: from now on the sum is as good as known.
            charged = self.durable.ledger
            assert set(charged) == reply.about, "not charged before the shares are out"
        self.tables.answers[reply.kind].add(reply.client)
        self.durable.inbox.append(Fact(reply.kind, reply.client, {}))

    def _enough(self) -> bool:
        return len(self.tables.answers[FactKind.SHARES_RELEASED]) >= THRESHOLD

    # --- what the mesh pushes -------------------------------------------------------------------

    def _announce(self, state: RoundState) -> None:
        for client in CLIENTS:
            self._push(state, client)

    def _push(self, state: RoundState | None, client: str) -> None:
        """What the client's session is asked where the round stands; said again when it is back."""
        asked = _asked(state)
        if client not in self.tables.sessions or asked is None or client not in asked[1]:
            return
        ask = asked[0]
        known = _ORDER[: _ORDER.index(ask) + 1] if ask is not Ask.OFFER else ()
        sets = {
            each: frozenset(self.tables.signed_sets[each])
            for each in known
            if each in self.tables.signed_sets
        }
        session = self.tables.sessions[client]
        self.wire.append(Notice(ask, client, session, sets, self.now_ms))

    # --- the coordinator's tables ---------------------------------------------------------------

    def _entered(self, before: RoundState | None, state: RoundState) -> None:
        if isinstance(before, Selecting) and isinstance(state, AdvertisingKeys):
            self.tables.sessions = {client: self.newest[client] for client in state.roster}
        signed, answers = self.tables.signed_sets, self.tables.answers
        match state:
            case RevealingNonces():
                signed.setdefault(Ask.KEY_ROSTER, state.members)
                assert set(state.members) <= answers[FactKind.KEYS_ADVERTISED], "no keys"
            case SharingKeys():
                signed.setdefault(Ask.PEERS, state.graph_members)
                assert set(state.graph_members) <= answers[FactKind.KEYS_ADVERTISED], "no keys"
                if Ask.KEY_ROSTER in signed:
                    revealed = answers[FactKind.NONCE_REVEALED]
                    assert set(state.graph_members) <= revealed, "no nonce"
            case Collecting():
                signed.setdefault(Ask.SHARES, state.participants)
                assert set(state.participants) <= answers[FactKind.SHARES_DEALT], "no shares"
            case CheckingConsistency():
                signed.setdefault(Ask.SURVIVORS, state.survivors)
            case Unmasking():
                signers = len(answers[FactKind.SURVIVORS_SIGNED])
                assert signers >= self.parameters.min_clients, "too few signatures to go on"
            case Aggregating():
                assert self._enough(), "no shares to open the sum with"
            case _:
                pass
        self._check_frozen(state)

    def _check_frozen(self, state: RoundState) -> None:
        """Membership is what was announced, and never changes."""
        signed = self.tables.signed_sets
        if isinstance(state, CheckingConsistency | Unmasking | Aggregating):
            assert state.graph_members == signed[Ask.PEERS], "another graph"
            assert state.sharers == signed[Ask.SHARES], "other sharers"
        if isinstance(state, CheckingConsistency | Unmasking | Aggregating | Releasing | Published):
            assert state.survivors == signed[Ask.SURVIVORS], "other survivors"
            assert set(state.survivors) == self.durable.receipts, "a receipt that does not count"

    def _check_charge(self, state: RoundState, events: Counter[str]) -> None:
        """Charged from UNMASKING on, whatever comes of it."""
        past = isinstance(state, Unmasking | Aggregating | Releasing | Published)
        charged = past or (isinstance(state, Aborted) and state.charged)
        assert bool(self.durable.ledger) == charged, "the ledger and the round disagree"
        if events["SharesReleased"]:
            assert charged, "shares are out for nothing"

    # --- the end --------------------------------------------------------------------------------

    def _quiet(self) -> bool:
        """Deliver all there is; then let every client come back once in each phase."""
        if self._deliver_one():
            while self._deliver_one():
                pass
            return False
        state = self._stored_state()
        name = type(state).__name__
        if name in self.nudged or _asked(state) is None:
            return True
        self.nudged.add(name)
        for client in CLIENTS:
            self._push(state, client)
        return False

    def _wakes_at_ms(self) -> int | None:
        return min((message.ready_ms for message in self.wire), default=None)


def _asked(state: RoundState | None) -> tuple[Ask, tuple[str, ...]] | None:
    """What a phase asks for, and of whom."""
    match state:
        case AdvertisingKeys():
            return Ask.OFFER, state.roster
        case RevealingNonces():
            return Ask.KEY_ROSTER, state.members
        case SharingKeys():
            return Ask.PEERS, state.graph_members
        case Collecting():
            return Ask.SHARES, state.participants
        case CheckingConsistency():
            return Ask.SURVIVORS, state.sharers
        case Unmasking():
            return Ask.SIGNATURES, state.sharers
        case _:
            return None
