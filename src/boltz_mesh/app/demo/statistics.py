"""Paired intervals for differences of error: is one row of the table really below another?

The errors of one year share a market, and those of one stock share a company, so days are no
independent evidence. The interval resamples whole years and, separately, whole stocks (the
two-way cluster bootstrap: Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1,
386-411, which errs on the wide side), and takes percentiles. Four years are few: the interval
over them says how the years differ, not what a fifth year would bring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from boltz_mesh.app.demo.evaluation import ErrorTable

RESAMPLES: Final = 10_000
LEVEL: Final = 0.95
#: Seed of the resampling, printed in the report. It protects nothing.
BOOTSTRAP_SEED: Final = 20_260_101


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """How far `better` lies below `worse`.

    Attributes:
        better: name of a row.
        worse: name of a row.
        mean: mean of worse - better; positive where `better` has the smaller error.
        low: lower end of the interval for the mean.
        high: upper end.
        relative: mean divided by the mean error of `worse`.
        years_better: years in which `better` has the smaller error.
        years: years compared.
        stocks_better: stocks for which `better` has the smaller error.
        stocks: stocks compared.
    """

    better: str
    worse: str
    mean: float
    low: float
    high: float
    relative: float
    years_better: int
    years: int
    stocks_better: int
    stocks: int


def paired_difference(
    better: tuple[str, ErrorTable],
    worse: tuple[str, ErrorTable],
    generator: np.random.Generator | None = None,
    resamples: int = RESAMPLES,
) -> PairedDifference:
    """The mean difference with its 95% interval over years and stocks.

    Args:
        better: name and errors; mean over the seeds where a row has several.
        worse: name and errors on the same years and stocks.
        generator: PCG64 from `BOOTSTRAP_SEED` where it is not given, so that a report repeats.
        resamples: draws of years and stocks.
    """
    (better_name, low_errors), (worse_name, high_errors) = better, worse
    assert low_errors.origins == high_errors.origins
    assert low_errors.stocks == high_errors.stocks
    chance = generator or np.random.Generator(np.random.PCG64(BOOTSTRAP_SEED))
    difference = high_errors.mse - low_errors.mse
    years, stocks = difference.shape
    # Drawing with replacement is the same as weighting by multinomial counts.
    year_weights = chance.multinomial(years, np.full(years, 1 / years), resamples) / years
    stock_weights = chance.multinomial(stocks, np.full(stocks, 1 / stocks), resamples) / stocks
    means = ((year_weights @ difference) * stock_weights).sum(axis=1)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return PairedDifference(
        better_name,
        worse_name,
        float(difference.mean()),
        float(low),
        float(high),
        float(difference.mean() / high_errors.mse.mean()),
        int((difference.mean(axis=1) > 0).sum()),
        years,
        int((difference.mean(axis=0) > 0).sum()),
        stocks,
    )
