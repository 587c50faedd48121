"""The documentation's figures, from the sample prices; and the references' own behaviour."""

from __future__ import annotations

import numpy as np
import pytest

from boltz_mesh.app.demo import linear, references
from boltz_mesh.app.demo.evaluation import ErrorTable, evaluate_linear, evaluate_mlp, mean_of
from boltz_mesh.app.demo.settings import PRESET_20, PRESET_60, PRESET_300, PRESET_MLP, Preset
from boltz_mesh.app.demo.task import Market

PRESETS = {60: PRESET_60, 300: PRESET_300, 20: PRESET_20}
#: (clients, row) -> error over 1999 to 2022 and over 2019 to 2022; None where no figure is given.
FIGURES: dict[tuple[int, str], tuple[float, float | None]] = {
    (60, "naive"): (0.2719, 0.2823),
    (60, "ewma"): (0.2597, 0.2761),
    (60, "ewma_own_bias"): (0.2485, 0.2716),
    (60, "best_local"): (0.2375, 0.2577),
    (60, "public_index"): (0.2250, 0.2408),
    (60, "pooled"): (0.2264, 0.2369),
    (60, "federated"): (0.2247, 0.2394),
    (300, "federated"): (0.2242, 0.2378),
    (20, "ewma_own_bias"): (0.2355, 0.2469),
    (20, "best_local"): (0.2251, 0.2305),
    (20, "pooled"): (0.2228, None),
    (20, "federated"): (0.2218, 0.2323),
}


def _row(market: Market, clients: int, row: str) -> ErrorTable:
    origins, preset = market.public.calendar.origins, PRESETS[clients]
    match row:
        case "naive":
            return references.naive(market, origins)
        case "ewma":
            return references.ewma(market, origins)
        case "ewma_own_bias":
            return references.ewma_own_bias(market, origins, preset.layout)
        case "best_local":
            return references.best_local(market, origins, preset.layout)
        case "public_index":
            return references.public_index(market, origins)
        case "pooled":
            return references.pooled(market, origins, preset)
        case _:
            return evaluate_linear(market, references.federated(market, origins, preset))


@pytest.mark.parametrize(("clients", "row"), FIGURES)
def test_figures_are_met_within_one_percent(real_market: Market, clients: int, row: str) -> None:
    everything, newest = FIGURES[clients, row]
    found = _row(real_market, clients, row)
    assert found.mean == pytest.approx(everything, rel=0.01)
    if newest is not None:
        recent = found.at(real_market.public.calendar.newest())
        assert recent.mean == pytest.approx(newest, rel=0.01)


@pytest.mark.parametrize(
    ("clients", "everything", "newest"),
    [(60, 0.2260, 0.2402), (300, 0.2245, 0.2378), (20, 0.2225, 0.2330)],
)
def test_private_figures_are_met_within_one_percent(
    real_market: Market, clients: int, everything: float, newest: float
) -> None:
    origins = real_market.public.calendar.origins
    runs = [
        evaluate_linear(
            real_market,
            references.federated(
                real_market, origins, PRESETS[clients], np.random.Generator(np.random.PCG64(seed))
            ),
        )
        for seed in range(6)
    ]
    found = mean_of(runs)
    assert found.mean == pytest.approx(everything, rel=0.01)
    assert found.at(real_market.public.calendar.newest()).mean == pytest.approx(newest, rel=0.01)


def test_the_default_run_beats_what_it_must_beat(real_market: Market) -> None:
    newest = real_market.public.calendar.newest()
    federated = evaluate_linear(real_market, references.federated(real_market, newest, PRESET_60))
    ewma = references.ewma(real_market, newest)
    local = references.best_local(real_market, newest, PRESET_60.layout)
    assert federated.mean < 0.90 * ewma.mean
    assert federated.mean < 0.95 * local.mean


def test_the_network_is_as_good_without_noise(real_market: Market) -> None:
    newest = real_market.public.calendar.newest()
    models = references.federated_mlp(real_market, newest, PRESET_MLP.rounds)
    network = evaluate_mlp(real_market, models)
    flat = evaluate_linear(real_market, references.federated(real_market, newest, PRESET_20))
    assert network.mean == pytest.approx(flat.mean, rel=0.02)


def test_a_newcomer_gains_from_the_federated_network(real_market: Market) -> None:
    newest = real_market.public.calendar.newest()
    own = references.cold_start_best_local(real_market, newest)
    theirs = references.cold_start_federated(real_market, newest)
    assert theirs.mean < 0.95 * own.mean


def test_any_shrinkage_is_never_worse_where_it_was_chosen(real_market: Market) -> None:
    tuning = real_market.public.calendar.tuning
    layout = PRESET_60.layout
    usual = references.best_local(real_market, tuning, layout)
    free = references.best_local(real_market, tuning, layout, references.ANY_STRENGTHS)
    assert free.mean <= usual.mean


def test_the_table_has_the_named_rows(market: Market) -> None:
    origins = market.public.calendar.origins
    rows = references.table(market, origins, PRESET_60)
    assert set(rows) == {
        "naive",
        "ewma",
        "public_start",
        "ewma_own_bias",
        "best_local",
        "best_local_any_strength",
        "public_index",
        "public_index_all_history",
        "pooled",
        "cold_start_federated",
        "cold_start_best_local",
    }
    for table in rows.values():
        assert table.origins == origins
        assert np.isfinite(table.mse).all()
    network = references.table(market, origins, PRESET_MLP, cold_start=False)
    assert "pooled" not in network
    assert "cold_start_federated" not in network


def test_strength_is_the_default_without_years_to_tune_on(market: Market) -> None:
    def never(strength: float, origins: object) -> ErrorTable:
        raise AssertionError

    assert market.public.calendar.tuning == ()
    assert references.choose(market, (1.0, 2.0), never, 7.0) == 7.0


def test_desks_are_listed_broker_by_broker(market: Market) -> None:
    origin = market.public.calendar.origins[-1]
    desks = references.all_desks(market, origin, PRESET_60.layout)
    assert len(desks) == 3 * len(market.stocks)
    preset: Preset = PRESET_60
    models = references.federated(market, (origin,), preset)
    steps = [linear.local_step(rows, preset.ridge) for rows in desks]
    again = linear.simulate(linear.start(market.public, origin), steps, rounds=4, clip_norm_l2=0.08)
    assert models[origin] == pytest.approx(again[-1])
