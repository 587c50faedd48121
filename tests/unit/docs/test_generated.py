"""The generated parts of the pages say what the code says today."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from boltz_mesh.rounds.plan import plan_from_toml
from boltz_mesh.services.access import ACCESS
from boltz_protocol.errors import MeshError
from tools import make_docs


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    for page, _ in make_docs.PARTS.values():
        shutil.copy(make_docs.DOCS / page, tmp_path / page)
    return tmp_path


def test_the_pages_are_up_to_date() -> None:
    behind = [page.path.name for page in make_docs.pages() if page.present != page.wanted]
    assert not behind, f"run tools/make_docs.py: {behind}"


def test_a_page_that_is_behind_is_found_and_mended(
    copies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = copies / "plan.md"
    page.write_text(page.read_text("utf-8").replace("| `clip_norm` |", "| `clip` |"), "utf-8")
    assert make_docs.main(["--check"], copies) == 1
    assert "plan.md is behind" in capsys.readouterr().err
    assert make_docs.main([], copies) == 0
    assert make_docs.main(["--check"], copies) == 0
    assert page.read_text("utf-8") == (make_docs.DOCS / "plan.md").read_text("utf-8")


def test_a_page_without_its_marks_is_refused(copies: Path) -> None:
    (copies / "plan.md").write_text("# The plan\n", "utf-8")
    with pytest.raises(ValueError, match="generated: plan settings"):
        make_docs.main(["--check"], copies)


def test_every_error_stands_in_the_table() -> None:
    text = make_docs.errors()
    reasons = {kind.reason for kind in make_docs._kinds(MeshError)}
    assert len(reasons) > 25
    assert all(f"| `{reason}` |" in text for reason in reasons)


def test_every_method_stands_in_the_table() -> None:
    text = make_docs.access()
    assert text.count("| `") == len(ACCESS)
    assert "| `StartRound` |  | yes |  |" in text
    assert "| `Participate` | yes |  |  |" in text


def test_the_example_in_the_page_is_a_sound_plan() -> None:
    text = (make_docs.DOCS / "plan.md").read_text("utf-8")
    assert plan_from_toml(text.split("```toml\n")[1].split("```")[0])


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"enum": ["a", "b"]}, '`"a"`, `"b"`'),
        ({"minimum": 1}, "at least 1"),
        ({"exclusiveMinimum": 0}, "above 0"),
        ({"minimum": 0, "maximum": 2.0**30}, "0 to 2^30"),
        ({"exclusiveMinimum": 0, "maximum": 1}, "above 0 to 1"),
        ({"type": "array"}, "list"),
        ({"type": "string", "minLength": 1, "maxLength": 200}, "text of 1 to 200 characters"),
        ({"anyOf": [{"minimum": 1, "maximum": 512}, {"type": "null"}]}, "1 to 512"),
        ({"type": "null"}, "number"),
        ({"anyOf": [{"minimum": 1, "maximum": 5}, {"type": "null"}]}, "1 to 5"),
        ({"minimum": 0, "exclusiveMaximum": 1}, "0 to below 1"),
    ],
)
def test_ranges_in_words(known: dict[str, object], words: str) -> None:
    assert make_docs._values(known) == words
