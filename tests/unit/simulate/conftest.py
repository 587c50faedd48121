"""Prices for the simulation's tests: made up and small, and real where figures are held."""

from __future__ import annotations

import pytest

from boltz_mesh.app.demo.data import PriceTable, load_skfolio
from boltz_mesh.app.demo.evaluation import network_market
from boltz_mesh.app.demo.task import Market, market_of
from tests.unit.demo.worlds import price_table


@pytest.fixture(scope="session")
def table() -> PriceTable:
    return price_table(stocks=6)


@pytest.fixture(scope="session")
def market(table: PriceTable) -> Market:
    return market_of(table)


@pytest.fixture(scope="session")
def network(market: Market) -> Market:
    return network_market(market)


@pytest.fixture(scope="session")
def real_market() -> Market:
    return market_of(load_skfolio())
