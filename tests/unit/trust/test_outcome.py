"""What an outcome is worth as evidence, and that it can be recomputed from its inputs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boltz_mesh.trust.outcome import (
    FIRST_LOSS_256,
    MOST_LOSS_256,
    WINDOW,
    Outcome,
    evidence_of,
    inputs_of,
    judge_outcome,
    outcome_of,
)
from boltz_mesh.trust.reputation import GAIN_256, EvidenceKind
from boltz_protocol.errors import MalformedMessage
from tests.unit.trust.readings import AGAINST, GOOD, OPPOSED, outcomes, reading


def test_the_nearest_gains_twice_what_the_farthest_does() -> None:
    nearest, farthest = (evidence_of(Outcome(reading(rank_256=rank))) for rank in (0, 256))
    assert (nearest.gain_256, nearest.loss_256) == (GAIN_256, 0)
    assert (farthest.gain_256, farthest.loss_256) == (GAIN_256 // 2, 0)
    assert nearest.kind is EvidenceKind.OUTCOME
    assert nearest.reason == "goes-with-the-others"


@pytest.mark.parametrize("changed", [{"silent": True}, {"agreement_256": 0}, {"norm_z_256": 9999}])
def test_what_is_odd_or_idle_neither_gains_nor_loses(changed: dict[str, Any]) -> None:
    evidence = evidence_of(Outcome(reading(**changed)))
    assert (evidence.gain_256, evidence.loss_256) == (0, 0)


def test_losses_double_with_each_bad_round_of_the_last_ones() -> None:
    losses = [evidence_of(each).loss_256 for each in outcomes(*[OPPOSED] * 10)]
    assert losses[:5] == [FIRST_LOSS_256 << n for n in range(5)]
    assert losses[5:] == [MOST_LOSS_256] * 5


def test_old_rounds_do_not_count() -> None:
    rounds = outcomes(AGAINST, *[GOOD] * (WINDOW - 1), OPPOSED)
    assert rounds[-1].bad_before == 0
    rounds = outcomes(AGAINST, *[GOOD] * (WINDOW - 2), OPPOSED)
    assert rounds[-1].bad_before == 1


def test_a_group_s_outcome_is_divided_over_its_members() -> None:
    alone = evidence_of(Outcome(reading()))
    member = evidence_of(Outcome(reading(members=5), 51))
    assert member.gain_256 == alone.gain_256 // 5
    bad = {"members": 5, "agreement_z_256": 2000, "agreement_256": 0}
    assert evidence_of(Outcome(reading(**bad), 51, 7)).loss_256 == MOST_LOSS_256 // 5


def test_each_earlier_input_is_needed_and_no_other() -> None:
    whole = dict(inputs_of(Outcome(reading())))
    for name in whole:
        with pytest.raises(MalformedMessage):
            judge_outcome({key: value for key, value in whole.items() if key != name})
    with pytest.raises(MalformedMessage, match="not the inputs of an outcome"):
        judge_outcome({**whole, "more": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("share_256", 0),
        ("share_256", 257),
        ("share_256", True),
        ("bad_before", -1),
        ("bad_before", WINDOW),
        ("members", 0),
        ("members", 1.0),
        ("rank_256", 257),
        ("rank_256", -1),
        ("row", 5),
        ("norm_z_256", 1.5),
        ("silent", 1),
        ("influence", "much"),
    ],
)
def test_inputs_out_of_range_are_refused(name: str, value: str | float) -> None:
    with pytest.raises(MalformedMessage):
        judge_outcome({**inputs_of(Outcome(reading())), name: value})


small = st.integers(-5000, 5000)


@given(
    changed=st.fixed_dictionaries(
        {},
        optional={
            "members": st.integers(1, 12),
            "rank_256": st.integers(0, 256),
            "norm_z_256": small,
            "distance_z_256": small,
            "direction_z_256": small,
            "agreement_z_256": small,
            "cosine_256": st.integers(-256, 256),
            "typical_cosine_256": st.integers(-256, 256),
            "agreement_256": small,
            "typical_256": small,
            "silent": st.booleans(),
            "influence": st.floats(-1e9, 1e9),
        },
    ),
    share=st.integers(1, 256),
    bad_before=st.integers(0, WINDOW - 1),
)
def test_evidence_is_recomputed_from_its_inputs(
    changed: dict[str, Any], share: int, bad_before: int
) -> None:
    outcome = Outcome(reading(**changed), share, bad_before)
    evidence = evidence_of(outcome)
    again = outcome_of(json.loads(json.dumps(inputs_of(outcome))))
    assert again == outcome
    assert judge_outcome(evidence.inputs) == evidence
    assert not (evidence.gain_256 and evidence.loss_256)
    assert evidence.loss_256 <= MOST_LOSS_256
