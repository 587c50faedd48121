"""Daily prices for the demo: from skfolio's data files, or from a user's own folder.

The default prices are the ones that the `skfolio` package carries (20 US stocks and the S&P 500
index, adjusted close, daily, 1990 to 2022). Its CSV files are read where the package lies; the
package itself is never imported (it would pull in scikit-learn and cvxpy), and nothing of it is
copied.

A user's own folder holds one CSV file for each stock, named after it (`AAPL.csv`), and
`index.csv` for the market index. Each file has a header line with the columns `date`
(YYYY-MM-DD, oldest first) and `close` (positive); other columns are ignored. Every stock must
have a price on every date of `index.csv`; dates that only a stock has are dropped.
"""

from __future__ import annotations

import csv
import datetime
import gzip
import importlib.metadata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from boltz_protocol.errors import MeshError

FloatArray = npt.NDArray[np.float64]
DateArray = npt.NDArray[np.datetime64]

#: The version whose figures the demo's documentation quotes.
SKFOLIO_REQUIREMENT: Final = "skfolio==1.12.2"

#: A stock is a broker process, so this caps the processes that one demo starts.
MAX_STOCKS: Final = 64
#: With one broker there is nothing to federate.
MIN_STOCKS: Final = 2
#: 200 years of trading days: more is not a price file.
MAX_ROWS: Final = 50_000
#: 16 MiB; a line of date and close is about 20 bytes, so `MAX_ROWS` lines are far below.
MAX_FILE_BYTES: Final = 16 * 1024 * 1024


class MarketDataMissing(MeshError):
    """The prices, or one file of them, are not where they should be."""

    reason = "MARKET_DATA_MISSING"
    status = "NOT_FOUND"
    next_step = (
        "Run `make setup` (it installs the sample prices), or give `--data FOLDER` with one "
        "CSV a stock (columns date, close) and index.csv."
    )


class MarketDataInvalid(MeshError):
    """A price file that cannot be used; the message names file, line and remedy."""

    reason = "MARKET_DATA_INVALID"
    status = "INVALID_ARGUMENT"
    next_step = (
        "Correct the named file: header line with date,close; dates YYYY-MM-DD oldest first; "
        "positive closing prices, adjusted for splits."
    )


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Closing prices on common dates.

    Attributes:
        dates: `datetime64[D]`, shape (days,), strictly increasing.
        stocks: names, in the order of the columns.
        prices: float64, shape (days, stocks), finite and positive.
        index: float64, shape (days,), finite and positive.
        source: one line for the report that says where the prices are from.
    """

    dates: DateArray
    stocks: tuple[str, ...]
    prices: FloatArray
    index: FloatArray
    source: str

    def only(self, stock: str) -> PriceTable:
        """What that stock's broker may hold: its own closes and the public index."""
        column = self.stocks.index(stock)
        own = self.prices[:, column : column + 1]
        return PriceTable(self.dates, (stock,), own, self.index, self.source)

    def __post_init__(self) -> None:
        assert self.prices.shape == (len(self.dates), len(self.stocks))
        assert self.index.shape == (len(self.dates),)


def load_prices(folder: Path | None = None) -> PriceTable:
    """The user's folder where one is given, otherwise skfolio's sample.

    Raises:
        MarketDataMissing: no folder, file or package there.
        MarketDataInvalid: a file that does not read as prices.
    """
    return load_skfolio() if folder is None else load_folder(folder)


def load_skfolio(location: Path | None = None) -> PriceTable:
    """Read the price files inside the installed `skfolio` distribution, without importing it.

    Args:
        location: the folder that holds the two files; found from the installed distribution's
            metadata where it is not given.

    Raises:
        MarketDataMissing: the package is not installed, or lacks the files.
    """
    folder = location or _skfolio_folder()
    stocks, dates, prices = _read_wide(folder / "sp500_dataset.csv.gz")
    _, index_dates, index = _read_wide(folder / "sp500_index.csv.gz")
    if not np.array_equal(dates, index_dates):
        raise MarketDataInvalid(f"{folder}: stocks and index have different dates")
    source = "skfolio sample data: 20 US stocks and the S&P 500, adjusted close, 1990 to 2022"
    return PriceTable(dates, stocks, prices, index[:, 0], source)


def load_folder(folder: Path) -> PriceTable:
    """Read a user's folder (layout: see the head of this module).

    Raises:
        MarketDataMissing: the folder, `index.csv`, or every stock file is missing.
        MarketDataInvalid: too many or too few stocks, or a file that does not read as prices.
    """
    if not folder.is_dir():
        raise MarketDataMissing(f"{folder} is not a folder")
    if not (folder / "index.csv").is_file():
        raise MarketDataMissing(f"{folder} has no index.csv: add the market index's closes")
    files = sorted(path for path in folder.glob("*.csv") if path.name != "index.csv")
    if not MIN_STOCKS <= len(files) <= MAX_STOCKS:
        raise MarketDataInvalid(
            f"{folder} has {len(files)} stock files; give {MIN_STOCKS} to {MAX_STOCKS}"
        )
    dates, index = _read_narrow(folder / "index.csv")
    columns = [_on_dates(path, dates) for path in files]
    return PriceTable(
        dates,
        tuple(path.stem for path in files),
        np.stack(columns, axis=1),
        index,
        f"the folder {folder.name}: {len(files)} stocks and an index, {dates[0]} to {dates[-1]}",
    )


def save(table: PriceTable, path: Path) -> None:
    """Write a table for another process (npz, no pickle), readable by its owner alone."""
    with path.open("xb") as stream:
        path.chmod(0o600)
        np.savez(
            stream,
            days=table.dates.astype(np.int64),
            stocks=np.array(table.stocks),
            prices=table.prices,
            index=table.index,
            source=np.array(table.source),
        )


def load_saved(path: Path) -> PriceTable:
    """Read what `save` wrote.

    Raises:
        MarketDataMissing: no such file.
        MarketDataInvalid: not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as saved:
            return PriceTable(
                saved["days"].astype("datetime64[D]"),
                tuple(str(name) for name in saved["stocks"]),
                saved["prices"],
                saved["index"],
                str(saved["source"]),
            )
    except FileNotFoundError:
        raise MarketDataMissing(f"{path} does not exist") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MarketDataInvalid(f"{path.name} was not written by the demo: {error}") from None


def _skfolio_folder() -> Path:
    try:
        distribution = importlib.metadata.distribution("skfolio")
    except importlib.metadata.PackageNotFoundError:
        raise MarketDataMissing(
            "the sample prices are not installed: run `make setup`, or "
            f"`pip install --no-deps {SKFOLIO_REQUIREMENT}`"
        ) from None
    return Path(str(distribution.locate_file("skfolio/datasets/data")))


def _on_dates(path: Path, dates: DateArray) -> FloatArray:
    """The closes of one stock on the index's dates."""
    own_dates, close = _read_narrow(path)
    position = np.minimum(np.searchsorted(own_dates, dates), len(own_dates) - 1)
    missing = own_dates[position] != dates
    if missing.any():
        raise MarketDataInvalid(
            f"{path.name} has no close on {dates[missing][0]}, a date of index.csv "
            f"({int(missing.sum())} dates are missing): add them, or remove them from index.csv"
        )
    return close[position]


def _read_wide(path: Path) -> tuple[tuple[str, ...], DateArray, FloatArray]:
    """A gzipped table: `Date`, then a column for each name."""
    rows = _rows(path)
    header = next(rows)[1]
    if len(header) < 2 or header[0].strip().lower() != "date":
        raise MarketDataInvalid(f"{path.name}: the first column must be named Date")
    return tuple(header[1:]), *_parse(path, rows, 0, tuple(range(1, len(header))))


def _read_narrow(path: Path) -> tuple[DateArray, FloatArray]:
    """A file with (at least) the columns `date` and `close`; closes of shape (days,)."""
    rows = _rows(path)
    header = [name.strip().lower() for name in next(rows)[1]]
    for wanted in ("date", "close"):
        if wanted not in header:
            raise MarketDataInvalid(
                f"{path.name}: no column named {wanted!r} in its header line ({', '.join(header)})"
            )
    dates, closes = _parse(path, rows, header.index("date"), (header.index("close"),))
    return dates, closes[:, 0]


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Header and data lines with their line numbers; blank lines are skipped."""
    text = _text(path)
    # A byte order mark is what spreadsheet programs put before the first column's name.
    reader = csv.reader(text.removeprefix("\ufeff").splitlines())
    found = False
    try:
        for row in reader:
            if row:
                found = True
                yield reader.line_num, row
    except csv.Error as error:
        raise MarketDataInvalid(f"{path.name}, line {reader.line_num}: {error}") from None
    if not found:
        raise MarketDataInvalid(f"{path.name} is empty")


def _text(path: Path) -> str:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise MarketDataMissing(f"{path} does not exist") from None
    except (OSError, EOFError) as error:  # gzip.BadGzipFile is an OSError
        raise MarketDataInvalid(f"{path} cannot be read: {error}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise MarketDataInvalid(f"{path.name} is over {MAX_FILE_BYTES} bytes: not a daily file")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise MarketDataInvalid(f"{path.name} is not UTF-8 text") from None


def _parse(
    path: Path, rows: Iterable[tuple[int, list[str]]], date_column: int, columns: tuple[int, ...]
) -> tuple[DateArray, FloatArray]:
    """Dates of shape (days,) and prices of shape (days, columns), checked line by line."""
    days: list[datetime.date] = []
    table: list[list[float]] = []
    for line, row in rows:
        where = f"{path.name}, line {line}"
        if len(row) <= max(date_column, *columns):
            raise MarketDataInvalid(f"{where}: {len(row)} columns, fewer than the header has")
        try:
            day = datetime.date.fromisoformat(row[date_column].strip())
        except ValueError:
            raise MarketDataInvalid(
                f"{where}: {row[date_column]!r} is not a date YYYY-MM-DD"
            ) from None
        if days and day <= days[-1]:
            raise MarketDataInvalid(
                f"{where}: {day} does not come after {days[-1]}: sort the file by date, oldest "
                "first, one line a day"
            )
        days.append(day)
        table.append([_price(row[column], where) for column in columns])
        if len(days) > MAX_ROWS:
            raise MarketDataInvalid(f"{path.name}: over {MAX_ROWS} days")
    if not days:
        raise MarketDataInvalid(f"{path.name} has a header line but no prices")
    return np.array(days, dtype="datetime64[D]"), np.array(table, dtype=np.float64)


def _price(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise MarketDataInvalid(f"{where}: {text!r} is not a number") from None
    if not 0.0 < value < float("inf"):
        raise MarketDataInvalid(f"{where}: price {text.strip()} is not positive and finite")
    return value
