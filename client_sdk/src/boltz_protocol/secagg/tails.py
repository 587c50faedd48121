"""How many neighbours and which threshold a sparse graph needs, in exact integer arithmetic.

The analysis is that of Bell et al. 2020, section 3: clients stand on a ring in random order, each
is joined to the k / 2 next ones on either side (a Harary graph), and t of its k neighbours give its
secrets back. `corrupt` of the n clients collude with the server and `dropped` leave, whoever they
are: the order is drawn afterwards. The paper's three good events, and how often each may fail:

E1  No client has too many corrupt neighbours. Among the k neighbours of one client the number X of
    corrupt ones is hypergeometric: k draws from the n - 1 others, `corrupt` of them marked. With q
    the smallest number for which P(X > q) <= 2^-41 / n, a semi-honest adversary is held off by
    t > q. One that shows different survivors to different neighbours (semi-malicious) could collect
    shares of one kind from some and of the other kind from the rest, corrupt ones giving both: it
    needs 2t shares and there are k + q at most, so that 2t > k + q.
E2  The honest survivors are connected; otherwise the masks inside one part cancel by themselves. A
    ring of this kind falls apart only where two separate runs of k / 2 neighbouring positions are
    all corrupt or dropped. There are n (n - k - 1) / 2 pairs of runs, and k given positions are
    all among the b = corrupt + dropped bad ones with probability b! (n - k)! / ((b - k)! n!). The
    sum over all pairs must be at most 2^-41 / n. (The shorter bound n (b / n)^(k / 2), one run
    being enough, would ask for 30 neighbours where 12 do.)
E3  Every client keeps t surviving neighbours, so that its secrets can be given back. The number of
    dropped neighbours is hypergeometric as in E1; t of k remain except with probability
    2^-20 / n.

E1 and E3 are thus union bounds over all clients: summed, a round fails with probability 2^-41 (E1)
and 2^-20 (E3). E2 speaks of the whole graph and needs no such sum; it is held to 2^-41 / n all the
same, like each other security event. Security fails with probability below 2^-40 in all.

What this does not cover: `corrupt` and `dropped` are numbers out of the n clients that the graph is
dimensioned for. Those that leave before the graph is drawn count among `dropped`, and the others
then have a somewhat larger corrupt part than dimensioned for: of 1000 clients at fractions of 0.1,
E1 fails with 2^-43 where all are left, with 2^-38 where 900 are and all corrupt ones among them.
E2 takes the dropouts as independent of the order; against a server that chooses them afterwards
stands `Graph.check_survivors`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

from boltz_protocol.limits import MAX_COMPLETE_GRAPH, MAX_NEIGHBOURS, MIN_GROUP

#: Each security event fails with probability at most 2^-41 / n: two of them, hence 2^-40 in all.
SECURITY_BITS: Final = 41
#: A group of a grouped round holds more corrupt members than it is made for: the one event that the
#: security of grouped rounds leaves to chance.
GROUP_SECURITY_BITS: Final = 40
#: A round cannot be finished for want of shares: 2^-20, by a union bound over its clients.
CORRECTNESS_BITS: Final = 20
#: With a threshold of 1 a share would be the secret itself.
MIN_THRESHOLD: Final = 2


class Quantile:
    """The smallest q for which P(X > q) <= 2^-bits / events, as draws are added one at a time.

    X is hypergeometric: the marked ones among `drawn` of `population`, without replacement. The
    probabilities are kept as numbers of outcomes out of C(population, drawn), so that nothing is
    rounded. q never falls as draws are added.
    """

    __slots__ = ("_drawn", "_limit", "_marked", "_population", "_tail", "value")

    def __init__(self, population: int, marked: int, *, bits: int, events: int) -> None:
        assert 0 <= marked <= population, "marked ones are part of the population"
        self._population = population
        self._marked = marked
        self._limit = events << bits
        self._drawn = 0
        #: Outcomes with X > value.
        self._tail = 0
        self.value = 0

    def draw(self) -> int:
        """Add one draw; the quantile of now `drawn` draws."""
        # An outcome of one more draw with X > q comes from one that was there already, or from one
        # with X = q and a marked draw; each is reached from `drawn + 1` smaller ones.
        free = self._population - self._drawn
        grown = free * self._tail + (self._marked - self.value) * self._outcomes()
        self._drawn += 1
        self._tail = grown // self._drawn
        total = math.comb(self._population, self._drawn)
        while self._tail * self._limit > total:
            self.value += 1
            self._tail -= self._outcomes()
        return self.value

    def _outcomes(self) -> int:
        """Outcomes with X = value."""
        unmarked = self._population - self._marked
        return math.comb(self._marked, self.value) * math.comb(unmarked, self._drawn - self.value)


def is_connected(clients: int, neighbours: int, bad: int) -> bool:
    """Whether E2 holds often enough with `bad` corrupt or dropped clients out of `clients`."""
    pairs_twice = clients * (clients - neighbours - 1)
    outcomes = pairs_twice * math.perm(bad, neighbours)
    return outcomes * (clients << SECURITY_BITS) <= 2 * math.perm(clients, neighbours)


@lru_cache(maxsize=1024)
def most_in_a_group(clients: int, corrupt: int, groups: int) -> int:
    """The most corrupt members that any group of a grouped round holds, except with 2^-40.

    Groups are drawn at random, so that the number X of corrupt members of one is hypergeometric,
    and q is the smallest number for which groups * P(X > q) <= 2^-40. Honest clients may leave
    before the draw while all corrupt ones stay. Of all numbers of members that make a largest group
    of a given size, the smallest has the heaviest tail, since one more honest member only lowers X;
    q is the largest over these sizes.

    Args:
        clients: of the roster, `limits.MIN_GROUP` to `limits.MAX_COMPLETE_GRAPH` a group.
        corrupt: of them.
    """
    assert MIN_GROUP * groups <= clients <= MAX_COMPLETE_GRAPH * groups, "groups of such sizes"
    worst = 0
    for size in range(MIN_GROUP, -(-clients // groups) + 1):
        members = max(MIN_GROUP * groups, (size - 1) * groups + 1)
        marked = Quantile(members, min(corrupt, members), bits=GROUP_SECURITY_BITS, events=groups)
        for _ in range(size):
            marked.draw()
        worst = max(worst, marked.value)
    return worst


@lru_cache(maxsize=1024)
def smallest(
    clients: int, corrupt: int, dropped: int, *, semi_malicious: bool
) -> tuple[int, int] | None:
    """The smallest even number of neighbours, and with it the smallest threshold, or None.

    None says that no graph with fewer than `clients` - 1 and at most `limits.MAX_NEIGHBOURS`
    neighbours will do. Cached: every client of a round asks the same.
    """
    colluding = Quantile(clients - 1, corrupt, bits=SECURITY_BITS, events=clients)
    missing = Quantile(clients - 1, dropped, bits=CORRECTNESS_BITS, events=clients)
    for neighbours in range(2, min(clients - 2, MAX_NEIGHBOURS) + 1, 2):
        colluding.draw()
        missing.draw()
        shares = colluding.draw()
        surviving = neighbours - missing.draw()
        if semi_malicious:
            threshold = (neighbours + shares) // 2 + 1
        else:
            threshold = max(MIN_THRESHOLD, shares + 1)
        if threshold <= surviving and is_connected(clients, neighbours, corrupt + dropped):
            return neighbours, threshold
    return None
