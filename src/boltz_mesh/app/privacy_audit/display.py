"""What a person sees of an audit: progress while rounds run, then a table and the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from boltz_mesh.app.privacy_audit import run
from boltz_mesh.app.privacy_audit.inversion_run import InversionReport
from boltz_mesh.app.privacy_audit.options import AuditOptions
from boltz_mesh.app.privacy_audit.report import AuditReport, Findings, scope

#: Lines of progress where there is no terminal to draw a bar on.
_STEPS: Final = 10


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
    def trials(self, options: AuditOptions) -> Iterator[run.Progress]:
        """While an audit runs: a bar on a terminal, a line for each tenth elsewhere."""
        self.say(
            f"{options.mode} rounds: {options.trials} with noise and {options.trials} without, "
            f"{options.canaries} canaries each: {options.pairs} coins of each kind"
        )
        columns = (
            TextColumn("rounds"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        terminal = self._console.is_terminal
        with Progress(*columns, console=self._console, transient=True, disable=not terminal) as bar:
            task = bar.add_task("rounds", total=2 * options.trials)

            def done(trials: int, total: int) -> None:
                bar.update(task, completed=trials)
                # A line where another tenth is full.
                if not terminal and trials * _STEPS // total > (trials - 1) * _STEPS // total:
                    self.say(f"{trials} of {total} rounds")

            yield run.Progress(say=self.say, trial_done=done)

    def show(self, report: AuditReport) -> None:
        """The result of an audit."""
        self._console.print()
        self._console.print(audit_table(report))
        self.say(f"all epsilons {scope(report.ledger)}\n")
        for bound in report.with_noise.bounds:
            self.say(f"{bound.method}: {bound.source}; assumes: {bound.assumption}.")
        self.say("\n" + report.words)

    def show_inversion(self, report: InversionReport) -> None:
        """The result of an inversion."""
        self._console.print()
        self._console.print(inversion_table(report))
        for attempt in report.attempts:
            if attempt.ledger is not None:
                self.say(
                    f"\nThe noised sum has epsilon {attempt.ledger.epsilon:.2f} "
                    f"({scope(attempt.ledger)})."
                )
        self.say(
            "The masks hide who sent what; only the noise hides what is in the sum. A cosine of 1 "
            "and an error of 0 are the record itself."
        )


def audit_table(report: AuditReport) -> Table:
    """The figures, with noise beside without."""
    table = _table(f"privacy audit, {report.mode} rounds, {report.seconds:.0f} s")
    table.add_column("")
    for name in ("with noise", "noise off"):
        table.add_column(name, justify="right", no_wrap=True)
    ledger, noised, bare = report.ledger, report.with_noise, report.without_noise
    confidence = f"{100 * report.confidence:g}% confidence"
    table.add_row("noise multiplier", f"{report.noise_multiplier:.3f}", "0")
    table.add_row("rounds x canaries", *[f"{report.rounds} x {report.canaries}"] * 2)
    table.add_row("right guesses", _right(noised), _right(bare))
    table.add_row("the ledger's epsilon for one release", f"{ledger.epsilon:.3f}", "none")
    for bound in noised.bounds:
        other = bare.bound(bound.method)
        table.add_row(
            f"proved epsilon, {bound.method}, {confidence}",
            f"{bound.epsilon:.3f}",
            f"{other.epsilon:.3f}",
        )
        table.add_row("  from guesses", *(f"{b.right}/{b.guesses}" for b in (bound, other)))
    table.add_row("proved share of the ledger's epsilon", f"{100 * report.share:.0f}%", "")
    return table


def inversion_table(report: InversionReport) -> Table:
    """One row for each thing that an attacker may see."""
    table = _table(
        f"one desk's record of {report.fields} numbers, recovered by dividing weights by bias "
        f"({report.clients} desks)"
    )
    table.add_column("what the attacker sees")
    table.add_column("cosine", justify="right", no_wrap=True)
    table.add_column("relative error", justify="right", no_wrap=True)
    for attempt in report.attempts:
        table.add_row(attempt.seen, f"{attempt.cosine:.4f}", f"{attempt.relative_error:.2g}")
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)


def _right(findings: Findings) -> str:
    return f"{findings.right}/{findings.pairs} ({100 * findings.right / findings.pairs:.1f}%)"
