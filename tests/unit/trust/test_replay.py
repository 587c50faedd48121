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


def steps_of(life: list[tuple[int, Evidence]]) -> list[Step]:
    """What is written when a client lives so: rounds that pass, and evidence."""
    steps: list[Step] = []
    state, ordinal = NEWCOMER, 7
    for seq, (rounds, evidence) in enumerate(life, start=1):
        passed = rounds if steps else 0
        ordinal += passed
        state = apply(state, passed, evidence)
        steps.append(Step(seq, ordinal, evidence, state, state.trust_256))
    return steps


def replayed(steps: list[Step]) -> list[Replayed]:
    return list(replay(steps))


@given(LIVES)
def test_what_was_written_so_agrees(life: list[tuple[int, Evidence]]) -> None:
    steps = steps_of(life)
    found = replayed(steps)
    assert all(row.agrees for row in found)
    assert [row.step for row in found] == steps
    assert [row.state for row in found] == [step.state for step in steps]
    assert [row.before for row in found] == [NEWCOMER, *(step.state for step in steps[:-1])]


def changed(step: Step, what: str) -> Step:
    match what:
        case "trust":
            return replace(step, trust_256=step.trust_256 % 256 + 1)
        case "positive":
            state = TrustState((step.state.positive_256 + 1) % 4096, step.state.negative_256)
            return replace(step, state=state)
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
        "the state should be +128 -0 with trust 86, and says +129 -0 with trust 86"
    )


def test_all_that_follows_a_wrong_row_disagrees() -> None:
    steps = life_of(COUNTED, COUNTED, COUNTED)
    wrong = apply(steps[0].state, 1, replace(COUNTED, gain_256=0))
    steps[1] = replace(steps[1], state=wrong, trust_256=wrong.trust_256)
    then = apply(wrong, 1, COUNTED)
    steps[2] = replace(steps[2], state=then, trust_256=then.trust_256)
    assert [row.agrees for row in replayed(steps)] == [True, False, False]


def test_a_kind_without_a_judge_is_taken_as_it_stands() -> None:
    lie = replace(COUNTED, gain_256=999)
    assert [row.agrees for row in replay(life_of(lie), judges={})] == [True]


def test_nothing_to_recompute() -> None:
    assert replayed([]) == []
