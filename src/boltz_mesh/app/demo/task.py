"""The demo's task: forecast the volatility of a stock's next five days, honestly.

Target: the log of the realised volatility over the next five days, minus the log of EWMA(0.94)
(the usual forecast), so that a model learns what the EWMA misses. Features: eleven numbers
from past closes only. Everything a broker needs beside its own stock's closes is public: the
index, and constants estimated on the index's early years. Scaling by pooled client data would leak.

Causality: row t uses closes up to day t; its label uses closes of days t+1 to t+5 and nothing else.
Rows for training end ten trading days before the origin (the embargo), so every label is known
there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from boltz_mesh.app.demo.data import DateArray, FloatArray, MarketDataInvalid, PriceTable
from boltz_mesh.app.demo.settings import Calendar, DeskLayout, calendar_for

HORIZON_DAYS: Final = 5
EMBARGO_DAYS: Final = 10
EWMA_DECAY: Final = 0.94
WINDOWS_DAYS: Final = (1, 5, 22, 66)
RETURN_WINDOWS_DAYS: Final = (1, 5, 22)
#: Two years of squared returns: what "calm" means for this stock, slow enough to compare with.
SLOW_DAYS: Final = 500
NAIVE_DAYS: Final = 22
FEATURES: Final = 11
#: Two inputs that only the network gets: the index's volatility over 5 and 22 days.
MARKET_INPUTS: Final = 2
MARKET_WINDOWS_DAYS: Final = (5, 22)
#: Added to every volatility (one basis point a day) before a logarithm: quiet days have a
#: realised volatility near zero, and their logarithm would dominate every average.
VOLATILITY_FLOOR: Final = 1e-4
#: Added to the eigenvalues (of a correlation matrix, which average one) before whitening: the
#: smallest is 0.01, and plain whitening would blow its noise up to the size of a signal.
WHITENING_DAMPING: Final = 0.1
#: Whitened features are bounded to this many standard deviations: a crash must not rule a fit.
FEATURE_BOUND: Final = 4.0


@dataclass(frozen=True, slots=True)
class PublicFacts:
    """What everybody knows: the calendar, the index, and constants made from the index alone.

    Attributes:
        dates: `datetime64[D]`, shape (days,).
        years: int64, shape (days,), calendar year of each day.
        calendar: whitening window and origins.
        center: float64 (11,), mean of the index's raw features over the whitening window.
        whitening: float64 (11, 11); whitened = (raw - center) @ whitening, then bounded.
        market: float64 (days, 2), the network's two public inputs, bounded.
        index: the index as if it were a stock.
    """

    dates: DateArray
    years: npt.NDArray[np.int64]
    calendar: Calendar
    center: FloatArray
    whitening: FloatArray
    market: FloatArray
    index: StockSeries

    def first_row(self, origin: int) -> int:
        """The row of the origin's first trading day."""
        return int(np.searchsorted(self.years, origin))

    def known_rows(self, origin: int) -> int:
        """Rows [0, this) may be trained on at the origin."""
        return self.first_row(origin) - EMBARGO_DAYS

    def start_bias(self, origin: int) -> float:
        """The index's mean residual to date: where every model starts, beside the EWMA."""
        return float(np.nanmean(self.index.target[: self.known_rows(origin)]))


@dataclass(frozen=True, slots=True)
class StockSeries:
    """One stock's rows; what a broker process holds of its own.

    Attributes:
        name: the ticker.
        features: float64 (days, 11), whitened and bounded; NaN in the first `SLOW_DAYS` rows.
            (days, 13) after `with_market`.
        target: float64 (days,), the residual; NaN where the label is not known.
        naive: float64 (days,), the naive forecast's residual: log 22-day volatility - log EWMA.
    """

    name: str
    features: FloatArray
    target: FloatArray
    naive: FloatArray


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows for training or testing: inputs (m, 11 or 13) and targets (m,), all finite."""

    inputs: FloatArray
    target: FloatArray


@dataclass(frozen=True, slots=True)
class Market:
    """Every stock's series beside the public facts: for the evaluation, not for a broker."""

    public: PublicFacts
    stocks: tuple[StockSeries, ...]


def public_facts(dates: DateArray, index: FloatArray) -> PublicFacts:
    """The constants that everybody can compute from the public index.

    Args:
        dates: `datetime64[D]`, shape (days,).
        index: float64 (days,), closes of the index.

    Raises:
        MarketDataInvalid: less than ten calendar years, or an index that hardly moves.
    """
    calendar = calendar_for(dates)
    years = dates.astype("datetime64[Y]").astype(np.int64) + 1970
    window = (years >= calendar.whitening[0]) & (years <= calendar.whitening[1])
    window[:SLOW_DAYS] = False
    if window.sum() < SLOW_DAYS:
        raise MarketDataInvalid(
            f"index.csv has {int(window.sum())} usable days in {calendar.whitening[0]} to "
            f"{calendar.whitening[1]}; daily closes over those years are needed"
        )
    raw, target, naive = _raw_series(index)
    center, whitening = _whitening(raw[window])
    slow = _log(_mean_square(index, SLOW_DAYS))
    market = np.stack(
        [_log(_mean_square(index, days)) - slow for days in MARKET_WINDOWS_DAYS], axis=1
    )
    market = (market - market[window].mean(axis=0)) / market[window].std(axis=0)
    bounded = np.clip(market, -FEATURE_BOUND, FEATURE_BOUND)
    series = StockSeries("index", _whiten(raw, center, whitening), target, naive)
    return PublicFacts(dates, years, calendar, center, whitening, bounded, series)


def stock_series(name: str, prices: FloatArray, public: PublicFacts) -> StockSeries:
    """One stock's rows, from its own closes (days,) and public constants only."""
    assert prices.shape == public.dates.shape
    raw, target, naive = _raw_series(prices)
    return StockSeries(name, _whiten(raw, public.center, public.whitening), target, naive)


def market_of(table: PriceTable) -> Market:
    """Public facts and every stock, for the evaluation."""
    public = public_facts(table.dates, table.index)
    return Market(
        public,
        tuple(
            stock_series(name, table.prices[:, column], public)
            for column, name in enumerate(table.stocks)
        ),
    )


def desk_rows(
    stock: StockSeries, public: PublicFacts, origin: int, layout: DeskLayout, desk: int
) -> Rows:
    """The training rows of one desk of the stock's broker.

    Args:
        stock: the broker's own series.
        public: the public facts.
        origin: a year of `public.calendar.origins`.
        layout: the desks.
        desk: 0 is the newest.

    Raises:
        MarketDataInvalid: the history is too short for so many desks.
    """
    assert 0 <= desk < layout.per_broker
    end = public.known_rows(origin) - desk * layout.block_rows
    start = end - layout.kept_rows
    if start < SLOW_DAYS:
        raise MarketDataInvalid(
            f"{stock.name} has too little history before {origin} for desk {desk + 1}: use fewer "
            "clients, later origins, or longer price files"
        )
    return Rows(stock.features[start:end], stock.target[start:end])


def newest_rows(stock: StockSeries, public: PublicFacts, origin: int, count: int) -> Rows:
    """The newest `count` rows known at the origin (fewer where history is shorter)."""
    end = public.known_rows(origin)
    start = max(end - count, SLOW_DAYS)
    return Rows(stock.features[start:end], stock.target[start:end])


def tested_rows(stock: StockSeries, public: PublicFacts, origin: int) -> Rows:
    """The rows of the origin's year whose label is known."""
    known = (public.years == origin) & np.isfinite(stock.target)
    return Rows(stock.features[known], stock.target[known])


def with_market(stock: StockSeries, public: PublicFacts) -> StockSeries:
    """The same stock with the public market inputs appended, (days, 13): for the network."""
    features = np.hstack([stock.features, public.market])
    return StockSeries(stock.name, features, stock.target, stock.naive)


def _raw_series(prices: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Raw features (days, 11), target (days,) and the naive forecast's residual (days,)."""
    returns = _log_returns(prices)
    square = returns**2
    ewma = _log(_ewma(square))
    slow = _log(_rolling_mean(square, SLOW_DAYS))
    columns = [_log(_rolling_mean(square, days)) - slow for days in WINDOWS_DAYS]
    columns.append(ewma - slow)
    downside = np.where(returns < 0, square, np.where(np.isnan(square), np.nan, 0.0))
    columns.append(_log(_rolling_mean(downside, HORIZON_DAYS)) - slow)
    largest = np.full_like(square, np.nan)
    largest[HORIZON_DAYS - 1 :] = sliding_window_view(square, HORIZON_DAYS).max(axis=1)
    columns.append(_log(largest) - slow)
    for days in RETURN_WINDOWS_DAYS:
        total = _rolling_mean(returns, days) * np.sqrt(days)
        columns.append(total / np.exp(slow))
    columns.append(slow)
    future = np.full_like(square, np.nan)
    future[:-HORIZON_DAYS] = _rolling_mean(square, HORIZON_DAYS)[HORIZON_DAYS:]
    naive = _log(_rolling_mean(square, NAIVE_DAYS)) - ewma
    return np.stack(columns, axis=1), _log(future) - ewma, naive


def _log_returns(prices: FloatArray) -> FloatArray:
    """Daily log returns; the first day has none."""
    return np.concatenate([[np.nan], np.diff(np.log(prices))])


def _mean_square(prices: FloatArray, days: int) -> FloatArray:
    return _rolling_mean(_log_returns(prices) ** 2, days)


def _log(mean_square: FloatArray) -> FloatArray:
    """Log volatility (of a day, floored) from a mean of squared daily returns."""
    return np.log(np.sqrt(mean_square) + VOLATILITY_FLOOR)


def _rolling_mean(values: FloatArray, days: int) -> FloatArray:
    """Mean over the last `days` values, NaN until there are as many. `values[0]` is NaN.

    Sums of windows, not differences of running sums: a crash long ago leaves no rounding behind.
    """
    result = np.full_like(values, np.nan)
    if len(values) > days:
        result[days:] = sliding_window_view(values[1:], days).mean(axis=1)
    return result


def _ewma(square: FloatArray) -> FloatArray:
    """Exponentially weighted mean, started from the plain mean of the first 22 squares."""
    result = np.full_like(square, np.nan)
    if len(square) <= NAIVE_DAYS:
        return result
    level = float(square[1 : NAIVE_DAYS + 1].mean())
    result[NAIVE_DAYS] = level
    for row, value in enumerate(square[NAIVE_DAYS + 1 :].tolist(), start=NAIVE_DAYS + 1):
        level = EWMA_DECAY * level + (1 - EWMA_DECAY) * value
        result[row] = level
    return result


def _whitening(raw: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Center (11,) and damped PCA whitening (11, 11) of standardised rows (m, 11)."""
    center, spread = raw.mean(axis=0), raw.std(axis=0)
    if not (spread > 0).all():
        raise MarketDataInvalid("index.csv hardly moves in the whitening years: check its closes")
    scaled = (raw - center) / spread
    values, vectors = np.linalg.eigh(scaled.T @ scaled / len(scaled))
    # LAPACK builds differ in the sign of eigenvectors; the broker's and the server's must not.
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(len(values))]
    vectors = vectors * np.sign(largest)
    return center, vectors / np.sqrt(values + WHITENING_DAMPING) / spread[:, None]


def _whiten(raw: FloatArray, center: FloatArray, whitening: FloatArray) -> FloatArray:
    return np.clip((raw - center) @ whitening, -FEATURE_BOUND, FEATURE_BOUND)


def stack(parts: Sequence[Rows]) -> Rows:
    """All rows in one place: what a federation avoids, for the `pooled` reference."""
    return Rows(
        np.concatenate([part.inputs for part in parts]),
        np.concatenate([part.target for part in parts]),
    )
