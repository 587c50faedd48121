"""The trade-off drawn: epsilon against rounds, and error against cohort, a line for each noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from boltz_mesh.app.budget_plan.words import number, scope
from boltz_mesh.app.figures.svg import WIDTH, Drawing, Scale, spread, ticks
from boltz_mesh.privacy.planning import Outlook
from boltz_mesh.privacy.tradeoff import Tradeoff

#: CSS classes of the lines beside the answer's, from the least noise to the most.
_OTHERS: Final = ("local", "plain", "public", "fed")
#: The vertical axis ends here, over the answer's own figure: lines of less noise leave it.
_TOP: Final = 2.2
#: A level lower than this share of the axis would lie under the lines.
_LEAST_LEVEL: Final = 0.3
_LEFT: Final = 64.0
_RIGHT: Final = WIDTH - 96
_FIRST: Final = 44.0
_LAST: Final = 300.0
_HEIGHT: Final = 350.0

Points = list[tuple[float, float]]


def epsilon_chart(outlook: Outlook, drawn: Tradeoff) -> str:
    """Epsilon after each round for a few noise multipliers; the answer is the dot."""
    own = outlook.epsilon_charged
    finite = [value for values in drawn.epsilons.values() for value in values if value < math.inf]
    top = _TOP * own if math.isfinite(own) else max(finite, default=1.0)
    if outlook.asked_epsilon is not None:
        top = max(top, 1.1 * outlook.asked_epsilon)
    drawing = Drawing(
        "epsilon-by-rounds",
        "Epsilon against rounds",
        f"After {outlook.rounds} rounds at noise multiplier {outlook.noise_multiplier:g} epsilon "
        f"is {number(own)}, {scope(outlook)}. Half the noise costs more than twice of that. The "
        "table has the numbers.",
        _HEIGHT,
    )
    x, y = _scales(0, drawn.rounds[-1], top)
    _axes(drawing, x, y, f"epsilon {scope(outlook)}", "rounds that one client is in")
    if outlook.asked_epsilon is not None:
        level = y(outlook.asked_epsilon)
        drawing.line(_LEFT, level, _RIGHT, level, "zero")
        drawing.text(_LEFT + 6, level - 6, f"allowed: {outlook.asked_epsilon:g}", "value")
    lines = {
        noise: _inside((0, *drawn.rounds), (0.0, *values), top, x, y)
        for noise, values in drawn.epsilons.items()
    }
    _lines(drawing, outlook, lines)
    if math.isfinite(own):
        tip = f"{outlook.rounds} rounds at z = {outlook.noise_multiplier:g}: epsilon {number(own)}"
        drawing.circle(x(outlook.rounds), y(own), 6, "dot dp", tip)
    return drawing.render()


def error_chart(outlook: Outlook, drawn: Tradeoff) -> str:
    """Standard deviation of the noise on a coordinate of the mean, against the cohort."""
    federation = outlook.federation
    own, clip = outlook.error.coordinate_std / federation.clip_norm, federation.clip_norm
    top = _TOP * own
    drawing = Drawing(
        "error-by-cohort",
        "Expected error against cohort",
        f"On a mean over {federation.clients} clients of equal weight the noise has a standard "
        f"deviation of {own:.4g} clip norms in each coordinate; twice the clients halve it. The "
        "table has the numbers.",
        _HEIGHT,
    )
    x, y = _scales(drawn.cohorts[0], drawn.cohorts[-1], top)
    label = "noise on a coordinate of the mean, standard deviation over the clip norm"
    _axes(drawing, x, y, label, "clients in one sum")
    lines = {
        noise: _inside(
            drawn.cohorts[::-1], [e.coordinate_std / clip for e in errors[::-1]], top, x, y
        )[::-1]
        for noise, errors in drawn.errors.items()
    }
    _lines(drawing, outlook, lines)
    level = own / outlook.error.l2_over_clip
    if federation.parameters > 1 and _LEAST_LEVEL * top < level < top:
        drawing.line(_LEFT, y(level), _RIGHT, y(level), "zero")
        words = f"as long as one client's bound, over {federation.parameters:,} parameters"
        drawing.text(_RIGHT, y(level) - 6, words, "value", "end")
    tip = (
        f"{federation.clients} clients at z = {outlook.noise_multiplier:g}: {own:.4g} clip norms "
        f"in each coordinate, {outlook.error.l2_over_clip:.4g} in all"
    )
    drawing.circle(x(federation.clients), y(own), 6, "dot dp", tip)
    return drawing.render()


def _scales(low: float, high: float, top: float) -> tuple[Scale, Scale]:
    return Scale(low, high, _LEFT, _RIGHT), Scale(0.0, top, _LAST, _FIRST)


def _axes(drawing: Drawing, x: Scale, y: Scale, label: str, below: str) -> None:
    steps = ticks(y.low, y.high)
    # As many decimals as tell one grid line from the next.
    places = max(0, -math.floor(math.log10(steps[1] - steps[0]) + 1e-9))
    drawing.y_axis(y, _LEFT, _RIGHT, label, places)
    for value in ticks(x.low, x.high, 8):
        if value == int(value):
            drawing.text(x(value), _LAST + 18, f"{value:,.0f}", "tick", "middle")
    drawing.text((_LEFT + _RIGHT) / 2, _LAST + 38, below, "axis-name", "middle")


def _inside(
    places: Sequence[float], values: Sequence[float], top: float, x: Scale, y: Scale
) -> Points:
    """A line up to where it leaves the axis, its last point on the edge."""
    points: Points = []
    before: tuple[float, float] | None = None
    for place, value in zip(places, values, strict=True):
        if value > top:
            if before is not None and math.isfinite(value):
                share = (top - before[1]) / (value - before[1])
                points.append((x(before[0] + share * (place - before[0])), y(top)))
            break
        points.append((x(place), y(value)))
        before = place, value
    return points


def _lines(drawing: Drawing, outlook: Outlook, lines: dict[float, Points]) -> None:
    """Lines with their noise multipliers: at the right, or where they leave the axis above."""
    others = iter(_OTHERS)
    ends: list[tuple[float, str]] = []
    css = {}
    for noise, points in lines.items():
        kind = "dp" if noise == outlook.noise_multiplier else next(others)
        name = f"z = {noise:g}"
        css[name] = kind
        drawing.path(points, f"series {kind}")
        if len(points) < 2:
            continue  # nothing of it can be told
        if points[-1][0] >= _RIGHT - 1:
            ends.append((points[-1][1], name))
        else:
            drawing.text(points[-1][0] + 8, _FIRST + 12, name, f"label {kind}")
    if ends:
        for y, name in spread(ends):
            drawing.text(_RIGHT + 8, y + 4, name, f"label {css[name]}")
