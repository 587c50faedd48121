"""The owner's limits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from boltz_client.owner import OwnerLimits
from boltz_protocol.errors import ConfigurationError, RoundRefused
from boltz_protocol.messages import RoundMode
from tests.support import samples


def test_the_defaults_refuse_nothing() -> None:
    OwnerLimits().check(samples.configuration(), 16)


@pytest.mark.parametrize(
    ("owner", "match"),
    [
        (OwnerLimits(modes=frozenset({RoundMode.SEALED})), "mode is open; the owner allows sealed"),
        (OwnerLimits(smallest_cohort=3), "2 clients"),
        (OwnerLimits(least_noise_multiplier=1.6), "noise multiplier is 1.5"),
        (OwnerLimits(largest_weight_share=0.5), "53.3%"),
    ],
)
def test_what_is_outside_is_refused(owner: OwnerLimits, match: str) -> None:
    with pytest.raises(RoundRefused, match=match):
        owner.check(samples.configuration(), 16)


def test_the_edges_are_allowed() -> None:
    configuration = replace(samples.configuration(), total_weight=32)
    OwnerLimits(frozenset({RoundMode.OPEN}), 2, 1.5, 0.5).check(configuration, 16)


@pytest.mark.parametrize(
    "values",
    [
        {"modes": frozenset()},
        {"smallest_cohort": 0},
        {"least_noise_multiplier": -1.0},
        {"least_noise_multiplier": math.nan},
        {"largest_weight_share": 0.0},
        {"largest_weight_share": 1.1},
    ],
)
def test_limits_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        OwnerLimits(**values)
