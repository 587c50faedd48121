"""A plan that is good comes back as it was, in TOML and in JSON."""

import hashlib
import string

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_mesh.aggregation.server_optimizer import FedAdam, FedAvg, FedAvgM, FedYogi
from boltz_mesh.privacy.adaptive_clip import AdaptiveClipping
from boltz_mesh.privacy.budget import Budget
from boltz_mesh.rounds.plan import (
    Cohort,
    Deadlines,
    HyperParameter,
    Lane,
    OptimizerPlan,
    Plan,
    SecureAggregationPlan,
    TensorSpec,
    duration_ms,
    example_plan,
    plan_digest,
    plan_from_json,
    plan_from_toml,
    plan_to_json,
    validate_encoding,
    validate_plan,
)
from boltz_mesh.rounds.plan_types import Mode
from tests.unit.plan.documents import sealed, small

NAMES = st.text(string.ascii_lowercase, min_size=1, max_size=8)
POSITIVE = st.floats(1e-3, 1e3)


@st.composite
def aggregations(draw: st.DrawFn) -> SecureAggregationPlan:
    return SecureAggregationPlan(
        # At most 2 of 80 collude, fewer than the 3 who survive.
        corrupt_fraction=draw(st.floats(0, 0.03)),
        dropout_fraction=draw(st.floats(0, 0.1)),
        adversary=draw(st.sampled_from(["semi-honest", "semi-malicious"])),
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    modes: tuple[Mode, ...] = ("sealed", "open")
    mode = draw(st.sampled_from(modes))
    least = draw(st.integers(3 if mode == "sealed" else 1, 50))
    target = draw(st.integers(least, 60))
    private = draw(st.booleans())
    optimizer = draw(
        st.sampled_from(
            [
                OptimizerPlan(),
                OptimizerPlan(name="fedavgm", momentum=0.5),
                OptimizerPlan(name="fedadam", learning_rate=0.3),
                OptimizerPlan(name="fedyogi", beta1=0.0, beta2=0.5, tau=0.1),
            ]
        )
    )
    values: st.SearchStrategy[HyperParameter] = (
        st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=20)
    )
    return Plan(
        model=draw(NAMES),
        mode=mode,
        secure_aggregation=draw(aggregations()) if mode == "sealed" else None,
        tensors=tuple(
            TensorSpec(name=name, shape=tuple(draw(st.lists(st.integers(1, 9), max_size=3))))
            for name in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
        ),
        cohort=Cohort(
            min=least,
            target=target,
            max=draw(st.integers(target, 80)),
            over_selection=draw(st.floats(1, 10)),
        ),
        clip_norm=(clip_norm := draw(POSITIVE)),
        adaptive_clipping=draw(
            st.none()
            | st.builds(
                AdaptiveClipping, quantile=st.floats(0.01, 0.99), bit_share=st.floats(0.01, 1)
            ).map(lambda given: given.resolved(clip_norm))
        ),
        privacy="client-dp" if private else "none",
        noise_multiplier=draw(st.floats(2, 20)) if private else 0.0,
        budget=Budget(draw(st.floats(5, 50)), 1e-6) if private else None,
        promotion=draw(st.sampled_from(["automatic", "operator"])),
        deadlines=Deadlines(selecting_ms=draw(st.integers(100, 10**6))),
        server_optimizer=optimizer.resolved(),
        hyper_parameters=draw(st.dictionaries(NAMES, values, max_size=4)),
        lanes=tuple(
            Lane(name=name, scale=draw(POSITIVE))
            for name in draw(st.lists(NAMES, max_size=3, unique=True))
        ),
        sample_bucket_cap=draw(st.integers(0, 31)),
        regions=tuple(draw(st.lists(NAMES, max_size=3, unique=True))),
    )


@settings(deadline=None)
@given(plan=plans())
def test_json_gives_the_plan_back(plan: Plan) -> None:
    validate_plan(plan)
    data = plan_to_json(plan)
    again = plan_from_json(data)
    assert again == plan
    for name, value in plan.hyper_parameters.items():
        assert type(again.hyper_parameters[name]) is type(value)
    assert plan_to_json(again) == data
    assert plan_digest(plan) == hashlib.sha256(data).digest()


def _toml(plan: Plan) -> str:
    """Every setting in TOML (whose inline values are JSON's, but for tables)."""
    lines, tables = [], []
    for key, value in msgspec.to_builtins(plan).items():
        match value:
            case None:
                pass
            case dict():
                rows = [
                    f'{name.removesuffix("_ms")} = "{item}ms"'
                    if name.endswith("_ms")
                    else f"{name} = {msgspec.json.encode(item).decode()}"
                    for name, item in value.items()
                    if item is not None
                ]
                tables += [f"[{key}]", *rows]
            case [dict(), *_]:
                for entry in value:
                    rows = [f"{k} = {msgspec.json.encode(v).decode()}" for k, v in entry.items()]
                    tables += [f"[[{key}]]", *rows]
            case _:
                lines.append(f"{key} = {msgspec.json.encode(value).decode()}")
    return "\n".join([*lines, *tables])


@settings(deadline=None)
@given(plan=plans())
def test_toml_gives_the_plan_back(plan: Plan) -> None:
    # TOML has no escape for the delete character, JSON needs none.
    plan = msgspec.structs.replace(
        plan,
        hyper_parameters={
            name: value
            for name, value in plan.hyper_parameters.items()
            if not isinstance(value, str) or value.isprintable()
        },
    )
    assert plan_from_toml(_toml(plan)) == plan


def test_equal_plans_have_equal_bytes_whatever_their_order_in_toml() -> None:
    one = plan_from_toml(small(tables="[hyper_parameters]\na = 1\nb = 2.0"))
    two = plan_from_toml(small(tables="[hyper_parameters]\nb = 2.0\na = 1"))
    assert plan_to_json(one) == plan_to_json(two)
    assert b'"a":1,"b":2.0' in plan_to_json(one)


def test_the_example_is_a_plan_and_its_encoding_fits() -> None:
    plan = plan_from_toml(example_plan())
    assert plan.parameters == 12
    assert plan.coordinates == 13
    encoding = validate_encoding(plan)
    assert encoding.coordinates == 13
    assert encoding.cohort_max == 80
    assert encoding.noise_multiplier == plan.noise_multiplier
    assert encoding.bound_l2 > 1000


def test_the_example_names_every_setting_and_shows_the_defaults() -> None:
    text = example_plan()
    plan = plan_from_toml(text)
    for kind in (
        Plan,
        Cohort,
        TensorSpec,
        Lane,
        OptimizerPlan,
        Budget,
        SecureAggregationPlan,
        AdaptiveClipping,
    ):
        for field in kind.__annotations__:
            assert field in text, field
    for field in Deadlines.__struct_fields__:
        assert f"{field.removesuffix('_ms')} = " in text
    defaults = plan_from_toml(sealed())
    for setting in (
        "mode",
        "secure_aggregation",
        "rule",
        "promotion",
        "deadlines",
        "sample_bucket_cap",
        "weight_share_cap",
        "regions",
        "server_optimizer",
    ):
        assert getattr(plan, setting) == getattr(defaults, setting), setting
    assert plan.cohort.over_selection == defaults.cohort.over_selection


def test_a_small_plan_has_documented_defaults() -> None:
    plan = plan_from_toml(small())
    assert (plan.noise_multiplier, plan.budget, plan.promotion) == (0.0, None, "operator")
    assert plan.deadlines.collecting_ms == 600_000
    assert plan.parameters == plan.coordinates == 6


@pytest.mark.parametrize(
    ("settings", "built"),
    [
        ('name = "fedavg"', FedAvg(learning_rate=1.0)),
        ("learning_rate = 2", FedAvg(learning_rate=2.0)),
        ('name = "fedavgm"\nmomentum = 0.5', FedAvgM(learning_rate=1.0, momentum=0.5)),
        ('name = "fedadam"\ntau = 0.1', FedAdam(learning_rate=0.01, tau=0.1)),
        ('name = "fedyogi"\nbeta1 = 0.0\nbeta2 = 0.5', FedYogi(beta1=0.0, beta2=0.5)),
    ],
)
def test_the_server_optimizer_is_built_and_stored_with_every_setting(
    settings: str, built: object
) -> None:
    plan = plan_from_toml(small(tables=f"[server_optimizer]\n{settings}"))
    assert plan.server_optimizer.build() == built
    assert plan.server_optimizer.resolved() == plan.server_optimizer
    assert plan_from_json(plan_to_json(plan)).server_optimizer.build() == built


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("250ms", 250),
        ("30s", 30_000),
        ("1.5s", 1500),
        ("10m", 600_000),
        ("1m30s", 90_000),
        ("2h", 7_200_000),
        ("0s", 0),
    ],
)
def test_durations(text: str, ms: int) -> None:
    assert duration_ms("x", text) == ms
