"""How many updates a round waits for before it leaves the others behind."""

from __future__ import annotations

from boltz_mesh.rounds.state import RoundParameters
from boltz_protocol import limits
from boltz_protocol.secagg.graph import MIN_CLIENTS, parameters_among, tolerated_dropouts


def updates_awaited(round: RoundParameters, graph_members: int) -> int:
    """Updates at which COLLECTING ends without waiting for more.

    In an open round that is the target, and in a grouped one too, where each group has a minimum of
    its own besides (`groups`). In a sealed round whoever is left behind is a dropout of
    the graph: in a complete one as many must survive as shares are needed, in a sparse one no more
    may be missing than it was made for, or its clients would refuse the survivors
    (`Graph.check_survivors`).

    Args:
        graph_members: of a sealed round; 0 in an open one.
    """
    if round.is_grouped or graph_members < MIN_CLIENTS:
        return round.target_clients
    if graph_members > limits.MAX_COMPLETE_GRAPH:
        missing = tolerated_dropouts(graph_members, round.dropout_fraction)
        return max(round.target_clients, graph_members - missing)
    # With the colluders of the largest roster there may have been: rather wait for one more.
    graph = parameters_among(
        graph_members,
        roster_size=max(graph_members, round.wanted_clients),
        corrupt_fraction=round.corrupt_fraction,
        dropout_fraction=round.dropout_fraction,
        adversary=round.adversary,
    )
    return max(round.target_clients, graph.threshold)
