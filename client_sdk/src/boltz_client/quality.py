"""From what an owner knows of its data to the quality bucket that a client declares."""

from __future__ import annotations

from typing import Final

from boltz_protocol import limits
from boltz_protocol.errors import ConfigurationError

#: Least coverage of each bucket, best first. Models train on rows with all their features: with a
#: twentieth missing a data set is as good as whole, with half missing it is another data set.
LEAST_COVERAGE: Final = ((0.95, 3), (0.8, 2), (0.5, 1))
#: Greatest age of the newest row for each bucket, in days, best first: nothing is traded over a
#: weekend with a holiday; then two weeks, and a month and a half, for feeds that come in batches.
MOST_STALENESS_DAYS: Final = ((4.0, 3), (14.0, 2), (45.0, 1))

assert LEAST_COVERAGE[0][1] == MOST_STALENESS_DAYS[0][1] == limits.MAX_QUALITY_BUCKET


def quality_bucket(coverage: float, staleness_days: float) -> int:
    """The worse of what coverage and staleness allow, 0 (worst) to 3 (best).

    A client weighs (bucket + 1) / 4 of what it would with the best one. Only the bucket is sent.

    Args:
        coverage: share of the rows that the data set should have, over the time that it is trained
            on, which are there with all their features, 0 to 1.
        staleness_days: age of the newest row, in days, 0 or more.

    Raises: ConfigurationError naming the value that is out of range or not a number.
    """
    # Written so that a NaN is refused.
    if not 0.0 <= coverage <= 1.0:
        raise ConfigurationError(
            f"coverage is {coverage}; a share from 0 to 1 is meant", setting="coverage"
        )
    if not 0.0 <= staleness_days < float("inf"):
        raise ConfigurationError(
            f"staleness is {staleness_days} days; 0 or more is meant", setting="staleness_days"
        )
    covered = next((bucket for least, bucket in LEAST_COVERAGE if coverage >= least), 0)
    fresh = next((bucket for most, bucket in MOST_STALENESS_DAYS if staleness_days <= most), 0)
    return min(covered, fresh)
