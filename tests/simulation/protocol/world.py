"""A world: devices, sessions, a network, a mesh; faults that strike; and what must hold always."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from random import Random
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from boltz_client.owner import OwnerLimits
from boltz_mesh.rounds.fact import Fact, FactKind
from boltz_mesh.rounds.serialise import event_of
from boltz_mesh.rounds.state import (
    Aborted,
    Aggregating,
    CheckingConsistency,
    Collecting,
    Ended,
    Published,
    Releasing,
    RoundState,
    Unmasking,
)
from boltz_protocol.errors import MeshError, NotInRoster, RoundClosed
from boltz_protocol.secagg.client import Floors
from tests.simulation.protocol.client import Device, Session
from tests.simulation.protocol.coordinator import Coordinator
from tests.simulation.protocol.engine import Engine, Network, Stream
from tests.simulation.protocol.eye import Eye
from tests.simulation.protocol.faults import Fault, Kind, random_faults
from tests.simulation.protocol.hostile import HostileSession
from tests.simulation.protocol.mesh import Mesh, Refused, Rules
from tests.simulation.protocol.settings import Setting
from tests.simulation.protocol.store import Crash, Database, Fenced, MessageKind
from tests.simulation.protocol.verdict import check_end
from tests.support import samples

#: A mesh whose process died is back after so long.
DOWN_MS = 40
#: No round takes so many events, whatever happens to it.
MOST_EVENTS = 6_000


class World:
    """One round. `rules`, `mesh_class` and `session_class` may be mutants."""

    def __init__(
        self,
        seed: int,
        setting: Setting | None = None,
        faults: Sequence[Fault] = (),
        *,
        rules: Rules | None = None,
        mesh_class: type[Mesh] = Mesh,
        coordinator_class: type[Coordinator] = Coordinator,
        session_class: type[Session] = Session,
    ) -> None:
        random = Random(seed)
        self.setting = setting or Setting()
        self.rules = rules or Rules()
        self.engine = Engine(samples.NOW_MS)
        self.network = Network(self.engine, Random(random.random()))
        self.database = Database()
        self.eye = Eye()
        self.deadlines_met = 0
        self.blamed: set[int] = set()
        self.refused: list[tuple[int, MeshError]] = []
        self.sessions: list[Session] = []
        self._random = random
        self._faults = sorted(faults, reverse=True)
        self._mesh_class = mesh_class
        self._coordinator_class = coordinator_class
        self._session_class = session_class
        self._key = Ed25519PrivateKey.from_private_bytes(random.randbytes(32))
        self.mesh_key = self._key.public_key()
        self._mesh: Mesh | None = None
        self._coordinator: Coordinator | None = None
        #: How long the round took.
        self.took_ms: int | None = None
        self._frozen: tuple[Any, ...] | None = None
        self._sharers: tuple[str, ...] | None = None
        # The fold of the durable events so far, and how many they are.
        self._folded: RoundState | None = None
        self._replayed = 0

    @classmethod
    def of(cls, seed: int, **mutants: Any) -> World:
        """The world of a seed."""
        random = Random(seed)
        setting = Setting.of(random)
        return cls(seed, setting, random_faults(random), **mutants)

    # --- running --------------------------------------------------------------------------------

    def run(self) -> RoundState:
        """Play it to its end, and judge it. The last state."""
        with self.setting.in_force():
            self._start_mesh()
            for index in range(self.setting.clients):
                floors = Floors(least_survivors=self.setting.floors.get(index, 1))
                self._start_session(Device(index, floors, OwnerLimits(largest_attempt=1)))
            while True:
                self._strike()
                try:
                    if not self.engine.next():
                        break
                except Crash:
                    self._crash()
                except Refused as refused:
                    self.refused.append((refused.stream.client, refused.error))
                    self._check_refused(refused.stream, refused.error)
                self._check_always()
                assert self.engine.events < MOST_EVENTS, "the round does not end"
            state = self._state()
            assert state == self._replay(), "replay gives another state"
            self._forget_coordinator()
            check_end(self, state)
            assert state is not None
            return state

    def _start_mesh(self) -> None:
        self._mesh = self._mesh_class(
            setting=self.setting,
            engine=self.engine,
            network=self.network,
            database=self.database,
            key=self._key,
            rules=self.rules,
            random=Random(self._random.random()),
            wake=self._wake,
        )
        try:
            self._take_over()
        except Crash:
            self._crash()

    def _take_over(self) -> None:
        assert self._mesh is not None
        self._coordinator = None
        self._coordinator = coordinator = self._coordinator_class(self._mesh)
        self._mesh.coordinator = coordinator

    def _wake(self) -> None:
        if self._coordinator is not None:
            self._coordinator.wake()

    def _crash(self) -> None:
        """The mesh's process is gone; it is started again."""
        if self._mesh is None:
            return
        self.engine.tell("the mesh crashes")
        self._forget_coordinator()
        self._mesh.coordinator = None
        self._mesh = None
        self.network.cut_all()
        self.engine.after(DOWN_MS, "the mesh is back", self._start_mesh)

    def _forget_coordinator(self) -> None:
        if self._coordinator is not None:
            self.deadlines_met += self._coordinator.deadlines_met
            self.blamed.update(self._coordinator.blamed)
        self._coordinator = None

    # --- what sessions find around them ---------------------------------------------------------

    @property
    def is_up(self) -> bool:
        """Whether the mesh can be reached."""
        return self._mesh is not None

    def receive(self, stream: Stream, message: Any) -> None:
        """A message arrives at the mesh."""
        if self._mesh is None:
            self.network.cut(stream)
        else:
            self._mesh.receive(stream, message)

    def died(self, session: Session, *, restarts: bool) -> None:
        """A client's process is gone."""
        if restarts:
            self.engine.after(
                DOWN_MS,
                f"{session} starts again",
                partial(self._start_session, session.device),
            )

    def saw_refusal(self, session: Session, error: MeshError) -> None:
        """An honest mesh never says two things."""
        assert "second, different" not in error.message, f"{session} was told two things"

    def _start_session(self, device: Device) -> None:
        number = sum(1 for each in self.sessions if each.device.index == device.index)
        misdeed = self.setting.misdeeds.get(device.index)
        if misdeed is None:
            session = self._session_class(device, number, self)
        else:
            session = HostileSession(device, number, self, misdeed)
        self.sessions.append(session)
        session.start()

    # --- faults ---------------------------------------------------------------------------------

    def _strike(self) -> None:
        while self._faults and self._faults[-1].at <= self.engine.events:
            fault = self._faults.pop()
            self.engine.tell(f"* {fault}")
            try:
                self._strike_one(fault)
            except Crash:
                self._crash()

    def _strike_one(self, fault: Fault) -> None:  # noqa: PLR0912 - one `match`, on purpose
        index = fault.who % self.setting.clients
        session = [each for each in self.sessions if each.device.index == index][-1]
        streams = [each for each in self.network.streams if each.client == index]
        match fault.kind:
            case Kind.LOSE:
                self.network.lose(fault.amount)
            case Kind.REPEAT:
                self.network.repeat(fault.amount, fault.who * fault.amount)
            case Kind.DELAY:
                for stream in streams:
                    stream.slower_ms += fault.amount * 3
            case Kind.SHUFFLE:
                for stream in streams:
                    stream.shuffled = True
            case Kind.CUT:
                for stream in streams:
                    self.network.cut(stream)
            case Kind.CRASH:
                raise Crash
            case Kind.CRASH_BEFORE_COMMIT:
                self.database.crash_before = True
            case Kind.CRASH_AFTER_COMMIT:
                self.database.crash_after = True
            case Kind.TWO_COORDINATORS:
                self._have_two_coordinators()
            case Kind.RESTART:
                session.die(restarts=True)
            case Kind.DIE:
                session.die(restarts=False)
            case Kind.COPY:
                self._start_session(session.device.copied())
            case Kind.SLOW:
                session.slower_ms += fault.amount * 10
            case Kind.CRASH_BEFORE_CHARGE:
                session.crash_before_charge = True
            case Kind.CRASH_AFTER_CHARGE:
                session.crash_after_charge = True
            case Kind.CRASH_AFTER_SENDING:
                session.crash_after_sending = True
            case Kind.STOP:
                session.stop()
            case Kind.ABORT:
                if not isinstance(self._state(), Ended):
                    with self.database.transaction() as tables:
                        asked = Fact(FactKind.ABORT_REQUESTED, None, {"by": "ann", "reason": "ab"})
                        tables.inbox += (asked,)
                    self._wake()

    def _have_two_coordinators(self) -> None:
        """The lease goes to another while its holder is in the middle of a turn."""
        older = self._coordinator
        if older is None:
            return
        self._forget_coordinator()
        self._take_over()
        before = self.database.tables
        try:
            older.turn()
        except Fenced:
            older.is_fenced = True
        assert self.database.tables is before, "a coordinator without the lease has committed"

    # --- what must hold -------------------------------------------------------------------------

    def _state(self) -> RoundState | None:
        """The fold of everything that ever happened."""
        state: RoundState | None = None
        for text in self.database.tables.events:
            state, _ = self.rules.step(state, event_of(json.loads(text)))
        return state

    def _replay(self) -> RoundState | None:
        """The same, from where the last replay has come to."""
        texts = self.database.tables.events
        for text in texts[self._replayed :]:
            self._folded, _ = self.rules.step(self._folded, event_of(json.loads(text)))
        self._replayed = len(texts)
        return self._folded

    def _check_refused(self, stream: Stream, error: MeshError) -> None:
        """Of those who do as they should, the mesh refuses the late and the superseded only."""
        if stream.client not in self.setting.misdeeds:
            assert isinstance(error, NotInRoster | RoundClosed), (
                f"an honest client is refused: {error.message}"
            )

    def _check_always(self) -> None:
        tables = self.database.tables
        assert all(n == 1 for n in Counter(tables.ledger).values()), "charged twice"
        assert len(tables.versions) <= 1, "published twice"
        if len(tables.events) == self._replayed:
            return
        state = self._replay()
        if isinstance(state, Ended):
            self.took_ms = self.engine.now_ms - samples.NOW_MS
        coordinator = self._coordinator
        if coordinator is not None:
            assert state == coordinator.state, "replay gives another state"
        charged = isinstance(state, Unmasking | Aggregating | Releasing | Published) or (
            isinstance(state, Aborted) and state.charged
        )
        assert bool(tables.ledger) == charged, "the ledger and the round disagree"
        if isinstance(state, Collecting):
            self._sharers = self._sharers or state.participants
            assert state.participants == self._sharers, "sharers have changed"
        if isinstance(state, CheckingConsistency | Unmasking | Aggregating):
            self._sharers = self._sharers or state.sharers
            assert state.sharers == self._sharers, "sharers have changed"
            frozen = (state.graph_members, state.sharers, state.survivors)
            self._frozen = self._frozen or frozen
            assert frozen == self._frozen, "membership has changed"
        if isinstance(state, Unmasking):
            graphs = [s.part.dealt.graph for s in self.sessions if s.part and s.part.dealt]
            signed = sum(kind is MessageKind.SURVIVORS_SEEN for kind, _ in tables.messages)
            assert signed >= graphs[0].threshold, "charged, and nobody would release anything"
        if isinstance(state, Unmasking | Aggregating | Releasing | Published):
            assert sorted(tables.ledger) == sorted(state.survivors), "others are charged"
            assert self._frozen is not None
            assert state.survivors == self._frozen[2], "survivors have changed"
