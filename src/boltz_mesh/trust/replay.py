"""Recomputing trust from its rows: does every step follow from its inputs and the step before it?

Pure, and on integers: where a row was computed by this release's rules, the recomputed one is the
same bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from boltz_mesh.trust.conduct import judge_conduct
from boltz_mesh.trust.reputation import NEWCOMER, Evidence, EvidenceKind, Input, TrustState, apply

#: Computes an evidence again from its inputs.
Judge = Callable[[Mapping[str, Input]], Evidence]
#: By kind. A quarantine and a release are decisions: their rows hold no gain and no loss.
JUDGES: Final[Mapping[EvidenceKind, Judge]] = {EvidenceKind.CONDUCT: judge_conduct}


@dataclass(frozen=True, slots=True)
class Step:
    """One row of a client's trust for a model, as it was written or as it was read elsewhere.

    Attributes:
        seq: from 1, without gaps.
        ordinal: of the model's ended rounds, never falling.
        state, trust_256: after it, as written.
    """

    seq: int
    ordinal: int
    evidence: Evidence
    state: TrustState
    trust_256: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """A step beside what comes out when it is computed again.

    Attributes:
        forgotten: the state before the evidence was counted, after the rounds that passed.
        state: recomputed.
        objection: what does not agree, for a person; "" where all does.
    """

    step: Step
    rounds: int
    before: TrustState
    state: TrustState
    objection: str

    @property
    def agrees(self) -> bool:
        """Whether the row is what its inputs make of it."""
        return not self.objection


def replay(
    steps: Iterable[Step], judges: Mapping[EvidenceKind, Judge] = JUDGES
) -> Iterator[Replayed]:
    """Recompute the rows of one client for one model, from its first on.

    Each row is held against the recomputed one before it, never against what was written there: one
    wrong row makes all that follow disagree, unless a release starts anew.

    Args:
        steps: in order of their number.
        judges: by kind; gain and loss of a kind without one are taken as they stand.
    """
    state, ordinal, expected = NEWCOMER, None, 1
    for step in steps:
        rounds = 0 if ordinal is None else step.ordinal - ordinal
        objection = _misplaced(step, expected, rounds) or _misjudged(step, judges)
        before = state
        state = apply(before, max(0, rounds), _judged(step, judges))
        if not objection and (state, state.trust_256) != (step.state, step.trust_256):
            objection = (
                f"the state should be {_words(state)} with trust {state.trust_256}, "
                f"and says {_words(step.state)} with trust {step.trust_256}"
            )
        yield Replayed(step, max(0, rounds), before, state, objection)
        ordinal, expected = step.ordinal, step.seq + 1


def _judged(step: Step, judges: Mapping[EvidenceKind, Judge]) -> Evidence:
    judge = judges.get(step.evidence.kind)
    return step.evidence if judge is None else judge(step.evidence.inputs)


def _misplaced(step: Step, expected: int, rounds: int) -> str:
    if step.seq != expected:
        return f"row {step.seq} stands where row {expected} should"
    return "the round ended before that of the row above" if rounds < 0 else ""


def _misjudged(step: Step, judges: Mapping[EvidenceKind, Judge]) -> str:
    said, judged = step.evidence, _judged(step, judges)
    if said == judged:
        return ""
    return (
        f"the inputs make it {judged.reason} with gain {judged.gain_256} and loss "
        f"{judged.loss_256}, and the row says {said.reason} with {said.gain_256} and "
        f"{said.loss_256}"
    )


def _words(state: TrustState) -> str:
    return f"+{state.positive_256} -{state.negative_256}"
