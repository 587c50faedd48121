"""When a client is not selected for a while, why, and for how long.

One odd round is never enough, and being odd is never enough: a client with unusual data is far from
the others in every round. It has to do harm, again and again:

- Where rows are single clients' (`ALONE`): far from the others and pulling against them, beyond
  what the others differ among themselves (`Verdict.OPPOSED`), in 6 of its last 8 rounds.
- Where rows are groups: a group that looks bad accuses all of its members. As groups are drawn anew
  in each round, what a client's groups have in common in the long run is that client. What each
  round implies of it, were its companions typical (`Reading.implied_256`), is averaged over its
  last 32 rounds. It is in quarantine once that mean lies below -1/4 of a typical client's
  agreement by three standard errors, after 8 rounds at least. Companions that lie in some of those
  rounds widen the error and so protect the innocent; noise in the groups' sums does the same.

A quarantine lasts 8 ended rounds of the model, and twice as long each time. After it the client is
selected as before, with a newcomer's trust or less, and earlier rounds count against it no more.

Those in quarantine stay a minority. Were half of a model's clients to look bad, the majority by
which they are judged would be in doubt itself; then the mesh tells, and leaves the rest to a
person.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from boltz_mesh.trust.outcome import WINDOW, Outcome
from boltz_mesh.trust.outliers import ONE, Verdict
from boltz_mesh.trust.reputation import (
    MAX_QUARANTINE_ROUNDS,
    ROUNDS,
    Evidence,
    EvidenceKind,
    Input,
)

K = TypeVar("K", bound=str)

#: Of single clients' rows: so many of the last WINDOW.
ALONE_BAD: Final = 6
#: Of groups: as many of the last rounds as trust remembers, and the fewest that make a mean.
GROUP_WINDOW: Final = 32
GROUP_LEAST: Final = 8
#: Harm: a quarter of what a typical client adds, turned against the others.
_HARM: Final = -1 / 4
#: What one round implies is cut to so many times a typical agreement either way: a round in which
#: the others hardly agree at all would outweigh the rest.
_MOST_256: Final = 4 * ONE
#: Standard errors below it. Each client is looked at in each round, so that two would convict one
#: client in a few hundred looks by chance.
_ERRORS: Final = 3.0
#: Rounds of a first quarantine: as many as are looked back on.
FIRST_ROUNDS: Final = 8
#: Outcomes that `judge` may need.
HISTORY: Final = max(WINDOW, GROUP_WINDOW)

ALONE_REASON: Final = "against-the-others-again-and-again"
GROUP_REASON: Final = "its-groups-are-bad-again-and-again"


@dataclass(frozen=True, slots=True)
class History:
    """What is known about a client when a round has ended for it.

    Attributes:
        outcomes: since its last quarantine or release, oldest first, this round's included; those
            before the last HISTORY are not looked at.
        quarantines: how often it was in quarantine since an operator last released it.
    """

    outcomes: tuple[Outcome, ...]
    quarantines: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a client should be in quarantine.

    Attributes:
        reason: machine-readable.
        words: for people.
        rounds: for how many ended rounds of the model.
        severity: to compare findings: the greater the worse.
        inputs: what it was computed from.
    """

    reason: str
    words: str
    rounds: int
    severity: float
    inputs: Mapping[str, Input]

    def evidence(self) -> Evidence:
        """As a row of the evidence."""
        inputs: dict[str, Input] = {**self.inputs, ROUNDS: self.rounds, "words": self.words}
        return Evidence(EvidenceKind.QUARANTINE, self.reason, inputs=inputs)


def judge(history: History) -> Finding | None:
    """Whether a client should be in quarantine, by the rules above."""
    recent = history.outcomes[-HISTORY:]
    alone = [each for each in recent if each.reading.members == 1][-WINDOW:]
    bad = sum(each.reading.verdict is Verdict.OPPOSED for each in alone)
    rounds = quarantine_rounds(history.quarantines)
    if bad >= ALONE_BAD:
        return Finding(
            ALONE_REASON,
            f"in {bad} of its last {len(alone)} rounds its update was far from the others' and "
            "pulled against what they agree on",
            rounds,
            bad / len(alone),
            {"bad": bad, "of": len(alone)},
        )
    grouped = [each for each in recent if each.reading.members > 1]
    implied = [each.implied_256 for each in grouped]
    known = [value for value in implied if value is not None]
    if len(known) < GROUP_LEAST:
        return None
    mean, error = mean_and_error(known)
    if mean + _ERRORS * error >= _HARM:
        return None
    return Finding(
        GROUP_REASON,
        f"over {len(known)} drawings of groups what its groups have in common pulls against the "
        f"others: {mean:.2f} times a typical client's agreement, standard error {error:.2f}",
        rounds,
        -(mean + _ERRORS * error),
        {"mean": mean, "error": error, "of": len(known)},
    )


def quarantine_rounds(earlier: int) -> int:
    """Length of the next quarantine, in ended rounds of the model, after so many earlier ones."""
    assert earlier >= 0
    return int(min(MAX_QUARANTINE_ROUNDS, FIRST_ROUNDS << min(earlier, 16)))


def keep_minority(
    findings: Mapping[K, Finding], *, present: int, absent: int
) -> tuple[dict[K, Finding], dict[K, Finding]]:
    """Which findings become quarantines, the worst first, and which are only told.

    Args:
        findings: by client.
        present: clients in the round.
        absent: clients in quarantine already.

    Those in quarantine stay less than half of all clients seen.
    """
    room = max(0, (present + absent - 1) // 2 - absent)
    worst_first = sorted(findings, key=lambda client: (-findings[client].severity, client))
    return (
        {client: findings[client] for client in worst_first[:room]},
        {client: findings[client] for client in worst_first[room:]},
    )


def mean_and_error(implied_256: Sequence[int]) -> tuple[float, float]:
    """Mean and its standard error, of at least two values in 1/256ths, as plain numbers.

    Values are cut to 4 either way. Sums are of integers, so that the result is the same everywhere.
    The error is never below that of values spread by 1/8: identical rounds would prove anything.
    """
    count = len(implied_256)
    cut = [max(-_MOST_256, min(_MOST_256, value)) for value in implied_256]
    total = sum(cut)
    square = sum(value * value for value in cut)
    variance = (count * square - total * total) / (count * (count - 1) * ONE * ONE)
    return total / (count * ONE), math.sqrt(max(variance, 1 / 64) / count)
