"""docs/robustness.md: its tables are the results', and some of the results are computed again."""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from boltz_mesh.app.demo.data import load_skfolio
from boltz_mesh.app.demo.task import Market, market_of
from boltz_mesh.app.simulate.options import SimulateOptions, attack_named, study_for
from boltz_mesh.app.simulate.report import Cell
from boltz_mesh.app.simulate.scenario import Scenario
from boltz_mesh.app.simulate.study import bench_of
from boltz_mesh.trust.conduct import PUBLISHED, Conduct, conduct_inputs, judge_conduct
from boltz_mesh.trust.outcome import FIRST_LOSS_256, MOST_LOSS_256
from boltz_mesh.trust.quarantine import ALONE_BAD, FIRST_ROUNDS
from boltz_mesh.trust.reputation import (
    GAIN_256,
    NEWCOMER,
    POSITIVE_MOST_256,
    Evidence,
    EvidenceKind,
    TrustState,
    apply,
)
from tests.unit.docs import robustness
from tests.unit.docs.robustness import NAMES, PAGE, parts, renewed, result

TEXT = PAGE.read_text("utf-8")
WORDS = " ".join(TEXT.split())
DEFAULT = "mixed-trimmed-mean"
#: What was asked for, by the name of the results.
ASKED: dict[str, dict[str, Any]] = {
    "open": {},
    "grouped": {"mode": "grouped"},
    "open-noise": {"model": "linear", "epsilon": 2.0},
    "grouped-noise": {"model": "linear", "mode": "grouped", "groups": 9, "epsilon": 1.0},
    "grouped-noise-12": {"model": "linear", "mode": "grouped", "groups": 12, "epsilon": 1.0},
    "sealed": {"mode": "sealed"},
}


@cache
def market() -> Market:
    return market_of(load_skfolio())


def scenario(**asked: Any) -> Scenario:
    options = SimulateOptions(attack="mimic", **asked)
    names = tuple(stock.name for stock in market().stocks)
    return study_for(options, names, market().public.calendar).scenarios[0]


def computed(attack: str, asked: dict[str, Any], rule: str | None = None) -> Cell:
    options = SimulateOptions(attack=attack, rule=rule, **asked)  # type: ignore[arg-type]
    names = tuple(stock.name for stock in market().stocks)
    study = study_for(options, names, market().public.calendar)
    bench = bench_of(study, market())
    lying = attack_named(attack)
    return bench.cell(lying, study.scenarios[0], bench.plains(lying))


def test_the_tables_are_those_of_the_results() -> None:
    assert parts(TEXT) == list(NAMES)
    assert renewed(TEXT) == TEXT, "run python -m tests.unit.docs.robustness"


def test_a_page_that_is_behind_is_renewed(tmp_path: Path) -> None:
    page = tmp_path / "robustness.md"
    page.write_text(TEXT.replace("| sign-flip |", "| flip |"), "utf-8")
    robustness.main(page)
    assert page.read_text("utf-8") == TEXT


@pytest.mark.parametrize("name", NAMES)
def test_the_results_are_of_the_commands_on_the_page(name: str) -> None:
    report = result(name)
    options = SimulateOptions(matrix=True, **ASKED[name])
    assert shlex.split(report.command) == shlex.split(options.command())
    assert len(report.cells) == 15 * len(report.rules)
    assert report.attackers == 4
    assert report.seeds == (1, 2, 3)
    assert report.origins == (2019, 2020, 2021, 2022)


@pytest.mark.parametrize(
    ("name", "attack", "rule"),
    [
        ("sealed", "min-sum", "weighted-mean"),
        ("sealed", "backdoor", "weighted-mean"),
        ("open-noise", "gaussian", "weighted-mean"),
        ("open-noise", "sign-flip", "centered-clipping"),
    ],
)
def test_cells_of_sums_are_computed_again(name: str, attack: str, rule: str) -> None:
    told, made = result(name).cell(attack, rule), computed(attack, ASKED[name], rule)
    for field in ("over_clean", "kept", "share", "out", "marked"):
        assert getattr(made, field) == pytest.approx(getattr(told, field), abs=2e-3), field


def test_a_cell_of_the_default_rule_is_computed_again() -> None:
    told, made = result("open").cell("sign-flip", DEFAULT), computed("sign-flip", ASKED["open"])
    assert made.over_clean == pytest.approx(told.over_clean, abs=5e-3)
    assert made.held
    assert made.out == told.out == 4
    assert made.breaks_plain


def test_which_modes_reach_the_goals() -> None:
    for name in ("open", "grouped"):
        report = result(name)
        assert report.rules[0] == DEFAULT
        assert not report.missed(DEFAULT)
        assert len(report.broken()) >= 5
    assert len(result("open").broken()) == 7
    assert "The plain mean loses over three quarters of the gain under seven." in WORDS
    assert len(result("grouped").broken()) == 5
    assert "mean loses over three quarters of the gain under five attacks" in WORDS
    assert not any(result("grouped").missed(rule) for rule in result("grouped").rules[:-1])
    assert all(result("open").missed(rule) for rule in result("open").rules[1:])
    assert not result("open-noise").missed("weighted-mean")
    assert len(result("sealed").missed("weighted-mean")) == 9
    assert "of 20: 9 of 14 miss a goal" in WORDS
    assert result("grouped-noise-12").missed(DEFAULT) == ("sign-flip", "scaling")
    assert result("grouped-noise").missed(DEFAULT) == ("gaussian",)
    assert (
        "with nine groups gaussian misses the goals, with twelve sign-flip and scaling do" in WORDS
    )
    assert "1 of 14 misses a goal in 9 groups, 2 of 14 in 12" in WORDS


def test_what_the_rule_costs_where_nobody_attacks() -> None:
    cost = result("open").cell("none", DEFAULT).over_clean
    assert f"costs {cost:.1%} where nobody attacks" in WORDS


def test_what_a_backdoor_gets() -> None:
    report = result("open")
    plain = report.cell("backdoor", DEFAULT)
    assert abs(plain.marked) < 0.02
    trimmed = report.cell("backdoor", "trimmed-mean").marked
    median = report.cell("backdoor", "geometric-median").marked
    assert f"by {plain.plain_marked:.0%} of what its authors want" in WORDS
    assert f"lets {trimmed:.0%} through, and the geometric median {median:.0%}" in WORDS


def test_no_honest_client_was_put_in_quarantine() -> None:
    assert not any(cell.honest_out for name in NAMES for cell in result(name).cells)
    assert "in none of the runs above was an honest client put in quarantine" in WORDS


def test_the_noise_of_groups() -> None:
    sealed = scenario(model="linear", mode="sealed", clients=300, epsilon=1.0)
    words = []
    for groups in (9, 12, 20):
        grouped = scenario(model="linear", mode="grouped", groups=groups, epsilon=1.0)
        words.append(f"{float(grouped.share() / sealed.share()) ** 0.5:.1f} times")
    assert (
        f"nine have {words[0]} the noise of a sealed round in their mean, twelve {words[1]}, "
        f"twenty {words[2]}"
    ) in WORDS
    assert f"nine groups here have {words[0]}" in WORDS


def test_the_page_s_figures_of_inflated_counts() -> None:
    asked = ASKED["open-noise"]
    for cap in (5, 10):
        cell = computed("inflated-counts", {**asked, "sample_bucket_cap": cap})
        row = f"| `--sample-bucket-cap {cap}` | {cell.over_clean:+.1%} | {cell.most_share:.1%} |"
        assert row in TEXT
    cell = computed("inflated-counts", {"sample_bucket_cap": 10})
    assert cell.most_share == pytest.approx(0.51, abs=0.01)
    assert cell.over_clean == pytest.approx(0.010, abs=5e-3)
    assert "with up to 51% of the weight" in WORDS


def test_sixty_desks_in_groups_with_noise_have_nothing_to_defend() -> None:
    asked = {"model": "linear", "mode": "grouped", "clients": 60, "epsilon": 2.0}
    cell = computed("mimic", asked)
    assert cell.clean > cell.ewma


def conducted(state: TrustState, rounds: int) -> TrustState:
    return apply(state, rounds, judge_conduct(conduct_inputs(PUBLISHED, Conduct.COUNTED)))


def test_the_bounds_of_newcomers_and_of_on_off() -> None:
    best = TrustState(POSITIVE_MOST_256, 0)
    new, most = NEWCOMER.trust_256, best.trust_256
    assert f"weighs {new}/256; the most trusted client weighs {most}/256" in WORDS
    assert f"at most {new} f / ({new} f + {most} h) of the weight" in WORDS
    share = new * 4 / (new * 4 + most * 16)
    assert f"with 4 and 16 that is {share:.1%}" in WORDS
    assert f"no more than {most / new:.1f} times a newcomer's weight" in WORDS
    falls = []
    for strike in range(ALONE_BAD):
        loss = min(MOST_LOSS_256, FIRST_LOSS_256 << strike)
        struck = apply(best, 1, Evidence(EvidenceKind.OUTCOME, "against", 0, loss))
        best = conducted(struck, 0)
        falls.append(best.trust_256)
    told = ", ".join(map(str, falls[:-1]))
    assert f"falls to {told} and {falls[-1]}/256 in its first six" in WORDS
    assert f"goes into quarantine for {FIRST_ROUNDS} rounds" in WORDS
    assert GAIN_256 > FIRST_LOSS_256
    cell = result("open").cell("on-off", DEFAULT)
    assert f"the four have {cell.most_share:.1%} of the weight when they strike" in WORDS
    assert cell.share == 0


def test_whom_drawings_of_groups_give_away() -> None:
    report = result("grouped")
    caught = [a for a in report.attacks if report.cell(a, DEFAULT).out == 4]
    assert caught == ["sign-flip", "inner-product", "inflated-counts"]
    assert "those of sign-flip, inner-product and inflated-counts are all put in" in WORDS


def test_what_small_shifts_cost() -> None:
    names = ("min-max", "min-sum", "alie", "mimic")
    costs = [result("open").cell(name, DEFAULT).over_clean for name in names]
    assert min(costs) > 0.005
    assert max(costs) < 0.03
    assert "1 to 3% of the error here" in WORDS
