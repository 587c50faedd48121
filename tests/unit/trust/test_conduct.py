"""What conduct is worth: every case, and that the inputs alone decide."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boltz_mesh.trust.conduct import MISCONDUCT, Conduct, conduct_inputs, judge_conduct
from boltz_mesh.trust.reputation import GAIN_256, LARGE_LOSS_256, SMALL_LOSS_256, EvidenceKind

OUTCOMES = st.sampled_from(["published", "rejected", "aborted"])


@pytest.mark.parametrize(
    ("conduct", "gain", "loss"),
    [
        (Conduct.COUNTED, GAIN_256, 0),
        (Conduct.DECLINED, 0, 0),
        (Conduct.NOT_NEEDED, 0, 0),
        (Conduct.EXCUSED, 0, 0),
        (Conduct.LATE, 0, SMALL_LOSS_256),
        (Conduct.LEFT, 0, SMALL_LOSS_256),
        (Conduct.REFUSED, 0, LARGE_LOSS_256),
    ],
)
def test_what_conduct_is_worth_in_a_round_with_a_result(
    conduct: Conduct, gain: int, loss: int
) -> None:
    evidence = judge_conduct(conduct_inputs("published", conduct))
    assert (evidence.kind, evidence.reason) == (EvidenceKind.CONDUCT, conduct.value)
    assert (evidence.gain_256, evidence.loss_256) == (gain, loss)


@pytest.mark.parametrize("outcome", ["rejected", "aborted"])
@pytest.mark.parametrize("conduct", [c for c in Conduct if c is not Conduct.REFUSED])
def test_nobody_loses_by_a_round_without_a_result(outcome: str, conduct: Conduct) -> None:
    evidence = judge_conduct(conduct_inputs(outcome, conduct))
    assert (evidence.reason, evidence.gain_256, evidence.loss_256) == ("no-result", 0, 0)


@given(OUTCOMES, st.sampled_from(Conduct), st.lists(st.sampled_from(MISCONDUCT), min_size=1))
def test_proven_misconduct_counts_once_whatever_becomes_of_the_round(
    outcome: str, conduct: Conduct, incidents: list[str]
) -> None:
    evidence = judge_conduct(conduct_inputs(outcome, conduct, incidents))
    assert (evidence.gain_256, evidence.loss_256) == (0, LARGE_LOSS_256)
    assert evidence.reason == min(incidents).replace("_", "-")


@pytest.mark.parametrize("outcome", ["published", "rejected", "aborted"])
def test_a_refused_update_counts_whatever_becomes_of_the_round(outcome: str) -> None:
    assert judge_conduct(conduct_inputs(outcome, Conduct.REFUSED)).loss_256 == LARGE_LOSS_256


def test_other_security_events_prove_nothing() -> None:
    inputs = conduct_inputs("published", Conduct.COUNTED, ["not_in_roster", "second_digest"])
    assert inputs["incidents"] == ["second_digest"]
    assert conduct_inputs("published", Conduct.COUNTED, ["not_in_roster"])["incidents"] == []


@given(OUTCOMES, st.sampled_from(Conduct), st.lists(st.sampled_from(MISCONDUCT)))
def test_the_inputs_are_kept_and_decide(
    outcome: str, conduct: Conduct, incidents: list[str]
) -> None:
    evidence = judge_conduct(conduct_inputs(outcome, conduct, incidents))
    assert judge_conduct(evidence.inputs) == evidence
