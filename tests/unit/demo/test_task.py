from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_mesh.app.demo import task
from boltz_mesh.app.demo.data import MarketDataInvalid, PriceTable
from boltz_mesh.app.demo.settings import (
    PRESET_20,
    PRESET_60,
    PRESET_300,
    PRESET_MLP,
    QUARTERS_3,
    QUARTERS_15,
    TWO_YEARS,
    DeskLayout,
    calendar_for,
    preset_for,
)
from boltz_mesh.app.demo.task import Market
from tests.unit.demo.worlds import price_table, trading_days

LAYOUTS = [QUARTERS_3, QUARTERS_15, TWO_YEARS]
WORLD = price_table()
PUBLIC = task.public_facts(WORLD.dates, WORLD.index)
STOCK = task.stock_series("S0", WORLD.prices[:, 0], PUBLIC)


@settings(max_examples=25, deadline=None)
@given(day=st.integers(600, len(WORLD.dates) - 1), factor=st.floats(0.2, 5.0))
def test_future_prices_change_no_feature_and_no_known_label(day: int, factor: float) -> None:
    prices = WORLD.prices[:, 0].copy()
    prices[day:] *= np.linspace(factor, 1.5, len(prices) - day)
    changed = task.stock_series("S0", prices, PUBLIC)
    assert np.array_equal(changed.features[:day], STOCK.features[:day], equal_nan=True)
    assert np.array_equal(changed.naive[:day], STOCK.naive[:day], equal_nan=True)
    # The label of row t ends on day t + 5.
    known = day - task.HORIZON_DAYS
    assert np.array_equal(changed.target[:known], STOCK.target[:known], equal_nan=True)


@settings(max_examples=10, deadline=None)
@given(factor=st.floats(0.2, 5.0), origin=st.sampled_from(PUBLIC.calendar.origins))
def test_the_index_after_the_origin_changes_no_constant_known_at_it(
    factor: float, origin: int
) -> None:
    first = PUBLIC.first_row(origin)
    index = WORLD.index.copy()
    index[first:] *= np.linspace(factor, 1.5, len(index) - first)
    changed = task.public_facts(WORLD.dates, index)
    assert np.array_equal(changed.whitening, PUBLIC.whitening)
    assert np.array_equal(changed.center, PUBLIC.center)
    assert np.array_equal(changed.market[:first], PUBLIC.market[:first], equal_nan=True)
    assert changed.start_bias(origin) == PUBLIC.start_bias(origin)


def test_another_stock_changes_nothing_of_a_broker(table: PriceTable, market: Market) -> None:
    prices = table.prices.copy()
    prices[:, 1:] = prices[::-1, 1:]
    changed = task.market_of(dataclasses.replace(table, prices=prices))
    assert np.array_equal(changed.stocks[0].features, market.stocks[0].features, equal_nan=True)
    assert not np.array_equal(changed.stocks[1].features, market.stocks[1].features, equal_nan=True)


def test_the_target_is_the_next_five_days_over_the_ewma() -> None:
    row = 1000
    returns = np.diff(np.log(WORLD.prices[:, 0]))  # returns[i] belongs to day i + 1
    square = returns**2
    level = square[:22].mean()
    for value in square[22:row]:
        level = 0.94 * level + 0.06 * value
    future = np.sqrt(square[row : row + 5].mean())
    expected = np.log(future + 1e-4) - np.log(np.sqrt(level) + 1e-4)
    assert STOCK.target[row] == pytest.approx(expected, abs=1e-12)
    month = np.sqrt(square[row - 22 : row].mean())
    naive = np.log(month + 1e-4) - np.log(np.sqrt(level) + 1e-4)
    assert STOCK.naive[row] == pytest.approx(naive, abs=1e-12)


def test_features_exist_from_two_years_on_and_are_bounded() -> None:
    assert np.isnan(STOCK.features[: task.SLOW_DAYS]).all()
    usable = STOCK.features[task.SLOW_DAYS :]
    assert usable.shape[1] == task.FEATURES == 11
    assert np.isfinite(usable).all()
    assert np.abs(usable).max() <= task.FEATURE_BOUND
    assert np.isnan(STOCK.target[-task.HORIZON_DAYS :]).all()


def test_the_whitening_window_is_white_up_to_the_damping() -> None:
    first, last = PUBLIC.calendar.whitening
    window = (PUBLIC.years >= first) & (PUBLIC.years <= last)
    inside = PUBLIC.index.features[window]
    inside = inside[np.isfinite(inside).all(axis=1)]
    covariance = np.cov(inside.T, bias=True)
    assert np.all(np.diag(covariance) < 1.0)
    off = covariance - np.diag(np.diag(covariance))
    assert np.abs(off).max() < 0.05  # not zero: the bound at four deviations bends it


@pytest.mark.parametrize("layout", LAYOUTS)
def test_desks_share_no_row_no_label_day_and_keep_the_embargo(
    layout: DeskLayout, real_market: Market
) -> None:
    public, stock = real_market.public, real_market.stocks[0]
    # Features that are their own row number tell which rows a desk got.
    numbered = dataclasses.replace(
        stock, features=np.repeat(np.arange(len(public.dates), dtype=float)[:, None], 11, axis=1)
    )
    for origin in (1999, 2022):
        newest = public.first_row(origin) - task.EMBARGO_DAYS
        previous_first = newest
        for desk in range(layout.per_broker):
            rows = task.desk_rows(numbered, public, origin, layout, desk)
            days = rows.inputs[:, 0]
            assert len(days) == layout.kept_rows
            assert np.isfinite(rows.target).all()
            last = days[-1]
            assert last + task.HORIZON_DAYS < public.first_row(origin)
            if desk:
                assert last + task.HORIZON_DAYS < previous_first
            else:
                assert last == newest - 1
            previous_first = days[0]


def test_tested_rows_are_the_known_rows_of_the_year(real_market: Market) -> None:
    public = real_market.public
    rows = task.tested_rows(real_market.stocks[0], public, 2022)
    assert len(rows.target) == int((public.years == 2022).sum()) - task.HORIZON_DAYS
    assert len(task.tested_rows(real_market.stocks[0], public, 2021).target) == 252


def test_the_network_gets_two_public_inputs_more(market: Market) -> None:
    stock = task.with_market(market.stocks[0], market.public)
    assert stock.features.shape[1] == 13
    assert np.array_equal(stock.features[:, 11:], market.public.market, equal_nan=True)


def test_newest_rows_stop_where_features_begin(market: Market) -> None:
    origin = market.public.calendar.origins[0]
    rows = task.newest_rows(market.stocks[0], market.public, origin, 10**6)
    assert len(rows.target) == market.public.known_rows(origin) - task.SLOW_DAYS
    assert np.isfinite(rows.inputs).all()


def test_the_sample_has_the_calendar_of_the_documentation(real_market: Market) -> None:
    calendar = real_market.public.calendar
    assert calendar.whitening == (1991, 1998)
    assert calendar.origins == tuple(range(1999, 2023))
    assert calendar.tuning == tuple(range(1999, 2009))
    assert calendar.newest() == (2019, 2020, 2021, 2022)


def test_a_short_history_tunes_on_nothing_it_tests() -> None:
    calendar = calendar_for(trading_days("2000-01-03", "2012-01-01"))
    assert calendar.origins == (2009, 2010, 2011)
    assert calendar.tuning == ()
    longer = calendar_for(trading_days("2000-01-03", "2016-01-01"))
    assert longer.tuning == (2009, 2010, 2011)
    assert not set(longer.tuning) & set(longer.newest())


def test_too_short_a_history_says_how_much_is_needed() -> None:
    with pytest.raises(MarketDataInvalid, match="at least 10 calendar years"):
        calendar_for(trading_days("2000-01-03", "2009-01-01"))


def test_too_many_desks_for_the_history_are_refused(market: Market) -> None:
    with pytest.raises(MarketDataInvalid, match="use fewer clients"):
        task.desk_rows(
            market.stocks[0],
            market.public,
            market.public.calendar.origins[0],
            DeskLayout(60, 62, 57),
            59,
        )


def test_an_index_that_says_nothing_is_refused(table: PriceTable) -> None:
    with pytest.raises(MarketDataInvalid, match="hardly moves"):
        task.public_facts(table.dates, np.full(len(table.dates), 100.0))
    monthly = slice(None, None, 21)
    with pytest.raises(MarketDataInvalid, match="daily closes"):
        task.public_facts(table.dates[monthly], table.index[monthly])
    few = np.array([0, 1, len(table.dates) - 1])
    with pytest.raises(MarketDataInvalid, match="daily closes"):
        task.public_facts(table.dates[few], table.index[few])


def test_presets_belong_to_whole_desks_a_broker() -> None:
    assert preset_for("linear", 60, 20) is PRESET_60
    assert preset_for("linear", 300, 20) is PRESET_300
    assert preset_for("linear", 20, 20) is PRESET_20
    assert preset_for("linear", 61, 20) is None
    assert preset_for("linear", 40, 20) is None
    assert preset_for("mlp", 20, 20) is PRESET_MLP
    assert "one quarter" in QUARTERS_3.unit
    assert "two years" in TWO_YEARS.unit
