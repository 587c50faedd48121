"""`[adaptive_clipping]`: defaults, refusals, and an encoding at every clip norm that may follow."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from boltz_mesh.privacy.adaptive_clip import AdaptiveClipping
from boltz_mesh.rounds.plan import (
    Plan,
    example_plan,
    plan_from_json,
    plan_from_toml,
    plan_to_json,
    plan_to_toml_table,
    validate_encoding,
)
from boltz_mesh.rounds.plan_clipping import at_clip_norm
from boltz_mesh.rounds.plan_sealed import release_terms
from boltz_protocol import limits
from boltz_protocol.errors import InvalidPlan
from tests.unit.plan.documents import private_sealed, small

TABLE = "[adaptive_clipping]\n"
LANES = "".join(f"[[lanes]]\nname = 'l{number}'\nscale = 1\n" for number in range(limits.MAX_LANES))


def adaptive(line: str = "", **changes: str) -> str:
    return small(tables=f"{TABLE}{line}\n{changes.pop('tables', '')}", **changes)


def test_an_empty_table_is_the_papers_defaults() -> None:
    plan = plan_from_toml(adaptive())
    assert plan.adaptive_clipping == AdaptiveClipping(
        quantile=0.5, learning_rate=0.2, bit_share=0.2, min=0.001, max=1000.0
    )
    assert plan.coordinates == plan.parameters + 1
    assert plan_from_json(plan_to_json(plan)) == plan
    assert plan_to_toml_table(plan)["adaptive_clipping"]["max"] == 1000.0
    assert plan_from_toml(small()).adaptive_clipping is None


def test_the_table_of_the_example_is_a_valid_one() -> None:
    text = example_plan()
    begin = text.index("# [adaptive_clipping]")
    lines = text[begin:].split("\n\n")[0].splitlines()
    table = "\n".join(line.removeprefix("# ") for line in lines)
    plan = plan_from_toml(f"{text}\n{table}")
    assert plan.adaptive_clipping is not None
    validate_encoding(plan)
    for name in AdaptiveClipping.__struct_fields__:
        assert f"\n# {name} = " in text


@pytest.mark.parametrize(
    ("text", "setting", "would_do"),
    [
        (adaptive("quantile = 0"), "adaptive_clipping.quantile", "0.5 would do"),
        (adaptive("quantile = 1"), "adaptive_clipping.quantile", "0.5 would do"),
        (adaptive("quantile = -0.1"), "adaptive_clipping.quantile", "0.5 would do"),
        (adaptive("quantile = nan"), "adaptive_clipping.quantile", "would do"),
        (adaptive("quantile = 'half'"), "adaptive_clipping.quantile", "0.5 would do"),
        (adaptive("bit_share = 0"), "adaptive_clipping.bit_share", "0.2 would do"),
        (adaptive("bit_share = 1.1"), "adaptive_clipping.bit_share", "0.2 would do"),
        (adaptive("bit_share = nan"), "adaptive_clipping.bit_share", "would do"),
        (adaptive("learning_rate = 0"), "adaptive_clipping.learning_rate", "0.2 would do"),
        (adaptive("learning_rate = -1"), "adaptive_clipping.learning_rate", "0.2 would do"),
        (adaptive("learning_rate = 5"), "adaptive_clipping.learning_rate", "0.2 would do"),
        (adaptive("learning_rate = inf"), "adaptive_clipping.learning_rate", "0.2 would do"),
        (adaptive("min = 0"), "adaptive_clipping.min", "0.001 would do"),
        (adaptive("min = nan"), "adaptive_clipping.min", "would do"),
        (adaptive("max = 1e99"), "adaptive_clipping.max", "10.0 would do"),
        (adaptive("min = 1.5"), "adaptive_clipping.min", "at most 1 would do"),
        (adaptive("max = 0.5"), "adaptive_clipping.max", "at least 1 would do"),
        (adaptive("quantil = 0.5"), "adaptive_clipping.quantil", "did you mean `quantile`?"),
        (adaptive(tables=LANES), "lanes", "at most 15 would do"),
        (
            adaptive(tables="[[lanes]]\nname = 'clip-indicator'\nscale = 1"),
            "lanes[0].name",
            "another name would do",
        ),
    ],
)
def test_what_is_refused(text: str, setting: str, would_do: str) -> None:
    with pytest.raises(InvalidPlan) as refusal:
        plan_from_toml(text)
    assert refusal.value.metadata["setting"] == setting
    assert would_do in refusal.value.message


def test_a_lane_of_that_name_is_nobodys_business_without_the_table() -> None:
    plan = plan_from_toml(small(tables="[[lanes]]\nname = 'clip-indicator'\nscale = 1"))
    assert [lane.name for lane in plan.lanes] == ["clip-indicator"]


# --- encodings ------------------------------------------------------------------------------------


def with_cohort(size: int, coordinates: int) -> Plan:
    text = adaptive().replace("max = 8", f"max = {size}")
    return plan_from_toml(text.replace("[3, 2]", f"[{coordinates}]"))


def is_accepted(plan: Plan) -> bool:
    try:
        validate_encoding(plan)
    except InvalidPlan:
        return False
    return True


@settings(deadline=None)
@given(st.floats(0.001, 1000), st.sampled_from([8, 100, 900, 10_000]), st.integers(1, 400_000))
def test_every_clip_norm_of_an_accepted_plan_has_an_encoding(
    clip_norm: float, cohort: int, size: int
) -> None:
    plan = with_cohort(cohort, size)
    if is_accepted(plan):
        encoding = validate_encoding(without(plan, clip_norm))
        assert encoding.clip_norm_l2 == clip_norm


def without(plan: Plan, clip_norm: float) -> Plan:
    return changed(plan, clip_norm=clip_norm, adaptive_clipping=None)


def test_a_plan_that_has_none_at_some_is_told_a_cohort_that_would_do() -> None:
    # 10000 clients leave 838 units, and a clip norm of 1.0 takes 512 of them.
    plan = with_cohort(10_000, 400_000)
    validate_encoding(without(plan, 1.0))
    with pytest.raises(InvalidPlan, match=r"cohort\.max: adaptive clipping needs") as refusal:
        validate_encoding(plan)
    enough = int(refusal.value.metadata["would_do"])
    assert 1000 < enough < 10_000
    validate_encoding(with_cohort(enough, 400_000))
    with pytest.raises(InvalidPlan):
        validate_encoding(with_cohort(enough + 1, 400_000))
    # It is not refused for nothing: 1.6 would take 819 units, and has to do with half of them.
    with pytest.raises(InvalidPlan, match="no scale fits"):
        validate_encoding(without(plan, 1.6))


def test_noise_that_may_become_too_little_to_draw() -> None:
    plan = changed(plan_from_toml(adaptive().replace("max = 8", "max = 10000")), noise_multiplier=0)
    noisy = changed(plan, noise_multiplier=0.0015)
    validate_encoding(without(noisy, 1.0))
    with pytest.raises(InvalidPlan, match=r"noise_multiplier 0\.0015 may become") as refusal:
        validate_encoding(noisy)
    least = float(refusal.value.metadata["would_do"])
    validate_encoding(changed(plan, noise_multiplier=least))


def test_shares_of_the_noise_are_checked_at_the_coarsest_scale() -> None:
    # Shares of 8500 clients that do not collude: 2 units each at least.
    plan = plan_from_toml(private_sealed(min=9_000, max=10_000, tables=TABLE))
    noisy = changed(plan, noise_multiplier=0.4)
    validate_encoding(without(noisy, 1.0))
    with pytest.raises(InvalidPlan, match=r"noise_multiplier: noise_multiplier 0\.4 divided"):
        validate_encoding(noisy)
    with pytest.raises(InvalidPlan, match="noise_multiplier"):
        validate_encoding(without(noisy, 1.6))


def test_a_sealed_plan_costs_the_same_at_any_clip_norm() -> None:
    plan = plan_from_toml(private_sealed(tables=TABLE))
    terms = []
    for step in range(-30, 30):
        moved = at_clip_norm(plan, 1.1**step)
        terms.append(release_terms(moved, validate_encoding(moved)))
    multipliers = [each.noise_multiplier for each in terms]
    assert max(multipliers) - min(multipliers) < 1e-9
    assert min(multipliers) > 4 * (1 - 1e-8)
    # The event's sensitivity is that of the round's own encoding.
    assert len({each.sensitivity for each in terms}) > 10
