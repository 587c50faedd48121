"""The benchmark of the robust rules runs, and streams: memory does not grow with the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[3] / "tools/bench/rules.py"


def run(*arguments: str) -> str:
    command = [sys.executable, str(PROGRAM), "--repeats", "1", *arguments]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


@pytest.mark.parametrize(
    "rule",
    ["coordinate-median", "trimmed-mean", "mixed-trimmed-mean", "multi-krum", "geometric-median"],
)
def test_each_rule_is_measured(rule: str) -> None:
    figures: dict[str, Any] = json.loads(
        run("--clients", "10", "--params", "2000", "--rule", rule, "--json")
    )
    assert (figures["rule"], figures["clients"], figures["byzantine"]) == (rule, 10, 2)
    assert figures["rule_cpu_s"] >= 0
    assert figures["peak_mib"] > 0


def test_memory_is_that_of_a_block() -> None:
    """All of these updates are 200 MB and more."""
    few = json.loads(run("--clients", "20", "--params", "300000", "--json"))
    many = json.loads(run("--clients", "20", "--params", "2600000", "--json"))
    assert many["peak_mib"] < few["peak_mib"] + 60


def test_text_for_people() -> None:
    text = run("--clients", "5", "--params", "10")
    assert "mixed-trimmed-mean, 5 clients of which 1 lie, 10 parameters" in text
