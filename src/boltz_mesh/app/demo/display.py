"""What a person sees: progress while the demo runs, then the table and what stands beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from boltz_mesh.app.cli.output import size
from boltz_mesh.app.demo.guarantees import counted_on
from boltz_mesh.app.demo.options import DemoTask
from boltz_mesh.app.demo.report import (
    MESH_ROWS,
    ROW_WORDS,
    Privacy,
    Report,
    Result,
    RoundRecord,
    Sealing,
    Transfer,
)
from boltz_mesh.app.demo.settings import SCOPE

#: What a round's line tells of its phases: three stretches, the last two on the critical path.
_STRETCHES: Final = {
    "keys": ("advertising_keys", "sharing_keys"),
    "updates": ("collecting",),
    "unmasking": ("checking_consistency", "unmasking", "aggregating"),
}


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
        self._phases: dict[str, str] = {}

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
            TextColumn("{task.fields[now]}"),
        )
        with Progress(
            *columns,
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        ) as bar:
            self._bar = bar
            bar.add_task("rounds", total=total, now="")
            yield
        self._bar = None

    def phase(self, model_id: str, phase: str) -> None:
        """A model's round has entered a phase; shown beside the bar, where there is one."""
        self._phases[model_id] = phase
        self._update()

    def round_done(self, record: RoundRecord) -> None:
        """One round's line."""
        self._done += 1
        self._phases.pop(record.model_id, None)
        self._update()
        self.say(round_line(record, self._done, self._total))

    def _update(self) -> None:
        if self._bar is None:
            return
        now = ", ".join(
            f"{model_id}: {phase.replace('_', ' ')}" for model_id, phase in self._phases.items()
        )
        for task in self._bar.task_ids:
            self._bar.update(task, completed=self._done, now=now)

    def show(self, report: Report) -> None:
        """The results, in full."""
        self._console.print()
        self._console.print(results_table(report))
        for heading, lines in (
            ("privacy", privacy_lines(report.privacy)),
            ("sealed rounds", sealing_lines(report.sealing)),
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
        else f"each without noise and {len(task.seeds)} times with noise, "
        f"epsilon {task.preset.epsilon:g} ({SCOPE})"
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
        f"{record.survivors} of {record.selected} desks   {record.seconds:5.2f} s"
        f"{_stretches(record)}   up {size(record.bytes_up):>8}{error}"
    )


def _stretches(record: RoundRecord) -> str:
    """` (keys 0.41, updates 0.30, unmasking 0.22)`; nothing where no phase was seen."""
    told = [
        f"{name} {sum(record.phase_seconds.get(phase, 0.0) for phase in phases):.2f}"
        for name, phases in _STRETCHES.items()
        if any(phase in record.phase_seconds for phase in phases)
    ]
    return f" ({', '.join(told)})" if told else ""


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
        f"mechanism: distributed discrete Gaussian, noise multiplier "
        f"{privacy.noise_multiplier:.2f}, {privacy.rounds} rounds",
        f"counted on: {counted_on(privacy)}",
        f"a desk that stays for two yearly retrains: {privacy.two_retrains_epsilon:.1f}",
        f"a broker with {many} desk{'s' if many > 1 else ''}: {privacy.broker_epsilon:.1f}",
        f"a desk's contribution replaced by another: {privacy.replace_one_epsilon:.1f}",
        *privacy.statements,
    )


def sealing_lines(sealing: Sealing) -> tuple[str, ...]:
    """What the rounds withstand, and what the server saw."""
    with_whom = (
        f"each desk masks with all {sealing.neighbours} others"
        if sealing.graph == "complete"
        else f"each desk masks with {sealing.neighbours} others, drawn anew for each round so that "
        "nobody chooses them"
    )
    return (
        f"{with_whom}; {sealing.threshold} of them must help to unmask",
        f"made for {100 * sealing.corrupt_fraction:g}% of the desks in collusion with the server "
        f"({sealing.adversary}) and {100 * sealing.dropout_fraction:g}% that drop out; never "
        f"opened with fewer than {sealing.least_survivors} of {sealing.clients} desks",
        *sealing.server_saw,
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
        *((_phase_line(moved),) if moved.phase_seconds_median else ()),
    )


def _phase_line(moved: Transfer) -> str:
    """Median seconds of each phase."""
    phases = moved.phase_seconds_median.items()
    return "medians by phase: " + ", ".join(
        f"{phase.replace('_', ' ')} {seconds:.2f} s" for phase, seconds in phases
    )
