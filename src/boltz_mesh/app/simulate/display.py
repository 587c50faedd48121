"""What a person sees of a simulation: progress while it runs, then tables and honest words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from boltz_mesh.app.simulate.attacks.sight import Attack
from boltz_mesh.app.simulate.report import (
    LEAST_KEPT,
    MOST_OVER,
    NO_ATTACK,
    Cell,
    Report,
)

#: An error above this is told as "destroyed": ten times and more of what any forecast here has.
DESTROYED: Final = 10.0

#: What a mode withstands, whatever the figures.
WORDS: Final[dict[str, str]] = {
    "sealed": (
        "sealed: nobody sees a single update, so that nothing but the clip in honest clients, the "
        "integer bound and the range check of the sum stands against a liar: one that does not "
        "clip may spend the whole range of the sum."
    ),
    "grouped": (
        "grouped: rules see sums of groups, so that each liar spoils its group; with more liars "
        "than the rule was set to withstand, or fewer than 2f+1 groups, nothing is promised."
    ),
    "open": (
        "open without noise: the mesh sees each update and holds back what does not fit; with more "
        "liars than the rule was set to withstand nothing is promised."
    ),
    "open-noised": (
        "open with noise: rules have a proven sensitivity and leave nobody out; what one liar can "
        "do is bounded by the clip norm and by its share of the weight, every round."
    ),
}


class Display:
    """Progress and results.

    Args:
        console: standard output, or standard error where the output is for programs.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, sentence: str) -> None:
        """One line."""
        self._console.print(Text(sentence), soft_wrap=True)

    @contextmanager
    def progress(self, cells: int) -> Iterator[Callable[[str, str], None]]:
        """While a study runs: a bar on a terminal, a line for each attack elsewhere."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        terminal = self._console.is_terminal
        with Progress(*columns, console=self._console, transient=True, disable=not terminal) as bar:
            task = bar.add_task("runs without attackers", total=cells)
            begun, last = 0, ""

            def tell(attack: str, rule: str) -> None:
                nonlocal begun, last
                bar.update(task, completed=begun, description=f"{attack}, {rule}")
                begun += 1
                if not terminal and attack != last:
                    self.say(f"{begun} of {cells}: {attack}")
                last = attack

            yield tell

    def show_attacks(self, attacks: tuple[Attack, ...]) -> None:
        """The library, a line each."""
        table = _table("attacks")
        for column in ("name", "what attackers send or do", "paper"):
            table.add_column(column, no_wrap=column == "name")
        for attack in attacks:
            table.add_row(attack.name, attack.line, attack.source)
        self._console.print(table)

    def show(self, report: Report) -> None:
        """The result: a matrix where there are several rules, and the default rule in full."""
        self._console.print()
        if len(report.rules) > 1:
            self._console.print(matrix_table(report))
            self.say(
                f"cells: error over the clean run, and share of its gain over the EWMA kept; "
                f"* misses {MOST_OVER:.0%} or {LEAST_KEPT:.0%}\n"
            )
        self._console.print(detail_table(report))
        for sentence in sentences(report):
            self.say(sentence)


def detail_table(report: Report) -> Table:
    """One row an attack, under the first rule of the report."""
    rule = report.rules[0]
    groups = f" in {report.groups} groups" if report.groups else ""
    table = _table(
        f"{report.model}, {report.mode}, {rule}: {report.clients} clients{groups}, of which "
        f"{report.attackers} attack; {report.rounds} rounds"
    )
    table.add_column("attack", no_wrap=True)
    for name in (
        "clean error",
        "attacked error",
        "plain-mean error",
        "gain kept",
        "plain keeps",
        "weight at the end",
        "quarantined",
        "backdoor",
    ):
        table.add_column(name, justify="right")
    for attack in report.attacks:
        cell = report.cell(attack, rule)
        table.add_row(
            attack,
            error_text(cell.clean),
            error_text(cell.attacked) + ("" if cell.held else " *"),
            error_text(cell.plain),
            share_text(cell.kept),
            share_text(cell.plain_kept),
            "-" if attack == NO_ATTACK else f"{cell.share:.1%}",
            "-" if attack == NO_ATTACK else f"{cell.out:.1f} of {report.attackers}",
            "-" if not (cell.marked or cell.plain_marked) else f"{cell.marked:.0%}",
        )
    return table


def matrix_table(report: Report) -> Table:
    """Attacks by rules."""
    table = _table(f"{report.model}, {report.mode}: attacks by rules")
    table.add_column("attack", no_wrap=True)
    for name in ("plain mean", *report.rules):
        table.add_column(name, justify="right")
    for attack in report.attacks:
        first = report.cell(attack, report.rules[0])
        table.add_row(
            attack,
            share_text(first.plain_kept),
            *(cell_text(report.cell(attack, rule)) for rule in report.rules),
        )
    return table


def cell_text(cell: Cell) -> str:
    """A cell of the matrix."""
    if cell.attacked >= DESTROYED:
        return "destroyed *"
    return f"{cell.over_clean:+.1%} {share_text(cell.kept)}" + ("" if cell.held else " *")


def error_text(error: float) -> str:
    """A mean squared error."""
    return "destroyed" if error >= DESTROYED else f"{error:.4f}"


def share_text(share: float) -> str:
    """A share of the gain, rounded down; a model that is worse than the EWMA keeps none of it."""
    return f"{math.floor(100 * share)}%" if share > 0 else "none"


def sentences(report: Report) -> list[str]:
    """What the figures say and what they do not."""
    rule, repetitions = report.rules[0], len(report.seeds)
    noised = report.privacy != "none"
    told = [
        f"\nclean: nobody attacks, under the mode's mean. Plain mean: no clip, no rule, weights by "
        f"the sample counts that are stated. EWMA: {report.cells[0].ewma:.4f}. Errors are means of "
        f"{report.origins[0]} to {report.origins[-1]} over the stocks of honest clients, and "
        f"medians of {repetitions} repetitions (seeds {report.seeds[0]} to {report.seeds[-1]}), "
        "each with other attackers.",
        f"client: {report.unit}; clip norm {report.clip_norm:g}; sample counts weigh up to "
        f"2^{report.sample_bucket_cap}; privacy: {report.privacy}.",
        "Masks cancel in each sum and are left out; clip, encoding, groups, noise, rules, trust "
        "and quarantine are the product's. Attackers see every honest update before they send.",
    ]
    if report.cells[0].clean >= report.cells[0].ewma:
        told.append(
            "Without any attack these settings are no better than the EWMA: there is no gain to "
            "keep, and the figures say little about attacks. Fewer groups, more clients or a "
            "larger epsilon would do."
        )
    missed = report.missed(rule)
    told.append(
        f"Under {rule} every attack here leaves the error within {MOST_OVER:.0%} of the clean run "
        f"and at least {LEAST_KEPT:.0%} of its gain."
        if not missed
        else f"Under {rule} these miss a goal (error within {MOST_OVER:.0%}, gain kept "
        f"{LEAST_KEPT:.0%}): {', '.join(missed)}."
    )
    broken = report.broken()
    told.append(
        f"The plain mean loses more than three quarters of the gain under {len(broken)} of "
        f"{len([a for a in report.attacks if a != NO_ATTACK])}: {', '.join(broken) or 'none'}."
    )
    told.append(WORDS["open-noised" if noised and report.mode == "open" else report.mode])
    if noised:
        told.append("With noise, figures differ from seed to seed; the noise is in the clean run.")
    return told


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
