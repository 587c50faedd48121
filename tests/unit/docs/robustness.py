"""The tables of docs/robustness.md, made from the results beside it; run it to renew them.

python -m tests.unit.docs.robustness
"""

from __future__ import annotations

import re
from pathlib import Path

from boltz_mesh.app.simulate.display import cell_text, share_text
from boltz_mesh.app.simulate.report import Report, from_json
from tests.support.repository import ROOT

PAGE = ROOT / "docs" / "robustness.md"
RESULTS = ROOT / "docs" / "robustness"
NAMES = ("open", "grouped", "open-noise", "grouped-noise", "grouped-noise-12", "sealed")
_PART = re.compile(r"(<!-- results: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def result(name: str) -> Report:
    return from_json((RESULTS / f"{name}.json").read_bytes())


def matrix(report: Report) -> str:
    """Attacks by rules; in bold what misses a goal."""
    lines = [
        "| attack | plain mean | " + " | ".join(report.rules) + " | weight at the end | out |",
        "| --- |" + " ---: |" * (len(report.rules) + 3),
    ]
    for attack in report.attacks:
        cells = [report.cell(attack, rule) for rule in report.rules]
        shown = [_shown(cell_text(cell)) for cell in cells]
        first = cells[0]
        plain = share_text(first.plain_kept)
        last = ["", ""] if attack == "none" else [f"{first.share:.1%}", f"{first.out:.1f}"]
        lines.append("| " + " | ".join([attack, plain, *shown, *last]) + " |")
    made = f"Made on {report.date} by `{report.command}`: EWMA {report.cells[0].ewma:.4f}, clean "
    return f"{made}{report.cells[0].clean:.4f}.\n\n" + "\n".join(lines) + "\n"


def renewed(text: str) -> str:
    """The page with all of its tables made anew."""

    def part(found: re.Match[str]) -> str:
        return f"{found[1]}\n{matrix(result(found[2]))}\n{found[3]}"

    return _PART.sub(part, text)


def parts(text: str) -> list[str]:
    """Names of the results that the page shows."""
    return [found[2] for found in _PART.finditer(text)]


def _shown(text: str) -> str:
    return f"**{text.removesuffix(' *')}**" if text.endswith(" *") else text


def main(page: Path = PAGE) -> None:
    page.write_text(renewed(page.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
