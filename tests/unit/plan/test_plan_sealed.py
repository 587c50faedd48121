"""Plans of sealed rounds: what is refused, for every roster a plan can have, and what it costs."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_mesh.privacy import accountant
from boltz_mesh.rounds.plan import (
    Plan,
    SecureAggregationPlan,
    example_plan,
    plan_from_json,
    plan_from_toml,
    plan_to_json,
    plan_to_toml_table,
    validate_encoding,
)
from boltz_mesh.rounds.plan_sealed import ReleaseTerms, graph_of, release_terms
from boltz_protocol import limits
from boltz_protocol.errors import InvalidPlan
from boltz_protocol.noise_share import share_variance
from boltz_protocol.secagg.graph import colluders
from tests.unit.plan.documents import private_sealed, sealed, small


def table(**values: object) -> str:
    return "\n".join(
        ["[secure_aggregation]", *(f"{key} = {value}" for key, value in values.items())]
    )


def terms(plan: Plan) -> ReleaseTerms:
    return release_terms(plan, validate_encoding(plan))


def test_sealed_is_the_default_and_three_clients_are_enough() -> None:
    plan = plan_from_toml(sealed(max=3))
    assert plan.mode == "sealed"
    assert plan.secure_aggregation == plan.sealing == SecureAggregationPlan()
    assert (plan.deadlines.advertising_ms, plan.deadlines.unmasking_ms) == (30_000, 30_000)
    assert graph_of(plan.sealing, 3) == (2, 2)


def test_an_open_plan_has_no_graph() -> None:
    plan = plan_from_toml(small())
    assert plan.secure_aggregation is None
    with pytest.raises(AssertionError):
        _ = plan.sealing


def test_what_is_stored_names_the_defaults_and_toml_leaves_out_what_is_not_there() -> None:
    plan = plan_from_toml(sealed())
    assert b'"corrupt_fraction":0.05' in plan_to_json(plan)
    assert plan_from_json(plan_to_json(plan)) == plan
    assert plan_to_toml_table(plan)["secure_aggregation"] == {
        "corrupt_fraction": 0.05,
        "dropout_fraction": 0.1,
        "adversary": "semi-malicious",
    }


@pytest.mark.parametrize("most", [3, 50, 51, 100, 1000, 10_000])
def test_the_defaults_do_for_cohorts_of_any_size(most: int) -> None:
    plan = plan_from_toml(sealed(max=most))
    neighbours, threshold = graph_of(plan.sealing, most)
    named = table(neighbours=neighbours, threshold=threshold)
    assert plan_from_toml(sealed(max=most, tables=named)).sealing.threshold == threshold


SAFE = graph_of(SecureAggregationPlan(), 100)
#: (document, setting, a part of the message)
REFUSED = [
    (sealed(min=2), "cohort.min", "no crowd to hide in"),
    (sealed(min=1, max=1), "cohort.min", '3 would do, or mode = "open"'),
    (small(tables="[secure_aggregation]"), "secure_aggregation", 'mode = "open" has none'),
    # fractions
    (
        sealed(tables=table(corrupt_fraction=0.1, dropout_fraction=0.5)),
        "secure_aggregation.dropout_fraction",
        "0.4 would do",
    ),
    (
        sealed(tables=table(corrupt_fraction=0.95)),
        "secure_aggregation.corrupt_fraction",
        "would do",
    ),
    (
        sealed(tables=table(corrupt_fraction=1.0)),
        "secure_aggregation.corrupt_fraction",
        "0.05 would do",
    ),
    (
        sealed(tables=table(dropout_fraction="nan")),
        "secure_aggregation.dropout_fraction",
        "0.1 would do",
    ),
    (
        sealed(tables=table(adversary="'malicious'")),
        "secure_aggregation.adversary",
        '"semi-malicious" would do',
    ),
    (sealed(tables=table(treshold=3)), "secure_aggregation.treshold", "did you mean `threshold`?"),
    # a pair that is not the safe one
    (
        sealed(max=100, tables=table(neighbours=SAFE.neighbours - 2)),
        "secure_aggregation.neighbours",
        f"is not safe: with fewer, .* {SAFE.neighbours} would do",
    ),
    (
        sealed(max=100, tables=table(threshold=SAFE.threshold - 1)),
        "secure_aggregation.threshold",
        f"is not safe: .*0.05, .*0.1, semi-malicious, 100 clients.*{SAFE.threshold} would do",
    ),
    (
        sealed(max=100, tables=table(threshold=SAFE.threshold + 1)),
        "secure_aggregation.threshold",
        f"is more than it takes.*{SAFE.threshold} would do",
    ),
    (
        sealed(max=10, tables=table(neighbours=8)),
        "secure_aggregation.neighbours",
        "9 would do",
    ),
    (
        sealed(tables=table(neighbours=0)),
        "secure_aggregation.neighbours",
        "26 would do",
    ),
    # noise
    (
        private_sealed(max=60),
        "cohort.min",
        "of 60 clients 3 may collude.* at least 4 would do",
    ),
    # deadlines
    (
        sealed(tables='[deadlines]\ncollecting = "12h"'),
        "deadlines.collecting",
        '"43110000ms" would do',
    ),
    (
        sealed(tables='[deadlines]\nadvertising = "6h"'),
        "deadlines.collecting",
        "shorter key phases would do",
    ),
    (sealed(tables='[deadlines]\nchecking = "13h"'), "deadlines.checking", '"30s" would do'),
    (sealed(tables='[deadlines]\nunmasking = "99ms"'), "deadlines.unmasking", '"30s" would do'),
]


@pytest.mark.parametrize(("text", "setting", "pattern"), REFUSED)
def test_refused_with_the_setting_and_what_would_do(text: str, setting: str, pattern: str) -> None:
    with pytest.raises(InvalidPlan, match=pattern) as error:
        plan_from_toml(text)
    assert error.value.metadata["setting"] == setting, error.value.message
    assert error.value.message.startswith(f"{setting}: ")


def test_an_open_plan_may_collect_for_all_of_the_longest_phase() -> None:
    plan_from_toml(small(tables='[deadlines]\ncollecting = "12h"'))


@settings(max_examples=40, deadline=None)
@given(
    least=st.integers(3, 50),
    more=st.integers(0, 60),
    corrupt=st.floats(0, 0.99),
    dropout=st.floats(0, 0.99),
    adversary=st.sampled_from(["semi-honest", "semi-malicious"]),
)
def test_an_accepted_plan_has_a_graph_for_every_roster_and_refusals_give_one(
    least: int, more: int, corrupt: float, dropout: float, adversary: str
) -> None:
    values: dict[str, object] = {
        "corrupt_fraction": corrupt,
        "dropout_fraction": dropout,
        "adversary": f"'{adversary}'",
    }
    for _ in range(3):  # at most one piece of advice for each fraction
        try:
            plan = plan_from_toml(sealed(min=least, max=least + more, tables=table(**values)))
        except InvalidPlan as error:
            values[error.metadata["setting"].rpartition(".")[2]] = error.metadata["would_do"]
            continue
        for size in range(least, least + more + 1):
            graph_of(plan.sealing, size)
        return
    pytest.fail(f"the advice does not help: {values}")


# --- noise --------------------------------------------------------------------------------------


def test_a_share_that_is_too_small_is_told_in_the_plans_words() -> None:
    # Ten thousand clients leave little of the ring to each, and divide little noise among them.
    text = private_sealed(0.3, min=9_000, max=10_000)
    plan = plan_from_toml(text.replace("epsilon = 6.0", "epsilon = 25.0"))
    with pytest.raises(InvalidPlan) as error:
        validate_encoding(plan)
    assert error.value.metadata["setting"] == "noise_multiplier"
    assert error.value.message.startswith("noise_multiplier: ")
    assert error.value.metadata["would_do"] in error.value.message


@settings(max_examples=60, deadline=None)
@given(
    least=st.integers(4, 60),
    more=st.integers(0, 20),
    noise=st.floats(2, 20),
    size=st.integers(1, 99),
)
def test_a_full_cohorts_shares_stay_within_the_room_for_noise(
    least: int, more: int, noise: float, size: int
) -> None:
    """n shares of sigma^2 / (m - c) each: their sum's sigma is at most sigma sqrt(n)."""
    plan = plan_from_toml(private_sealed(noise, min=least, max=least + more, size=size))
    encoding = validate_encoding(plan)
    bound, n = encoding.bound_l2, plan.cohort.max
    for roster in range(least, n + 1):
        corrupt = colluders(roster, plan.sealing.corrupt_fraction)
        share = share_variance(encoding, least_survivors=least, colluders=corrupt)
        assert share * (least - corrupt) == encoding.sigma_squared
        assert share <= encoding.sigma_squared
        room = Fraction((1 << (limits.WIRE_BITS - 1)) - roster * bound)
        assert 64 * roster * share < room**2


def test_a_release_costs_what_the_fewest_survivors_leave() -> None:
    plan = plan_from_toml(private_sealed(min=4, max=60))
    event = terms(plan).event(model="m", round="r", attempt=2, client="c")
    assert event.mechanism == "distributed-discrete-gaussian"
    assert event.sensitivity == validate_encoding(plan).bound_l2
    assert (event.model, event.round, event.attempt, event.client) == ("m", "r", 2, "c")
    assert event.noise_multiplier == pytest.approx(4.0, rel=1e-10)
    assert event.noise_multiplier <= 4.0


def test_open_rounds_and_rounds_without_noise_cost_as_before() -> None:
    open_plan = plan_from_toml(
        private_sealed().replace('model = "m"', 'model = "m"\nmode = "open"')
    )
    event = terms(open_plan).event(model="m", round="r", attempt=1, client="c")
    assert (event.mechanism, event.noise_multiplier) == ("discrete-gaussian", 4.0)
    event = terms(plan_from_toml(sealed())).event(model="m", round="r", attempt=1, client="c")
    assert (event.mechanism, event.noise_multiplier) == ("none", 0.0)


def test_a_plan_calibrated_for_sealed_rounds_runs_all_of_them() -> None:
    noise = accountant.noise_multiplier_for(6.0, 9, 1e-6, distributed=True)
    plan = plan_from_toml(private_sealed(noise))
    event = terms(plan).event(model="m", round="r", attempt=1, client="c")
    assert accountant.epsilon_of([event] * 9, 1e-6) <= 6.0


def test_the_first_round_must_fit_with_what_a_sum_of_shares_lacks() -> None:
    text = private_sealed(accountant.noise_multiplier_for(6.0, 1, 1e-6))
    with pytest.raises(InvalidPlan, match="one round already costs more"):
        plan_from_toml(text)
    plan_from_toml(private_sealed(accountant.noise_multiplier_for(6.0, 1, 1e-6, distributed=True)))


def test_the_example_is_a_sealed_plan() -> None:
    plan = plan_from_toml(example_plan())
    named = replace_pair(example_plan(), *graph_of(plan.sealing, plan.cohort.max))
    assert plan_from_toml(named).mode == "sealed"


def replace_pair(text: str, neighbours: int, threshold: int) -> str:
    """The example with the pair that its comment names."""
    assert f"neighbours = {neighbours}, threshold = {threshold}" in text
    return text.replace(
        "[secure_aggregation]\n",
        f"[secure_aggregation]\nneighbours = {neighbours}\nthreshold = {threshold}\n",
    )
