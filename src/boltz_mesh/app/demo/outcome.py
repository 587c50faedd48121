"""From what came out of the mesh to the report: rows, differences, privacy, words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Final

from boltz_mesh.app.demo import findings as words
from boltz_mesh.app.demo import references
from boltz_mesh.app.demo.evaluation import ErrorTable, evaluate_linear, evaluate_mlp, mean_of
from boltz_mesh.app.demo.guarantees import privacy_of, sealing_of
from boltz_mesh.app.demo.options import SIDE_BY_SIDE, DemoTask, TrainingRun
from boltz_mesh.app.demo.report import (
    Interval,
    Report,
    RoundRecord,
    Settings,
    interval_of,
    result_of,
    stocks_of,
    transfer_of,
    years_of,
)
from boltz_mesh.app.demo.statistics import BOOTSTRAP_SEED, paired_difference
from boltz_mesh.app.demo.task import Market
from boltz_mesh.app.demo.training import Trained

#: (better, worse): the comparisons that the report makes, fixed before any run.
PAIRS: Final = (
    ("federated", "ewma"),
    ("federated", "best_local"),
    ("federated_dp", "ewma"),
    ("federated_dp", "best_local"),
    ("federated_dp", "best_local_any_strength"),
    ("federated", "federated_dp"),
    ("federated_dp", "public_index"),
    ("federated_dp", "public_index_all_history"),
    ("federated", "best_local_any_strength"),
    ("federated", "public_index"),
)
#: Pairs that only speak where there is no row with noise.
_WITHOUT_NOISE: Final = frozenset(
    {("federated", "best_local_any_strength"), ("federated", "public_index")}
)
_PACKAGES: Final = ("boltz-mesh", "boltz-mesh-client", "numpy", "cryptography", "grpcio")

Tables = Mapping[str, Sequence[ErrorTable]]


def reference_tables(task: DemoTask, market: Market) -> dict[str, ErrorTable]:
    """The rows that no mesh is needed for; takes seconds."""
    return references.table(market, task.origins, task.preset)


def mesh_tables(task: DemoTask, market: Market, trained: Trained) -> dict[str, list[ErrorTable]]:
    """The rows `federated` and `federated_dp`, one table a repetition, from pulled models only."""
    evaluate = evaluate_linear if task.kind == "linear" else evaluate_mlp
    tables: dict[str, list[ErrorTable]] = {}
    for seed in (None, *task.seeds):
        runs = [TrainingRun(origin, seed) for origin in task.origins]
        models = {run.origin: trained.models[run] for run in runs}
        tables.setdefault(runs[0].row, []).append(evaluate(market, models))
    return tables


def report_of(
    task: DemoTask,
    tables: Tables,
    rounds: Sequence[RoundRecord],
    *,
    source: str,
    command: str,
    finished_at: str,
    total_seconds: float,
) -> Report:
    """The whole report.

    Args:
        task: what was run.
        tables: row -> errors, one table a repetition.
        rounds: confirmed records.
        source: where the prices are from.
        command: what asks for the same run.
        finished_at: ISO 8601, UTC.
        total_seconds: of the whole run.
    """
    results = {
        name: result_of(found, random=name == "federated_dp") for name, found in tables.items()
    }
    mean = {name: mean_of(found) for name, found in tables.items()}
    intervals = intervals_of(mean)
    sealing = sealing_of(task)
    privacy = privacy_of(task, sealing)
    return Report(
        settings=_settings(task, source, command, finished_at, total_seconds),
        results=results,
        by_year={name: years_of(table) for name, table in mean.items()},
        by_stock={name: stocks_of(table) for name, table in mean.items()},
        intervals=intervals,
        rounds=tuple(rounds),
        sealing=sealing,
        privacy=privacy,
        transfer=transfer_of(rounds),
        findings=words.findings(results, intervals, privacy),
        caveats=(*words.caveats(results, intervals, len(task.origins)), *_caveats(task)),
    )


def intervals_of(mean: Mapping[str, ErrorTable]) -> tuple[Interval, ...]:
    """Every comparison of `PAIRS` that the run has both rows for."""
    noised = "federated_dp" in mean
    return tuple(
        interval_of(paired_difference((better, mean[better]), (worse, mean[worse])))
        for better, worse in PAIRS
        if better in mean and worse in mean and not (noised and (better, worse) in _WITHOUT_NOISE)
    )


def _caveats(task: DemoTask) -> tuple[str, ...]:
    sentences = (
        f"{SIDE_BY_SIDE} training runs shared this machine with all the brokers at any time: a "
        "round's seconds include its waiting for the others. Bytes are counted by the "
        "kernel, with TLS, signatures, proofs and check-ins, without enrolment; rounds that run "
        "side by side share them evenly.",
        f"Intervals: {BOOTSTRAP_SEED} is the seed of their resampling. The noise itself has no "
        "seed that anybody could set: a noise seed is the number of a repetition.",
    )
    return (*sentences, task.remark) if task.remark else sentences


def _settings(
    task: DemoTask, source: str, command: str, finished_at: str, total_seconds: float
) -> Settings:
    layout = task.preset.layout
    return Settings(
        model=task.kind,
        trainer=task.trainer,
        clients=task.clients,
        brokers=len(task.brokers),
        desks_per_broker=layout.per_broker,
        desk_rows=layout.kept_rows,
        rounds_per_run=task.preset.rounds,
        clip_norm_l2=task.preset.clip_norm_l2,
        ridge=task.preset.ridge,
        origins=task.origins,
        seeds=task.seeds,
        data_source=source,
        finished_at=finished_at,
        total_seconds=total_seconds,
        command=command,
        versions={name: metadata.version(name) for name in _PACKAGES},
    )
