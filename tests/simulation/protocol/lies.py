"""What a hostile server does, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random

from boltz_protocol.secagg.agreement import Agreement
from boltz_protocol.secagg.attempt import Attempt
from boltz_protocol.secagg.context import MaskContext
from boltz_protocol.secagg.graph import Graph, GraphParameters, graph_seed
from tests.simulation.protocol.settings import SPARSE


class Kind(StrEnum):
    """One lie; the victim is one honest client where nothing else is said."""

    #: One client is shown another attempt than the others: its masks must cancel with nobody's.
    OTHER_MODEL = "another model"
    OTHER_CONFIGURATION = "another configuration"
    OTHER_KEY_ROSTER = "a key roster with another corrupt client's keys"
    FEWER_MEMBERS = "a key roster without one of the members"
    OTHER_GRAPH = "a graph without one of its members"
    #: It must notice these.
    OTHER_WEIGHTS = "other weights than committed to"
    OTHER_KEYS = "a neighbour's keys that the neighbour never signed"
    OTHER_NONCE = "a nonce of an honest client that it never committed to"
    MISSING_PEER = "not all neighbours"
    #: Shares.
    HIDDEN_SHARER = "a sharer less than the others are shown"
    ALTERED_SHARE = "a share with one bit changed"
    SWAPPED_SHARES = "what was dealt to another holder"
    #: Survivors. These are told to all.
    SPLIT = "some clients one set of survivors, the rest another"
    FEW = "fewer survivors than the floor"
    CUT_OFF = "the neighbourhood of one client, once the graph is known"
    ABSENT = "a survivor that has uploaded nothing"
    TWICE = "first one set of survivors, then another"
    #: Signatures.
    FORGED = "signatures of honest clients made up"
    MIXED = "signatures on another set of survivors"
    REPEATED = "one signature many times"
    TOO_FEW = "fewer signatures than the threshold"
    #: And then.
    AGAIN = "every notice once more"
    SHARES_TWICE = "the shares a second time, and other masks wanted"
    SECOND_ATTEMPT = "a second attempt on the same data"


@dataclass(frozen=True, slots=True)
class Lie:
    """One lie; `victim` and `amount` pick whom it is told, and about what."""

    kind: Kind
    victim: int = 0
    amount: int = 0


#: With these the victim computes other masks than the others.
ANOTHER_CONTEXT = frozenset(
    {
        Kind.OTHER_MODEL,
        Kind.OTHER_CONFIGURATION,
        Kind.OTHER_KEY_ROSTER,
        Kind.FEWER_MEMBERS,
        Kind.OTHER_GRAPH,
    }
)


def random_lies(random: Random, most: int = 3) -> tuple[Lie, ...]:
    kinds = random.sample(list(Kind), random.randint(0, most))
    return tuple(Lie(kind, random.randrange(50), random.randrange(50)) for kind in kinds)


def with_other_nonce(attempt: Attempt, lie: Lie, victim: int, random: Random) -> Attempt:
    """The attempt that would follow if the nonce of another than the victim were another."""
    if not attempt.nonces:
        return attempt
    inside = attempt.agreement.graphs[0].members
    nonces = list(attempt.nonces)
    others = [place for place, index in enumerate(inside) if index != victim]
    nonces[others[lie.amount % len(others)]] = random.randbytes(32)
    context = MaskContext(
        configuration_sha256=attempt.configuration_sha256,
        model_sha256=attempt.configuration.model_sha256,
        key_roster_sha256=attempt.key_roster_sha256,
        graph_members_bitmap=attempt.revealed,
        nonces=tuple(nonces),
    ).digest
    graph = Graph.build(inside, GraphParameters(*SPARSE), seed=graph_seed(context, nonces))
    agreement = Agreement.of(attempt.agreement.members, (graph,), context)
    return replace(attempt, nonces=tuple(nonces), agreement=agreement)
