"""The plan as one file that needs nothing else: an HTML page, or the two figures as one SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from boltz_mesh.app.budget_plan.charts import epsilon_chart, error_chart
from boltz_mesh.app.budget_plan.words import (
    comparison_rows,
    epsilon_rows,
    error_rows,
    fields,
    plan_toml,
    scope,
    title,
)
from boltz_mesh.app.figures import figure_style, page_style
from boltz_mesh.app.figures.svg import WIDTH
from boltz_mesh.privacy.composition import Comparison
from boltz_mesh.privacy.planning import Outlook
from boltz_mesh.privacy.tradeoff import Tradeoff, drawn_tradeoff

# A standalone figure: margin, title and one drawing.
_MARGIN: Final = 24
_BAND: Final = 400


def html(outlook: Outlook, tradeoff: Tradeoff, comparison: Comparison | None) -> str:
    """The whole page as UTF-8 text."""
    drawn = drawn_tradeoff(outlook)
    named = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>"
        for name, value in fields(outlook)
    )
    sections = [
        _section("The answer", f"<table>{named}</table>{_settings(outlook)}"),
        _section(
            "Epsilon against rounds",
            f"{epsilon_chart(outlook, drawn)}"
            f"<p class='note'>Epsilon {escape(scope(outlook))}, as the ledger charges a client in "
            "all rounds. z is the noise multiplier; * marks the answer's rounds.</p>"
            f"{_table(*epsilon_rows(outlook, tradeoff))}",
        ),
        _section(
            "Expected error against cohort",
            f"{error_chart(outlook, drawn)}"
            "<p class='note'>Of the mean of one round over clients of equal weight: the standard "
            "deviation in each coordinate / the expected L2 norm, over the clip norm. Clients of "
            "lower weight move the sum less, and leave a noisier mean. * marks the answer's "
            f"cohort.</p>{_table(*error_rows(outlook, tradeoff))}",
        ),
    ]
    if comparison is not None:
        sections.append(
            _section(
                "Other ways of adding up",
                f"<p class='note'>Epsilon of the same rounds, {escape(scope(outlook))}.</p>"
                f"{_table(['way', '>epsilon'], comparison_rows(comparison))}",
            )
        )
    head = escape(title(outlook))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{head}</title><style>{page_style()}</style></head><body>"
        f"<header><h1>{head[0].upper()}{head[1:]}</h1></header><main>{''.join(sections)}</main>"
        "</body></html>\n"
    )


def svg(outlook: Outlook) -> str:
    """Both figures, one below the other, as a file of its own."""
    drawn = drawn_tradeoff(outlook)
    figures = {
        "Epsilon against rounds": epsilon_chart(outlook, drawn),
        "Expected error against cohort": error_chart(outlook, drawn),
    }
    width, height = WIDTH + 2 * _MARGIN, len(figures) * _BAND + _MARGIN
    parts = []
    for position, (name, figure) in enumerate(figures.items()):
        top = _MARGIN + position * _BAND
        parts.append(
            f'<text x="{_MARGIN}" y="{top + 12}" class="label">{name}</text>'
            f'<svg x="{_MARGIN}" y="{top + 24}" width="{WIDTH:g}" height="{_BAND - 40}">'
            f"{figure}</svg>"
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" '
        f'width="{width:g}" height="{height}" class="figure">'
        f"<title>{escape(title(outlook))}</title><style>{figure_style()}</style>"
        f'<rect width="100%" height="100%" fill="var(--card)"/>{"".join(parts)}</svg>\n'
    )


def _settings(outlook: Outlook) -> str:
    if outlook.federation.sampling_rate < 1:
        return ""
    return f"<h3>For plan.toml</h3><pre><code>{escape(plan_toml(outlook))}</code></pre>"


def _section(name: str, body: str) -> str:
    return f"<section><h2>{name}</h2>{body}</section>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    kinds = [' class="n"' if column.startswith(">") else "" for column in columns]
    head = "".join(
        f"<th{kind}>{escape(column.lstrip('>'))}</th>"
        for kind, column in zip(kinds, columns, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{k}>{escape(cell)}</td>" for k, cell in zip(kinds, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
