"""Periods: days, their one spelling, and which of them share a budget."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boltz_mesh.privacy.periods import Period, day_of, midnight_ms, parse_period, sharing
from boltz_protocol.errors import InvalidPlan

Q3, Q4, Q1 = "2026-07-01/2026-10-01", "2026-10-01/2027-01-01", "2027-01-01/2027-04-01"
FIRST = date(2026, 1, 1)

periods = st.tuples(st.integers(0, 40), st.integers(1, 10)).map(
    lambda pair: Period(FIRST + timedelta(days=pair[0]), FIRST + timedelta(days=pair[0] + pair[1]))
)


@given(period=periods)
def test_a_period_is_read_as_it_is_written(period: Period) -> None:
    assert parse_period(str(period)) == period


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-10-01",
        "2026-10-01/",
        "2026-10-01/2027-01-01/2028-01-01",
        "20261001/20270101",
        "2026-W40-4/2027-01-01",
        "2027-01-01/2026-10-01",
        "2026-10-01/2026-10-01",
        "2026-02-30/2026-10-01",
        "2026-10-01/2027-01-01 ",
        "x" * 1000,
    ],
)
def test_what_is_no_period(text: str) -> None:
    with pytest.raises(InvalidPlan) as refused:
        parse_period(text)
    assert refused.value.metadata["setting"] == "period"
    assert len(refused.value.message) < 200


def test_neighbours_share_no_day() -> None:
    assert sharing(Q4, [Q3, Q4, Q1]) == {Q4}
    assert sharing(Q4, []) == {Q4}


def test_a_whole_client_shares_with_every_period() -> None:
    assert sharing("", [Q3, Q4]) == {"", Q3, Q4}
    assert sharing(Q4, ["", Q3]) == {"", Q4}


def test_an_overlap_goes_on_through_others() -> None:
    between = "2026-12-31/2027-01-02"
    assert sharing(Q4, [Q1, between]) == {Q4, between, Q1}
    assert sharing(Q1, [Q3, Q4, between]) == {Q4, between, Q1}


@given(all_=st.lists(periods, min_size=1, max_size=8))
def test_sharing_cuts_all_periods_into_parts_without_a_common_day(all_: list[Period]) -> None:
    texts = [str(period) for period in all_]
    for one in all_:
        part = sharing(str(one), texts)
        for text in part:
            assert sharing(text, texts) == part
        for other in set(texts) - part:
            assert not any(parse_period(text).overlaps(parse_period(other)) for text in part)


def test_days_are_utc() -> None:
    assert midnight_ms(date(1970, 1, 2)) == 86_400_000
    assert day_of(86_400_000) == date(1970, 1, 2)
    assert day_of(86_399_999) == date(1970, 1, 1)
