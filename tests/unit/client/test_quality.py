"""The declared quality bucket: thresholds, the worse of two, and what is refused."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boltz_client import quality_bucket
from boltz_client.quality import LEAST_COVERAGE, MOST_STALENESS_DAYS
from boltz_protocol.errors import ConfigurationError
from tests.support.repository import ROOT

SHARES = st.floats(0, 1)
DAYS = st.floats(0, 1e6)


@pytest.mark.parametrize(
    ("coverage", "staleness_days", "bucket"),
    [
        (1.0, 0.0, 3),
        (0.95, 4.0, 3),
        (0.949, 4.0, 2),
        (0.95, 4.01, 2),
        (0.8, 14.0, 2),
        (0.79, 0.0, 1),
        (1.0, 14.5, 1),
        (0.5, 45.0, 1),
        (0.49, 0.0, 0),
        (1.0, 46.0, 0),
        (0.0, 1e9, 0),
    ],
)
def test_thresholds(coverage: float, staleness_days: float, bucket: int) -> None:
    assert quality_bucket(coverage, staleness_days) == bucket


@given(SHARES, DAYS, SHARES, DAYS)
def test_better_data_is_never_a_worse_bucket(
    one: float, days: float, other: float, more_days: float
) -> None:
    low, high = sorted((one, other))
    fresh, stale = sorted((days, more_days))
    assert 0 <= quality_bucket(low, stale) <= quality_bucket(high, fresh) <= 3
    assert quality_bucket(one, days) == min(quality_bucket(one, 0), quality_bucket(1, days))


@pytest.mark.parametrize(
    ("coverage", "staleness_days", "setting"),
    [
        (-0.01, 0.0, "coverage"),
        (1.01, 0.0, "coverage"),
        (math.nan, 0.0, "coverage"),
        (95.0, 0.0, "coverage"),
        (1.0, -1.0, "staleness_days"),
        (1.0, math.nan, "staleness_days"),
        (1.0, math.inf, "staleness_days"),
    ],
)
def test_what_is_no_share_and_no_age_is_refused(
    coverage: float, staleness_days: float, setting: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        quality_bucket(coverage, staleness_days)
    assert caught.value.metadata["setting"] == setting


def test_the_documented_example_and_table() -> None:
    text = (ROOT / "docs" / "client.md").read_text("utf-8").split("### How good the data is")[1]
    assert "coverage=0.9, staleness_days=6.0" in text
    assert quality_bucket(coverage=0.9, staleness_days=6.0) == 2
    rows = re.findall(r"^\| (\d) \| ([0-9.]+) \| (\d+) days", text, re.MULTILINE)
    assert tuple((float(least), int(bucket)) for bucket, least, _ in rows) == LEAST_COVERAGE
    assert tuple((float(most), int(bucket)) for bucket, _, most in rows) == MOST_STALENESS_DAYS
