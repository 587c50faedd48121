"""What a person sees: progress while the demo runs, then the table and what stands beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from boltz_mesh.app.cli.output import size
from boltz_mesh.app.demo.options import DemoTask
from boltz_mesh.app.demo.report import MESH_ROWS, ROW_WORDS, Privacy, Report, Result, RoundRecord


class Display:
    """Progress as it goes: a bar below the lines on a terminal, lines alone elsewhere.

    Args:
        console: standard output, or standard error where the output is for programs.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._done = 0
        self._total = 0
        self._bar: Progress | None = None

    def say(self, sentence: str) -> None:
        """One line."""
        self._console.print(Text(sentence), soft_wrap=True)

    @contextmanager
    def rounds(self, total: int) -> Iterator[None]:
        """While rounds run; `round_done` tells of each."""
        self._done, self._total = 0, total
        columns = (
            TextColumn("rounds"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(
            *columns,
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        ) as bar:
            self._bar = bar
            bar.add_task("rounds", total=total)
            yield
        self._bar = None

    def round_done(self, record: RoundRecord) -> None:
        """One round's line."""
        self._done += 1
        if self._bar is not None:
            for task in self._bar.task_ids:
                self._bar.update(task, completed=self._done)
        self.say(round_line(record, self._done, self._total))

    def show(self, report: Report) -> None:
        """The results, in full."""
        self._console.print()
        self._console.print(results_table(report))
        for heading, lines in (
            ("privacy", privacy_lines(report.privacy)),
            ("over the wire", wire_lines(report)),
            ("it shows", report.findings),
            ("it does not show", report.caveats),
        ):
            self._console.print(Text(f"\n{heading}", "bold"))
            for line in lines:
                self.say(f"  {line}")


def opening_line(task: DemoTask) -> str:
    """What is about to run."""
    layout = task.preset.layout
    noise = (
        "without noise"
        if task.preset.epsilon is None
        else f"each without noise and {len(task.seeds)} times at epsilon {task.preset.epsilon:g}"
    )
    years = f"{len(task.origins)} tested year{'s' if len(task.origins) > 1 else ''}"
    return (
        f"{len(task.brokers)} brokers, {task.clients} desks ({layout.per_broker} each), "
        f"{years}, {noise}: {len(task.runs())} models, {task.rounds} rounds"
    )


def round_line(record: RoundRecord, done: int, total: int) -> str:
    """One round in one line."""
    width = len(str(total))
    error = "" if record.test_mse is None else f"   error {record.test_mse:.4f}"
    return (
        f"round {done:>{width}}/{total}   {record.model_id:<12} v{record.version:<3} "
        f"{record.survivors} of {record.selected} desks   {record.seconds:5.2f} s   "
        f"up {size(record.bytes_up):>8}{error}"
    )


def results_table(report: Report) -> Table:
    """Every row of the results, in the order of the report, beside the EWMA."""
    years = report.settings.origins
    span = f"{years[0]} to {years[-1]}" if len(years) > 1 else f"{years[0]}"
    table = Table(
        title=f"mean squared error of five-day log volatility, {span}",
        title_justify="left",
        box=None,
        header_style="bold",
        pad_edge=False,
    )
    table.add_column("row", no_wrap=True)
    table.add_column("forecast")
    for name in ("error", "to ewma"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("over noise seeds", no_wrap=True)
    base = report.results["ewma"].mse_mean
    for name in (name for name in ROW_WORDS if name in report.results):
        result = report.results[name]
        table.add_row(
            name,
            ROW_WORDS[name],
            f"{result.mse_mean:.4f}",
            f"{100 * (result.mse_mean / base - 1):+.1f}%",
            _seeds(result),
            style="bold" if name in MESH_ROWS else "",
        )
    return table


def _seeds(result: Result) -> str:
    """How far the error spreads over the noise seeds, where there are any."""
    if not result.seeds:
        return ""
    spread = "" if result.mse_sd is None else f"± {result.mse_sd:.4f}, "
    return f"{spread}{result.seeds} seed{'s' if result.seeds > 1 else ''}"


def privacy_lines(privacy: Privacy | None) -> tuple[str, ...]:
    """Epsilon, never without its unit and its relation."""
    if privacy is None:
        return ("No noise was added, so no epsilon is claimed.",)
    many = privacy.desks_per_broker
    return (
        f"epsilon {privacy.epsilon:.2f} at delta {privacy.delta:g} for each training run",
        f"unit: {privacy.unit}",
        f"relation: {privacy.relation}",
        f"noise multiplier {privacy.noise_multiplier:.2f}, {privacy.rounds} rounds",
        f"a desk that stays for two yearly retrains: {privacy.two_retrains_epsilon:.1f}",
        f"a broker with {many} desk{'s' if many > 1 else ''}: {privacy.broker_epsilon:.1f}",
        f"a desk's contribution replaced by another: {privacy.replace_one_epsilon:.1f}",
        *privacy.statements,
    )


def wire_lines(report: Report) -> tuple[str, ...]:
    """Bytes and seconds."""
    moved = report.transfer
    return (
        f"{moved.rounds} rounds: {size(round(moved.bytes_up_per_round))} up and "
        f"{size(round(moved.bytes_down_per_round))} down a round, all clients together",
        f"{size(round(moved.bytes_up_per_client_round))} up and "
        f"{size(round(moved.bytes_down_per_client_round))} down for a client and round",
        f"median {moved.seconds_per_round_median:.2f} s a round, training included; the slowest "
        f"{moved.seconds_per_round_max:.2f} s",
    )
