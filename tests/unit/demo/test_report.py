from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from boltz_mesh.app.demo import charts, page
from boltz_mesh.app.demo.report import (
    Report,
    result_of,
    to_json,
    transfer_of,
    write,
)
from boltz_mesh.app.demo.statistics import PairedDifference
from tests.unit.demo import samples

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Checker(HTMLParser):
    """Balance of tags, ids, and everything that could fetch something from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.named: list[str] = []
        self.tags: set[str] = set()
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name == "aria-labelledby":
                self.named += (value or "").split()
            if name in {"src", "href", "xlink:href", "srcset"} or name.startswith("on"):
                self.outside.append(f"{tag} {name}={value}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _checked(report: Report) -> tuple[str, Checker]:
    text = page.render(report)
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    return text, checker


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("rounds", [True, False])
@pytest.mark.parametrize("references", [True, False])
def test_the_page_is_whole_and_needs_nothing_else(
    private: bool, rounds: bool, references: bool
) -> None:
    report = samples.report(private=private, rounds=rounds, references=references)
    text, checker = _checked(report)
    assert checker.outside == []
    assert not checker.tags & {"script", "link", "img", "iframe", "object", "embed"}
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert len(checker.ids) == len(set(checker.ids))
    assert set(checker.named) == set(checker.ids)
    assert not re.findall(r">(nan|inf)<", text)


def test_every_figure_is_well_formed_and_says_what_it_shows() -> None:
    figures = charts.figures(samples.report())
    assert set(figures) == {
        "results",
        "intervals",
        "years",
        "learning",
        "epsilon",
        "seconds",
        "bytes",
    }
    for figure in figures.values():
        root = ET.fromstring(figure)
        assert root.get("role") == "img"
        title, description = root.find("title"), root.find("desc")
        assert title is not None
        assert title.text
        assert description is not None
        assert description.text


def test_marks_stay_inside_the_figure() -> None:
    for figure in charts.figures(samples.report()).values():
        root = ET.fromstring(figure)
        _, _, width, height = (float(part) for part in root.attrib["viewBox"].split())
        for circle in root.iter("circle"):
            assert 0 <= float(circle.attrib["cx"]) <= width
            assert 0 <= float(circle.attrib["cy"]) <= height
        for text in root.iter("text"):
            assert 0 <= float(text.attrib["y"]) <= height


def test_the_page_escapes_what_comes_from_outside() -> None:
    report = samples.report()
    hostile = msgspec.structs.replace(
        report,
        rounds=(msgspec.structs.replace(report.rounds[0], round_id="<script>x</script>"),),
        findings=("<b>bold</b> & more",),
    )
    text, checker = _checked(hostile)
    assert "script" not in checker.tags
    assert "&lt;script&gt;x&lt;/script&gt;" in text
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; more" in text
    assert "the folder &lt;mine&gt;" in text


def test_the_page_says_what_the_numbers_say() -> None:
    text, _ = _checked(samples.report())
    assert "one desk: one stock over one quarter (57 days)" in text
    assert "the desk&#x27;s contribution set to zero" in text
    for number in ("2.00", "3.00", "7.10", "4.40", "0.2390", "± 0.0010"):
        assert number in text
    assert "Said by the accountant." in text
    assert "public_index_all_history" in text
    for words in (
        "57 desks without 3 that collude",
        "5.4% more of it",
        "a vector under &lt;masks&gt;.",
        "10 others, drawn anew",
        "Bell et al. 2020",
        "advertising keys 0.21",
    ):
        assert words in text


def test_a_complete_graph_is_called_one() -> None:
    report = samples.report()
    complete = msgspec.structs.replace(report.sealing, graph="complete", neighbours=19)
    text, _ = _checked(msgspec.structs.replace(report, sealing=complete))
    assert "all 19 others" in text
    assert "Bonawitz et al. 2017" in text


def test_without_noise_no_epsilon_is_claimed() -> None:
    text, _ = _checked(samples.report(private=False))
    assert "no epsilon is claimed" in text
    assert "epsilon at delta" not in text


def test_the_network_is_called_one_and_worse_is_called_above() -> None:
    report = samples.report()
    network = msgspec.structs.replace(
        report,
        settings=msgspec.structs.replace(report.settings, model="mlp", seeds=()),
        intervals=(samples.interval("federated", "ewma", -0.03, -0.02, -0.01),),
    )
    text, _ = _checked(network)
    assert "trained one network model" in text
    assert "error of federated above ewma" in text


def test_many_rounds_are_cut_in_the_page_but_not_in_the_file() -> None:
    report = samples.report()
    many = tuple(samples.record("federated", number) for number in range(1, 602))
    long = msgspec.structs.replace(report, rounds=many)
    text, _ = _checked(long)
    assert text.count("round-federated-") == page.MAX_ROUNDS_SHOWN
    assert len(json.loads(to_json(long))["rounds"]) == 601


def test_a_run_that_measured_no_round_has_no_learning_figure() -> None:
    rounds = (samples.record("federated", 1, test_mse=None),)
    assert charts.learning_chart(rounds, 0.25) is None
    drawn = charts.learning_chart((samples.record("federated", 1),), None)
    assert drawn is not None


def test_the_file_has_the_promised_shape(tmp_path: Path) -> None:
    report = samples.report()
    json_path, html_path = write(report, tmp_path / "new" / "folder", page.render(report))
    assert html_path.read_text().startswith("<!doctype html>")
    found = json.loads(json_path.read_bytes())
    assert {"results", "rounds", "privacy", "transfer", "intervals", "settings"} <= set(found)
    assert set(found["results"]["federated_dp"]) == {"mse_mean", "mse_sd", "seeds"}
    assert found["results"]["federated_dp"]["seeds"] == 3
    assert found["results"]["ewma"] == {
        "mse_mean": pytest.approx(0.276),
        "mse_sd": None,
        "seeds": 0,
    }
    assert {"round_id", "model_id", "version", "model_digest", "seconds", "bytes_up"} <= set(
        found["rounds"][0]
    )
    assert found["privacy"]["epsilon"] == 2.0
    assert {"mechanism", "unit", "relation", "threshold", "neighbours", "server_saw"} <= set(
        found["privacy"]
    )
    assert found["sealing"]["mode"] == "sealed"
    assert list(found["rounds"][0]["phase_seconds"]) == list(samples.PHASE_SECONDS)
    assert msgspec.json.decode(json_path.read_bytes(), type=Report) == report


def test_one_seed_has_no_spread_but_is_a_seed() -> None:
    one = result_of([samples.table(0.25)], random=True)
    assert (one.mse_sd, one.seeds) == (None, 1)
    two = result_of([samples.table(0.25), samples.table(0.27)], random=True)
    assert two.mse_sd == pytest.approx(0.0141, abs=1e-4)


def test_transfer_sums_what_went_over_the_wire() -> None:
    rounds = tuple(samples.record("federated", number) for number in range(1, 4))
    moved = transfer_of(rounds)
    assert moved.bytes_up == 3 * 60 * 2000
    assert moved.bytes_up_per_client_round == pytest.approx(60 * 2000 / 59)
    assert moved.bytes_down_per_client_round == 3000
    assert moved.seconds_per_round_median == pytest.approx(0.7)
    assert transfer_of(()).seconds_per_round_max == 0.0


def test_phases_have_their_medians_in_the_order_of_a_round() -> None:
    seen = [samples.record("federated", number) for number in range(1, 4)]
    # What is over at once is not seen by whoever watches.
    brief = msgspec.structs.replace(seen[0], phase_seconds={"collecting": 0.5})
    slow = msgspec.structs.replace(seen[1], phase_seconds=samples.PHASE_SECONDS | {"unmasking": 9})
    medians = transfer_of((brief, slow, seen[2])).phase_seconds_median
    assert list(medians) == list(samples.PHASE_SECONDS)
    assert medians["collecting"] == 0.3
    assert medians["unmasking"] == pytest.approx((9 + 0.05) / 2)
    assert transfer_of(()).phase_seconds_median == {}


def test_intervals_carry_every_field() -> None:
    names = {field.name for field in dataclasses.fields(PairedDifference)}
    assert names == set(samples.interval("a", "b", 0, 0, 0).__struct_fields__)


@pytest.mark.parametrize(
    ("size", "words"), [(12, "12 bytes"), (2048, "2.0 KiB"), (3 * 1024**2, "3.0 MiB")]
)
def test_sizes_are_for_people(size: int, words: str) -> None:
    assert page._size(size) == words
