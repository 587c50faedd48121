"""The groups of a grouped round: who is summed with whom, and what each group must withstand.

The members are cut into G groups, each of which masks, shares, signs and unmasks among itself
alone, with everybody everybody's neighbour: the server learns one noised sum a group. The groups
are drawn anew in each attempt, from the nonces to which all members committed before.

The draw, byte by byte, for other languages. The order is that of the ring in `graph`: the graph
members in ascending roster order, shuffled with words of the keystream of `graph.graph_seed`. The
element at place p of the order, from 0, belongs to group p mod G, from 0. Inside a group members
stand in ascending roster order.

How many corrupt clients a group may hold is a matter of chance, since nobody chooses the groups:
`tails.most_in_a_group` bounds it. Every group is held to that bound, in its threshold and in its
members' shares of the noise; its proportion of the corrupt clients alone would be too few in every
other group. The bound holds for one draw. A server that has seen all nonces and then lets chosen
members drop out draws again; that no adversary of `graph.Adversary` does, who follow the protocol
until keys are exchanged, and each further draw adds its own 2^-40.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from boltz_protocol.errors import InvalidPlan
from boltz_protocol.limits import MAX_COMPLETE_GRAPH, MIN_GROUP
from boltz_protocol.secagg import tails
from boltz_protocol.secagg.graph import (
    Adversary,
    CompleteGraphParameters,
    colluders,
    complete_graph,
    shuffled,
)


def colluders_of_group(roster_size: int, groups: int, corrupt_fraction: float) -> int:
    """The most clients of one group that may collude with the server, whichever group it is.

    It fails with a probability of 2^-40 at most in an attempt, whoever leaves before the draw.

    Args:
        roster_size: clients selected, `limits.MIN_GROUP` to `limits.MAX_COMPLETE_GRAPH` a group.

    Raises: InvalidPlan for a fraction outside [0, 1).
    """
    corrupt = colluders(roster_size, corrupt_fraction)
    return tails.most_in_a_group(roster_size, corrupt, groups)


def group_parameters(
    size: int, colluding: int, dropout_fraction: float, adversary: str = Adversary.SEMI_MALICIOUS
) -> CompleteGraphParameters:
    """Neighbours and threshold inside a group.

    Args:
        size: members of the group, `limits.MIN_GROUP` to `limits.MAX_COMPLETE_GRAPH`.
        colluding: of `colluders_of_group`.
        dropout_fraction: of the group, who may leave.
        adversary: an `Adversary` or its text.

    Raises: InvalidPlan where the group cannot withstand both, or has another size.
    """
    if not MIN_GROUP <= size <= MAX_COMPLETE_GRAPH:
        raise InvalidPlan(
            f"a group of {size} clients; {MIN_GROUP} to {MAX_COMPLETE_GRAPH} would do",
            setting="groups",
            would_do=f"{MIN_GROUP} to {MAX_COMPLETE_GRAPH} clients a group",
        )
    found = complete_graph(size, colluding, dropout_fraction, adversary)
    if found is None:
        raise InvalidPlan(
            f"a group of {size} clients, of whom {colluding} may collude, does not withstand "
            f"dropout_fraction {dropout_fraction:g} ({adversary}): fewer groups, a smaller "
            "corrupt_fraction or a smaller dropout_fraction would do",
            setting="groups",
            would_do="fewer",
        )
    return found


def draw_groups(members: Sequence[int], groups: int, *, seed: bytes) -> tuple[tuple[int, ...], ...]:
    """The groups of an attempt, in order, each ascending.

    Args:
        members: the graph members' roster positions, ascending.
        seed: 32 bytes of `graph.graph_seed`.

    Raises: InvalidPlan where a group would have fewer than `limits.MIN_GROUP` members or more than
        `limits.MAX_COMPLETE_GRAPH`.
    """
    assert all(a < b for a, b in pairwise(members)), "ascending"
    least, most = groups * MIN_GROUP, groups * MAX_COMPLETE_GRAPH
    if not least <= len(members) <= most:
        raise InvalidPlan(
            f"{len(members)} members for {groups} groups; {least} to {most} would do",
            setting="groups",
            would_do=str(max(1, math.ceil(len(members) / MAX_COMPLETE_GRAPH))),
        )
    order = shuffled(members, seed)
    return tuple(tuple(sorted(order[group::groups])) for group in range(groups))
