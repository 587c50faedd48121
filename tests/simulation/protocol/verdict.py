"""What must hold when a world has come to its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from boltz_mesh.rounds.state import Ended, Published, RoundState
from boltz_protocol import codec_sealed
from boltz_protocol.secagg.bitmap import indexes
from tests.simulation.protocol.client import Session
from tests.simulation.protocol.eye import Adversary, Eye, learnt
from tests.simulation.protocol.mesh import entry_at
from tests.simulation.protocol.store import MessageKind, StatementKind, Tables
from tests.support.secagg import client_id

#: All the phases' deadlines, and as much again for what outages add to them.
MOST_MS: Final = 7_000

if TYPE_CHECKING:
    from tests.simulation.protocol.world import World


def check_end(world: World, state: RoundState | None) -> None:
    """The verdict over a whole world."""
    tables = world.database.tables
    assert isinstance(state, Ended), f"faults have stopped, and the round is in {state}"
    assert world.took_ms is not None
    assert world.took_ms <= MOST_MS, f"a round of {world.took_ms} ms"
    assert not tables.holds, "a hold outlives its round"
    assert not tables.updates, "updates outlive their round"
    _check_own_ledgers(world)
    if isinstance(state, Published):
        _check_published(world, state)
    else:
        assert not tables.versions, "an aborted round has a version"
    _check_blame(world)
    _check_learnt(world)


def _check_published(world: World, state: Published) -> None:
    tables = world.database.tables
    assert tables.versions == (state.survivors,)
    assert len(state.survivors) >= world.setting.min_clients, "below the floor"
    (total,) = tables.sums.values()
    survivors = _survivors_signed(world)
    assert {entry_at(tables, i).client_id for i in survivors} == set(state.survivors)
    assert survivors == tables.receipts, "a receipt that does not count, or a sum without receipt"
    masked = [each.part.masked for each in world.sessions if each.part is not None]
    values = {each.index: each.values for each in masked if each is not None}
    expected = sum((values[index] for index in survivors), np.zeros(len(total), np.int32))
    assert total == tuple(int(v) for v in expected), "not the sum of the survivors"


def _survivors_signed(world: World) -> frozenset[int]:
    tables = world.database.tables
    statement = tables.statements.get(StatementKind.SURVIVORS)
    if statement is None:
        return frozenset()
    payload = codec_sealed.parse_survivors(statement.payload)
    return frozenset(indexes(payload.survivors, len(tables.roster)))


def _check_own_ledgers(world: World) -> None:
    """A client charges itself at most once, and whatever the mesh charges it for."""
    charged = set()
    for session in world.sessions:
        ledger = session.device.ledger
        assert len(ledger) == len(set(ledger)), f"{session} has charged itself twice"
        if ledger:
            charged.add(client_id(session.device.index))
    assert set(world.database.tables.ledger) <= charged, "the mesh charges who has sent nothing"


def _check_blame(world: World) -> None:
    """Only those who deal wrongly are blamed for it."""
    hostile = {client_id(index) for index in world.setting.misdeeds}
    blamed = {entry_at(world.database.tables, index).client_id for index in world.blamed}
    assert blamed <= hostile, "an honest client is blamed"


def _check_learnt(world: World) -> None:
    """Whoever has all that the mesh has seen, and all that hostile clients hold, knows one sum."""
    tables, eye = world.database.tables, world.eye
    adversary = adversary_of(world.sessions, tables, eye)
    honest = {each.part.index for each in world.sessions if each.part and not each.is_hostile}
    adversary.check_never_both(honest)
    sets = learnt(eye.masked, adversary.known_keys())
    if not tables.ledger:
        assert not sets, "something is learnt, and nothing was charged"
    survivors = _survivors_signed(world)
    for found in sets:
        assert found == survivors & honest, "another sum than that of all survivors"
        assert len(survivors) >= world.setting.min_clients, "below the floor"


def adversary_of(sessions: Sequence[Session], tables: Tables, eye: Eye) -> Adversary:
    """Puts together what is known."""
    advertised = {
        index: codec_sealed.parse_key_advertisement(said.statement.payload)
        for (kind, index), said in tables.messages.items()
        if kind is MessageKind.KEY_ADVERTISEMENT
    }
    dealt = {
        each.part.index: each.part.dealt
        for each in sessions
        if each.part is not None and each.part.dealt is not None
    }
    adversary = Adversary(
        names={index: said.client_id for index, said in advertised.items()},
        publics={index: said.mask_public_key for index, said in advertised.items()},
        contexts=frozenset(state.context for state in dealt.values()),
        thresholds={index: state.graph.threshold for index, state in dealt.items()},
    )
    for holder, released in eye.released.items():
        adversary.take(holder, released)
    for each in sessions:
        if each.is_hostile and each.part is not None:
            adversary.corrupt(each.part.index, each.part.dealt, each.part.held)
    return adversary
