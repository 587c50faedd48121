"""docs/privacy.md: its figures are the accountant's, its fields and reasons the contract's."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest

from boltz_client.record_ledger import RECORD_CAVEAT, RECORD_RELATION, RECORD_UNIT
from boltz_mesh.app.cli.output import Exit, as_dict, exit_code
from boltz_mesh.app.cli.root import run
from boltz_mesh.app.privacy_audit.options import CONFIDENCE
from boltz_mesh.privacy.budget import Budget, check_round
from boltz_mesh.privacy.mechanisms import RELATION_WORDS, UNIT_WORDS, PrivacyEvent, release_event
from boltz_protocol import errors
from boltz_protocol.gaussian_dp import delta_of, epsilon_of_mu, mu_of
from boltz_protocol.v1 import aggregator_pb2 as pb
from tests.support.repository import ROOT

PAGE = (ROOT / "docs" / "privacy.md").read_text("utf-8")
#: Of every figure on the page.
DELTA = 1e-6
#: Table rows that begin with a number.
_FIGURES = re.compile(r"^\| ([\d.]+ \|.+) \|$", re.MULTILINE)


def section(name: str) -> str:
    return PAGE.split(f"\n## {name}\n")[1].split("\n## ")[0]


def words(text: str) -> str:
    """Without line breaks."""
    return " ".join(text.split())


def rows(text: str) -> list[list[str]]:
    return [row.split(" | ") for row in _FIGURES.findall(text)]


def up(value: float, places: int) -> str:
    """A figure for people, never below the value; a double's last digits are no figure."""
    near = Decimal(f"{value:.13g}")
    return str(near.quantize(Decimal(1).scaleb(-places), ROUND_CEILING))


def percent(value: float, places: int = 1) -> str:
    return f"{up(100 * value, places)}%"


def right(mu: float) -> float:
    """How often the best guess between two equally likely runs is right.

    delta at epsilon 0 is the total variation distance: no test does better.
    """
    return (1 + delta_of(0.0, mu)) / 2


def posterior(prior: float, epsilon: float) -> float:
    odds = prior / (1 - prior) * math.exp(epsilon)
    return odds / (1 + odds)


# --- what epsilon means -------------------------------------------------------------------------


def test_what_can_be_concluded() -> None:
    table = rows(section("What epsilon means").split('**"These, or those?"**')[0])
    assert [row[0] for row in table] == ["1", "2", "4", "8"]
    for told, factor, worst, further, guess, advantage in table:
        epsilon = float(told)
        mu = mu_of(epsilon, DELTA)
        significant = 3 - math.floor(math.log10(math.exp(epsilon)))
        assert factor == up(math.exp(epsilon), significant)
        assert worst == percent(posterior(0.5, epsilon), 2)
        # The privacy loss of a Gaussian is normal with mean mu^2 / 2 and deviation mu.
        beyond = NormalDist(mu * mu / 2, mu)
        chance = 1 - beyond.cdf(epsilon)
        assert further == f"{up(chance * 1e6, 0)} in a million"
        assert guess == percent(right(mu))
        assert advantage == percent(delta_of(0.0, mu))


def test_what_the_pair_alone_promises_of_the_best_guess() -> None:
    """Third column: (e^epsilon + delta) / (1 + e^epsilon), to its last digit the same."""
    for row in rows(section("What epsilon means"))[:4]:
        odds = math.exp(float(row[0]))
        assert percent((odds + DELTA) / (1 + odds), 2) == row[2]


def test_the_examples_in_words_are_the_tables() -> None:
    text = section("What epsilon means")
    of_two = rows(text)[1]
    told = words(text)
    assert f"into one of {of_two[2]}" in told
    assert f"so far or further it goes at most {of_two[3].replace(' in', ' times in')}" in told
    assert f"more often than {of_two[4].rstrip('%')} times in a hundred" in told
    one, two, four = (percent(posterior(0.01, epsilon)) for epsilon in (1, 2, 4))
    assert f"{one} for epsilon 1, {two} for epsilon 2 and {four} for epsilon 4" in told


def test_delta_is_not_the_chance_of_more() -> None:
    for row in rows(section("What epsilon means"))[:4]:
        assert float(row[3].split()[0]) * 1e-6 > DELTA


def test_replaced_by_any_other() -> None:
    table = rows(section("What epsilon means").split('**"These, or those?"**')[1])
    assert [row[0] for row in table] == ["1", "2", "4", "8"]
    for told, replaced, guess in table:
        mu = 2 * mu_of(float(told), DELTA)
        assert replaced == up(epsilon_of_mu(mu, DELTA), 3)
        assert guess == percent(right(mu))
        assert float(replaced) > 2 * float(told)


def test_several_clients_of_one_owner() -> None:
    told = words(section("What is outside"))
    mu = mu_of(2.0, DELTA)
    two, three, four = (up(epsilon_of_mu(count * mu, DELTA), 3) for count in (2, 3, 4))
    assert f"two clients stand at up to {two}, three at {three}, four at {four}" in told


# --- planning -----------------------------------------------------------------------------------


@pytest.fixture
def plan(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """`boltz-mesh budget plan` with the page's cohort, in a folder without a credential."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BOLTZ_MESH_OPERATOR", raising=False)

    def planned(noise_multiplier: str, rounds: str) -> Any:
        arguments = ["--noise-multiplier", noise_multiplier, "--rounds", rounds, "--json"]
        assert run(["budget", "plan", "--clients", "60", *arguments]) == Exit.OK
        return json.loads(capsys.readouterr().out)

    return planned


def test_noise_rounds_and_epsilon_are_what_the_command_says(plan: Callable[..., Any]) -> None:
    text = section("Noise, rounds and epsilon")
    heads = re.findall(r"(\d+) rounds?(?= \|)", text)
    assert heads == ["1", "5", "20", "100"]
    table = rows(text)
    assert len(table) == 4
    for noise, *epsilons in table:
        for rounds, printed in zip(heads, epsilons, strict=True):
            answer = plan(noise, rounds)
            found = answer["epsilon"]
            assert printed == up(found["epsilon"], 3), (noise, rounds)
            assert (found["delta"], found["unit"]) == (DELTA, "client")
            assert found["relation"] == "contribution-set-to-zero"
            assert (answer["federation"]["mode"], answer["federation"]["clients"]) == ("sealed", 60)
    by_noise = {noise: epsilons for noise, *epsilons in table}
    # Twice the noise pays for four times the rounds.
    assert by_noise["2"][1] == by_noise["4"][2]
    assert by_noise["4"][1] == by_noise["8"][2]


# --- the ledger ---------------------------------------------------------------------------------


def test_every_field_of_the_answer_is_explained_and_no_other() -> None:
    table = section("How to read the ledger").split("| field | says |")[1].split("\n\n")[0]
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.+?) \|", table, re.MULTILINE)))
    fields = [field.name for field in pb.GetPrivacyBudgetResponse.DESCRIPTOR.fields]
    assert sorted(named) == sorted(fields)


def test_how_json_writes_infinity_and_hashes() -> None:
    text = section("How to read the ledger")
    answer = pb.GetPrivacyBudgetResponse(epsilon_spent=math.inf, chain_head=bytes(3))
    found = as_dict(answer)
    assert f'`"{found["epsilon_spent"]}"` stands' in text
    assert "In JSON `chain_head` is base64" in text
    assert found["chain_head"] == "AAAA"
    assert "`chain_length` and times are texts" in text
    assert found["chain_length"] == found["starts_at_ms"] == found["ends_at_ms"] == "0"


def test_the_question_to_the_database_can_be_asked() -> None:
    migrations = ROOT / "src" / "boltz_mesh" / "storage" / "migrations"
    sql = "".join(path.read_text("utf-8") for path in sorted(migrations.glob("*.sql")))
    query = section("How to read the ledger").split("```sql\n")[1].split("```")[0]
    assert "FROM privacy_events " in query
    table = sql.split("CREATE TABLE privacy_events (")[1].split("\n);")[0]
    added = sql.split("ALTER TABLE privacy_events\n    ADD COLUMN")[1].split("\n\n")[0]
    for column in ("hash", "model_id", "seq"):
        assert re.search(rf"\b{column}\b", query)
        kind = rf"^\s+(ADD COLUMN )?{column} +(bytea|text|bigint)"
        assert re.search(kind, f"{table}\n{added}", re.MULTILINE)


# --- refusals -----------------------------------------------------------------------------------


def test_reasons_and_exit_codes() -> None:
    text = section("When something is refused")
    known = {
        "BUDGET_EXCEEDED": errors.BudgetExceeded,
        "INVALID_PLAN": errors.InvalidPlan,
        "LEDGER_BROKEN": errors.LedgerBroken,
        "ROUND_REFUSED": errors.RoundRefused,
    }
    assert set(re.findall(r"`([A-Z_]{8,})`", text)) == set(known)
    for reason, kind in known.items():
        assert kind.reason == reason
    told = re.findall(r"\| `([A-Z_]+)`, exit code (\d) \|", text)
    assert {reason for reason, _ in told} == {"BUDGET_EXCEEDED", "LEDGER_BROKEN"}
    for reason, code in told:
        assert exit_code(known[reason]("told")) == int(code)
    assert f"aborted with `BUDGET_EXCEEDED`, exit code {Exit.ABORTED:d} |" in text
    shown = section("What the audit shows")
    assert f"(exit code {Exit.REFUTED:d})" in shown
    assert f"{100 * CONFIDENCE:g}% confidence" in words(shown)


def test_the_refusal_that_is_quoted_is_the_products() -> None:
    def release(client: str, noise_multiplier: float) -> PrivacyEvent:
        return release_event(
            noise_multiplier=noise_multiplier,
            sensitivity=1000,
            model="volatility",
            round="",
            attempt=1,
            client=client,
            distributed=True,
        )

    clients = ["desk-7", *(f"other-{number}" for number in range(59))]
    with pytest.raises(errors.BudgetExceeded) as caught:
        check_round(
            Budget(2.0, DELTA),
            {"desk-7": [release("desk-7", 9.975)] * 15},
            [release(client, 3.0) for client in clients],
        )
    quoted = section("When something is refused").split("```text\n")[1].split("```")[0]
    assert words(quoted) == caught.value.message


# --- every epsilon with its unit, relation and delta --------------------------------------------


@pytest.mark.parametrize(
    "name", ["What epsilon means", "Noise, rounds and epsilon", "What is outside"]
)
def test_figures_say_what_they_are_of(name: str) -> None:
    text = words(section(name)).lower()
    assert "at delta 1e-6" in text
    assert "client" in text
    assert re.search(r"contributions? set to zero", text)


def test_units_and_relations_are_the_products() -> None:
    text = section("Whose data, and compared with what")
    for unit in UNIT_WORDS.values():
        assert f"**Unit: {unit}.**" in text
    assert f"**Relation: {RELATION_WORDS['contribution-set-to-zero']}.**" in text
    assert f"**Beside it: {RELATION_WORDS['contribution-replaced']}.**" in text


def test_record_level_is_kept_apart() -> None:
    text = words(section("Record-level privacy is another unit"))
    assert f"Its unit is **one {RECORD_UNIT}**" in text
    assert RECORD_RELATION == "add-or-remove-one-record"
    assert "its relation **one record added or removed**" in text
    # The caveat that goes with each of its figures, in the product's words.
    for said in (
        "One trading day touches many overlapping rows",
        "features look back",
        "labels look ahead",
        "all of them together are protected far less than one",
    ):
        assert said in RECORD_CAVEAT
        assert said in text
