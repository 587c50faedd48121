"""What the rows of a round contributed, out of the evidence about its clients.

There is evidence of outcomes only for rounds whose mode lets the mesh look at rows, so that nothing
else can be shown.
"""

from __future__ import annotations

from collections.abc import Sequence

from boltz_mesh.storage.outcomes import RoundOutcome
from boltz_mesh.trust.outcome import Outcome, outcome_of
from boltz_mesh.trust.outliers import ONE
from boltz_protocol.v1 import aggregator_pb2 as pb


def contributions_of(found: Sequence[RoundOutcome]) -> list[pb.Contribution]:
    """One for each row, the best first: by influence where it is known, or else by agreement.

    Args:
        found: of one round. All clients of a group hold the same reading.
    """
    members: dict[str, list[str]] = {}
    outcomes: dict[str, Outcome] = {}
    for each in found:
        outcome = outcome_of(each.inputs)
        outcomes[outcome.reading.row] = outcome
        members.setdefault(outcome.reading.row, []).append(each.client_id)
    total = sum(outcome.reading.weight for outcome in outcomes.values())
    shown = []
    for row, outcome in outcomes.items():
        reading = outcome.reading
        contribution = pb.Contribution(
            row=row,
            clients=members[row],
            share=reading.weight / total,
            agreement=reading.agreement_256 / ONE,
            verdict=reading.verdict.value,
        )
        if reading.influence is not None:
            contribution.influence = reading.influence
        shown.append(contribution)
    return sorted(shown, key=lambda each: (-each.influence, -each.agreement, each.row))
