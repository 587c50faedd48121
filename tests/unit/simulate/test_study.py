"""Whole runs: the same for a seed, harmless without attackers, and not blind to an attack."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltz_mesh.app.cli.output import Exit
from boltz_mesh.app.cli.root import run
from boltz_mesh.app.demo import linear, mlp
from boltz_mesh.app.demo.data import PriceTable
from boltz_mesh.app.demo.references import all_desks
from boltz_mesh.app.demo.settings import PRESET_60
from boltz_mesh.app.demo.task import Market
from boltz_mesh.app.simulate.attacks.sight import Attack
from boltz_mesh.app.simulate.options import SimulateOptions, Study, attack_named, study_for
from boltz_mesh.app.simulate.report import MOST_ERROR, Repetition, Report, from_json, to_json
from boltz_mesh.app.simulate.run import Hostile, drawn, plain_mean, train
from boltz_mesh.app.simulate.study import Bench, bench_of, error_of, generator, run_study
from tests.unit.demo.worlds import write_folder


def study(market: Market, table: PriceTable, **options: Any) -> Study:
    asked: dict[str, Any] = {"attack": "sign-flip", "attackers": 1, "rounds": 6, **options}
    made = study_for(SimulateOptions(**asked), table.stocks, market.public.calendar)
    # One year and two seeds are enough to see how it works.
    return replace(made, origins=made.origins[-1:], seeds=made.seeds[:2])


def report(market: Market, table: PriceTable, **options: Any) -> Report:
    asked: dict[str, Any] = {"attack": "sign-flip", "attackers": 1, "rounds": 6, **options}
    return run_study(
        SimulateOptions(**asked),
        study(market, table, **options),
        market,
        lambda *_: None,
        source=table.source,
        date="2026-11-24",
    )


def bench(market: Market, table: PriceTable, **options: Any) -> Bench:
    return bench_of(study(market, table, **options), market)


@pytest.mark.parametrize(
    "options",
    [
        {"attack": "gaussian"},
        {"mode": "sealed"},
        {"mode": "grouped", "clients": 36, "groups": 6, "attack": "min-max"},
        {"model": "linear", "epsilon": 4.0, "rule": "centered-clipping"},
    ],
    ids=str,
)
def test_the_same_seed_gives_the_same_figures(
    market: Market, table: PriceTable, options: dict[str, Any]
) -> None:
    one, same = (report(market, table, **options) for _ in range(2))
    assert one == same
    other = report(market, table, **options, seed=50)
    assert other.cells != one.cells


def test_without_attackers_a_run_is_the_demo_s_federation(
    market: Market, network: Market, table: PriceTable
) -> None:
    # Sealed: nobody's row is looked at, so that weights stay equal.
    made = bench(market, table, mode="sealed")
    (origin,) = made.study.origins
    desks = all_desks(network, origin, made.study.scenarios[0].layout)
    inputs = np.stack([rows.inputs for rows in desks])[None]
    target = np.stack([rows.target for rows in desks])[None]
    start = mlp.start(network.public, origin).astype(np.float64)[None]
    wanted = mlp.simulate(start, inputs, target, 6)[0]
    for clean in made.clean.values():
        np.testing.assert_allclose(clean.model, wanted, atol=1e-3)


def test_the_linear_run_is_the_demo_s_as_well(market: Market, table: PriceTable) -> None:
    made = bench(market, table, model="linear", mode="sealed")
    (origin,) = made.study.origins
    desks = all_desks(market, origin, PRESET_60.layout)
    trail = linear.simulate(
        linear.start(market.public, origin),
        [linear.local_step(rows, PRESET_60.ridge) for rows in desks],
        rounds=6,
        clip_norm_l2=PRESET_60.clip_norm_l2,
    )
    for clean in made.clean.values():
        np.testing.assert_allclose(clean.model, trail[-1], atol=1e-4)


def test_the_simulation_sees_an_attack_that_nothing_holds_back(
    market: Market, table: PriceTable
) -> None:
    # A defence that is no defence must look like one: were these figures good, the matrix would
    # say nothing.
    cell = report(market, table, attack="sign-flip").cells[0]
    assert cell.breaks_plain
    assert cell.plain > 1.5 * cell.clean
    (sealed,) = report(market, table, attack="sign-flip", mode="sealed").cells
    assert not sealed.held
    (held,) = report(market, table, attack="sign-flip", rounds=20).cells
    assert held.attacked < 1.1 * held.clean
    assert held.out == 1
    assert held.share < held.most_share


def test_a_rule_for_no_liars_is_as_blind_as_the_mean(market: Market, table: PriceTable) -> None:
    made = bench(market, table, rule="trimmed-mean")
    (scenario,) = made.study.scenarios
    (origin,) = made.study.origins
    population = made.populations[origin]
    attack: Attack = attack_named("sign-flip")
    # Three lie where the rule withstands none.
    hostile = Hostile(attack, frozenset({0, 1, 2}))
    weak = train(population, replace(scenario, attackers=0), hostile, generator(1, origin, 2))
    mean = train(
        population, replace(scenario, rule="weighted-mean"), hostile, generator(1, origin, 2)
    )
    stocks = population.honest_stocks(hostile.clients)
    strong = train(population, replace(scenario, attackers=2), hostile, generator(1, origin, 2))
    assert (
        population.error(weak.model, stocks)
        > 1.2 * made.cell(None, scenario, made.plains(None)).clean
    )
    assert population.error(weak.model, stocks) == pytest.approx(
        population.error(mean.model, stocks), rel=0.5
    )
    assert strong.honest_out == 0


def test_a_backdoor_is_measured_beside_the_error(market: Market, table: PriceTable) -> None:
    (cell,) = report(market, table, attack="backdoor", rounds=20).cells
    assert cell.plain_marked > 0.4, "it works on the plain mean"
    assert cell.marked < cell.plain_marked / 2


def test_counts_that_are_stated_take_the_plain_mean_over(market: Market, table: PriceTable) -> None:
    (cell,) = report(market, table, attack="inflated-counts").cells
    assert cell.breaks_plain
    (capped,) = report(market, table, attack="inflated-counts", rule="weighted-mean").cells
    (bare,) = report(
        market, table, attack="inflated-counts", rule="weighted-mean", sample_bucket_cap=20
    ).cells
    assert capped.most_share == pytest.approx(1 / 6, abs=0.01)
    assert bare.most_share > 0.9
    assert bare.attacked > capped.attacked


def test_quarantine_leaves_fewer_groups_and_training_goes_on(
    market: Market, table: PriceTable
) -> None:
    made = bench(market, table, mode="grouped", clients=36, groups=7, attack="sign-flip", rounds=24)
    (scenario,) = made.study.scenarios
    (origin,) = made.study.origins
    hostile = Hostile(attack_named("sign-flip"), frozenset({3}))
    trained = train(made.populations[origin], scenario, hostile, generator(1, origin, 2))
    assert trained.rounds == 24


def test_a_run_ends_where_quarantine_leaves_too_few(market: Market, table: PriceTable) -> None:
    made = bench(market, table, attackers=2, rounds=12)
    (scenario,) = made.study.scenarios
    (origin,) = made.study.origins
    hostile = Hostile(attack_named("sign-flip"), frozenset({0, 1}))
    trained = train(made.populations[origin], scenario, hostile, generator(1, origin, 2))
    assert trained.attackers_out == 2
    # Four are left and the rule wants five: the mesh would wait for others.
    assert trained.rounds == len(trained.shares) < 12


def test_a_model_that_is_driven_out_of_range_counts_as_destroyed(
    market: Market, table: PriceTable
) -> None:
    made = bench(market, table)
    (origin,) = made.study.origins
    population = made.populations[origin]
    wild = replace(attack_named("scaling"), craft=lambda sight: np.full(sight.own.shape, 1e308))
    model = plain_mean(population, 20, Hostile(wild, frozenset({0})), generator(1, origin, 2))
    assert not np.isfinite(model).all()
    assert error_of(population, model, (1, 2)) == MOST_ERROR
    assert error_of(population, np.full(model.shape, 1e160), (1, 2)) == MOST_ERROR
    assert made._marked(attack_named("backdoor"), model, (1, origin)) == 0
    # What a client can send at all is a float32.
    far = replace(attack_named("scaling"), craft=lambda sight: np.full(sight.own.shape, 1e38))
    cell = made.cell(far, made.study.scenarios[0], made.plains(far))
    assert cell.plain == MOST_ERROR
    assert cell.attacked < 2 * cell.clean


def test_attackers_are_drawn_by_the_seed() -> None:
    one = drawn(60, 4, generator(1, 2019, 0))
    assert len(one) == 4
    assert one == drawn(60, 4, generator(1, 2019, 0))
    assert one != drawn(60, 4, generator(2, 2019, 0))


def test_a_report_reads_back(market: Market, table: PriceTable) -> None:
    made = report(market, table, mode="sealed", attack=None, matrix=True)
    assert made.attacks[0] == "none"
    assert len(made.cells) == 15
    none = made.cell("none", "weighted-mean")
    assert (none.share, none.out, none.plain_kept) == (0, 0, 1)
    assert from_json(to_json(made)) == made
    assert set(made.broken()) >= {"sign-flip", "scaling", "gaussian"}
    assert "sign-flip" in made.missed("weighted-mean")
    assert all(math.isfinite(cell.attacked) for cell in made.cells)


@pytest.mark.parametrize(
    ("options", "privacy", "unit"),
    [
        ({}, "none", "one desk: one stock over two years (490 days)"),
        (
            {"mode": "grouped", "clients": 18, "groups": 3},
            "none",
            "one desk: one of 3 parts of two years of one stock (158 days)",
        ),
        (
            {"model": "linear", "epsilon": 4.0},
            "epsilon 4 at delta 1e-05, one desk, its contribution set to zero, one training run, ",
            "one desk: one stock over one quarter (57 days)",
        ),
    ],
    ids=str,
)
def test_what_is_promised_to_whom(
    market: Market, table: PriceTable, options: dict[str, Any], privacy: str, unit: str
) -> None:
    made = report(market, table, **{"rounds": 1, **options})
    assert made.privacy.startswith(privacy)
    assert made.unit == unit


@pytest.fixture(scope="module")
def folder(table: PriceTable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("prices") / "own", table)


def test_the_command_prints_a_table_and_honest_words(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(
        ["simulate", "--attack", "backdoor", "--attackers", "1", "--mode", "open", "--rounds", "3",
         "--data", str(folder)]
    )  # fmt: skip
    told = capsys.readouterr().out
    assert code == Exit.OK
    for words in (
        "1 of 1: backdoor",
        "mlp, open, mixed-trimmed-mean: 6 clients, of which 1 attack; 3 rounds",
        "clean error",
        "plain-mean error",
        "seeds 1 to 3",
        "Masks cancel in each sum and are left out",
        "with more liars than the rule was set to withstand nothing is promised",
    ):
        assert words in told


def test_the_matrix_as_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(
        ["simulate", "--matrix", "--model", "linear", "--epsilon", "8", "--attackers", "1",
         "--rounds", "2", "--data", str(folder)]
    )  # fmt: skip
    told = capsys.readouterr().out
    assert code == Exit.OK
    assert "linear, open: attacks by rules" in told
    assert "centered-clipping" in told
    assert "what one liar can do is bounded by the clip norm and by its share of the weight" in told
    assert "With noise, figures differ from seed to seed" in told


def test_settings_that_gain_nothing_are_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(
        ["simulate", "--attack", "mimic", "--model", "linear", "--epsilon", "0.2", "--attackers",
         "1", "--rounds", "2", "--data", str(folder)]
    )  # fmt: skip
    told = capsys.readouterr().out
    assert code == Exit.OK
    assert "no better than the EWMA: there is no gain to keep" in told
    gainless = Repetition(1.0, 1.1, 1.0, 1.0, 0, 0, 0, 0, 0, 0)
    assert gainless.kept(0.9) == 0


def test_the_command_prints_json_and_progress_apart(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(
        ["simulate", "--attack", "sign-flip", "--attackers", "2", "--mode", "sealed", "--rounds",
         "4", "--data", str(folder), "--json"]
    )  # fmt: skip
    told = capsys.readouterr()
    assert code == Exit.OK
    document = json.loads(told.out)
    assert document["command"] == (
        "boltz-mesh simulate --attack sign-flip --attackers 2 --mode sealed --rounds 4 "
        f"--data {folder}"
    )
    assert document["attackers"] == 2
    assert "1 of 1: sign-flip" in told.err


def test_the_list_names_every_attack_with_its_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--list"]) == Exit.OK
    told = capsys.readouterr().out
    assert "inner-product" in told
    assert "Shejwalkar and Houmansadr 2021" in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--attack", "nonsense"], "--attack 'nonsense' is none"),
        ([], "--attack is missing"),
        (["--attack", "alie", "--attackers", "4"], "--attackers 4: 6 clients"),
        (["--attack", "alie", "--rule", "plain"], "plain"),
    ],
)
def test_the_command_refuses_in_words(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run(["simulate", *arguments, "--data", str(folder)]) == Exit.USAGE
    told = capsys.readouterr()
    assert words in told.err + told.out


def test_missing_prices_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--attack", "alie", "--data", str(tmp_path / "none")]) == Exit.USAGE
    # The terminal breaks lines where the path has made them long.
    assert "not a folder" in " ".join(capsys.readouterr().err.split())
