"""Who may be planned for: every setting's refusals, and what follows from a cohort."""

from __future__ import annotations

import math
from typing import Any

import pytest

from boltz_mesh.privacy.federation import USUAL_DELTA, Federation
from boltz_protocol import limits
from boltz_protocol.errors import InvalidPlan


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"clients": 0}, "clients"),
        ({"clients": -1}, "clients"),
        ({"clients": 2}, "clients"),
        ({"clients": 0, "mode": "open"}, "clients"),
        ({"clients": limits.MAX_ROSTER + 1}, "clients"),
        ({"delta": 0.0}, "delta"),
        ({"delta": -1e-6}, "delta"),
        ({"delta": math.nan}, "delta"),
        ({"delta": 1 / 59}, "delta"),
        ({"delta": 1e-16}, "delta"),
        ({"mode": "grouped"}, "mode"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"clip_norm": math.inf}, "clip_norm"),
        ({"clip_norm": math.nan}, "clip_norm"),
        ({"parameters": 0}, "parameters"),
        ({"parameters": limits.MAX_COORDINATES + 1}, "parameters"),
        ({"sampling_rate": 0.0, "supposed_sampling": True}, "sampling_rate"),
        ({"sampling_rate": 1.5}, "sampling_rate"),
        ({"sampling_rate": math.nan}, "sampling_rate"),
        ({"sampling_rate": 0.1}, "sampling_rate"),
        ({"least_survivors": 2}, "least_survivors"),
        ({"least_survivors": 61}, "least_survivors"),
        ({"least_survivors": 40, "mode": "open"}, "least_survivors"),
        ({"corrupt_fraction": 1.0}, "corrupt_fraction"),
        ({"corrupt_fraction": -0.1}, "corrupt_fraction"),
        ({"corrupt_fraction": math.nan}, "corrupt_fraction"),
        ({"least_survivors": 3, "corrupt_fraction": 0.05}, "corrupt_fraction"),
    ],
)
def test_refusals_name_the_setting_and_a_value(settings: dict[str, Any], setting: str) -> None:
    with pytest.raises(InvalidPlan, match=r"would do|for example") as error:
        Federation(**{"clients": 60, **settings})
    assert error.value.metadata["setting"] == setting
    assert setting in error.value.message


def test_what_would_do_does() -> None:
    Federation(clients=50)
    Federation(clients=60, delta=1 / 60)
    Federation(clients=limits.MAX_ROSTER, delta=USUAL_DELTA)
    Federation(clients=1, mode="open")
    Federation(clients=60, sampling_rate=0.1, supposed_sampling=True)
    assert Federation(clients=60, least_survivors=60) == Federation(clients=60, least_survivors=60)


def test_the_refused_sampling_rate_is_explained() -> None:
    with pytest.raises(InvalidPlan, match="not provably random, secret and uniform counts as 1"):
        Federation(clients=60, sampling_rate=0.5)


def test_open_rounds_have_the_noise_that_is_counted() -> None:
    federation = Federation(clients=60, mode="open")
    assert federation.noise_growth == 1.0
    assert federation.accounted(4.0) == 4.0


def test_a_full_cohort_of_shares_has_more_noise_than_the_fewest() -> None:
    federation = Federation(clients=60, least_survivors=40)
    # 3 of 60 may collude.
    assert federation.honest == 37
    assert federation.noise_growth == math.sqrt(60 / 37)
    assert federation.accounted(4.0) < 4.0
    assert federation.accounted(4.0) == pytest.approx(4.0, rel=1e-8)
    assert Federation(clients=60).survivors == 60
    assert Federation(clients=60, corrupt_fraction=0.0).noise_growth == 1.0
