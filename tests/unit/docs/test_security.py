"""docs/security.md names tests that exist; docs/operator.md knows every phase and abort reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from boltz_mesh.rounds.state import AbortReason, Phase
from boltz_protocol.secagg.graph import parameters
from tests.support.repository import ROOT

SECURITY = (ROOT / "docs" / "security.md").read_text("utf-8")
OPERATOR = (ROOT / "docs" / "operator.md").read_text("utf-8")
#: Figures in pages: members, neighbours, threshold at fractions 0.05 and 0.1.
FIGURES = re.compile(r"^\| (\d+) \| (\d+|all) \| (\d+) \|", re.MULTILINE)


def claims() -> list[tuple[str, list[Path]]]:
    """Each claim, and the files that are said to hold it; a bare name is beside the one before."""
    table = SECURITY.split("## Claims, and what holds them")[1].split("\n## ")[0]
    found = []
    for claim, held in re.findall(r"^\| (.+?) \| (`.+?) \|$", table, re.MULTILINE):
        files: list[Path] = []
        for name in re.findall(r"`([^`]+)`", held):
            folder = ROOT / "tests" if "/" in name else files[-1].parent
            files.append(folder / name)
        found.append((claim, files))
    return found


def test_there_are_claims() -> None:
    assert len(claims()) > 15


@pytest.mark.parametrize(("claim", "files"), claims(), ids=lambda value: str(value)[:60])
def test_what_holds_a_claim_is_there(claim: str, files: list[Path]) -> None:
    assert files, claim
    for path in files:
        assert re.search(r"^(async )?def test_", path.read_text("utf-8"), re.MULTILINE), path


def test_papers_that_are_named_are_listed() -> None:
    text, papers = " ".join(SECURITY.split("## Papers")[0].split()), SECURITY.split("## Papers")[1]
    papers = papers.split("\n## ")[0]
    listed = re.findall(r"^- (\w+),[^.]*? (\d{4})\.", papers, re.MULTILINE)
    assert len(listed) > 8
    named = set(re.findall(r"\(?([A-Z]\w+)(?: et al\.| and \w+|, \w+, \w+)? (20\d\d)", text))
    assert named == set(listed)


def test_dimensions_that_are_printed_are_the_codes() -> None:
    rows = FIGURES.findall(SECURITY)
    assert len(rows) == 3
    for members, neighbours, threshold in rows:
        count = int(members)
        expected = parameters(count, 0.05, 0.1)
        assert expected.threshold == int(threshold)
        assert expected.neighbours == (count - 1 if neighbours == "all" else int(neighbours))


def test_an_operator_finds_every_phase_and_every_reason() -> None:
    text = OPERATOR.split("## Rounds")[1].split("\n## ")[0]
    for phase in Phase:
        assert f"`{phase.lower()}`" in text, phase
    for reason in AbortReason:
        assert re.search(rf"^\|[^|]*`{reason}[`:]", text, re.MULTILINE), reason
