"""The figures and the page: sound XML, lines inside their axes, every number's words."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from boltz_mesh.app.budget_plan.charts import epsilon_chart, error_chart
from boltz_mesh.app.budget_plan.page import html, svg
from boltz_mesh.app.budget_plan.words import number
from boltz_mesh.app.figures import figure_style, page_style
from boltz_mesh.privacy.composition import compare
from boltz_mesh.privacy.federation import Federation
from boltz_mesh.privacy.planning import Outlook, outlook
from boltz_mesh.privacy.tradeoff import drawn_tradeoff, tradeoff

OPEN = Federation(clients=60, mode="open", parameters=9)
ANSWERS = {
    "asked": outlook(OPEN, epsilon=2.0, rounds=100),
    "cost": outlook(Federation(clients=300, parameters=13), noise_multiplier=4.0, rounds=7),
    "little noise": outlook(OPEN, noise_multiplier=0.3, rounds=1),
    "much noise": outlook(OPEN, noise_multiplier=1000.0, rounds=10_000),
    "far below what is allowed": outlook(OPEN, epsilon=50.0, noise_multiplier=0.5),
    "one client": outlook(Federation(clients=1, mode="open"), noise_multiplier=2.0, rounds=1),
}


def points(figure: ET.Element) -> list[list[tuple[float, float]]]:
    found = []
    for line in figure.iter("polyline"):
        pairs = (pair.split(",") for pair in line.attrib["points"].split())
        found.append([(float(x), float(y)) for x, y in pairs])
    return found


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_lines_stay_inside_their_axes(answer: Outlook) -> None:
    drawn = drawn_tradeoff(answer)
    for chart in (epsilon_chart(answer, drawn), error_chart(answer, drawn)):
        figure = ET.fromstring(chart)
        lines = points(figure)
        assert len(lines) == len(drawn.noise_multipliers)
        for x, y in (point for line in lines for point in line):
            assert 63.9 <= x <= 624.1
            assert 43.9 <= y <= 300.1
        assert figure.find("circle") is not None
        assert f"z = {answer.noise_multiplier:g}" in chart


def test_a_line_of_which_nothing_can_be_told_has_no_name() -> None:
    answer = ANSWERS["little noise"]
    chart = epsilon_chart(answer, drawn_tradeoff(answer))
    assert "z = 0.15" not in chart
    assert "z = 0.21" in chart or "z = 0.45" in chart
    assert "z = 0.15" in error_chart(answer, drawn_tradeoff(answer))


def test_the_answer_is_on_its_line() -> None:
    answer = ANSWERS["asked"]
    figure = ET.fromstring(epsilon_chart(answer, drawn_tradeoff(answer)))
    dot = figure.find("circle")
    assert dot is not None
    x, y = float(dot.attrib["cx"]), float(dot.attrib["cy"])
    own = next(line for line in figure.iter("polyline") if "dp" in line.attrib["class"].split())
    pairs = (pair.split(",") for pair in own.attrib["points"].split())
    nearest = min((abs(float(a) - x), abs(float(b) - y)) for a, b in pairs)
    assert nearest[0] < 7
    assert nearest[1] < 3


def test_the_allowed_epsilon_and_the_bound_of_a_client_are_drawn() -> None:
    answer = ANSWERS["asked"]
    assert "allowed: 2" in epsilon_chart(answer, drawn_tradeoff(answer))
    cost = ANSWERS["cost"]
    assert "allowed" not in epsilon_chart(cost, drawn_tradeoff(cost))
    short = outlook(OPEN, noise_multiplier=16.0, rounds=7)
    assert "as long as one client&#x27;s bound" in error_chart(short, drawn_tradeoff(short))


def test_an_epsilon_that_cannot_be_charged_has_no_dot() -> None:
    # As where sampling is supposed, and only with it an epsilon can be told.
    answer = replace(ANSWERS["asked"], epsilon_charged=math.inf)
    chart = epsilon_chart(answer, drawn_tradeoff(answer))
    assert "epsilon is unlimited" in chart
    assert ET.fromstring(chart).find("circle") is None


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_the_figure_is_a_file_of_its_own(answer: Outlook) -> None:
    root = ET.fromstring(svg(answer))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    text = "".join(root.itertext())
    assert "Epsilon against rounds" in text
    assert "Expected error against cohort" in text
    assert "var(--card)" in svg(answer)


def test_the_page_needs_nothing_else_and_escapes() -> None:
    answer = ANSWERS["asked"]
    text = html(answer, tradeoff(answer), compare(answer.noise_multiplier, answer.rounds))
    body = ET.fromstring(text.split("</head>")[1].removesuffix("</html>\n"))
    assert len(list(body.iter("svg"))) == 2
    assert len(list(body.iter("table"))) == 4
    assert "noise_multiplier = " in text
    assert "basic composition" in text
    assert not re.search(r"<script|<link|https?://(?!www\.w3\.org)", text)
    # Every epsilon's delta, unit and relation.
    assert text.count("one client, its contribution set to zero") >= 4
    assert "basic composition" not in html(answer, tradeoff(answer), None)


def test_a_supposition_is_not_for_a_plan() -> None:
    supposed = Federation(clients=60, mode="open", sampling_rate=0.5, supposed_sampling=True)
    answer = outlook(supposed, noise_multiplier=8.0, rounds=2)
    assert "plan.toml" not in html(answer, tradeoff(answer), None)


def test_epsilons_are_rounded_up() -> None:
    assert number(1.9991) == "2.000"
    assert number(2.0) == "2.000"
    assert number(float("inf")) == "unlimited"


def test_the_styles_of_figures_are_in_the_page_too() -> None:
    assert figure_style() in page_style()
    for css in (".figure", ".series.dp", ".dot.dp", "--card"):
        assert css in figure_style()
