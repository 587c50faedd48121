"""What a round's outcome is worth as evidence: from a reading, by integers alone.

In an open round without noise a row is a client's own, and the whole outcome is its. In a grouped
round nobody can tell who of a group made its sum odd, so that the outcome is divided over the
members: all of them together get what one client gets for the same outcome in an open round. Groups
are drawn anew in each round, so that the shares of a liar add up, and those of its companions
do not (`boltz_mesh.trust.quarantine` counts).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from boltz_mesh.trust.outliers import ONE, Reading, Verdict
from boltz_mesh.trust.reputation import GAIN_256, Evidence, EvidenceKind, Input

#: A round in which a client pulled against the others from far away: four gains, and with them two
#: rounds of good conduct and outcome. Less than proven misconduct, since data can look like that
#: for a round.
OPPOSED_LOSS_256: Final = 4 * GAIN_256
#: The same from within the others' distances: the harm is smaller, and chance more likely.
AGAINST_LOSS_256: Final = 3 * GAIN_256 // 2

assert GAIN_256 < AGAINST_LOSS_256 < OPPOSED_LOSS_256


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one round showed of one client.

    Attributes:
        reading: of its row.
        share_256: its share of the row's weight, in 1/256ths, at least 1; 256 in open rounds.
    """

    reading: Reading
    share_256: int = ONE

    @property
    def implied_256(self) -> int | None:
        """See `Reading.implied_256`."""
        return self.reading.implied_256(self.share_256)


def evidence_of(outcome: Outcome) -> Evidence:
    """The evidence of a round, for one client.

    A row that goes with the others gains by its rank: all of GAIN_256 for the nearest to the
    result, half for the farthest. What is odd without being harmful neither gains nor loses.
    """
    reading = outcome.reading
    verdict = reading.verdict
    gain = loss = 0
    match verdict:
        case Verdict.ORDINARY:
            gain = GAIN_256 * (2 * ONE - reading.rank_256) // (2 * ONE)
        case Verdict.AGAINST:
            loss = AGAINST_LOSS_256
        case Verdict.OPPOSED:
            loss = OPPOSED_LOSS_256
        case Verdict.IDLE | Verdict.SILENT | Verdict.UNUSUAL:
            pass
    return Evidence(
        EvidenceKind.OUTCOME,
        verdict.value,
        gain // reading.members,
        loss // reading.members,
        inputs_of(outcome),
    )


def inputs_of(outcome: Outcome) -> dict[str, Input]:
    """All that the evidence follows from, as JSON values."""
    reading = outcome.reading
    inputs: dict[str, Input] = {
        name: getattr(reading, name) for name in Reading.__slots__ if name != "influence"
    }
    if reading.influence is not None:
        inputs["influence"] = reading.influence
    return {**inputs, "share_256": outcome.share_256}


def outcome_of(inputs: Mapping[str, Input]) -> Outcome:
    """What `inputs_of` wrote down. Asserts that it is whole."""
    known = dict(inputs)
    share_256 = known.pop("share_256")
    assert isinstance(share_256, int)
    reading = Reading(**known)  # type: ignore[arg-type]  # each is what inputs_of wrote
    return Outcome(reading, share_256)
