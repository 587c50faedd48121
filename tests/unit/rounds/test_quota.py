"""How many updates a round waits for."""

from __future__ import annotations

import pytest

from boltz_mesh.rounds.quota import updates_awaited
from boltz_protocol.secagg.graph import Adversary
from tests.unit.rounds.rounds import parameters


@pytest.mark.parametrize(
    ("members", "target", "awaited"),
    [
        (0, 7, 7),  # an open round
        (4, 3, 3),  # three shares of four open a secret
        (20, 5, 11),  # shares that open a secret, with one client that may collude
        (20, 15, 15),
        (51, 40, 46),  # a tenth of a sparse graph may be missing
        (78, 60, 71),
        (60, 60, 60),
    ],
)
def test_no_more_are_left_behind_than_the_graph_withstands(
    members: int, target: int, awaited: int
) -> None:
    given = parameters(
        min_clients=3,
        target_clients=target,
        wanted_clients=max(target, members),
        max_clients=80,
        mode="sealed" if members else "open",
    )
    assert updates_awaited(given, members) == awaited


def test_the_colluders_of_a_larger_roster_may_all_be_there() -> None:
    cohort = {"min_clients": 3, "target_clients": 5, "wanted_clients": 40, "max_clients": 80}
    assert updates_awaited(parameters(**cohort, mode="sealed"), 20) == 12


def test_what_a_graph_withstands_is_the_plans() -> None:
    given = parameters(
        min_clients=3,
        target_clients=3,
        wanted_clients=80,
        max_clients=80,
        mode="sealed",
        corrupt_fraction=0.0,
        dropout_fraction=0.5,
        adversary=Adversary.SEMI_HONEST,
    )
    assert updates_awaited(given, 60) == 30
    assert updates_awaited(given, 6) == 3
