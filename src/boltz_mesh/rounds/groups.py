"""Which groups of a grouped round are strong enough: their members alone count.

The groups of a round are independent: each masks, shares, signs and unmasks among itself. So a
group that loses too many clients is left out, and the round goes on with the others. In open and
sealed rounds there are no groups, and everybody counts.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from boltz_mesh.rounds.state import Collecting, Groups, RoundParameters

#: Why a client is not waited for any more: its group is left out.
GROUP_TOO_SMALL: Final = "GROUP_TOO_SMALL"


def in_strong_groups(
    parameters: RoundParameters, groups: Groups, clients: Collection[str]
) -> frozenset[str]:
    """Those of `clients` in whose groups enough of `clients` are; all of them without groups.

    Enough are as many as each share of the noise is made for, and as give secrets back. Nobody
    counts where fewer groups are strong than the plan's rule needs: what such a round opened could
    only be thrown away.
    """
    there = frozenset(clients)
    if not groups:
        return there
    strong: set[str] = set()
    count = 0
    for group in groups:
        left = there.intersection(group.clients)
        if len(left) >= max(parameters.min_group_survivors, group.threshold):
            strong |= left
            count += 1
    return frozenset(strong) if count >= parameters.least_groups else frozenset()


def is_settled(state: Collecting) -> bool:
    """Whether each group is strong enough already, or too weak for good."""
    there = frozenset(state.participants) - state.dropped.keys()
    hopes = in_strong_groups(state.parameters, state.groups, there)
    strong = in_strong_groups(state.parameters, state.groups, state.stored)
    return all(
        hopes.isdisjoint(group.clients) or not strong.isdisjoint(group.clients)
        for group in state.groups
    )


def left_out(groups: Groups, survivors: Collection[str]) -> frozenset[str]:
    """Who is in a group without survivors."""
    alive = frozenset(survivors)
    return frozenset(
        client for group in groups if alive.isdisjoint(group.clients) for client in group.clients
    )
