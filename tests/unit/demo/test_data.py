from __future__ import annotations

import gzip
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from boltz_mesh.app.demo import data
from boltz_mesh.app.demo.data import MarketDataInvalid, MarketDataMissing, PriceTable
from tests.unit.demo.worlds import write_folder


def test_the_sample_is_read_in_full(real_table: PriceTable) -> None:
    assert real_table.prices.shape == (8313, 20)
    assert real_table.stocks[:3] == ("AAPL", "AMD", "BAC")
    assert str(real_table.dates[0]) == "1990-01-02"
    assert str(real_table.dates[-1]) == "2022-12-28"
    assert real_table.index[0] == 359.69
    assert (real_table.prices > 0).all()
    assert (np.diff(real_table.dates) > np.timedelta64(0)).all()


def test_the_sample_package_is_never_imported() -> None:
    code = (
        "import sys; from boltz_mesh.app.demo.data import load_prices; load_prices(); "
        "sys.exit('skfolio' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_package_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(MarketDataMissing, match="make setup") as caught:
        data.load_prices()
    assert "--data FOLDER" in caught.value.advice()


def test_a_package_without_its_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MarketDataMissing, match="does not exist"):
        data.load_skfolio(tmp_path)


def test_sample_files_of_different_dates_are_refused(tmp_path: Path) -> None:
    for name, day in (("sp500_dataset", "2020-01-02"), ("sp500_index", "2020-01-03")):
        (tmp_path / f"{name}.csv.gz").write_bytes(gzip.compress(f"Date,A\n{day},1\n".encode()))
    with pytest.raises(MarketDataInvalid, match="different dates"):
        data.load_skfolio(tmp_path)


def test_a_sample_file_must_start_with_the_date(tmp_path: Path) -> None:
    (tmp_path / "sp500_dataset.csv.gz").write_bytes(gzip.compress(b"A,B\n1,1\n"))
    with pytest.raises(MarketDataInvalid, match="must be named Date"):
        data.load_skfolio(tmp_path)


def test_a_damaged_sample_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sp500_dataset.csv.gz").write_bytes(b"not gzip")
    with pytest.raises(MarketDataInvalid, match="cannot be read"):
        data.load_skfolio(tmp_path)
    (tmp_path / "sp500_dataset.csv.gz").write_bytes(gzip.compress(b"Date,A\n" * 99)[:-9])
    with pytest.raises(MarketDataInvalid, match="cannot be read"):
        data.load_skfolio(tmp_path)


def test_a_folder_reads_back_what_was_written(tmp_path: Path, table: PriceTable) -> None:
    read = data.load_prices(write_folder(tmp_path, table))
    assert read.stocks == table.stocks
    assert np.array_equal(read.prices, table.prices)
    assert np.array_equal(read.index, table.index)
    assert np.array_equal(read.dates, table.dates)
    assert "3 stocks" in read.source


def _small(folder: Path, **files: str) -> Path:
    good = "date,close\n2020-01-02,10\n2020-01-03,11\n"
    for name, text in {"A": good, "B": good, "index": good, **files}.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def test_columns_may_come_in_any_order_and_case(tmp_path: Path) -> None:
    text = "\ufeffVolume, Close ,DATE\n\n5,10,2020-01-02\n6,11.5, 2020-01-03\n"
    read = data.load_folder(_small(tmp_path, A=text))
    assert read.prices[:, 0].tolist() == [10.0, 11.5]


def test_dates_that_only_a_stock_has_are_dropped(tmp_path: Path) -> None:
    text = "date,close\n2020-01-01,9\n2020-01-02,10\n2020-01-03,11\n2020-01-06,12\n"
    assert data.load_folder(_small(tmp_path, A=text)).prices[:, 0].tolist() == [10.0, 11.0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("date,close\n", "no prices"),
        ("day,close\n2020-01-02,1\n", "no column named 'date'"),
        ("date,last\n2020-01-02,1\n", "no column named 'close'"),
        ("date,close\n2020-01-02\n", "line 2: 1 columns"),
        ("date,close\n02/01/2020,1\n", "line 2: '02/01/2020' is not a date"),
        ("date,close\ntoday,1\n", "is not a date"),
        ("date,close\n2020-01-03,1\n2020-01-02,1\n", "line 3: 2020-01-02 does not come after"),
        ("date,close\n2020-01-02,1\n2020-01-02,1\n", "sort the file by date"),
        ("date,close\n2020-01-02,ten\n", "'ten' is not a number"),
        ("date,close\n2020-01-02,0\n", "price 0 is not positive"),
        ("date,close\n2020-01-02,-3\n", "not positive"),
        ("date,close\n2020-01-02,nan\n", "not positive"),
        ("date,close\n2020-01-02,inf\n", "not positive"),
        ("date,close\n2020-01-02,10\n", "A.csv has no close on 2020-01-03"),
        ("date,close\n2020-01-03,10\n", "1 dates are missing"),
        ('date,close\n2020-01-02,"' + "1" * 200_000 + '"\n', "field larger than field limit"),
    ],
)
def test_a_bad_stock_file_names_the_place(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(MarketDataInvalid, match=r"A\.csv") as caught:
        data.load_folder(_small(tmp_path, A=text))
    assert words in caught.value.message
    assert caught.value.advice()


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (_small(tmp_path) / "A.csv").write_bytes(b"date,close\n\xff\xfe\n")
    with pytest.raises(MarketDataInvalid, match="not UTF-8"):
        data.load_folder(tmp_path)


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    _small(tmp_path, A="date,close\n" + "x" * data.MAX_FILE_BYTES)
    with pytest.raises(MarketDataInvalid, match="not a daily file"):
        data.load_folder(tmp_path)


def test_too_many_days_are_refused(tmp_path: Path) -> None:
    days = np.datetime64("1800-01-01") + np.arange(data.MAX_ROWS + 1)
    _small(tmp_path, index="date,close\n" + "\n".join(f"{day},1" for day in days))
    with pytest.raises(MarketDataInvalid, match="over 50000 days"):
        data.load_folder(tmp_path)


def test_folders_without_what_is_needed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MarketDataMissing, match="is not a folder"):
        data.load_folder(tmp_path / "absent")
    with pytest.raises(MarketDataMissing, match="add the market index"):
        data.load_folder(tmp_path)
    (_small(tmp_path) / "B.csv").unlink()
    with pytest.raises(MarketDataInvalid, match="1 stock files; give 2 to 64"):
        data.load_folder(tmp_path)
