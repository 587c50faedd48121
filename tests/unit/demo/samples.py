"""A filled-in report with made-up numbers, for the tests of what is rendered from it."""

from __future__ import annotations

import numpy as np

from boltz_mesh.app.demo import findings
from boltz_mesh.app.demo.evaluation import ErrorTable
from boltz_mesh.app.demo.report import (
    Interval,
    Privacy,
    Report,
    Result,
    RoundRecord,
    Sealing,
    Settings,
    interval_of,
    result_of,
    stocks_of,
    transfer_of,
    years_of,
)
from boltz_mesh.app.demo.statistics import paired_difference

YEARS = (2019, 2020, 2021, 2022)
STOCKS = ("AAA", "B<&>B", "CCC")
LEVELS = {
    "naive": 0.282,
    "ewma": 0.276,
    "ewma_own_bias": 0.271,
    "public_start": 0.247,
    "best_local": 0.258,
    "best_local_any_strength": 0.247,
    "public_index": 0.241,
    "public_index_all_history": 0.229,
    "pooled": 0.237,
    "federated": 0.239,
    "cold_start_federated": 0.238,
    "cold_start_best_local": 0.255,
}


PHASE_SECONDS = {
    "selecting": 0.01,
    "advertising_keys": 0.21,
    "sharing_keys": 0.2,
    "collecting": 0.3,
    "checking_consistency": 0.1,
    "unmasking": 0.05,
}
SAW = ("Of one desk: a vector under <masks>.", "In rounds with noise: a sum with noise.")


def table(level: float, seed: int = 0) -> ErrorTable:
    spread = np.random.Generator(np.random.PCG64(seed)).normal(0, 0.003, (4, 3))
    return ErrorTable(YEARS, STOCKS, level + spread - spread.mean())


def record(
    row: str, number: int, seed: int | None = None, test_mse: float | None = 0.24
) -> RoundRecord:
    return RoundRecord(
        round_id=f"round-{row}-{number}",
        model_id="volatility",
        version=number,
        model_digest=f"{number:02x}" * 32,
        row=row,
        origin=2019,
        seed=seed,
        number=number,
        seconds=0.5 + 0.1 * number,
        bytes_up=60 * 2000,
        bytes_down=60 * 3000,
        selected=60,
        survivors=59,
        phase_seconds=PHASE_SECONDS,
        test_mse=test_mse,
    )


def sealing() -> Sealing:
    return Sealing(
        mode="sealed",
        adversary="semi-malicious",
        corrupt_fraction=0.05,
        dropout_fraction=0.05,
        clients=60,
        least_survivors=57,
        tolerated_colluders=3,
        graph="sparse",
        neighbours=10,
        threshold=7,
        server_saw=SAW,
    )


def privacy() -> Privacy:
    return Privacy(
        mechanism="distributed-discrete-gaussian",
        noise_when_all_stay=1.054,
        corrupt_fraction=0.05,
        dropout_fraction=0.05,
        least_survivors=57,
        tolerated_colluders=3,
        neighbours=10,
        threshold=7,
        server_saw=SAW,
        epsilon=2.0,
        delta=1e-5,
        noise_multiplier=3.98,
        rounds=4,
        epsilon_by_round=(0.9, 1.3, 1.7, 2.0),
        two_retrains_epsilon=3.0,
        broker_epsilon=7.1,
        desks_per_broker=3,
        replace_one_epsilon=4.4,
        unit="one desk: one stock over one quarter (57 days)",
        statements=("Said by the accountant.",),
    )


def interval(better: str, worse: str, low: float, mean: float, high: float) -> Interval:
    return Interval(
        better=better,
        worse=worse,
        mean=mean,
        low=low,
        high=high,
        relative=mean / 0.25,
        years_better=3,
        years=4,
        stocks_better=2,
        stocks=3,
    )


def settings() -> Settings:
    return Settings(
        model="linear",
        trainer="numpy",
        clients=9,
        brokers=3,
        desks_per_broker=3,
        desk_rows=57,
        rounds_per_run=4,
        clip_norm_l2=0.08,
        ridge=2.0,
        origins=YEARS,
        seeds=(0, 1, 2),
        data_source="the folder <mine>",
        finished_at="2026-01-01T00:00:00Z",
        total_seconds=75.0,
        command="boltz-mesh demo --data '<x>'",
        versions={"numpy": "2.4"},
    )


def report(*, private: bool = True, rounds: bool = True, references: bool = True) -> Report:
    tables = {name: [table(level)] for name, level in LEVELS.items() if references}
    tables["federated"] = [table(LEVELS["federated"])]
    if private:
        tables["federated_dp"] = [table(0.240 + 0.001 * seed, seed) for seed in range(3)]
    results: dict[str, Result] = {
        name: result_of(runs, name == "federated_dp") for name, runs in tables.items()
    }
    intervals: tuple[Interval, ...] = ()
    if references:
        pair = paired_difference(("federated", tables["federated"][0]), ("ewma", tables["ewma"][0]))
        intervals = (
            interval_of(pair),
            interval("federated", "best_local", 0.01, 0.02, 0.03),
            interval("federated_dp", "public_index", -0.02, -0.001, 0.02),
        )
    made = tuple(record("federated", number) for number in range(1, 5))
    made += tuple(record("federated_dp", number, 1) for number in range(1, 5) if private)
    spent = privacy() if private else None
    return Report(
        settings=settings(),
        results=results,
        by_year={name: years_of(runs[0]) for name, runs in tables.items()},
        by_stock={name: stocks_of(runs[0]) for name, runs in tables.items()},
        intervals=intervals,
        rounds=made if rounds else (),
        sealing=sealing(),
        privacy=spent,
        transfer=transfer_of(made if rounds else ()),
        findings=findings.findings(results, intervals, spent),
        caveats=findings.caveats(results, intervals, len(YEARS)),
    )
