from __future__ import annotations

import numpy as np
import pytest

from boltz_mesh.app.demo.evaluation import ErrorTable, mean_of
from boltz_mesh.app.demo.statistics import paired_difference


def _table(mse: np.ndarray) -> ErrorTable:
    years, stocks = mse.shape
    return ErrorTable(tuple(range(2000, 2000 + years)), tuple(f"S{i}" for i in range(stocks)), mse)


def test_a_constant_difference_has_no_width() -> None:
    base = np.random.Generator(np.random.PCG64(1)).random((6, 4))
    found = paired_difference(("a", _table(base)), ("b", _table(base + 0.5)))
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert (found.years_better, found.stocks_better) == (6, 4)
    assert found.relative == pytest.approx(0.5 / (base.mean() + 0.5))


def test_the_other_way_round_is_the_mirror_image_and_repeats() -> None:
    generator = np.random.Generator(np.random.PCG64(2))
    one, two = _table(generator.random((8, 5))), _table(generator.random((8, 5)))
    there, back = (
        paired_difference(("a", one), ("b", two)),
        paired_difference(("b", two), ("a", one)),
    )
    assert there.mean == pytest.approx(-back.mean)
    assert there.low == pytest.approx(-back.high, abs=2e-3)
    assert there.years_better + back.years_better == 8
    assert there == paired_difference(("a", one), ("b", two))


def test_the_interval_covers_and_counts_years_as_one_piece() -> None:
    generator = np.random.Generator(np.random.PCG64(3))
    hits = 0
    for _ in range(200):
        year = generator.normal(0.0, 1.0, (20, 1))
        stock = generator.normal(0.0, 0.5, (1, 15))
        difference = 0.3 + year + stock + generator.normal(0.0, 0.5, (20, 15))
        found = paired_difference(
            ("a", _table(np.zeros((20, 15)))),
            ("b", _table(difference)),
            np.random.Generator(np.random.PCG64(4)),
            resamples=400,
        )
        hits += found.low <= 0.3 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_rows_are_paired_by_the_same_years_only() -> None:
    one = _table(np.ones((3, 2)))
    with pytest.raises(AssertionError):
        paired_difference(("a", one), ("b", one.at((2000, 2001))))


def test_tables_average_cell_by_cell() -> None:
    one, two = _table(np.ones((3, 2))), _table(3 * np.ones((3, 2)))
    assert mean_of([one, two]).mean == 2.0
    assert one.at((2002,)).mse.shape == (1, 2)
    assert one.by_year().tolist() == [1.0, 1.0, 1.0]
