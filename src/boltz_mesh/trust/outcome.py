"""What a round's outcome is worth as evidence: from a reading, by integers alone.

In an open round without noise a row is a client's own, and the whole outcome is its. In a grouped
round nobody can tell who of a group made its sum odd, so that the outcome is divided over the
members: all of them together get what one client gets for the same outcome in an open round. Groups
are drawn anew in each round, so that the shares of a liar add up, and those of its companions
do not (`boltz_mesh.trust.quarantine` counts).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeGuard

import msgspec

from boltz_mesh.trust.outliers import ONE, Reading, Verdict
from boltz_mesh.trust.reputation import GAIN_256, LARGE_LOSS_256, Evidence, EvidenceKind, Input
from boltz_protocol.errors import MalformedMessage
from boltz_protocol.limits import MAX_ROSTER

_NAMES: Final = frozenset(Reading.__slots__) - {"influence"} | {"share_256", "bad_before"}
#: Rounds that are looked back on to tell chance from habit.
WINDOW: Final = 8
#: A first round in which a client pulls against the others costs a quarter of what a good one
#: gains: any data can look so for a round. Each further one of its last 8 rounds costs twice as
#: much, ...
FIRST_LOSS_256: Final = GAIN_256 // 4
#: ... up to eight gains in the sixth, half of what proven misconduct costs.
MOST_LOSS_256: Final = 8 * GAIN_256

assert FIRST_LOSS_256 < GAIN_256 < MOST_LOSS_256 < LARGE_LOSS_256


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one round showed of one client.

    Attributes:
        reading: of its row.
        share_256: its share of the row's weight, in 1/256ths, at least 1; 256 in open rounds.
        bad_before: in how many of the WINDOW - 1 rounds before its rows pulled against the others.
    """

    reading: Reading
    share_256: int = ONE
    bad_before: int = 0

    def __post_init__(self) -> None:
        assert 1 <= self.share_256 <= ONE
        assert 0 <= self.bad_before < WINDOW

    @property
    def bad(self) -> bool:
        """Whether its row pulled against the others."""
        return self.reading.verdict in (Verdict.AGAINST, Verdict.OPPOSED)

    @property
    def implied_256(self) -> int | None:
        """See `Reading.implied_256`."""
        return self.reading.implied_256(self.share_256)


def next_outcome(past: Sequence[Outcome], reading: Reading, share_256: int = ONE) -> Outcome:
    """The outcome of a round behind those `past`, oldest first, since the last new start."""
    return Outcome(reading, share_256, sum(each.bad for each in past[-(WINDOW - 1) :]))


def evidence_of(outcome: Outcome) -> Evidence:
    """The evidence of a round, for one client.

    A row that goes with the others gains by its rank: all of GAIN_256 for the nearest to the
    result, half for the farthest. What is odd without being harmful neither gains nor loses.
    """
    reading = outcome.reading
    verdict = reading.verdict
    gain = loss = 0
    if verdict is Verdict.ORDINARY:
        gain = GAIN_256 * (2 * ONE - reading.rank_256) // (2 * ONE)
    elif outcome.bad:
        loss = min(MOST_LOSS_256, FIRST_LOSS_256 << outcome.bad_before)
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
    return {**inputs, "share_256": outcome.share_256, "bad_before": outcome.bad_before}


def outcome_of(inputs: Mapping[str, Input]) -> Outcome:
    """What `inputs_of` wrote down. Raises: MalformedMessage for anything else."""
    known = dict(inputs)
    if known.keys() - {"influence"} != _NAMES:
        raise MalformedMessage("these are not the inputs of an outcome")
    share_256, bad_before = known.pop("share_256"), known.pop("bad_before")
    if not (_within(share_256, 1, ONE) and _within(bad_before, 0, WINDOW - 1)):
        raise MalformedMessage("a share is 1 to 256, and earlier bad rounds are 0 to 7")
    if not (_within(known["members"], 1, MAX_ROSTER) and _within(known["rank_256"], 0, ONE)):
        raise MalformedMessage(f"members are 1 to {MAX_ROSTER}, and a rank is 0 to 256")
    try:
        reading = msgspec.convert(known, Reading)
    except msgspec.ValidationError as error:
        raise MalformedMessage(f"an input of an outcome: {error}") from error
    return Outcome(reading, int(share_256), int(bad_before))


def _within(value: Input, least: int, most: int) -> TypeGuard[int]:
    return type(value) is int and least <= value <= most


def judge_outcome(inputs: Mapping[str, Input]) -> Evidence:
    """The evidence, computed again from its inputs. Raises: MalformedMessage."""
    return evidence_of(outcome_of(inputs))
