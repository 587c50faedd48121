"""Who masks with whom, and how many must help to unmask.

Up to `limits.MAX_COMPLETE_GRAPH` clients everybody masks with everybody and holds a share of
everybody's secrets, its own included (Bonawitz et al. 2017). Beyond, clients stand on a ring in an
order that nobody chose, each masks with the k / 2 next ones on either side, and these k alone hold
its shares (Bell et al. 2020); `tails` holds that analysis.

The thresholds of the complete graph, with n clients of whom c collude with the server:

- semi-honest: t > c (Bonawitz et al. 2017, theorem on honest-but-curious adversaries that include
  the server), and at least 2. More is not needed: whoever follows the protocol asks each client for
  one kind of share only.
- semi-malicious: 2t > n + c (their theorem on active adversaries). Shares of one kind from some
  holders and of the other kind from the rest, corrupt ones giving both, are n + c at most.

The ring, byte by byte, for other languages. The seed of `graph_seed` is the key of an AES-256-CTR
keystream (counter block zero first), read as 32-bit little-endian words. The order starts as the
members in ascending roster order; for `last` from m - 1 down to 1, with b = last + 1: take the next
word, and again while it is not below 2^32 - (2^32 mod b); exchange the elements at `last` and at
(word mod b). The last element is followed by the first.
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

from boltz_protocol.errors import InvalidPlan, MalformedMessage, RoundRefused
from boltz_protocol.framing import length_prefixed
from boltz_protocol.keystream import Keystream
from boltz_protocol.limits import MAX_COMPLETE_GRAPH, MAX_NEIGHBOURS, MAX_ROSTER, SECRET_BYTES
from boltz_protocol.secagg import tails

#: With two clients each learns the other's contribution by subtracting its own.
MIN_CLIENTS: Final = 3
#: Above this, corrupt and leaving clients leave too few others: the analysis needs less than 1, and
#: the graph grows without bound on the way there.
MAX_BAD_FRACTION: Final = Fraction(9, 10)
_SEED_LABEL: Final = b"boltz-mesh graph seed v1\0"
_WORDS_AT_ONCE: Final = 256
#: Fractions are offered as advice in steps of this many parts.
_ADVICE_STEPS: Final = 100


class Adversary(enum.StrEnum):
    """What the server and the clients that collude with it may do."""

    #: Follow the protocol, and pool what they see.
    SEMI_HONEST = "semi-honest"
    #: Beyond that, tell different clients different things once keys are exchanged.
    SEMI_MALICIOUS = "semi-malicious"


class GraphParameters(NamedTuple):
    """Dimensions of a graph.

    Attributes:
        neighbours: of each client.
        threshold: shares that give a secret back.
    """

    neighbours: int
    threshold: int


class CompleteGraphParameters(GraphParameters):
    """Dimensions of a complete graph, in which a client holds a share of its own secrets too.

    A type of its own, since the numbers alone do not tell: a sparse graph that shrank to
    `neighbours` + 1 members looks alike, and its threshold counts on no such share.
    """

    __slots__ = ()


def colluders(clients: int, corrupt_fraction: float) -> int:
    """The most clients that may collude with the server: floor(clients * corrupt_fraction).

    A fraction counts as the shortest decimal that denotes it, so that 0.1 of 30 is 3.

    Raises: InvalidPlan for a fraction outside [0, 1).
    """
    return math.floor(clients * _decimal("corrupt_fraction", corrupt_fraction))


def tolerated_dropouts(clients: int, dropout_fraction: float) -> int:
    """The most clients that may leave: floor(clients * dropout_fraction), as `colluders` counts.

    Raises: InvalidPlan for a fraction outside [0, 1).
    """
    return math.floor(clients * _decimal("dropout_fraction", dropout_fraction))


def parameters(
    clients: int,
    corrupt_fraction: float,
    dropout_fraction: float,
    adversary: str = Adversary.SEMI_MALICIOUS,
) -> GraphParameters:
    """The smallest number of neighbours, and then the smallest threshold, that are safe.

    Args:
        clients: the members of the signed key roster, `MIN_CLIENTS` to `limits.MAX_ROSTER`.
        corrupt_fraction: of the clients, who collude with the server.
        dropout_fraction: of the clients, who may leave in any phase.
        adversary: an `Adversary` or its text.

    Raises: InvalidPlan naming the setting and a value that would do; `metadata["setting"]` and
        `metadata["would_do"]` carry both.
    """
    if not MIN_CLIENTS <= clients <= MAX_ROSTER:
        would_do = MIN_CLIENTS if clients < MIN_CLIENTS else MAX_ROSTER
        raise InvalidPlan(
            f"{clients} clients; secure aggregation takes {MIN_CLIENTS} to {MAX_ROSTER}",
            setting="clients",
            would_do=would_do,
        )
    corrupt = _decimal("corrupt_fraction", corrupt_fraction)
    dropout = _decimal("dropout_fraction", dropout_fraction)
    against = _known(adversary)
    found = _search(clients, corrupt, dropout, against)
    if found is None:
        raise _refusal(clients, corrupt, dropout, against)
    return found


def _known(adversary: str) -> Adversary:
    try:
        return Adversary(adversary)
    except ValueError:
        raise InvalidPlan(
            f"adversary {adversary!r}; {' or '.join(Adversary)} would do",
            setting="adversary",
            would_do=Adversary.SEMI_MALICIOUS,
        ) from None


def parameters_among(
    members: int,
    *,
    roster_size: int,
    corrupt_fraction: float,
    dropout_fraction: float,
    adversary: str = Adversary.SEMI_MALICIOUS,
) -> GraphParameters:
    """`parameters` for those of a roster that are left, among whom all its colluders may be.

    Whoever is missing may be honest: dropped by the server, or simply gone. So the colluders are
    counted over the roster, and the threshold does not fall with the members.

    Args:
        members: of the signed key roster.
        roster_size: clients selected, at least as many.

    Raises: InvalidPlan, as `parameters`.
    """
    assert members <= roster_size, "members are of the roster"
    wanted = parameters(roster_size, corrupt_fraction, dropout_fraction, adversary)
    if members == roster_size:
        return wanted
    colluding = colluders(roster_size, corrupt_fraction)
    dropout = _decimal("dropout_fraction", dropout_fraction)
    found = None
    if members >= MIN_CLIENTS:
        found = _search(members, Fraction(colluding, members), dropout, Adversary(adversary))
    if found is None:
        raise InvalidPlan(
            f"{members} of {roster_size} clients are left, of whom {colluding} may collude: no "
            "graph withstands that",
            setting="corrupt_fraction",
            would_do="0",
        )
    return found


def _decimal(setting: str, fraction: float) -> Fraction:
    # Written so that a NaN fails as well.
    if not 0 <= fraction < 1:
        raise InvalidPlan(
            f"{setting} is {fraction}; it must be at least 0 and below 1, for example 0.05",
            setting=setting,
            would_do="0.05",
        )
    return Fraction(repr(float(fraction)))


def _bad_fraction(corrupt: Fraction, dropout: Fraction, adversary: Adversary) -> Fraction:
    return corrupt + dropout * (2 if adversary is Adversary.SEMI_MALICIOUS else 1)


def _search(
    clients: int, corrupt: Fraction, dropout: Fraction, adversary: Adversary
) -> GraphParameters | None:
    if _bad_fraction(corrupt, dropout, adversary) > MAX_BAD_FRACTION:
        return None
    colluding, leaving = math.floor(clients * corrupt), math.floor(clients * dropout)
    semi_malicious = adversary is Adversary.SEMI_MALICIOUS
    if clients > MAX_COMPLETE_GRAPH:
        found = tails.smallest(clients, colluding, leaving, semi_malicious=semi_malicious)
        return GraphParameters(*found) if found else None
    return _complete(clients, colluding, leaving, semi_malicious=semi_malicious)


def _complete(
    clients: int, colluding: int, leaving: int, *, semi_malicious: bool
) -> CompleteGraphParameters | None:
    if semi_malicious:
        threshold = (clients + colluding) // 2 + 1
    else:
        threshold = max(tails.MIN_THRESHOLD, colluding + 1)
    if clients - leaving < threshold:
        return None
    return CompleteGraphParameters(clients - 1, threshold)


def complete_graph(
    clients: int, colluding: int, dropout_fraction: float, adversary: str
) -> CompleteGraphParameters | None:
    """Dimensions of a complete graph with a known number of colluding clients, or None.

    Args:
        clients: 2 to `limits.MAX_COMPLETE_GRAPH`.

    Raises: InvalidPlan for a fraction outside [0, 1) or an adversary that is not known.
    """
    assert 1 < clients <= MAX_COMPLETE_GRAPH, "a complete graph"
    semi_malicious = _known(adversary) is Adversary.SEMI_MALICIOUS
    leaving = tolerated_dropouts(clients, dropout_fraction)
    return _complete(clients, colluding, leaving, semi_malicious=semi_malicious)


def _refusal(
    clients: int, corrupt: Fraction, dropout: Fraction, adversary: Adversary
) -> InvalidPlan:
    """What to say where no graph will do: the nearest fraction on a grid with which one does."""
    problem = (
        f"no graph of {clients} clients with at most {MAX_NEIGHBOURS} neighbours withstands "
        f"corrupt_fraction {float(corrupt)} and dropout_fraction {float(dropout)} ({adversary})"
    )
    if _bad_fraction(corrupt, dropout, adversary) > MAX_BAD_FRACTION:
        twice = "2 x " if adversary is Adversary.SEMI_MALICIOUS else ""
        problem = (
            f"corrupt_fraction {float(corrupt)} + {twice}dropout_fraction {float(dropout)} "
            f"is above {float(MAX_BAD_FRACTION)} ({adversary})"
        )
    for setting, wrong, other in (
        ("dropout_fraction", dropout, corrupt),
        ("corrupt_fraction", corrupt, dropout),
    ):

        def will_do(step: int, setting: str = setting, other: Fraction = other) -> bool:
            value = Fraction(step, _ADVICE_STEPS)
            pair = (other, value) if setting == "dropout_fraction" else (value, other)
            return _search(clients, *pair, adversary) is not None

        # Whatever withstands a fraction withstands less, so the largest is found by halving.
        low, high = -1, math.ceil(wrong * _ADVICE_STEPS)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if will_do(middle) else (low, middle)
        if low >= 0:
            would_do = str(low / _ADVICE_STEPS)
            return InvalidPlan(
                f"{problem}; {setting} {would_do} would do", setting=setting, would_do=would_do
            )
    return InvalidPlan(
        f"{problem}; corrupt_fraction 0.05 with dropout_fraction 0.05 would do",
        setting="corrupt_fraction",
        would_do="0.05",
    )


def graph_seed(context: bytes, nonces: Sequence[bytes]) -> bytes:
    """What the ring is drawn from: nobody chose it, since each nonce was committed to before.

    SHA-256("boltz-mesh graph seed v1" || 0x00 || context and nonces, each as u32be(len) || bytes).

    Args:
        context: what the attempt is bound to, 32 bytes.
        nonces: of the graph members in roster order, 32 bytes each.
    """
    assert all(len(part) == SECRET_BYTES for part in (context, *nonces)), "32 bytes each"
    return hashlib.sha256(_SEED_LABEL + length_prefixed(context, *nonces)).digest()


@dataclass(frozen=True, slots=True)
class Graph:
    """The members of an attempt and who is whose neighbour; made by `Graph.build`.

    Attributes:
        members: roster positions, ascending.
        threshold: shares that give a secret back.
        is_complete: everybody is everybody's neighbour and holds a share of its own secrets too.
        ring: the members in the order drawn; as they are where the graph is complete.
    """

    members: tuple[int, ...]
    threshold: int
    is_complete: bool
    ring: tuple[int, ...] = field(repr=False)
    _reach: int = field(repr=False)
    _place: Mapping[int, int] = field(repr=False, compare=False)

    @classmethod
    def build(cls, members: Sequence[int], parameters: GraphParameters, *, seed: bytes) -> Graph:
        """The graph of those who are left to take part.

        It is complete where the parameters are those of a complete graph, or where the members are
        no more than `parameters.neighbours`. In the latter case too each member holds its own
        share: holders are then at most `parameters.neighbours`, as the threshold assumes.

        Args:
            members: roster positions, ascending.
            seed: 32 bytes of `graph_seed`; without meaning where the graph is complete.

        Raises: MalformedMessage where secrets would have fewer holders than the threshold.
        """
        assert all(a < b for a, b in pairwise(members)), "ascending"
        count = len(members)
        is_complete = count <= parameters.neighbours
        if isinstance(parameters, CompleteGraphParameters):
            assert count <= parameters.neighbours + 1, "more members than dimensioned for"
            is_complete = True
        holders = count if is_complete else parameters.neighbours
        if holders < parameters.threshold:
            raise MalformedMessage(
                f"{count} members cannot hold shares with a threshold of {parameters.threshold}",
                field="members",
            )
        assert is_complete or parameters.neighbours % 2 == 0, "as many to either side"
        ring = tuple(members) if is_complete else shuffled(members, seed)
        return cls(
            members=tuple(members),
            threshold=parameters.threshold,
            is_complete=is_complete,
            ring=ring,
            _reach=parameters.neighbours // 2,
            _place={index: place for place, index in enumerate(ring)},
        )

    def __contains__(self, index: int) -> bool:
        return index in self._place

    def neighbours(self, index: int) -> tuple[int, ...]:
        """With whom a member masks, ascending."""
        assert index in self._place, "not a member of this graph"
        if self.is_complete:
            return tuple(other for other in self.members if other != index)
        place, count = self._place[index], len(self.ring)
        steps = range(1, self._reach + 1)
        return tuple(
            sorted(self.ring[(place + sign * step) % count] for step in steps for sign in (1, -1))
        )

    def holders(self, index: int) -> tuple[int, ...]:
        """Who holds a share of a member's secrets, ascending: see `is_complete`."""
        assert index in self._place, "not a member of this graph"
        return self.members if self.is_complete else self.neighbours(index)

    def dealers(self, index: int) -> tuple[int, ...]:
        """Whose shares a member holds, ascending: its holders, by symmetry."""
        return self.holders(index)

    def check_survivors(self, survivors: Collection[int]) -> None:
        """Refuse a set of survivors in which one has fewer surviving holders than the threshold.

        `tails` takes the dropouts as independent of the ring. A server that declares clients
        dropped once it knows the ring could cut a few honest ones off from the rest and learn their
        sum. This check stops it: next to each of two cuts stands an honest survivor whose
        neighbours on that side are all dropped or corrupt, so that more than t - k / 2 of them are
        corrupt survivors; with 2t > k + q (semi-malicious, q as in `tails`) the k positions of both
        cuts hold more than q corrupt ones, for any choice of the dropouts. Over all pairs of cuts
        that has a probability below n / 2 * 2^-41. Honest rounds pass it but for event E3.

        Raises:
            MalformedMessage: a survivor that is not a member.
            RoundRefused: naming a survivor with too few.
        """
        alive = set(survivors)
        if not alive <= self._place.keys():
            raise MalformedMessage("a survivor that dealt no shares", field="survivors")
        if len(alive) < self.threshold:
            raise RoundRefused(
                f"{len(alive)} survivors; {self.threshold} shares are needed of each",
                survivors=len(alive),
            )
        if self.is_complete:
            return
        for index, kept in self._kept_neighbours(alive):
            if kept < self.threshold:
                raise RoundRefused(
                    f"position {index} has {kept} surviving neighbours; {self.threshold} needed",
                    survivors=len(alive),
                )

    def _kept_neighbours(self, alive: Collection[int]) -> Iterator[tuple[int, int]]:
        """Each survivor of a sparse graph, and the number of its surviving neighbours."""
        count, reach = len(self.ring), self._reach
        flags = [index in alive for index in self.ring]
        # Sums of windows that go round the ring, from running totals over its length and more.
        totals = [0, *accumulate(flags[count - reach :] + flags + flags[:reach])]
        for place, index in enumerate(self.ring):
            if flags[place]:
                yield index, totals[place + 2 * reach + 1] - totals[place] - 1


def shuffled(members: Sequence[int], seed: bytes) -> tuple[int, ...]:
    """A uniform order of the members: Fisher and Yates, see the head of this module.

    Args:
        members: in ascending order.
        seed: 32 bytes of `graph_seed`.
    """
    return _shuffled(members, _words(seed))


def _shuffled(members: Sequence[int], words: Iterator[int]) -> tuple[int, ...]:
    order = list(members)
    for last in range(len(order) - 1, 0, -1):
        bound = last + 1
        word = next(words)
        while word >= (1 << 32) - (1 << 32) % bound:
            word = next(words)
        other = word % bound
        order[last], order[other] = order[other], order[last]
    return tuple(order)


def _words(seed: bytes) -> Iterator[int]:
    stream = Keystream(seed)
    while True:
        yield from stream.uint32(_WORDS_AT_ONCE).tolist()
