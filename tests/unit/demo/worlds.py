"""Made-up prices for the demo's tests: volatility that clusters, twelve years of trading days."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from boltz_mesh.app.demo.data import FloatArray, PriceTable

SEED = 20_240_229


def trading_days(first: str = "2000-01-03", last: str = "2012-01-01") -> np.ndarray:
    days = np.arange(np.datetime64(first), np.datetime64(last))
    return days[np.is_busday(days)]


def price_table(stocks: int = 3, seed: int = SEED, first: str = "2000-01-03") -> PriceTable:
    """Prices with slowly moving volatility, from the printed seed."""
    dates = trading_days(first)
    generator = np.random.Generator(np.random.PCG64(seed))
    columns = stocks + 1
    level = np.zeros(columns)
    returns: list[FloatArray] = []
    for _ in range(len(dates)):
        level = 0.98 * level + 0.1 * generator.standard_normal(columns)
        returns.append(0.012 * np.exp(level) * generator.standard_normal(columns))
    prices = 100 * np.exp(np.cumsum(np.array(returns), axis=0))
    names = tuple(f"S{i}" for i in range(stocks))
    return PriceTable(dates, names, prices[:, :stocks], prices[:, stocks], f"seed {seed}")


def write_folder(folder: Path, table: PriceTable) -> Path:
    """The user's layout: one file a stock, and index.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = {**dict(zip(table.stocks, table.prices.T, strict=True)), "index": table.index}
    for name, closes in columns.items():
        lines = [
            f"{day},{close!r}" for day, close in zip(table.dates, closes.tolist(), strict=True)
        ]
        (folder / f"{name}.csv").write_text("date,close\n" + "\n".join(lines) + "\n")
    return folder
