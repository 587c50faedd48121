"""Recomputing trust from its rows: does every step follow from its inputs and the step before it?

Pure, and on integers: where a row was computed by this release's rules, the recomputed one is the
same bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from boltz_mesh.trust.conduct import judge_conduct
from boltz_mesh.trust.outcome import judge_outcome
from boltz_mesh.trust.reputation import (
    MAX_QUARANTINE_ROUNDS,
    NEGATIVE_MOST_256,
    NEWCOMER,
    ROUNDS,
    Evidence,
    EvidenceKind,
    Input,
    TrustState,
    apply,
    forget,
)
from boltz_protocol.errors import MalformedMessage

#: Computes an evidence again from its inputs. Raises: MalformedMessage where they are not its own.
Judge = Callable[[Mapping[str, Input]], Evidence]
#: By kind. A quarantine and a release are decisions: their rows hold no gain and no loss.
JUDGES: Final[Mapping[EvidenceKind, Judge]] = {
    EvidenceKind.CONDUCT: judge_conduct,
    EvidenceKind.OUTCOME: judge_outcome,
}


@dataclass(frozen=True, slots=True)
class Step:
    """One row of a client's trust for a model, as it was written. Nothing in it is checked yet.

    Attributes:
        seq: from 1, without gaps.
        ordinal: place of the round among those of the model that fixed a roster and ended; of a
            row that no round brought about, that of the last one before it. Never falls.
        round_id, attempt: "" and 0 where no round brought it about.
        kind: of `EvidenceKind`.
        gain_256, loss_256, inputs: as in `Evidence`.
        positive_256, negative_256, quarantine_rounds, trust_256: after it.
        at_ms: Unix time in milliseconds.
    """

    seq: int
    ordinal: int
    round_id: str
    attempt: int
    kind: str
    reason: str
    gain_256: int
    loss_256: int
    inputs: Mapping[str, Input]
    positive_256: int
    negative_256: int
    quarantine_rounds: int
    trust_256: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """A step beside what comes out when it is computed again.

    Attributes:
        rounds: that passed since the step before it.
        forgotten: the state after these rounds, before the evidence.
        state: after it, recomputed.
        objection: what does not agree, for a person; "" where all does.
    """

    step: Step
    rounds: int
    forgotten: TrustState
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
    wrong row makes all that follow disagree, until what it changed is forgotten.

    Args:
        steps: in order of their number.
        judges: by kind; gain and loss of a kind without one are taken as they stand.
    """
    state, ordinal, expected = NEWCOMER, None, 1
    for step in steps:
        rounds = 0 if ordinal is None else step.ordinal - ordinal
        objection = _misplaced(step, expected, rounds)
        forgotten = forget(state, max(0, rounds))
        try:
            evidence = _evidence(step, judges)
        except MalformedMessage as error:
            objection, state = objection or error.message, forgotten
        else:
            state = apply(forgotten, 0, evidence)
            objection = objection or _misjudged(step, evidence) or _misstated(step, state)
        yield Replayed(step, max(0, rounds), forgotten, state, objection)
        ordinal, expected = step.ordinal, step.seq + 1


def _evidence(step: Step, judges: Mapping[EvidenceKind, Judge]) -> Evidence:
    """What the inputs make it. Raises: MalformedMessage where they make nothing."""
    try:
        kind = EvidenceKind(step.kind)
    except ValueError as error:
        raise MalformedMessage(f"evidence of kind {step.kind[:40]!r} is not known") from error
    if kind in judges:
        return judges[kind](step.inputs)
    if kind is EvidenceKind.RELEASE:
        return Evidence(kind, step.reason, inputs=step.inputs)
    if kind is EvidenceKind.QUARANTINE:
        rounds = step.inputs.get(ROUNDS)
        if not (isinstance(rounds, int) and 0 < rounds <= MAX_QUARANTINE_ROUNDS):
            raise MalformedMessage(f"no quarantine lasts {rounds} rounds")
        return Evidence(kind, step.reason, inputs=step.inputs)
    if not (0 <= step.gain_256 <= NEGATIVE_MOST_256 and 0 <= step.loss_256 <= NEGATIVE_MOST_256):
        raise MalformedMessage(f"no evidence has gain {step.gain_256} and loss {step.loss_256}")
    return Evidence(kind, step.reason, step.gain_256, step.loss_256, step.inputs)


def _misplaced(step: Step, expected: int, rounds: int) -> str:
    if step.seq != expected:
        return f"row {step.seq} stands where row {expected} should"
    return "the round ended before that of the row above" if rounds < 0 else ""


def _misjudged(step: Step, judged: Evidence) -> str:
    if (step.reason, step.gain_256, step.loss_256) == (
        judged.reason,
        judged.gain_256,
        judged.loss_256,
    ):
        return ""
    return (
        f"the inputs make it {judged.reason} with gain {judged.gain_256} and loss "
        f"{judged.loss_256}, and the row says {step.reason} with {step.gain_256} and "
        f"{step.loss_256}"
    )


def _misstated(step: Step, state: TrustState) -> str:
    written = (step.positive_256, step.negative_256, step.quarantine_rounds, step.trust_256)
    right = (state.positive_256, state.negative_256, state.quarantine_rounds, state.trust_256)
    if written == right:
        return ""
    return f"the state after it should be {_words(right)}, and the row says {_words(written)}"


def _words(state: tuple[int, int, int, int]) -> str:
    positive, negative, quarantine, trust = state
    return f"+{positive} -{negative}, {quarantine} rounds of quarantine, trust {trust}"
