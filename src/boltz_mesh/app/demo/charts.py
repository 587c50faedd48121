"""The report's figures, each from the report's own numbers, as inline SVG."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Final

from boltz_mesh.app.demo.report import ROW_WORDS, Interval, Privacy, Report, Result, RoundRecord
from boltz_mesh.app.demo.settings import SCOPE
from boltz_mesh.app.figures.svg import WIDTH, Drawing, Scale, padded, spread, ticks

#: Lines of the figure by year: what a reader compares; more lines would hide each other.
YEAR_ROWS: Final = ("ewma", "best_local", "public_index", "federated", "federated_dp")
#: Beyond this many years there is no room for a number under each.
MAX_YEAR_LABELS: Final = 12
#: Beyond this many rounds the dots get smaller.
MANY_ROUNDS: Final = 100

_LEFT: Final = 300.0
_RIGHT: Final = WIDTH - 66


def kind_of(row: str) -> str:
    """The CSS class of a row: what the mesh made stands out from the references."""
    if row == "federated_dp":
        return "dp"
    if row == "federated":
        return "fed"
    if row in {"best_local", "best_local_any_strength", "cold_start_best_local", "ewma_own_bias"}:
        return "local"
    return "public" if row.startswith("public") else "plain"


def results_chart(results: Mapping[str, Result]) -> str:
    """A dot for each row, least error on top, with the spread over noise seeds."""
    rows = sorted(results.items(), key=lambda item: item[1].mse_mean)
    ends = [r.mse_mean + sign * (r.mse_sd or 0.0) for _, r in rows for sign in (-1, 1)]
    top, step = 12.0, 34.0
    bottom = top + step * len(rows)
    best = rows[0][0]
    drawing = Drawing(
        "results",
        "Mean squared error of each forecast",
        f"{len(rows)} rows from {min(ends):.4f} to {max(ends):.4f}; the least error has "
        f"{ROW_WORDS.get(best, best)}. The table below has every number.",
        bottom + 46,
    )
    scale = Scale(*padded(ends), _LEFT, _RIGHT)
    drawing.x_axis(scale, top, bottom, "mean squared error (smaller is better)", 3)
    for position, (name, result) in enumerate(rows):
        y = top + step * (position + 0.5)
        css, x = kind_of(name), scale(result.mse_mean)
        spread = "" if result.mse_sd is None else f" ± {result.mse_sd:.4f} over seeds"
        drawing.text(_LEFT - 16, y - 1, ROW_WORDS.get(name, name), f"label {css}", "end")
        drawing.text(_LEFT - 16, y + 12, name, "code", "end")
        # The axis does not start at zero, so the guide says nothing about size.
        drawing.line(_LEFT, y, _RIGHT, y, "guide")
        if result.mse_sd is not None:
            left, right = (scale(result.mse_mean + s * result.mse_sd) for s in (-1, 1))
            drawing.line(left, y, right, y, f"whisker {css}")
            for end in (left, right):
                drawing.line(end, y - 5, end, y + 5, f"whisker {css}")
        drawing.circle(x, y, 6, f"dot {css}", f"{name}: {result.mse_mean:.4f}{spread}")
        drawing.text(_RIGHT + 10, y + 4, f"{result.mse_mean:.4f}", "value")
    return drawing.render()


def intervals_chart(intervals: Sequence[Interval]) -> str:
    """Paired differences with their intervals; right of zero the first-named row is better."""
    top, step = 12.0, 40.0
    bottom = top + step * len(intervals)
    drawing = Drawing(
        "intervals",
        "Paired differences of error with 95% intervals",
        "Right of zero the first-named forecast has the smaller error. "
        + " ".join(f"{i.better} against {i.worse}: {i.mean:+.4f}." for i in intervals),
        bottom + 46,
    )
    low, high = padded([0.0, *(e for i in intervals for e in (i.low, i.high))])
    scale = Scale(low, high, _LEFT, _RIGHT)
    drawing.x_axis(scale, top, bottom, "error saved (to the right: first-named is better)", 3)
    drawing.line(scale(0.0), top, scale(0.0), bottom, "zero")
    for position, interval in enumerate(intervals):
        y = top + step * (position + 0.5)
        css = kind_of(interval.better)
        drawing.text(_LEFT - 16, y - 1, interval.better, f"label {css}", "end")
        drawing.text(_LEFT - 16, y + 13, f"against {interval.worse}", "code", "end")
        drawing.line(scale(interval.low), y, scale(interval.high), y, f"whisker {css}")
        for end in (interval.low, interval.high):
            drawing.line(scale(end), y - 5, scale(end), y + 5, f"whisker {css}")
        words = f"{interval.mean:+.4f}, 95% {interval.low:+.4f} to {interval.high:+.4f}"
        drawing.circle(scale(interval.mean), y, 6, f"dot {css}", words)
        drawing.text(_RIGHT + 10, y + 4, f"{100 * interval.relative:+.1f}%", "value")
    return drawing.render()


def years_chart(by_year: Mapping[str, Mapping[str, float]]) -> str:
    """Error by year for the rows that a reader compares; a line through the years."""
    rows = [row for row in YEAR_ROWS if row in by_year]
    years = list(by_year[rows[0]])
    values = [by_year[row][year] for row in rows for year in years]
    left, right, top, bottom = 56.0, WIDTH - 132, 34.0, 300.0
    drawing = Drawing(
        "years",
        "Mean squared error by tested year",
        f"{', '.join(rows)} over {years[0]} to {years[-1]}; the table has every number.",
        bottom + 28,
    )
    y_scale = Scale(*padded(values), bottom, top)
    drawing.y_axis(y_scale, left, right, "mean squared error", 2)
    x_scale = Scale(0, max(1, len(years) - 1), left + 16, right - 16)
    every = -(-len(years) // MAX_YEAR_LABELS)
    for position, year in enumerate(years):
        if position % every == 0:
            drawing.text(x_scale(position), bottom + 20, year, "tick", "middle")
    ends = []
    for row in rows:
        points = [(x_scale(i), y_scale(by_year[row][year])) for i, year in enumerate(years)]
        drawing.path(points, f"series {kind_of(row)} s-{row}")
        for (x, y), year in zip(points, years, strict=True):
            drawing.circle(
                x, y, 4, f"dot {kind_of(row)}", f"{row} {year}: {by_year[row][year]:.4f}"
            )
        ends.append((points[-1][1], row))
    for y, row in spread(ends):
        drawing.text(right - 2, y + 4, row, f"label {kind_of(row)}")
    return drawing.render()


def learning_chart(rounds: Sequence[RoundRecord], start: float | None) -> str | None:
    """Error of the model published by each round, mean over origins and seeds."""
    errors: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in rounds:
        if record.test_mse is not None:
            errors[record.row][record.number].append(record.test_mse)
    if not errors:
        return None
    series = {
        row: [(number, fmean(found)) for number, found in sorted(by.items())]
        for row, by in sorted(errors.items())
    }
    if start is not None:
        series = {row: [(0, start), *points] for row, points in series.items()}
    values = [value for points in series.values() for _, value in points]
    last = max(number for points in series.values() for number, _ in points)
    left, right, top, bottom = 56.0, WIDTH - 132, 34.0, 250.0
    drawing = Drawing(
        "learning",
        "Error of the published model after each round",
        "Mean over origins and noise seeds. Round 0 is the public start. "
        + " ".join(f"{row} ends at {points[-1][1]:.4f}." for row, points in series.items()),
        bottom + 46,
    )
    y_scale = Scale(*padded(values), bottom, top)
    drawing.y_axis(y_scale, left, right, "mean squared error on the tested year", 3)
    x_scale = Scale(0, max(1, last), left + 16, right - 16)
    for number in range(0, last + 1, max(1, last // 10)):
        drawing.text(x_scale(number), bottom + 18, str(number), "tick", "middle")
    drawing.text((left + right) / 2, bottom + 38, "round", "axis-name", "middle")
    ends = []
    for row, numbers in series.items():
        points = [(x_scale(number), y_scale(value)) for number, value in numbers]
        drawing.path(points, f"series {kind_of(row)} s-{row}")
        for (x, y), (number, value) in zip(points, numbers, strict=True):
            drawing.circle(x, y, 4, f"dot {kind_of(row)}", f"{row}, round {number}: {value:.4f}")
        ends.append((points[-1][1], row))
    for y, row in spread(ends):
        drawing.text(right - 2, y + 4, row, f"label {kind_of(row)}")
    return drawing.render()


def epsilon_chart(privacy: Privacy) -> str:
    """Epsilon spent after each round of one training run."""
    spent = privacy.epsilon_by_round
    left, right, top, bottom = 56.0, WIDTH - 16, 34.0, 200.0
    drawing = Drawing(
        "epsilon",
        "Epsilon spent after each round of a training run",
        f"Epsilon {SCOPE}: " + ", ".join(f"{value:.2f}" for value in spent) + ".",
        bottom + 46,
    )
    scale = Scale(0.0, max(spent) * 1.12, bottom, top)
    drawing.y_axis(scale, left, right, f"epsilon {SCOPE}", 1)
    slot = (right - left) / len(spent)
    width = min(64.0, slot * 0.6)
    for position, value in enumerate(spent):
        center = left + slot * (position + 0.5)
        tip = f"after round {position + 1}: epsilon {value:.3f} {SCOPE}"
        top_y = scale(value)
        drawing.rect(
            center - width / 2, top_y, width=width, height=bottom - top_y, css="bar dp", tip=tip
        )
        drawing.text(center, scale(value) - 7, f"{value:.2f}", "value", "middle")
        drawing.text(center, bottom + 18, str(position + 1), "tick", "middle")
    drawing.text((left + right) / 2, bottom + 38, "round", "axis-name", "middle")
    return drawing.render()


def seconds_chart(rounds: Sequence[RoundRecord]) -> str:
    """Seconds of each round, in the order in which they ran."""
    marks = [(_named(record, f"{record.seconds:.2f} s"), record.seconds) for record in rounds]
    return _per_round("seconds", "Seconds of each round", "seconds", {"fed": marks}, 2)


def bytes_chart(rounds: Sequence[RoundRecord]) -> str:
    """KiB up and down in each round, all clients together."""
    up = [(_named(r, f"{r.bytes_up / 1024:,.0f} KiB up"), r.bytes_up / 1024) for r in rounds]
    down = [
        (_named(r, f"{r.bytes_down / 1024:,.0f} KiB down"), r.bytes_down / 1024) for r in rounds
    ]
    title = "KiB sent in each round, all clients together"
    return _per_round("bytes", title, "KiB", {"up": up, "down": down}, 0)


def figures(report: Report) -> dict[str, str]:
    """Every figure that the report has numbers for, by name."""
    made = {"results": results_chart(report.results)}
    if report.intervals:
        made["intervals"] = intervals_chart(report.intervals)
    if any(row in report.by_year for row in YEAR_ROWS):
        made["years"] = years_chart(report.by_year)
    start = report.results.get("public_start")
    learning = learning_chart(report.rounds, None if start is None else start.mse_mean)
    if learning is not None:
        made["learning"] = learning
    if report.privacy is not None and report.privacy.epsilon_by_round:
        made["epsilon"] = epsilon_chart(report.privacy)
    if report.rounds:
        made["seconds"] = seconds_chart(report.rounds)
        made["bytes"] = bytes_chart(report.rounds)
    return made


def _per_round(
    name: str,
    title: str,
    unit: str,
    series: Mapping[str, Sequence[tuple[str, float]]],
    places: int,
) -> str:
    """Dots over the sequence of rounds, from zero: CSS class -> (tooltip, value) a round."""
    values = [value for marks in series.values() for _, value in marks]
    count = max(len(marks) for marks in series.values())
    left, right, top, bottom = 56.0, WIDTH - 16, 34.0, 190.0
    low, high = min(values), max(values)
    drawing = Drawing(
        name, title, f"From {low:,.{places}f} to {high:,.{places}f} {unit}.", bottom + 46
    )
    scale = Scale(0.0, high * 1.1 or 1.0, bottom, top)
    drawing.y_axis(scale, left, right, unit, places)
    x_scale = Scale(1, max(2, count), left + 12, right - 12)
    radius, size = (4.0, "") if count <= MANY_ROUNDS else (2.0, " small")
    for css, marks in series.items():
        for position, (tip, value) in enumerate(marks, start=1):
            drawing.circle(x_scale(position), scale(value), radius, f"dot {css}{size}", tip)
    for value in ticks(1, max(2, count), 8):
        if value == int(value):
            drawing.text(x_scale(value), bottom + 18, f"{value:.0f}", "tick", "middle")
    drawing.text((left + right) / 2, bottom + 38, "rounds in order", "axis-name", "middle")
    return drawing.render()


def _named(record: RoundRecord, value: str) -> str:
    """A round's tooltip."""
    seed = "" if record.seed is None else f", seed {record.seed}"
    return f"{record.row} {record.origin}{seed}, round {record.number}: {value}"
