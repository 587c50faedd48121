"""The extractor on attempts in memory: a sparse graph, servers that lie, keys without a context.

What a server stores of such an attempt is what it would store of a real one; only the network and
the tables are missing.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from boltz_protocol import messages as m
from boltz_protocol.errors import RoundRefused
from boltz_protocol.noise import discrete_gaussian
from boltz_protocol.secagg import keys
from boltz_protocol.secagg.client import SecaggClient
from boltz_protocol.secagg.client_states import Ready
from boltz_protocol.secagg.graph import colluders
from boltz_protocol.secagg.server import survivors_payload
from tests.integration.sealed.algebra import centred
from tests.integration.sealed.extractor import Combination, Extraction, Label, Reading, extract
from tests.integration.sealed.players import Tape, check_noise, share_variance
from tests.integration.sealed.view import View, view_of_worlds
from tests.support.secagg import (
    Phase,
    World,
    cheap_verify,
    make_configuration,
    make_roster,
    stream_of,
)

COORDINATES = 512


def make_world(
    size: int, *, given: Mapping[int, Sequence[bytes]] | None = None, **settings: Any
) -> tuple[World, list[Tape]]:
    """A world, and what each of its clients draws.

    Args:
        given: what single clients draw first.
    """
    roster = make_roster(1 + index % 7 for index in range(size))
    configuration = make_configuration(
        roster, coordinates=COORDINATES, **({"min_survivors": 2} | settings)
    )
    # Signed by a key that stays the same, so that the ring does.
    world = World(roster, configuration, mesh_key=Ed25519PrivateKey.from_private_bytes(bytes(32)))
    first = given or {}
    tapes = [Tape(list(first.get(index, ())), stream_of(index)) for index in range(size)]
    world.clients = [world.new_client(index, tape) for index, tape in enumerate(tapes)]
    return world, tapes


def label(world: World, position: int) -> Label:
    return Label(world.configuration.round_id, world.configuration.attempt, position, 0)


def row(extraction: Extraction, world: World, positions: Iterable[int]) -> list[int]:
    return extraction.row(*(label(world, position) for position in positions))


def is_exact(found: Combination, *worlds: World) -> bool:
    """Whether it is the same combination of the true vectors, without noise."""
    truth = np.zeros(COORDINATES, np.int64)
    for world in worlds:
        for position, values in enumerate(world.values):
            truth += found.weights.get(label(world, position), 0) * values.astype(np.int64)
    return not centred(found.values - truth).any()


# --- a sparse graph -----------------------------------------------------------------------------

SIZE = 60
LATE = 41
MISSING = {7: Phase.NOTHING, 22: Phase.ADVERTISED, LATE: Phase.DEALT}
LEFT = MISSING | {3: Phase.UPLOADED}


@dataclass(frozen=True, slots=True)
class Sparse:
    """Sixty clients and noise; three are missing from the sum, and one leaves after its upload.

    The vector of one that is missing comes all the same, when the sum is open already.
    """

    world: World
    tapes: list[Tape] = field(repr=False)
    survivors: frozenset[int]
    view: View = field(repr=False)

    @classmethod
    def played(cls, given: Mapping[int, Sequence[bytes]] | None = None) -> Sparse:
        world, tapes = make_world(
            SIZE,
            given=given,
            corrupt_fraction=0.05,
            dropout_fraction=0.05,
            noise_multiplier=1.0,
            min_survivors=SIZE - len(MISSING),
        )
        variance = share_variance(world.configuration)
        world.run(LEFT, variance)
        survivors = world.survivors
        world.upload([LATE], discrete_gaussian(variance))
        return cls(world, tapes, survivors, view_of_worlds(world))

    @property
    def ring(self) -> tuple[int, ...]:
        return self.world.attempt.agreement.graphs[0].ring

    def collude(self, positions: Collection[int]) -> Extraction:
        return extract(
            self.view, [value for position in positions for value in self.tapes[position].drawn]
        )

    def check(self, found: Combination, *, protects: bool) -> None:
        total = sum(
            (found.weights[label(self.world, position)] == 1) * values.astype(np.int64)
            for position, values in enumerate(self.world.values)
            if label(self.world, position) in found.weights
        )
        check_noise(
            self.world.configuration,
            centred(found.values - total),
            clients=len(found.weights),
            protects=protects,
        )


@pytest.fixture(scope="module")
def sparse() -> Sparse:
    return Sparse.played()


def test_a_sparse_graph_gives_the_sum_alone(sparse: Sparse) -> None:
    graph = sparse.world.attempt.agreement.graphs[0]
    assert not graph.is_complete
    assert len(graph.members) == SIZE - 2
    for reading in Reading:
        extraction = extract(sparse.view, reading=reading)
        assert len(extraction.labels) == SIZE - len(MISSING) + 1
        assert extraction.is_spanned_by([row(extraction, sparse.world, sparse.survivors)])
        (sum_,) = extraction.found
        sparse.check(sum_, protects=True)


def test_a_seed_that_was_said_before() -> None:
    """A generator that repeats itself: the nonce, which everybody hears, is the seed as well. With
    the mask key of a dropout, which all give away, the late vector is open."""
    given = [bytes([draw]) * 32 for draw in (1, 2, 3, 3)]
    sparse = Sparse.played({LATE: given})
    extraction = extract(sparse.view)
    late = row(extraction, sparse.world, [LATE])
    assert extraction.is_spanned_by([late, row(extraction, sparse.world, sparse.survivors)])
    sparse.check(extraction.combine(late), protects=False)


def test_as_many_colluders_as_the_plan_says_around_one_client(sparse: Sparse) -> None:
    victim = sparse.ring[0]
    survivors = sparse.survivors
    near = [
        each
        for each in sparse.world.attempt.agreement.graphs[0].neighbours(victim)
        if each in survivors
    ]
    corrupt = near[: colluders(SIZE, 0.05)]
    assert len(corrupt) == 3
    extraction = sparse.collude(corrupt)
    honest = row(extraction, sparse.world, survivors.difference(corrupt))
    own = [row(extraction, sparse.world, [each]) for each in corrupt]
    assert extraction.is_spanned_by([honest, *own])
    # The fewest survivors, without the colluders: exactly the target is left.
    sparse.check(extraction.combine(honest), protects=True)


def test_a_client_whose_neighbours_all_collude_is_open(sparse: Sparse) -> None:
    victim = next(each for each in sparse.ring if each in sparse.survivors)
    corrupt = sparse.world.attempt.agreement.graphs[0].neighbours(victim)
    extraction = sparse.collude(corrupt)
    alone = row(extraction, sparse.world, [victim])
    assert alone in extraction.module
    sparse.check(extraction.combine(alone), protects=False)


def test_two_cuts_through_the_ring_give_two_sums(sparse: Sparse) -> None:
    """What event E2 of the graph's analysis is about: each part's masks cancel by themselves."""
    ring, reach = (
        sparse.ring,
        len(sparse.world.attempt.agreement.graphs[0].neighbours(sparse.ring[0])) // 2,
    )
    half = len(ring) // 2
    corrupt = {*ring[:reach], *ring[half : half + reach]}
    extraction = sparse.collude(corrupt)
    survivors = sparse.survivors
    parts = [
        [each for each in part if each in survivors]
        for part in (ring[reach:half], ring[half + reach :])
    ]
    own = [[each] for each in corrupt & sparse.world.uploads.keys()]
    assert extraction.is_spanned_by(
        [row(extraction, sparse.world, positions) for positions in (*parts, *own)]
    )
    for part in parts:
        sparse.check(extraction.combine(row(extraction, sparse.world, part)), protects=False)


# --- survivors shown in two ways ----------------------------------------------------------------

EIGHT = range(8)
VICTIM = 2


def without_victim(world: World) -> m.Survivors:
    survivors = frozenset(EIGHT) - {VICTIM}
    return survivors_payload(world.attempt, survivors)


def released(
    world: World, clients: dict[int, SecaggClient], payload: m.Survivors
) -> list[tuple[int, m.ReleasedShare]]:
    """What these clients release when they, and nobody else, are shown these survivors."""
    seen = {index: client.take_survivors(payload) for index, client in clients.items()}
    shares: list[tuple[int, m.ReleasedShare]] = []
    for index, client in clients.items():
        signatures = tuple(statement for other, statement in seen.items() if other != index)
        configuration = world.configuration
        notice = m.SignaturesNotice(configuration.round_id, configuration.attempt, signatures)
        answer = client.take_signatures(notice, cheap_verify)
        shares.extend((index, share) for share in answer.shares)
    return shares


def with_released(world: World, shares: Iterable[tuple[int, m.ReleasedShare]]) -> View:
    view = view_of_worlds(world)
    (key,) = view.attempts
    return replace(view, attempts={key: replace(view.only, released=tuple(shares))})


@dataclass(frozen=True, slots=True)
class Halves:
    """Everybody has uploaded; the second half of the clients will be shown other survivors."""

    world: World
    tapes: list[Tape] = field(repr=False)

    @classmethod
    def against(cls, adversary: m.Adversary) -> Halves:
        world, tapes = make_world(
            8, corrupt_fraction=0.125, dropout_fraction=0.125, adversary=adversary
        )
        return cls(world.until_uploaded(), tapes)

    def released(self, half: int) -> list[tuple[int, m.ReleasedShare]]:
        world = self.world
        clients = {index: world.clients[index] for index in EIGHT[4 * half : 4 * half + 4]}
        payload = without_victim(world) if half else world.survivors_payload()
        return released(world, clients, payload)


def test_a_server_that_lies_where_it_is_taken_to_be_honest() -> None:
    """The threshold against semi-honest servers lets each half of the clients agree by itself."""
    halves = Halves.against(m.Adversary.SEMI_HONEST)
    world, truth = halves.world, halves.released(0)
    assert extract(with_released(world, truth)).is_spanned_by([[1] * 8])
    extraction = extract(with_released(world, truth + halves.released(1)))
    alone = row(extraction, world, [VICTIM])
    assert extraction.is_spanned_by([alone, [1] * 8])
    assert is_exact(extraction.combine(alone), world)


def test_the_same_lie_against_the_threshold_made_for_it() -> None:
    halves = Halves.against(m.Adversary.SEMI_MALICIOUS)
    for half in (0, 1):
        with pytest.raises(RoundRefused, match="signatures"):
            halves.released(half)
    assert not extract(with_released(halves.world, [])).module.generators


def test_the_same_lie_against_clients_that_count_no_signatures() -> None:
    """The threshold of shares still keeps the victim: of its two kinds one comes together at most.
    What it does not keep is the count: a set may be summed that too few clients agreed on."""
    halves = Halves.against(m.Adversary.SEMI_MALICIOUS)
    world = halves.world
    for client in world.clients:
        state = client._state
        assert isinstance(state, Ready)
        client._state = replace(state, graph=replace(state.graph, threshold=0))
    view = with_released(world, halves.released(0) + halves.released(1))
    assert not extract(view).module.generators
    # A colluder's share makes up a threshold of the kind that the other half was asked for, and the
    # server has one of the two sums.
    for colluder, survivors in ((0, set(EIGHT) - {VICTIM}), (7, set(EIGHT))):
        extraction = extract(view, halves.tapes[colluder].drawn)
        own = row(extraction, world, [colluder])
        others = row(extraction, world, survivors - {colluder})
        assert extraction.is_spanned_by([own, others])


def test_sessions_that_were_copied() -> None:
    """Two copies of a session keep one promise each: together they tell both kinds."""
    world, _ = make_world(8, corrupt_fraction=0.125, dropout_fraction=0.125)
    world.until_uploaded()
    twins = {index: copy.copy(client) for index, client in enumerate(world.clients)}
    for twin in twins.values():
        twin._answers = dict(twin._answers)
    truth = released(world, dict(enumerate(world.clients)), world.survivors_payload())
    assert extract(with_released(world, truth)).is_spanned_by([[1] * 8])
    extraction = extract(
        with_released(world, truth + released(world, twins, without_victim(world)))
    )
    alone = row(extraction, world, [VICTIM])
    assert extraction.is_spanned_by([alone, [1] * 8])
    assert is_exact(extraction.combine(alone), world)


# --- keys without a context ---------------------------------------------------------------------


def two_attempts() -> tuple[World, World]:
    """Two attempts of one round, other vectors, and clients that draw the same secrets again."""
    first, _ = make_world(5)
    configuration = replace(first.configuration, attempt=2)
    second = World(first.roster, configuration, seed=1)
    second.clients = [second.new_client(index, stream_of(index)) for index in range(5)]
    return first.until_uploaded(), second.until_uploaded()


def test_the_same_secrets_in_two_attempts() -> None:
    """Masks are bound to the attempt: the differences that the keys suggest are noise."""
    worlds = two_attempts()
    view = view_of_worlds(*worlds)
    assert not extract(view).module.generators
    by_keys = extract(view, reading=Reading.KEYS)
    assert len(by_keys.module.generators) == 5
    assert by_keys.found == []


def test_masks_that_forget_their_context(monkeypatch: pytest.MonkeyPatch) -> None:
    def derive(secret: bytes, context: bytes, info: bytes) -> bytes:
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)

    monkeypatch.setattr(keys, "_derive", derive)
    worlds = two_attempts()
    by_keys = extract(view_of_worlds(*worlds), reading=Reading.KEYS)
    for position in range(5):
        pair = {label(worlds[0], position): 1, label(worlds[1], position): -1}
        difference = [pair.get(each, 0) for each in by_keys.labels]
        assert difference in by_keys.module
        assert is_exact(by_keys.combine(difference), *worlds)
    assert len(by_keys.found) == 5
