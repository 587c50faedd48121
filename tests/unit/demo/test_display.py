from __future__ import annotations

import io

import msgspec
from rich.console import Console

from boltz_mesh.app.demo.display import (
    Display,
    opening_line,
    privacy_lines,
    round_line,
    sealing_lines,
    wire_lines,
)
from boltz_mesh.app.demo.options import DemoOptions, task_for
from boltz_mesh.app.demo.settings import Calendar
from tests.support.epsilons import check_text
from tests.unit.demo import samples

CALENDAR = Calendar((1991, 1998), tuple(range(1999, 2023)), tuple(range(1999, 2009)))


def shown(terminal: bool) -> tuple[Display, io.StringIO]:
    output = io.StringIO()
    return Display(Console(file=output, force_terminal=terminal, width=140)), output


def test_the_table_has_every_row_and_the_epsilon_its_unit_and_relation() -> None:
    display, output = shown(terminal=False)
    report = samples.report()
    display.show(report)
    text = output.getvalue()
    assert check_text(text) >= 1
    for name, result in report.results.items():
        assert any(
            line.startswith(name) and f"{result.mse_mean:.4f}" in line for line in text.splitlines()
        )
    assert report.privacy is not None
    for words in (
        report.privacy.unit,
        report.privacy.relation,
        "distributed discrete Gaussian",
        "57 desks without 3",
        *samples.SAW,
        *report.findings,
        *report.caveats,
    ):
        assert words in text


def test_without_noise_no_epsilon_is_claimed() -> None:
    assert privacy_lines(None) == ("No noise was added, so no epsilon is claimed.",)


def test_what_the_rounds_withstand_is_told() -> None:
    first, second, *saw = sealing_lines(samples.sealing())
    assert "masks with 10 others" in first
    assert "7 of them must help" in first
    assert "fewer than 57 of 60 desks" in second
    assert tuple(saw) == samples.SAW
    complete = msgspec.structs.replace(samples.sealing(), graph="complete", neighbours=19)
    assert "all 19 others" in sealing_lines(complete)[0]


def test_phases_are_told_where_they_were_seen() -> None:
    record = samples.report().rounds[0]
    line = round_line(record, 1, 2)
    assert "(keys 0.41, updates 0.30, unmasking 0.15)" in line
    unseen = msgspec.structs.replace(record, phase_seconds={})
    assert "(" not in round_line(unseen, 1, 2)
    assert "advertising keys 0.21 s" in wire_lines(samples.report())[-1]
    assert len(wire_lines(samples.report(rounds=False))) == 3


def test_a_terminal_shows_the_phases_of_the_rounds_that_run() -> None:
    for terminal in (False, True):
        display, output = shown(terminal)
        with display.rounds(2):
            display.phase("vol-2019", "unmasking")
            display.phase("vol-2020", "sharing_keys")
            display.say("a line, with which the bar is drawn anew")
        seen = "vol-2019: unmasking, vol-2020: sharing keys" in " ".join(output.getvalue().split())
        assert seen == terminal


def test_rounds_are_lines_where_there_is_no_terminal() -> None:
    for terminal in (False, True):
        display, output = shown(terminal)
        record = samples.report().rounds[0]
        with display.rounds(2):
            display.round_done(record)
        assert round_line(record, 1, 2).split()[1] == "1/2"
        assert record.model_id in output.getvalue()


def test_the_opening_says_what_will_run() -> None:
    stocks = tuple(f"S{i}" for i in range(20))
    line = opening_line(task_for(DemoOptions(), stocks, CALENDAR))
    assert "60 desks (3 each)" in line
    assert "64 rounds" in line
    network = opening_line(task_for(DemoOptions(model="mlp", origins="2022"), stocks, CALENDAR))
    assert "1 tested year, without noise" in network
