"""Beta reputation with exponential forgetting, in integers: what a client's conduct is worth.

Josang and Ismail, "The Beta Reputation System" (2002): good and bad experience r and s with a
client give the posterior Beta(r + 1, s + 1) of the probability that it behaves well, its mean is
the reputation (section 2.2), and old experience is forgotten by a factor (section 2.5, equation
12). Here that factor is 31/32 for each ended round of the model, whether the client took part or
not: who stays away comes back to what a newcomer is.

Three things differ, so that trust is lost faster than it is gained:

- A loss counts more than a gain, and by its kind (`SMALL_LOSS_256`, `LARGE_LOSS_256`).
- A loss takes away as much of the good experience as it adds to the bad.
- Both kinds of experience have a most (`POSITIVE_MOST_256`, `NEGATIVE_MOST_256`): nobody saves up
  good conduct for a long strike, and there is a way back for everybody.

What weighs in a round is a cautious quantile of the posterior, its mean less one standard
deviation: at most 22% of the posterior lies below it, whatever the state (a test measures it). So
a newcomer, about whom nothing is known, weighs little until something is.

Evidence is counted in 1/256ths of an experience. All arithmetic is on integers: the same rows give
the same trust, bit by bit, on every machine and in every language.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

#: Input of a quarantine: for how many ended rounds of the model.
ROUNDS: Final = "rounds"
#: A scalar of an evidence's inputs: what JSON and every other language keep exactly.
Scalar = str | int | float | bool | None
#: A value of an evidence's inputs.
Input = Scalar | list[Scalar] | dict[str, Scalar]

#: One experience, and full trust (1.0).
ONE: Final = 256
#: What every client starts with on either side: Beta(1, 1), the uniform distribution.
PRIOR_256: Final = ONE

#: Experience is multiplied by KEPT / OUT_OF for each ended round of the model: the last 32 rounds
#: are what counts, and half of an experience is forgotten after 22.
KEPT: Final = 31
OUT_OF: Final = 32
#: Half an experience for a round in which all went well. With less than a whole one, a newcomer
#: takes 3 rounds to weigh half of what anybody can, and 21 to weigh nine tenths.
GAIN_256: Final = 128
#: A round missed without a word: 1.5 gains. A client that misses 3 rounds in 10 settles just above
#: a newcomer's trust, one that misses 1 in 10 loses a quarter of what it could have.
SMALL_LOSS_256: Final = 192
#: Proven misconduct: 16 gains, half of the most that can be earned. Two such rounds bring the most
#: trusted client below a newcomer.
LARGE_LOSS_256: Final = 2048
#: The most good experience: what one gain a round comes to in the long run.
POSITIVE_MOST_256: Final = GAIN_256 * OUT_OF // (OUT_OF - KEPT)
#: The most bad experience: 6 times proven misconduct in memory. With good conduct from then on, the
#: way back to a newcomer's trust takes 24 rounds.
NEGATIVE_MOST_256: Final = 3 * POSITIVE_MOST_256
#: The longest quarantine, in ended rounds of the model: 4 memories, after which bad experience of
#: any size is nearly forgotten.
MAX_QUARANTINE_ROUNDS: Final = 4 * OUT_OF
#: After so many rounds the largest experience is forgotten altogether (a test counts them).
FORGOTTEN_AFTER_ROUNDS: Final = 300

# The table trust_evidence has these most values in its checks: another one needs a migration.
assert GAIN_256 < SMALL_LOSS_256 < LARGE_LOSS_256 < POSITIVE_MOST_256


class EvidenceKind(enum.StrEnum):
    """Where an evidence comes from. A round has at most one of each kind for a client."""

    #: What the client did in the round, as the mesh saw it (`boltz_mesh.trust.conduct`).
    CONDUCT = "conduct"
    #: What its contribution looked like, where the mode lets the mesh look at it.
    OUTCOME = "outcome"
    #: It is not selected for some rounds.
    QUARANTINE = "quarantine"
    #: An operator ended its quarantine.
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Evidence:
    """One reason to trust a client more or less.

    Args:
        kind: where it comes from.
        reason: machine-readable, in lower case with hyphens.
        gain_256, loss_256: experience, in 1/256ths, 0 to `NEGATIVE_MOST_256`.
        inputs: all that gain, loss and quarantine were computed from: nothing un-noised about one
            client's delta where a round has noise, or hides single deltas. Those of a quarantine
            have `ROUNDS`: how many ended rounds of the model it lasts.
    """

    kind: EvidenceKind
    reason: str
    gain_256: int = 0
    loss_256: int = 0
    inputs: Mapping[str, Input] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert 0 <= self.gain_256 <= NEGATIVE_MOST_256, "what is beyond it changes nothing"
        assert 0 <= self.loss_256 <= NEGATIVE_MOST_256, "what is beyond it changes nothing"
        if self.kind is EvidenceKind.QUARANTINE:
            assert 0 < self.quarantine_rounds <= MAX_QUARANTINE_ROUNDS
        if self.kind in (EvidenceKind.QUARANTINE, EvidenceKind.RELEASE):
            assert self.gain_256 == self.loss_256 == 0, "these change what is known by themselves"

    @property
    def quarantine_rounds(self) -> int:
        """How long a quarantine lasts, in ended rounds of the model; 0 for other kinds."""
        if self.kind is not EvidenceKind.QUARANTINE:
            return 0
        rounds = self.inputs[ROUNDS]
        assert isinstance(rounds, int)
        return rounds


@dataclass(frozen=True, slots=True)
class TrustState:
    """What is known about a client for one model.

    Args:
        positive_256, negative_256: experience beyond the prior, in 1/256ths.
        quarantine_rounds: ended rounds of the model that it is still not selected for.
    """

    positive_256: int = 0
    negative_256: int = 0
    quarantine_rounds: int = 0

    def __post_init__(self) -> None:
        assert 0 <= self.positive_256 <= POSITIVE_MOST_256
        assert 0 <= self.negative_256 <= NEGATIVE_MOST_256
        assert 0 <= self.quarantine_rounds <= MAX_QUARANTINE_ROUNDS

    @property
    def mean_256(self) -> int:
        """The reputation, in 1/256ths: the mean of the posterior, 128 for a newcomer."""
        alpha, beta = self.positive_256 + PRIOR_256, self.negative_256 + PRIOR_256
        return ONE * alpha // (alpha + beta)

    @property
    def trust_256(self) -> int:
        """What weighs in a round, in 1/256ths: mean less one standard deviation, 1 to 256.

        With a = alpha / 256 and b = beta / 256, the variance of Beta(a, b) is
        a b / ((a + b)^2 (a + b + 1)), so that the deviation is
        sqrt(256 alpha beta / (alpha + beta + 256)) / (alpha + beta). Its root is rounded up, and
        the quotient down: never more than the quantile.
        """
        alpha, beta = self.positive_256 + PRIOR_256, self.negative_256 + PRIOR_256
        total = alpha + beta
        squared = ONE * ONE * ONE * alpha * beta
        deviation = math.isqrt(-(-squared // (total + ONE)) - 1) + 1
        return max(1, (ONE * alpha - deviation) // total)


#: A client about which nothing is known.
NEWCOMER: Final = TrustState()


def forget(state: TrustState, rounds: int) -> TrustState:
    """What is left of it after so many more ended rounds of the model, of which nothing is known.

    Args:
        rounds: not negative.
    """
    assert rounds >= 0
    positive, negative = state.positive_256, state.negative_256
    # Rounded down in each step: later steps of a longer absence change nothing.
    for _ in range(min(rounds, FORGOTTEN_AFTER_ROUNDS)):
        positive, negative = positive * KEPT // OUT_OF, negative * KEPT // OUT_OF
    return TrustState(positive, negative, max(0, state.quarantine_rounds - rounds))


def apply(state: TrustState, rounds: int, evidence: Evidence) -> TrustState:
    """The state once more is known: forget first, then count.

    A quarantine takes all good experience, so that its client comes back with a newcomer's trust
    or less. A release is an operator's word that all is well: a newcomer's state.

    Args:
        state: as the last evidence left it.
        rounds: ended rounds of the model since then, that of this evidence included; 0 where the
            last evidence is of the same round.
    """
    known = forget(state, rounds)
    match evidence.kind:
        case EvidenceKind.RELEASE:
            return NEWCOMER
        case EvidenceKind.QUARANTINE:
            longest = max(known.quarantine_rounds, evidence.quarantine_rounds)
            return TrustState(0, known.negative_256, longest)
        case EvidenceKind.CONDUCT | EvidenceKind.OUTCOME:
            left = max(0, known.positive_256 - evidence.loss_256)
            return TrustState(
                min(POSITIVE_MOST_256, left + evidence.gain_256),
                min(NEGATIVE_MOST_256, known.negative_256 + evidence.loss_256),
                known.quarantine_rounds,
            )
