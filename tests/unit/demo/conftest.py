"""Prices for the demo's tests, made up and real."""

from __future__ import annotations

import pytest

from boltz_mesh.app.demo.data import PriceTable, load_skfolio
from boltz_mesh.app.demo.task import Market, market_of
from tests.unit.demo.worlds import price_table


@pytest.fixture(scope="session")
def table() -> PriceTable:
    return price_table()


@pytest.fixture(scope="session")
def market(table: PriceTable) -> Market:
    return market_of(table)


@pytest.fixture(scope="session")
def real_table() -> PriceTable:
    return load_skfolio()


@pytest.fixture(scope="session")
def real_market(real_table: PriceTable) -> Market:
    return market_of(real_table)
