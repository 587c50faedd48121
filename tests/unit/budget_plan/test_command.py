"""`boltz-mesh budget plan`, without a mesh: answers, files, and what people get wrong."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from boltz_mesh.app.cli.output import Exit
from boltz_mesh.app.cli.root import run
from boltz_mesh.privacy.accountant import epsilon, epsilon_replace_one

COHORT = ("--clients", "60", "--mode", "open")


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without any credential, and a terminal of a known width."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BOLTZ_MESH_OPERATOR", raising=False)
    monkeypatch.setenv("COLUMNS", "180")
    return tmp_path


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run(["budget", "plan", *COHORT, *arguments, "--json"]) == Exit.OK
    return json.loads(capsys.readouterr().out)


def every_epsilon(found: Any) -> list[dict[str, Any]]:
    """All parts of a document that hold an epsilon that was computed."""
    if isinstance(found, list):
        return [part for item in found for part in every_epsilon(item)]
    if not isinstance(found, dict):
        return []
    inner = [part for item in found.values() for part in every_epsilon(item)]
    return [found, *inner] if "epsilon" in found and "delta" in found else inner


def test_how_much_noise(capsys: pytest.CaptureFixture[str]) -> None:
    answer = document(capsys, "--epsilon", "2", "--rounds", "100")
    noise = answer["noise_multiplier"]
    assert noise == pytest.approx(22.31, abs=0.01)
    assert answer["epsilon"]["epsilon"] == epsilon(noise, 100) <= 2.0
    assert answer["epsilon_replace_one"]["epsilon"] == epsilon_replace_one(noise, 100)
    assert answer["epsilon_replace_one"]["relation"] == "contribution-replaced"
    told = every_epsilon(answer)
    assert len(told) == 4
    assert all(part["unit"] == "client" and part["delta"] == 1e-6 for part in told)
    assert answer["epsilon_by_rounds"]["relation"] == "contribution-set-to-zero"
    assert answer["error_of_mean"]["coordinate_std"] == pytest.approx(noise / 60)
    assert answer["comparison"] is None


def test_what_rounds_cost_and_how_many_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    cost = document(capsys, "--noise-multiplier", "4", "--rounds", "20")
    assert (cost["epsilon"]["epsilon"], cost["epsilon_allowed"]) == (epsilon(4.0, 20), None)
    many = document(capsys, "--noise-multiplier", "4", "--epsilon", "6")
    assert epsilon(4.0, many["rounds"]) <= 6 < epsilon(4.0, many["rounds"] + 1)


def test_what_cannot_be_told_is_null_and_not_infinity(capsys: pytest.CaptureFixture[str]) -> None:
    answer = document(capsys, "--noise-multiplier", "0.3", "--rounds", "1")
    assert answer["epsilon_replace_one"]["epsilon"] is None
    assert answer["epsilon_by_rounds"]["by_noise_multiplier"][0]["epsilon"][0] is None


def test_ways_of_adding_up_stand_beside(capsys: pytest.CaptureFixture[str]) -> None:
    answer = document(capsys, "--noise-multiplier", "30", "--rounds", "100", "--compare")
    ways = answer["comparison"]
    assert ways["unit"] == "client"
    assert ways["reported"] < ways["renyi"] < ways["optimal"] < ways["basic"]


def test_the_tables_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    sealed = ["--clients", "60", "--least-survivors", "40", "--parameters", "1000"]
    assert run(["budget", "plan", *sealed, "--epsilon", "2", "--rounds", "100", "--compare"]) == 0
    text = capsys.readouterr().out
    one = "at delta 1e-06, one client, its contribution set to zero"
    assert f"2.000 of 2 allowed ({one})" in text
    assert "replaced by any other: sensitivity 2C)" in text
    assert "not provably random, secret and uniform" in text
    assert "40 survivors of whom 3 may collude" in text
    assert "a full cohort of 60 has 1.27 times that noise" in text
    assert f"noise multiplier z ({one})" in text
    assert f"other ways of adding up the same rounds ({one})" in text
    assert "* 100" in text
    assert "noise_multiplier = 22.31" in text
    assert "min = 40" in text


def test_supposed_sampling_says_what_would_be_charged(capsys: pytest.CaptureFixture[str]) -> None:
    rate = ["--sampling-rate", "0.5", "--supposed-sampling"]
    asked = ["--noise-multiplier", "8", "--rounds", "2"]
    assert run(["budget", "plan", *COHORT, *asked, *rate]) == Exit.OK
    text = capsys.readouterr().out
    assert "supposed to be 0.5, Poisson and secret, which no round of the mesh is" in text
    assert f"would charge epsilon {epsilon(8.0, 2):.2f}" in text
    assert "plan.toml" not in text


def test_a_page_and_a_figure(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["budget", "plan", *COHORT, "--epsilon", "2", "--rounds", "9", "--out"]
    assert run([*asked, "plan.html"]) == Exit.OK
    assert "written: plan.html" in capsys.readouterr().out
    assert "<!doctype html>" in (nowhere / "plan.html").read_text("utf-8")
    assert run([*asked, "plan.svg", "--json"]) == Exit.OK
    assert json.loads(capsys.readouterr().out)["rounds"] == 9
    ET.parse(nowhere / "plan.svg")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epsilon", "2"], "two must be given"),
        (["--epsilon", "nan", "--rounds", "5"], "epsilon nan must be a positive number"),
        (["--epsilon", "-1", "--rounds", "5"], "epsilon -1"),
        (["--epsilon", "2", "--rounds", "0"], "rounds 0"),
        (["--epsilon", "2", "--rounds", "5", "--delta", "0.1"], "at most one over the clients"),
        (["--epsilon", "2", "--rounds", "5", "--sampling-rate", "0.1"], "counts as 1"),
        (["--noise-multiplier", "0", "--rounds", "5"], "noise_multiplier 0"),
        (["--epsilon", "2", "--rounds", "5", "--clip-norm", "0"], "clip_norm 0"),
        (["--epsilon", "2", "--rounds", "5", "--least-survivors", "9"], "least_survivors 9"),
        (["--epsilon", "2", "--rounds", "5", "--out", "plan.pdf"], "plan.html would do"),
    ],
)
def test_mistakes(
    arguments: list[str], words: str, nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["budget", "plan", *COHORT, *arguments]) == Exit.USAGE
    told = capsys.readouterr()
    assert told.out == ""
    said = " ".join(told.err.split())
    assert words in said
    assert "would do" in said
    assert not list(nowhere.iterdir())


def test_a_place_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["budget", "plan", *COHORT, "--epsilon", "2", "--rounds", "9"]
    assert run([*asked, "--out", "no/such/folder/plan.svg"]) == Exit.USAGE
    assert "no/such/folder/plan.svg" in capsys.readouterr().err


def test_help_says_what_the_letters_mean(capsys: pytest.CaptureFixture[str]) -> None:
    run(["budget", "plan", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "mu = sqrt(R) / z",
        "z * C / n",
        "its contribution set to zero",
        "sensitivity 2C",
    ):
        assert words in text


@pytest.mark.parametrize(
    "form", [["budget", "m"], ["budget", "show", "m"], ["budget", "show", "plan"]]
)
def test_spending_is_asked_of_a_mesh(form: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(form) == Exit.USAGE
    assert "operator's credential" in capsys.readouterr().err
