"""The demo's report: what it holds, and how it becomes `report.json`.

`run.py` fills in one `Report`; everything derived (medians, totals, findings) is computed here
or in `findings`, so that the numbers in the page and in the file cannot differ.
"""

from __future__ import annotations

import statistics as stdlib_statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from boltz_mesh.app.demo.evaluation import ErrorTable
from boltz_mesh.app.demo.statistics import PairedDifference

#: Rows of the table in the order in which they are shown, with the words for people.
ROW_WORDS: Final = {
    "naive": "Last 22 days' volatility",
    "ewma": "EWMA(0.94)",
    "ewma_own_bias": "EWMA + own desk's mean miss",
    "public_start": "EWMA + index's mean miss (start)",
    "best_local": "Best local model, own desk",
    "best_local_any_strength": "Best local model, any shrinkage",
    "public_index": "Public index, newest 8 years",
    "public_index_all_history": "Public index, all its history",
    "pooled": "All desks' rows in one place",
    "federated": "Federated, masked but without noise",
    "federated_dp": "Federated, with distributed noise",
    "cold_start_best_local": "Newcomer's own network",
    "cold_start_federated": "Network of the others, on a newcomer",
}
#: What the mesh itself trained; the rest are references computed beside it.
MESH_ROWS: Final = ("federated", "federated_dp")


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table: mean squared error over years and stocks, and over noise seeds."""

    mse_mean: float
    mse_sd: float | None
    """Sample standard deviation over the seeds; None with fewer than two."""
    seeds: int
    """How many noise seeds; 0 where nothing is random."""


class RoundRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One round that went over the wire; the model store confirms id, version and digest."""

    round_id: str
    model_id: str
    version: int
    model_digest: str
    """SHA-256 of the published model, hex."""
    row: str
    """`federated` or `federated_dp`."""
    origin: int
    seed: int | None
    number: int
    """1 is the first round of its training run."""
    seconds: float
    bytes_up: int
    """All clients together."""
    bytes_down: int
    selected: int
    survivors: int
    """Desks in the sum."""
    phase_seconds: dict[str, float] = {}
    """Phase -> how long the round stood in it, in the order of the round, as its operator saw it;
    a phase that was over at once may be missing."""
    test_mse: float | None = None
    """Error of the published model on the origin's year: measured afterwards, trained on never."""


class Sealing(msgspec.Struct, frozen=True, kw_only=True):
    """What the sealed rounds of a run withstand, and what they showed to the server."""

    mode: str
    adversary: str
    """`semi-malicious`: the server may also tell clients different things."""
    corrupt_fraction: float
    """Share of the desks that may collude with the server."""
    dropout_fraction: float
    """Share of the desks that may be gone when the sum is unmasked."""
    clients: int
    least_survivors: int
    """Fewest desks in a sum that is opened."""
    tolerated_colluders: int
    graph: str
    """`complete` (Bonawitz et al. 2017) or `sparse` (Bell et al. 2020)."""
    neighbours: int
    """With how many others a desk masks."""
    threshold: int
    """Shares that give a secret back."""
    server_saw: tuple[str, ...]


class Privacy(msgspec.Struct, frozen=True, kw_only=True):
    """What the accountant says about one training run. All epsilons are at `delta`.

    They hold with `least_survivors` desks in the sum of whom `tolerated_colluders` tell the server
    their part of the noise. What is said of the rounds is as in `Sealing`.
    """

    mechanism: str
    """`distributed-discrete-gaussian`: each desk adds its share of the noise."""
    epsilon: float
    delta: float
    noise_multiplier: float
    """Of the plan: standard deviation of the noise that is counted on, in units of C."""
    noise_when_all_stay: float
    """Standard deviation with every desk in the sum, over the one that is counted on."""
    rounds: int
    epsilon_by_round: tuple[float, ...]
    """Spent after round 1, 2, ...; the last one is `epsilon`."""
    two_retrains_epsilon: float
    """A desk that stays for two yearly retrains."""
    broker_epsilon: float
    """All desks of one broker together."""
    desks_per_broker: int
    replace_one_epsilon: float
    unit: str
    """What is protected, in words: `DeskLayout.unit`."""
    corrupt_fraction: float
    dropout_fraction: float
    least_survivors: int
    tolerated_colluders: int
    neighbours: int
    threshold: int
    server_saw: tuple[str, ...]
    relation: str = "the desk's contribution set to zero, with roster and weights public"
    statements: tuple[str, ...] = ()
    """Further sentences for the report, from whoever accounts."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the run was asked to do, and where it ran."""

    model: str
    trainer: str
    clients: int
    brokers: int
    desks_per_broker: int
    desk_rows: int
    rounds_per_run: int
    clip_norm_l2: float
    ridge: float
    origins: tuple[int, ...]
    seeds: tuple[int, ...]
    data_source: str
    finished_at: str
    """ISO 8601, UTC."""
    total_seconds: float
    command: str
    versions: dict[str, str] = {}


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes and seconds over the wire, from the rounds."""

    rounds: int
    bytes_up: int
    bytes_down: int
    bytes_up_per_round: float
    bytes_down_per_round: float
    bytes_up_per_client_round: float
    bytes_down_per_client_round: float
    seconds_per_round_median: float
    seconds_per_round_max: float
    phase_seconds_median: dict[str, float] = {}
    """Phase -> median over the rounds, in the order of a round."""


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A paired difference with its 95% interval over years and stocks."""

    better: str
    worse: str
    mean: float
    low: float
    high: float
    relative: float
    years_better: int
    years: int
    stocks_better: int
    stocks: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything. `results` names its rows as `ROW_WORDS` does."""

    settings: Settings
    results: dict[str, Result]
    by_year: dict[str, dict[str, float]]
    """Row -> year -> mean squared error over the stocks."""
    by_stock: dict[str, dict[str, float]]
    """Row -> stock -> mean squared error over the years."""
    intervals: tuple[Interval, ...]
    rounds: tuple[RoundRecord, ...]
    sealing: Sealing
    privacy: Privacy | None
    transfer: Transfer
    findings: tuple[str, ...]
    caveats: tuple[str, ...]


def result_of(tables: Sequence[ErrorTable], random: bool) -> Result:
    """A row from its error tables, one a seed.

    Args:
        tables: at least one.
        random: whether noise went in; a single table of a random row has one seed, not none.
    """
    means = [table.mean for table in tables]
    spread = stdlib_statistics.stdev(means) if len(means) > 1 else None
    return Result(mse_mean=float(np.mean(means)), mse_sd=spread, seeds=len(tables) if random else 0)


def years_of(table: ErrorTable) -> dict[str, float]:
    """Year -> error, for `Report.by_year`."""
    return {
        str(origin): float(error)
        for origin, error in zip(table.origins, table.by_year(), strict=True)
    }


def stocks_of(table: ErrorTable) -> dict[str, float]:
    """Stock -> error, for `Report.by_stock`."""
    errors = table.mse.mean(axis=0)
    return {stock: float(error) for stock, error in zip(table.stocks, errors, strict=True)}


def interval_of(difference: PairedDifference) -> Interval:
    """The same numbers as they stand in the file."""
    return Interval(
        **{name: getattr(difference, name) for name in PairedDifference.__dataclass_fields__}
    )


def transfer_of(rounds: Sequence[RoundRecord]) -> Transfer:
    """Totals and means; zeros where no round was run."""
    count = max(1, len(rounds))
    uploads = max(1, sum(record.survivors for record in rounds))
    downloads = max(1, sum(record.selected for record in rounds))
    up = sum(record.bytes_up for record in rounds)
    down = sum(record.bytes_down for record in rounds)
    seconds = [record.seconds for record in rounds] or [0.0]
    return Transfer(
        rounds=len(rounds),
        bytes_up=up,
        bytes_down=down,
        bytes_up_per_round=up / count,
        bytes_down_per_round=down / count,
        bytes_up_per_client_round=up / uploads,
        bytes_down_per_client_round=down / downloads,
        seconds_per_round_median=stdlib_statistics.median(seconds),
        seconds_per_round_max=max(seconds),
        phase_seconds_median=_phase_medians(rounds),
    )


def _phase_medians(rounds: Sequence[RoundRecord]) -> dict[str, float]:
    """Of every phase that a round was seen in; rounds that passed it unseen have no part in it."""
    found: dict[str, list[float]] = {}
    # The round with most phases gives the order.
    for record in sorted(rounds, key=lambda record: -len(record.phase_seconds)):
        for phase, seconds in record.phase_seconds.items():
            found.setdefault(phase, []).append(seconds)
    return {phase: stdlib_statistics.median(seconds) for phase, seconds in found.items()}


def to_json(report: Report) -> bytes:
    """The report as indented UTF-8 JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def write(report: Report, folder: Path, page: str) -> tuple[Path, Path]:
    """Write `report.json` and `report.html` into a folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    json_path, html_path = folder / "report.json", folder / "report.html"
    json_path.write_bytes(to_json(report))
    html_path.write_text(page, encoding="utf-8")
    return json_path, html_path
