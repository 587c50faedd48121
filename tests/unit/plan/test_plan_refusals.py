"""A plan that cannot work is refused: the setting is named, and a value that would do."""

import pytest

from boltz_mesh.rounds.plan import (
    MAX_PLAN_BYTES,
    duration_ms,
    example_plan,
    plan_from_json,
    plan_from_toml,
    plan_to_json,
    validate_encoding,
)
from boltz_mesh.rounds.plan_checks import MAX_HYPER_PARAMETERS
from boltz_protocol.errors import InvalidPlan
from tests.unit.plan.documents import small

DP = small().replace('"none"', '"client-dp"\nnoise_multiplier = 4.0')
DP_BUDGET = DP + "\n[budget]\nepsilon = 2.0\ndelta = 1e-6\n"


def refuse(text: str) -> InvalidPlan:
    with pytest.raises(InvalidPlan) as error:
        plan_from_toml(text)
    return error.value


# (document, setting, a part of the message that says what would do)
REFUSED = [
    # unknown settings, with the nearest
    (small(top="clip_nrom = 1.0"), "clip_nrom", "did you mean `clip_norm`?"),
    (small(cohort="maximum = 3"), "cohort.maximum", "did you mean `max`?"),
    (small(tensor="dtyp = 1"), "tensors[0].dtyp", "did you mean `dtype`?"),
    (small(tables="[deadlines]\ncolecting = '1s'"), "deadlines.colecting", "`collecting`"),
    (small(tables="[deadlines]\ncollecting_ms = 1"), "deadlines.collecting_ms", "`collecting`"),
    (small(tables="[server_optimizer]\nlr = 1"), "server_optimizer.lr", "did you mean"),
    (small(tables="[[lanes]]\nnam = 'x'"), "lanes[0].nam", "did you mean `name`?"),
    (DP_BUDGET + "epsilom = 1", "budget.epsilom", "did you mean `epsilon`?"),
    # missing settings
    (small().replace('model = "m"', ""), "model", '"volatility-linear" would do'),
    (small().replace("min = 2", ""), "cohort.min", "is missing; 3 would do"),
    (small().replace("shape = [3, 2]", ""), "tensors[0].shape", "[12] would do"),
    (
        "model = 'm'\nclip_norm = 1\nprivacy = 'none'\n[cohort]\nmin=1\ntarget=1\nmax=1",
        "tensors",
        '[{ name = "weights", shape = [12] }] would do',
    ),
    (
        "model = 'm'\nclip_norm = 1\nprivacy = 'none'\n[[tensors]]\nname='w'\nshape=[]",
        "cohort",
        "{ min = 3, target = 10, max = 20 } would do",
    ),
    (DP + "\n[budget]\nepsilon = 1.0", "budget.delta", "1e-5 would do"),
    # wrong types and ranges
    (small(top="deadlines = 3"), "deadlines", "see the example"),
    (small(top="lanes = [1]"), "lanes[0]", "see the example"),
    (small(top="hyper_parameters = 1"), "hyper_parameters", "{ epochs = 2 } would do"),
    (small(top="noise_multiplier = 1e9"), "noise_multiplier", "1.0 would do"),
    (small(top="sample_bucket_cap = 32"), "sample_bucket_cap", "10 would do"),
    (small(cohort="over_selection = 0.5"), "cohort.over_selection", "1.3 would do"),
    (small(cohort="over_selection = nan"), "cohort.over_selection", "would do"),
    (small().replace("max = 8", "max = 10001"), "cohort.max", "20 would do"),
    (small().replace("1.0", "0.0"), "clip_norm", "1.0 would do"),
    (small().replace("1.0", "nan"), "clip_norm", "1.0 would do"),
    (small(tensor="dtype = 'float16'"), "tensors[0].dtype", '"float32" would do'),
    (small().replace("[3, 2]", "[3, 0]"), "tensors[0].shape[1]", "[12] would do"),
    (small().replace("[3, 2]", "[1,1,1,1,1,1,1,1,1]"), "tensors[0].shape", "[12] would do"),
    (small(tables="[[lanes]]\nname = 'x'\nscale = 0"), "lanes[0].scale", "0.01 would do"),
    (small(tables="[[lanes]]\nname = 'x'\nscale = inf"), "lanes[0].scale", "1.0 would do"),
    # words
    (small(mode="grouped"), "grouping", 'mode = "grouped" needs one; count = 2 would do'),
    (small(mode="closed"), "mode", '"sealed" would do'),
    (small(top="rule = 'krum'"), "rule", '"weighted-mean" would do'),
    (small(top="promotion = 'always'"), "promotion", '"operator" would do'),
    # names
    (small().replace('"m"', '"My Model"'), "model", "would do"),
    (small(top="regions = ['EU 1']"), "regions[0]", "`eu` would do"),
    (small(top="regions = ['eu', 'eu']"), "regions", "comes twice"),
    (small().replace('"w"', '"a\\u0000b"'), "tensors[0].name", "`weights` would do"),
    (small().replace('"w"', '""'), "tensors[0].name", '"weights" would do'),
    (small(tables="[[tensors]]\nname = 'w'\nshape = []"), "tensors", "comes twice"),
    (small(tables="[[lanes]]\nname='a_b'\nscale=1"), "lanes[0].name", "`train-loss` would do"),
    (
        small(tables="[[lanes]]\nname='x'\nscale=1\n[[lanes]]\nname='x'\nscale=1"),
        "lanes",
        "comes twice",
    ),
    # relations
    (small().replace("min = 2", "min = 5"), "cohort.min", "at most 4 would do"),
    (small().replace("target = 4", "target = 9"), "cohort.target", "at most 8 would do"),
    (small(top="weight_share_cap = 0.4"), "weight_share_cap", "at least 0.500 would do"),
    (small().replace("[3, 2]", "[1073741824, 2]"), "tensors", "at most 1073741824 would do"),
    # privacy
    (small(top="noise_multiplier = 1.0"), "noise_multiplier", "0 would do"),
    (small(tables="[budget]\nepsilon = 1.0\ndelta = 1e-6"), "budget", "remove [budget]"),
    (DP, "budget", "epsilon = 2.0 and delta = 1e-05 would do"),
    (DP_BUDGET.replace("1e-6", "0.2"), "budget.delta", "1e-05 would do"),
    (DP_BUDGET.replace("1e-6", "1.0"), "budget.delta", "1e-6 would do"),
    (DP_BUDGET.replace("2.0", "-1.0"), "budget.epsilon", "2.0 would do"),
    (DP_BUDGET.replace("2.0", "'two'"), "budget.epsilon", "2.0 would do"),
    (DP_BUDGET.replace("4.0", "0.5"), "noise_multiplier", "would do for one round"),
    (DP_BUDGET.replace("4.0", "0"), "noise_multiplier", "would do for one round"),
    # optimizer
    (small(tables="[server_optimizer]\nmomentum = 0.9"), "server_optimizer.momentum", "remove it"),
    (small(tables="[server_optimizer]\nname = 'adam'"), "server_optimizer.name", "would do"),
    (
        small(tables="[server_optimizer]\nname = 'fedavgm'\nmomentum = 1.0"),
        "server_optimizer.momentum",
        "0.9 would do",
    ),
    (
        small(tables="[server_optimizer]\nname = 'fedadam'\ntau = 0"),
        "server_optimizer.tau",
        "0.001 would do",
    ),
    (
        small(tables="[server_optimizer]\nlearning_rate = inf"),
        "server_optimizer.learning_rate",
        "1.0 would do",
    ),
    # hyper-parameters
    (small(tables="[hyper_parameters]\na = [1]"), "hyper_parameters.a", "0.1 would do"),
    (small(tables="[hyper_parameters]\na = 2026-01-01"), "hyper_parameters.a", "0.1 would do"),
    (small(tables="[hyper_parameters]\na = nan"), "hyper_parameters.a", "0.1 would do"),
    (small(tables=f"[hyper_parameters]\na = {2**63}"), "hyper_parameters.a", "as a float"),
    (
        small(tables=f"[hyper_parameters]\na = '{'x' * 201}'"),
        "hyper_parameters.a",
        "at most 200 would do",
    ),
    (small(tables="[hyper_parameters]\n'a b' = 1"), "hyper_parameters.a b", "would do"),
    (
        small(
            tables="[hyper_parameters]\n"
            + "\n".join(f"a{i} = 1" for i in range(MAX_HYPER_PARAMETERS + 1))
        ),
        "hyper_parameters",
        "at most 64 would do",
    ),
    # deadlines
    (small(tables="[deadlines]\ncollecting = '13h'"), "deadlines.collecting", '"30s" would do'),
    (small(tables="[deadlines]\ncollecting = '1ms'"), "deadlines.collecting", "milliseconds"),
    (small(tables="[deadlines]\ncollecting = 30"), "deadlines.collecting", '"30s" would do'),
]


@pytest.mark.parametrize(("text", "setting", "remedy"), REFUSED)
def test_refused_with_the_setting_and_what_would_do(text: str, setting: str, remedy: str) -> None:
    error = refuse(text)
    assert error.metadata["setting"] == setting, error.message
    assert remedy in error.message
    assert setting in error.message


def test_the_documents_without_their_fault_are_good() -> None:
    plan_from_toml(small())
    plan_from_toml(DP_BUDGET)


def test_what_is_not_toml_is_refused_with_its_line() -> None:
    assert "line 2" in refuse("model = 'm'\nclip_norm = = 1").message


def test_a_plan_without_end_is_not_parsed() -> None:
    assert "bytes" in refuse("#" * (MAX_PLAN_BYTES + 1)).message
    with pytest.raises(InvalidPlan, match="bytes"):
        plan_from_json(b" " * (MAX_PLAN_BYTES + 1))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"3", b"\xff", b"{}x"])
def test_stored_bytes_that_are_no_plan_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidPlan):
        plan_from_json(data)


def test_json_is_as_strict_as_toml() -> None:
    good = plan_to_json(plan_from_toml(example_plan()))
    for old, new in (
        (b'"clip_norm":0.08', b'"clip_norm":-1'),
        (b'"clip_norm"', b'"clip_nrom"'),
        (b'"mode":"sealed"', b'"mode":"open"'),  # which has no [secure_aggregation]
        (b'"mode":"sealed"', b'"mode":"grouped"'),
        (b'"neighbours":null', b'"neighbours":2'),
        (b'"adversary":"semi-malicious"', b'"adversary":"malicious"'),
        (b'"collecting_ms":600000', b'"collecting_ms":"10m"'),
        (b'"collecting_ms"', b'"collecting"'),
        (b'"noise_multiplier":4.0', b'"noise_multiplier":0.1'),
    ):
        assert old in good
        with pytest.raises(InvalidPlan):
            plan_from_json(good.replace(old, new))


@pytest.mark.parametrize(
    "text", ["", "30", "s", "-1s", "1 s", "1d", "1..5s", "0.5ms", "٣s", "1s" * 20, 30, None]
)
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(InvalidPlan) as error:
        duration_ms("deadlines.x", text)
    assert error.value.metadata["setting"] == "deadlines.x"


@pytest.mark.parametrize(
    ("old", "new", "setting"),
    [
        ("noise_multiplier = 4.0", "noise_multiplier = 1000.0", "noise_multiplier"),
        ("max = 80", "max = 10000\n", "cohort.max"),
    ],
)
def test_a_sum_that_does_not_fit_the_wire_is_told_in_the_plans_words(
    old: str, new: str, setting: str
) -> None:
    text = example_plan().replace(old, new).replace("[12]", "[20000000]")
    text = text.replace("corrupt_fraction = 0.05", "corrupt_fraction = 0.001")
    plan = plan_from_toml(text)
    with pytest.raises(InvalidPlan) as error:
        validate_encoding(plan)
    assert error.value.metadata["setting"] == setting
    assert error.value.metadata["would_do"] in error.value.message
    assert error.value.message.startswith(f"{setting}: ")
