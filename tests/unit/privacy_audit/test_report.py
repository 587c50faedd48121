"""Verdicts, in figures and in words, and how a person sees them."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from boltz_mesh.app.privacy_audit.canaries import Outcome
from boltz_mesh.app.privacy_audit.display import Display
from boltz_mesh.app.privacy_audit.inversion_run import Attempt, InversionReport
from boltz_mesh.app.privacy_audit.options import AuditOptions
from boltz_mesh.app.privacy_audit.report import AuditReport, Ledger, report_of, to_json
from boltz_mesh.app.privacy_audit.trial import LedgerFigure
from boltz_protocol.gaussian_dp import mu_of
from tests.support.epsilons import check_text

SEED = 20261124
FIGURE = LedgerFigure(5.0, 1e-5, "client", "contribution-set-to-zero")


def outcome(seed: int, deviation: float, trials: int = 200, signal: float = 1.0) -> Outcome:
    """Scores with normal noise; a signal of 0 is a canary that never arrives."""
    rng = np.random.default_rng(seed)
    coins = rng.integers(0, 2, size=(trials, 8)).astype(np.bool_)
    return Outcome(signal * coins + rng.normal(scale=deviation, size=coins.shape), coins)


def report(noised: Outcome, bare: Outcome) -> AuditReport:
    options = AuditOptions()
    return report_of(
        options,
        noised=noised,
        bare=bare,
        ledger=FIGURE,
        guesses=options.guesses(),
        seconds=12.345,
        finished_at="2026-11-24T12:00:00+00:00",
    )


RIGHT_NOISE = 1 / mu_of(5.0, 1e-5)


def shown(made: AuditReport) -> str:
    console = Console(file=io.StringIO(), width=240)
    Display(console).show(made)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert check_text(text) > 1
    return text


def test_a_right_ledger_holds() -> None:
    made = report(outcome(SEED, RIGHT_NOISE), outcome(SEED + 1, 1e-4))
    assert made.verdict == "holds"
    assert 0.25 < made.share < 1
    gaussian, one_run = made.with_noise.bounds
    assert made.with_noise.best == gaussian
    assert 0 < one_run.epsilon < gaussian.epsilon <= 5
    assert made.without_noise.right == made.without_noise.pairs == 1600
    assert all(bound.epsilon > 5 for bound in made.without_noise.bounds)
    assert "Nothing speaks against the ledger" in made.words
    assert "too little" not in made.words


@pytest.mark.parametrize("deviation", [RIGHT_NOISE / 2, 1e-4])
def test_missing_noise_refutes(deviation: float) -> None:
    made = report(outcome(SEED, deviation), outcome(SEED + 1, 1e-4))
    assert made.verdict == "refuted"
    assert made.share > 1
    assert made.words.startswith("Refuted")


def test_canaries_that_never_arrive_give_no_verdict() -> None:
    made = report(outcome(SEED, RIGHT_NOISE, signal=0), outcome(SEED + 1, 1e-4, signal=0))
    assert made.verdict == "blind"
    assert made.words.startswith("No verdict")


def test_much_more_noise_than_counted_says_little() -> None:
    made = report(outcome(SEED, 20 * RIGHT_NOISE), outcome(SEED + 1, 1e-4))
    assert made.verdict == "holds"
    assert "too little to say much" in made.words


@pytest.mark.parametrize(
    "made",
    [
        report(outcome(SEED, RIGHT_NOISE), outcome(SEED + 1, 1e-4)),
        report(outcome(SEED, 1e-4), outcome(SEED + 1, 1e-4)),
        report(outcome(SEED, RIGHT_NOISE, signal=0), outcome(SEED + 1, 1e-4, signal=0)),
    ],
    ids=["holds", "refuted", "blind"],
)
def test_every_epsilon_carries_delta_unit_and_relation(made: AuditReport) -> None:
    scope = "at delta 1e-05; unit: one client; relation: its contribution set to zero"
    assert scope in made.words
    assert shown(made).count(scope) == 2
    document = json.loads(to_json(made))
    assert document["ledger"] == {
        "epsilon": 5.0,
        "delta": 1e-5,
        "unit": "client",
        "relation": "contribution-set-to-zero",
    }
    assert document["confidence"] == 0.95
    for part in ("with_noise", "without_noise"):
        for bound in document[part]["bounds"]:
            assert bound["assumption"]
            assert bound["source"]


def test_the_table_has_the_figures() -> None:
    made = report(outcome(SEED, RIGHT_NOISE), outcome(SEED + 1, 1e-4))
    text = shown(made)
    assert re.search(r"rounds x canaries +200 x 8 +200 x 8", text)
    assert f"{made.with_noise.best.epsilon:.3f}" in text
    assert "1600/1600 (100.0%)" in text


def lines(terminal: bool) -> list[str]:
    console = Console(file=io.StringIO(), width=240, force_terminal=terminal)
    with Display(console).trials(AuditOptions(trials=25)) as progress:
        for done in range(1, 51):
            progress.trial_done(done, 50)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_progress_without_a_terminal_is_a_line_for_each_tenth() -> None:
    found = lines(terminal=False)
    assert "25 with noise and 25 without" in found[0]
    assert found[1:] == [f"{done} of 50 rounds" for done in range(5, 51, 5)]


def test_progress_on_a_terminal_is_a_bar() -> None:
    assert not any("of 50 rounds" in line for line in lines(terminal=True)[1:])


def test_an_inversion_is_shown_with_the_scope_of_its_epsilon() -> None:
    ledger = Ledger(epsilon=5.0, delta=1e-5, unit="client", relation="contribution-set-to-zero")
    attempts = (
        Attempt(seen="the update", cosine=1.0, relative_error=0.0),
        Attempt(seen="the sum", cosine=0.01, relative_error=3.0, ledger=ledger),
    )
    console = Console(file=io.StringIO(), width=240)
    Display(console).show_inversion(InversionReport(fields=78, clients=8, attempts=attempts))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "epsilon 5.00 (at delta 1e-05; unit: one client; relation:" in text
    assert "1.0000" in text
