"""`report.html`: one file that needs nothing else, for a person to show to a colleague.

No script, no font, no image from elsewhere; colours follow the reader's light or dark setting;
every figure has a description and a table with its numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Final

from boltz_mesh.app.demo import charts
from boltz_mesh.app.demo.guarantees import counted_on
from boltz_mesh.app.demo.report import ROW_WORDS, Privacy, Report, Sealing
from boltz_mesh.app.demo.settings import SCOPE
from boltz_mesh.app.figures import page_style

#: Shown in the page at most; `report.json` has every round.
MAX_ROUNDS_SHOWN: Final = 500

_LEGEND: Final = (
    ("dp", "through the mesh, masked and noised"),
    ("fed", "through the mesh, masked but without noise"),
    ("local", "one broker's own data"),
    ("public", "public data only"),
    ("plain", "other references"),
)


def render(report: Report) -> str:
    """The whole page as UTF-8 text."""
    figures = charts.figures(report)
    body = "".join(
        [
            _results(report, figures),
            _meaning(report, figures),
            _years(report, figures),
            _training(figures),
            _privacy(report.privacy, figures),
            _sealing(report.sealing),
            _wire(report, figures),
            _settings(report),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>Boltz Mesh demo report</title>"
        f"<style>{page_style()}</style></head><body>{_header(report)}<main>{body}</main>"
        f"<footer>Made by <code>{escape(report.settings.command)}</code>, finished "
        f"{escape(report.settings.finished_at)}. The same numbers stand in "
        "<code>report.json</code> beside this page.</footer></body></html>\n"
    )


def _header(report: Report) -> str:
    s = report.settings
    noise = (
        "without noise"
        if report.privacy is None
        else f"at epsilon {report.privacy.epsilon:.2g} ({SCOPE})"
    )
    lead = (
        f"{s.brokers} brokers, each a process of its own with its own stock's prices, trained one "
        f"{'network' if s.model == 'mlp' else 'linear'} model {noise}. {s.clients} desks (clients) "
        f"took part in {report.transfer.rounds} sealed rounds over mutual TLS, of which the server "
        f"saw sums only; each forecast of the rows <em>federated</em> was made by a model that "
        f"went through the mesh."
    )
    tiles = [_tile(*tile) for tile in _tiles(report)]
    return (
        f'<header><h1>Forecasting volatility together, without sharing data</h1><p class="lead">'
        f'{lead}</p><div class="tiles">{"".join(tiles)}</div></header>'
    )


def _tiles(report: Report) -> Iterable[tuple[str, str, str]]:
    """(number, words, class) of the headline figures that this run has."""
    for interval in report.intervals:
        if interval.better == "federated" and interval.worse in {"ewma", "best_local"}:
            side = "below" if interval.mean >= 0 else "above"
            yield (
                f"{100 * abs(interval.relative):.1f}%",
                f"error of federated {side} {interval.worse}",
                "",
            )
    if report.privacy is not None:
        yield (
            f"{report.privacy.epsilon:.2f}",
            f"epsilon, {SCOPE}",
            "dp",
        )
    yield (
        f"{report.transfer.seconds_per_round_median:.2f} s",
        "median time of a round, training included",
        "",
    )
    yield (
        _size(report.transfer.bytes_up_per_client_round),
        "up from one client in one round",
        "",
    )


def _tile(number: str, words: str, css: str) -> str:
    return f'<div class="tile {css}"><b>{escape(number)}</b><span>{escape(words)}</span></div>'


def _results(report: Report, figures: dict[str, str]) -> str:
    present = {charts.kind_of(name) for name in report.results}
    rows = []
    for name in sorted(report.results, key=_order):
        result = report.results[name]
        spread = "" if result.mse_sd is None else f"± {result.mse_sd:.4f}"
        css = "dp" if name == "federated_dp" else ""
        rows.append(
            f'<tr class="{css}"><td><code>{escape(name)}</code></td>'
            f"<td>{escape(ROW_WORDS.get(name, name))}</td>"
            f'<td class="n">{result.mse_mean:.4f}</td><td class="n">{spread}</td>'
            f'<td class="n">{result.seeds or "–"}</td></tr>'
        )
    years = report.settings.origins
    return _section(
        "Results",
        f"Mean squared error of the forecast log volatility of the next five days, over "
        f"{len(years)} tested years ({min(years)} to {max(years)}) and {report.settings.brokers} "
        "stocks, each retrained in January and tested on the year that follows. Whiskers: spread "
        "over noise seeds.",
        _legend([item for item in _LEGEND if item[0] in present]),
        figures["results"],
        _table(("row", "forecast", ">error", ">over seeds", ">seeds"), rows),
    )


def _order(name: str) -> int:
    names = list(ROW_WORDS)
    return names.index(name) if name in names else len(names)


def _meaning(report: Report, figures: dict[str, str]) -> str:
    rows = [
        f"<tr><td>{escape(i.better)} against {escape(i.worse)}</td>"
        f'<td class="n">{i.mean:+.4f}</td><td class="n">{i.low:+.4f} to {i.high:+.4f}</td>'
        f'<td class="n">{i.years_better} of {i.years}</td>'
        f'<td class="n">{i.stocks_better} of {i.stocks}</td></tr>'
        for i in report.intervals
    ]
    table = _table(("pair", ">error saved", ">95% interval", ">years", ">stocks"), rows)
    chart = figures.get("intervals")
    parts = [] if chart is None else [chart, _details("The numbers", table)]
    return _section(
        "What this shows, and what it does not",
        "Differences are paired: the same days, the same stocks. Intervals come from resampling "
        "whole years and whole stocks.",
        *parts,
        '<div class="two"><div><h3>It shows</h3>',
        _list(report.findings),
        "</div><div><h3>It does not show</h3>",
        _list(report.caveats),
        "</div></div>",
    )


def _years(report: Report, figures: dict[str, str]) -> str:
    if "years" not in figures:
        return ""
    years = list(next(iter(report.by_year.values())))
    names = sorted(report.by_year, key=_order)
    rows = [
        f"<tr><td>{escape(year)}</td>"
        + "".join(f'<td class="n">{report.by_year[name][year]:.4f}</td>' for name in names)
        + "</tr>"
        for year in years
    ]
    table = _table(("year", *(f">{name}" for name in names)), rows)
    return _section("Year by year", "", figures["years"], _details("Every row and year", table))


def _training(figures: dict[str, str]) -> str:
    if "learning" not in figures:
        return ""
    return _section(
        "What each round brought",
        "Each published version was tested afterwards on the year it had never seen; mean over "
        "origins and seeds. Round 0 is the public start.",
        figures["learning"],
    )


def _privacy(privacy: Privacy | None, figures: dict[str, str]) -> str:
    if privacy is None:
        return _section(
            "Privacy",
            "This run added no noise, so no epsilon is claimed. Masks kept each delta from the "
            "server, which saw exact sums: that is confidentiality, not differential privacy.",
        )
    many = privacy.desks_per_broker
    rows = [
        ("one desk, one training run", f"{privacy.epsilon:.2f}"),
        ("a desk that stays for two yearly retrains", f"{privacy.two_retrains_epsilon:.2f}"),
        (f"a broker with {many} desk{'s' if many > 1 else ''}", f"{privacy.broker_epsilon:.2f}"),
        ("one desk's data replaced by other data", f"{privacy.replace_one_epsilon:.2f}"),
    ]
    cells = [
        f'<tr><td>{escape(words)}</td><td class="n">{value}</td></tr>' for words, value in rows
    ]
    return _section(
        "Privacy spent",
        f"Unit: {privacy.unit}. Relation: {privacy.relation}. Discrete Gaussian noise, of which "
        f"each desk adds its share, in {privacy.rounds} rounds; noise multiplier "
        f"{privacy.noise_multiplier:.4g}, delta {privacy.delta:g}. Counted on is "
        f"{counted_on(privacy)}.",
        _table(("protected", ">epsilon"), cells),
        figures.get("epsilon", ""),
        _list(privacy.statements) if privacy.statements else "",
    )


def _sealing(sealing: Sealing) -> str:
    complete = sealing.graph == "complete"
    rows = [
        ("desks", f"{sealing.clients}, of whom at least {sealing.least_survivors} are in a sum"),
        (
            "in collusion with the server, at most",
            f"{100 * sealing.corrupt_fraction:g}%: {sealing.tolerated_colluders} desks "
            f"({sealing.adversary})",
        ),
        ("dropouts, at most", f"{100 * sealing.dropout_fraction:g}%"),
        (
            "a desk masks with",
            f"all {sealing.neighbours} others"
            if complete
            else f"{sealing.neighbours} others, drawn anew for each round",
        ),
        ("shares that unmask", str(sealing.threshold)),
    ]
    cells = [f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows]
    paper = "Bonawitz et al. 2017" if complete else "Bell et al. 2020"
    return _section(
        "What the server saw",
        f"Every round was sealed: masks between the desks cancel in the sum ({paper}).",
        _list(sealing.server_saw),
        _details("What the rounds were made to withstand", _table(("setting", "value"), cells)),
    )


def _wire(report: Report, figures: dict[str, str]) -> str:
    if not report.rounds:
        return ""
    t = report.transfer
    summary = (
        f"{t.rounds} rounds moved {_size(t.bytes_up)} up and {_size(t.bytes_down)} down: "
        f"{_size(t.bytes_up_per_client_round)} up and {_size(t.bytes_down_per_client_round)} down "
        f"for a client and round. Median {t.seconds_per_round_median:.2f} s a round, the slowest "
        f"{t.seconds_per_round_max:.2f} s."
    )
    if t.phase_seconds_median:
        summary += f" Medians by phase: {_phases(t.phase_seconds_median)}."
    rows = [
        f"<tr><td>{escape(r.row)}</td><td>{r.origin}</td>"
        f"<td>{'–' if r.seed is None else r.seed}</td><td>{r.number}</td>"
        f'<td class="n">{r.version}</td><td class="n">{r.survivors} of {r.selected}</td>'
        f'<td class="n">{r.seconds:.2f}</td><td>{escape(_phases(r.phase_seconds))}</td>'
        f'<td class="hash">{escape(r.round_id)}</td>'
        f'<td class="hash">{escape(r.model_digest[:16])}…</td></tr>'
        for r in report.rounds[:MAX_ROUNDS_SHOWN]
    ]
    table = _table(
        (
            *("row", "year", "seed", "round", ">version", ">clients", ">seconds"),
            *("seconds by phase", "round id", "digest"),
        ),
        rows,
    )
    return _section(
        "Over the wire",
        summary,
        figures["seconds"],
        _legend([("up", "up (deltas, encrypted)"), ("down", "down (models, round settings)")]),
        figures["bytes"],
        _details("Every round, with the ids that the model store confirms", table),
    )


def _phases(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {took:.2f}" for name, took in seconds.items())


def _settings(report: Report) -> str:
    s = report.settings
    facts = [
        ("data", s.data_source),
        ("model, trainer", f"{s.model}, {s.trainer}"),
        ("clients", f"{s.clients} desks of {s.brokers} brokers ({s.desks_per_broker} each)"),
        ("rows of a desk", str(s.desk_rows)),
        ("rounds of a training run", str(s.rounds_per_run)),
        ("clip norm C, ridge", f"{s.clip_norm_l2:g}, {s.ridge:g}"),
        ("tested years", ", ".join(map(str, s.origins))),
        ("noise seeds", ", ".join(map(str, s.seeds)) or "none"),
        ("total time", f"{s.total_seconds:.0f} s"),
        *s.versions.items(),
    ]
    rows = [f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts]
    return _section("Settings", "", _table(("setting", "value"), rows))


def _section(title: str, words: str, *parts: str) -> str:
    note = f'<p class="note">{escape(words)}</p>' if words else ""
    return f"<section><h2>{escape(title)}</h2>{note}{''.join(parts)}</section>"


def _legend(items: Sequence[tuple[str, str]]) -> str:
    entries = "".join(
        f'<li><span class="key {css}"></span>{escape(words)}</li>' for css, words in items
    )
    return f'<ul class="legend">{entries}</ul>'


def _list(sentences: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"


def _details(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _table(heads: Sequence[str], rows: Iterable[str]) -> str:
    """Heads that begin with ">" are numbers, set to the right."""
    cells = "".join(
        f'<th scope="col" class="n">{escape(head[1:])}</th>'
        if head.startswith(">")
        else f'<th scope="col">{escape(head)}</th>'
        for head in heads
    )
    return (
        f'<div class="scroll"><table><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _size(size: float) -> str:
    """Bytes for people."""
    for unit, factor in (("MiB", 1024**2), ("KiB", 1024)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size:.0f} bytes"
