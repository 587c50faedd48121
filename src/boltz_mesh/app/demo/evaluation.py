"""Squared errors of forecasts, by origin and stock; every row of the table is made here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from boltz_mesh.app.demo import linear, mlp
from boltz_mesh.app.demo.data import FloatArray
from boltz_mesh.app.demo.task import Market, tested_rows, with_market


@dataclass(frozen=True, slots=True)
class ErrorTable:
    """Mean squared errors of one row of the table.

    Attributes:
        origins: the tested years.
        stocks: names.
        mse: float64 (origins, stocks), mean over the year's days.
    """

    origins: tuple[int, ...]
    stocks: tuple[str, ...]
    mse: FloatArray

    def __post_init__(self) -> None:
        assert self.mse.shape == (len(self.origins), len(self.stocks))

    @property
    def mean(self) -> float:
        """Mean over years and stocks, each with the same weight."""
        return float(self.mse.mean())

    def by_year(self) -> FloatArray:
        """Mean over the stocks, (origins,)."""
        return np.asarray(self.mse.mean(axis=1), dtype=np.float64)

    def at(self, origins: Sequence[int]) -> ErrorTable:
        """The same for some of the origins."""
        rows = [self.origins.index(origin) for origin in origins]
        return ErrorTable(tuple(origins), self.stocks, self.mse[rows])


def evaluate(
    market: Market, origins: Sequence[int], predict: Callable[[int, int, FloatArray], FloatArray]
) -> ErrorTable:
    """Errors of any forecast.

    Args:
        market: every stock.
        origins: years to test.
        predict: (origin, number of the stock, inputs (m, k)) -> forecast residuals (m,).
    """
    mse = np.empty((len(origins), len(market.stocks)))
    for row, origin in enumerate(origins):
        for column, stock in enumerate(market.stocks):
            rows = tested_rows(stock, market.public, origin)
            error = rows.target - predict(origin, column, rows.inputs)
            mse[row, column] = np.mean(error**2)
    return ErrorTable(tuple(origins), tuple(stock.name for stock in market.stocks), mse)


def evaluate_linear(market: Market, models: Mapping[int, npt.ArrayLike]) -> ErrorTable:
    """Errors of one linear model (12,) for each origin, as they came out of the mesh."""
    origins = sorted(models)
    return evaluate(
        market, origins, lambda origin, _, inputs: linear.predict(models[origin], inputs)
    )


def evaluate_mlp(market: Market, models: Mapping[int, npt.ArrayLike]) -> ErrorTable:
    """Errors of one network (241,) for each origin, as they came out of the mesh."""
    origins = sorted(models)
    return evaluate(
        network_market(market),
        origins,
        lambda origin, _, inputs: mlp.predict(models[origin], inputs),
    )


def network_market(market: Market) -> Market:
    """The market with the network's 13 inputs in place of the 11 features."""
    return Market(
        market.public, tuple(with_market(stock, market.public) for stock in market.stocks)
    )


def mean_of(tables: Sequence[ErrorTable]) -> ErrorTable:
    """Cell by cell mean over noise seeds."""
    first = tables[0]
    assert all((t.origins, t.stocks) == (first.origins, first.stocks) for t in tables)
    return ErrorTable(first.origins, first.stocks, np.mean([t.mse for t in tables], axis=0))
