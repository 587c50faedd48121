"""Recomputing rows: what is true agrees, and whatever is changed in a row is found."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boltz_mesh.trust.conduct import Conduct, conduct_inputs, judge_conduct
from boltz_mesh.trust.replay import Replayed, Step, replay
from boltz_mesh.trust.reputation import (
    NEWCOMER,
    ROUNDS,
    Evidence,
    EvidenceKind,
    TrustState,
    apply,
    forget,
)

CONDUCTS = st.builds(
    lambda outcome, conduct, incidents: judge_conduct(conduct_inputs(outcome, conduct, incidents)),
    st.sampled_from(["published", "aborted"]),
    st.sampled_from(Conduct),
    st.lists(st.sampled_from(["second_digest", "dealer_blamed"]), max_size=2),
)
OTHERS = st.one_of(
    st.builds(
        lambda gain, loss: Evidence(EvidenceKind.OUTCOME, "outcome", gain, loss, {"z": 1.5}),
        st.integers(0, 400),
        st.integers(0, 4000),
    ),
    st.builds(
        lambda rounds: Evidence(EvidenceKind.QUARANTINE, "far-off", inputs={ROUNDS: rounds}),
        st.integers(1, 40),
    ),
    st.just(Evidence(EvidenceKind.RELEASE, "released", inputs={"by": "ann"})),
)
LIVES = st.lists(st.tuples(st.integers(0, 40), CONDUCTS | OTHERS), min_size=1, max_size=12)


def step_of(seq: int, ordinal: int, evidence: Evidence, state: TrustState) -> Step:
    return Step(
        seq=seq,
        ordinal=ordinal,
        round_id="ab" * 16,
        attempt=1,
        kind=evidence.kind.value,
        reason=evidence.reason,
        gain_256=evidence.gain_256,
        loss_256=evidence.loss_256,
        inputs=evidence.inputs,
        positive_256=state.positive_256,
        negative_256=state.negative_256,
        quarantine_rounds=state.quarantine_rounds,
        trust_256=state.trust_256,
        at_ms=1,
    )


def state_of(step: Step) -> TrustState:
    return TrustState(step.positive_256, step.negative_256, step.quarantine_rounds)


def steps_of(life: list[tuple[int, Evidence]]) -> list[Step]:
    """What is written when a client lives so: rounds that pass, and evidence."""
    steps: list[Step] = []
    state, ordinal = NEWCOMER, 7
    for seq, (rounds, evidence) in enumerate(life, start=1):
        passed = rounds if steps else 0
        ordinal += passed
        state = apply(state, passed, evidence)
        steps.append(step_of(seq, ordinal, evidence, state))
    return steps


def replayed(steps: list[Step]) -> list[Replayed]:
    # The outcomes here are made up: how one is judged is tested beside its rules.
    return list(replay(steps, {EvidenceKind.CONDUCT: judge_conduct}))


@given(LIVES)
def test_what_was_written_so_agrees(life: list[tuple[int, Evidence]]) -> None:
    steps = steps_of(life)
    found = replayed(steps)
    assert all(row.agrees for row in found)
    assert [row.step for row in found] == steps
    assert [row.state for row in found] == [state_of(step) for step in steps]
    before = [NEWCOMER, *(state_of(step) for step in steps[:-1])]
    assert [row.forgotten for row in found] == [
        forget(state, row.rounds) for state, row in zip(before, found, strict=True)
    ]


def changed(step: Step, what: str) -> Step:
    match what:
        case "trust":
            return replace(step, trust_256=step.trust_256 % 256 + 1)
        case "positive":
            return replace(step, positive_256=step.positive_256 + 1)
        case "seq":
            return replace(step, seq=step.seq + 1)
        case _:
            return replace(step, ordinal=step.ordinal - 100)


@given(LIVES, st.data(), st.sampled_from(["trust", "positive", "seq"]))
def test_a_changed_row_is_found(
    life: list[tuple[int, Evidence]], data: st.DataObject, what: str
) -> None:
    steps = steps_of(life)
    place = data.draw(st.integers(0, len(steps) - 1))
    steps[place] = changed(steps[place], what)
    found = replayed(steps)
    assert not found[place].agrees
    # What comes before it stays good.
    assert all(row.agrees for row in found[:place])


def life_of(*evidence: Evidence) -> list[Step]:
    return steps_of([(1, one) for one in evidence])


COUNTED = judge_conduct(conduct_inputs("published", Conduct.COUNTED))


@pytest.mark.parametrize(
    ("forged", "words"),
    [
        ({"gain_256": 4096}, "the inputs make it counted with gain 128 and loss 0"),
        ({"reason": "late"}, "and the row says late with 128 and 0"),
        ({"inputs": conduct_inputs("published", Conduct.LATE)}, "make it late with gain 0 and los"),
    ],
)
def test_conduct_follows_from_its_inputs(forged: dict[str, object], words: str) -> None:
    """Even where the state was forged along with it."""
    lie = replace(COUNTED, **forged)  # type: ignore[arg-type]  # the case's own
    found = replayed(life_of(COUNTED, lie, COUNTED))
    assert words in found[1].objection
    assert found[0].agrees


def test_a_row_that_is_gone_is_missed() -> None:
    steps = life_of(COUNTED, COUNTED, COUNTED)
    del steps[1]
    assert replayed(steps)[1].objection == "row 3 stands where row 2 should"


def test_a_round_cannot_end_before_the_last_one() -> None:
    steps = life_of(COUNTED, COUNTED)
    steps[1] = changed(steps[1], "ordinal")
    assert "ended before" in replayed(steps)[1].objection


def test_a_wrong_state_says_which_is_right() -> None:
    steps = life_of(COUNTED)
    steps[0] = changed(steps[0], "positive")
    assert replayed(steps)[0].objection == (
        "the state after it should be +128 -0, 0 rounds of quarantine, trust 86, and the row says "
        "+129 -0, 0 rounds of quarantine, trust 86"
    )


def test_all_that_follows_a_wrong_row_disagrees() -> None:
    steps = life_of(COUNTED, COUNTED, COUNTED)
    wrong = apply(state_of(steps[0]), 1, replace(COUNTED, gain_256=0))
    steps[1] = step_of(2, 8, COUNTED, wrong)
    steps[2] = step_of(3, 9, COUNTED, apply(wrong, 1, COUNTED))
    assert [row.agrees for row in replayed(steps)] == [True, False, False]


def test_a_kind_without_a_judge_is_taken_as_it_stands() -> None:
    lie = replace(COUNTED, gain_256=999)
    assert [row.agrees for row in replay(life_of(lie), judges={})] == [True]


@pytest.mark.parametrize(
    ("forged", "words"),
    [
        ({"kind": "rumour"}, "evidence of kind 'rumour' is not known"),
        ({"kind": "quarantine", "inputs": {}}, "no quarantine lasts None rounds"),
        ({"kind": "quarantine", "inputs": {ROUNDS: 0}}, "no quarantine lasts 0 rounds"),
        ({"kind": "quarantine", "inputs": {ROUNDS: 129}}, "no quarantine lasts 129 rounds"),
        ({"kind": "quarantine", "inputs": {ROUNDS: "3"}}, "no quarantine lasts 3 rounds"),
        ({"kind": "outcome", "gain_256": -1}, "no evidence has gain -1 and loss 0"),
        ({"kind": "outcome", "loss_256": 12289}, "no evidence has gain 128 and loss 12289"),
        ({"inputs": {}}, "these are no inputs of conduct"),
        ({"inputs": {"conduct": "odd", "incidents": []}}, "these are no inputs of conduct"),
        ({"inputs": {"conduct": "late", "incidents": "x"}}, "these are no inputs of conduct"),
        ({"kind": "release"}, "make it counted with gain 0 and loss 0, and the row says counted"),
    ],
)
def test_a_row_that_cannot_be_is_told_and_leaves_the_state(
    forged: dict[str, object], words: str
) -> None:
    first, second = life_of(COUNTED, COUNTED)
    found = replayed([first, replace(second, **forged)])  # type: ignore[arg-type]  # the case's own
    assert words in found[1].objection
    if forged.get("kind") != "release":
        assert found[1].state == forget(state_of(first), 1)


def test_nothing_to_recompute() -> None:
    assert replayed([]) == []
