from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from boltz_mesh.app.demo.options import DemoOptions, DemoTask, TrainingRun, task_for
from boltz_mesh.app.demo.plans import SEALING, least_survivors, plan_for, plan_toml
from boltz_mesh.app.demo.settings import PRESET_MLP, Calendar
from boltz_mesh.privacy import accountant
from boltz_mesh.rounds.plan import plan_from_toml
from boltz_protocol.errors import ConfigurationError, InvalidPlan

STOCKS = tuple(f"S{i}" for i in range(20))
CALENDAR = Calendar((1991, 1998), tuple(range(1999, 2023)), tuple(range(1999, 2009)))


def task(options: DemoOptions, stocks: tuple[str, ...] = STOCKS) -> DemoTask:
    return task_for(options, stocks, CALENDAR)


def test_the_default_run_is_the_one_of_the_report() -> None:
    made = task(DemoOptions())
    assert (made.clients, made.rounds, len(made.runs())) == (60, 64, 16)
    assert made.origins == (2019, 2020, 2021, 2022)
    assert made.seeds == (1, 2, 3)
    assert made.runs()[0] == TrainingRun(2019, None)
    assert len({run.model_id for run in made.runs()}) == 16
    assert not made.remark


@pytest.mark.parametrize(
    ("clients", "rounds", "epsilon", "noise"),
    [(60, 4, 2, 3.99), (300, 8, 1, 10.55), (20, 8, 4, 3.06)],
)
def test_presets_have_the_least_noise_for_their_epsilon(
    clients: int, rounds: int, epsilon: float, noise: float
) -> None:
    preset = task(DemoOptions(clients=clients)).preset
    assert (preset.rounds, preset.epsilon) == (rounds, epsilon)
    assert preset.noise_multiplier == pytest.approx(noise, abs=0.01)
    assert accountant.epsilon(preset.noise_multiplier, rounds, delta=1e-5) <= epsilon
    assert accountant.epsilon(preset.noise_multiplier * 0.999, rounds, delta=1e-5) > epsilon


def test_clients_without_a_preset_take_the_nearest_and_say_so() -> None:
    few, many = task(DemoOptions(clients=100)), task(DemoOptions(clients=200))
    assert (few.preset.rounds, many.preset.rounds) == (4, 8)
    assert few.preset.layout.per_broker == 5
    assert "no preset for 5 desks" in few.remark
    own = task(DemoOptions(), STOCKS[:3])
    assert own.clients == 9


def test_full_tests_every_year_with_more_seeds() -> None:
    made = task(DemoOptions(full=True))
    assert len(made.origins) == 24
    assert len(made.seeds) == 5
    assert task(DemoOptions(full=True, seeds=2)).seeds == (1, 2)


def test_origins_are_sorted_and_counted_once() -> None:
    assert task(DemoOptions(origins="2021,2019, 2021")).origins == (2019, 2021)


def test_the_network_has_no_noise_and_its_own_layout() -> None:
    made = task(DemoOptions(model="mlp", clients=20))
    assert made.preset == PRESET_MLP
    assert made.seeds == ()
    assert [run.row for run in made.runs()] == ["federated"] * 4
    plan = plan_for(made, made.runs()[0])
    assert (plan.privacy, plan.budget, plan.parameters) == ("none", None, 241)
    assert plan.hyper_parameters == {"origin": 2019}


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        (DemoOptions(epsilon=0), "--epsilon"),
        (DemoOptions(epsilon=-1), "--epsilon"),
        (DemoOptions(epsilon=math.nan), "--epsilon"),
        (DemoOptions(epsilon=math.inf), "--epsilon"),
        (DemoOptions(epsilon=100), "--epsilon"),
        (DemoOptions(epsilon=1e-3), "--epsilon"),
        (DemoOptions(clients=0), "--clients"),
        (DemoOptions(clients=61), "--clients"),
        (DemoOptions(clients=1020), "--clients"),
        (DemoOptions(seeds=0), "--seeds"),
        (DemoOptions(seeds=21), "--seeds"),
        (DemoOptions(origins="1998"), "--origins"),
        (DemoOptions(origins="all"), "--origins"),
        (DemoOptions(origins="2019", full=True), "--origins"),
        (DemoOptions(model="mlp", epsilon=2), "--epsilon"),
        (DemoOptions(model="mlp", seeds=2), "--seeds"),
        (DemoOptions(model="mlp", clients=60), "--clients"),
    ],
)
def test_senseless_options_are_refused_by_name(options: DemoOptions, setting: str) -> None:
    with pytest.raises(ConfigurationError, match=setting) as caught:
        task(options)
    assert caught.value.metadata["setting"] == setting


def test_a_plan_says_the_same_as_toml() -> None:
    made = task(DemoOptions())
    for run in made.runs()[:2]:
        plan = plan_for(made, run)
        assert plan_from_toml(plan_toml(plan)) == plan_from_toml(plan_toml(plan_for(made, run)))
        read = plan_from_toml(plan_toml(plan))
        assert (read.model, read.mode, read.cohort.over_selection) == (run.model_id, "sealed", 1.0)
        assert (read.cohort.min, read.cohort.target, read.cohort.max) == (57, 60, 60)
        assert read.sealing == SEALING
        assert read.hyper_parameters == {"origin": 2019, "ridge": 2.0}
        assert (read.budget is None) == (run.seed is None)


@pytest.mark.parametrize(
    ("clients", "least"), [(3, 3), (9, 9), (20, 19), (60, 57), (300, 285), (1000, 950)]
)
def test_a_cohort_goes_on_without_a_twentieth_of_its_desks(clients: int, least: int) -> None:
    assert least_survivors(clients) == least


def test_noise_that_the_encoding_cannot_hold_is_refused_before_any_start() -> None:
    made = task(DemoOptions())
    loud = replace(made, preset=replace(made.preset, noise_multiplier=1e6))
    with pytest.raises(InvalidPlan, match="noise_multiplier"):
        plan_for(loud, made.runs()[1])


def test_the_command_asks_for_the_same() -> None:
    assert DemoOptions().command() == "boltz-mesh demo"
    options = DemoOptions(clients=20, full=True, data=Path("my data"), seeds=1)
    assert options.command() == "boltz-mesh demo --clients 20 --data 'my data' --seeds 1 --full"
