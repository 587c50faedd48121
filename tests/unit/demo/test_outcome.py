from __future__ import annotations

from dataclasses import replace

import pytest

from boltz_mesh.app.demo import outcome
from boltz_mesh.app.demo.desks import start_of
from boltz_mesh.app.demo.options import DemoOptions, DemoTask, task_for
from boltz_mesh.app.demo.task import Market
from boltz_mesh.app.demo.training import Trained


@pytest.fixture
def task(market: Market) -> DemoTask:
    stocks = tuple(stock.name for stock in market.stocks)
    return task_for(DemoOptions(seeds=2, origins="2010,2011"), stocks, market.public.calendar)


def trained(task: DemoTask, market: Market) -> Trained:
    """Models that never moved from the start: what counts here is where they end up."""
    models = {run: start_of(market.public, run.origin, task.kind) for run in task.runs()}
    return Trained(models=models)


def test_every_row_of_the_mesh_comes_from_the_models_handed_over(
    task: DemoTask, market: Market
) -> None:
    tables = outcome.mesh_tables(task, market, trained(task, market))
    assert {name: len(found) for name, found in tables.items()} == {
        "federated": 1,
        "federated_dp": 2,
    }
    missing = trained(task, market)
    missing.models.popitem()
    with pytest.raises(KeyError):
        outcome.mesh_tables(task, market, missing)


def test_the_report_has_rows_pairs_and_the_price_of_privacy(task: DemoTask, market: Market) -> None:
    references = {name: [table] for name, table in outcome.reference_tables(task, market).items()}
    made = outcome.report_of(
        task,
        references | outcome.mesh_tables(task, market, trained(task, market)),
        [],
        source="made up",
        command="boltz-mesh demo",
        finished_at="2026-01-01T00:00:00+00:00",
        total_seconds=1.0,
    )
    assert made.results["federated_dp"].seeds == 2
    assert made.results["federated"].seeds == 0
    # No noise went into these, so the two rows are the start itself.
    assert made.results["federated"].mse_mean == pytest.approx(
        made.results["public_start"].mse_mean
    )
    pairs = {(interval.better, interval.worse) for interval in made.intervals}
    assert ("federated_dp", "best_local") in pairs
    assert ("federated", "public_index") not in pairs
    assert made.privacy is not None
    assert made.privacy.epsilon == pytest.approx(2.0)
    assert made.privacy.server_saw == made.sealing.server_saw
    assert any("trains each year 3 times" in text for text in made.privacy.statements)


def test_the_network_claims_no_epsilon_and_is_compared_with_the_references(market: Market) -> None:
    stocks = tuple(stock.name for stock in market.stocks)
    task = task_for(DemoOptions(model="mlp", origins="2011"), stocks, market.public.calendar)
    tables = outcome.mesh_tables(task, market, trained(task, market))
    assert set(tables) == {"federated"}
    mean = {name: found[0] for name, found in tables.items()}
    mean["public_index"] = mean["federated"]
    pairs = {(i.better, i.worse) for i in outcome.intervals_of(mean)}
    assert ("federated", "public_index") in pairs


def test_a_remark_about_settings_becomes_a_caveat(task: DemoTask, market: Market) -> None:
    noted = replace(task, remark="There is no preset.")
    made = outcome.report_of(
        noted,
        {"ewma": [outcome.reference_tables(task, market)["ewma"]]},
        [],
        source="made up",
        command="boltz-mesh demo",
        finished_at="2026-01-01T00:00:00+00:00",
        total_seconds=1.0,
    )
    assert made.caveats[-1] == noted.remark
