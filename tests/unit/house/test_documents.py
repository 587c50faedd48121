"""What the documents promise exists: make targets, files behind links, decision records."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.repository import ROOT, documents, project

DECISIONS = ROOT / "docs" / "decisions"
#: Headings that a decision record has, in this order.
DECISION_PARTS = ("## Context", "## Decision", "## Consequences")


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text("utf-8")
    return set(re.findall(r"^([a-z][a-z-]*):(?!=)", text, re.MULTILINE))


def test_the_expected_targets_exist() -> None:
    expected = {
        "setup",
        "demo",
        "test",
        "test-system",
        "check",
        "coverage",
        "bench",
        "stubs",
        "help",
    }
    assert expected <= make_targets()


def test_every_target_is_phony_and_explained() -> None:
    text = (ROOT / "Makefile").read_text("utf-8")
    for target in make_targets():
        assert f".PHONY: {target}\n" in text, target
        assert re.search(rf"^{target}:.* ## \w", text, re.MULTILINE), f"{target} has no help text"


def test_every_target_but_help_and_clean_sets_up_first() -> None:
    text = (ROOT / "Makefile").read_text("utf-8")
    for target in make_targets() - {"help", "clean"}:
        assert re.search(rf"^{target}: \$\(STAMP\)", text, re.MULTILINE), target


def test_targets_named_in_documents_exist() -> None:
    targets = make_targets()
    missing = [
        f"{page.relative_to(ROOT)}: make {target}"
        for page in documents()
        for target in re.findall(
            r"(?:`|^\s*\$? *)make ([a-z][a-z-]*)", page.read_text("utf-8"), re.MULTILINE
        )
        if target not in targets
    ]
    assert not missing, missing


def test_relative_links_lead_somewhere() -> None:
    dead = []
    for page in documents():
        text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            elsewhere = "://" in link or link.startswith("mailto:")
            if not elsewhere and not (page.parent / link).exists():
                dead.append(f"{page.relative_to(ROOT)}: {link}")
    assert not dead, dead


def test_ci_runs_what_a_person_runs() -> None:
    text = (ROOT / ".ci" / "run").read_text("utf-8")
    for target in ("check", "test", "test-system", "demo-short"):
        assert re.search(rf"^make {target}$", text, re.MULTILINE), target


@pytest.mark.parametrize("script", sorted([ROOT / ".ci" / "run", *(ROOT / "tools").glob("*.sh")]))
def test_scripts_are_strict_executable_and_parse(script: Path) -> None:
    text = script.read_text("utf-8")
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=10)


def test_decisions_are_numbered_without_gaps() -> None:
    records = sorted(DECISIONS.glob("[0-9]*.md"))
    numbers = [int(path.name[:4]) for path in records]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("record", sorted(DECISIONS.glob("[0-9]*.md")), ids=lambda path: path.stem)
def test_a_decision_has_its_form_and_is_listed(record: Path) -> None:
    text = record.read_text("utf-8")
    assert text.startswith(f"# {int(record.name[:4])}. ")
    assert re.search(r"^Date: \d{4}-\d{2}-\d{2}\. Status: \w", text, re.MULTILINE)
    places = [text.find(part) for part in DECISION_PARTS]
    assert -1 not in places, f"needs {DECISION_PARTS}"
    assert places == sorted(places)
    assert f"]({record.name})" in (DECISIONS / "README.md").read_text("utf-8")


def test_the_changelog_is_kept() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert "## [Unreleased]" in text


def test_both_distributions_carry_one_version_and_licence() -> None:
    server, client = project("boltz-mesh")["project"], project("boltz-mesh-client")["project"]
    assert server["version"] == client["version"]
    assert f"boltz-mesh-client=={client['version']}" in server["dependencies"]
    assert server["license"] == client["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in text
    assert (ROOT / "client_sdk" / "LICENSE").read_text("utf-8") == text
