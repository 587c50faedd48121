"""An event states its mathematics, or is refused."""

from typing import Any

import pytest

from boltz_mesh.privacy.mechanisms import PrivacyEvent, release_event
from boltz_protocol.errors import InvalidPlan
from tests.unit.privacy.events import event

GOOD: dict[str, Any] = {
    "mechanism": "discrete-gaussian",
    "noise_multiplier": 2.0,
    "sensitivity": 1000,
    "model": "m",
    "round": "r",
    "attempt": 1,
    "client": "c",
}


def test_a_release_is_not_sampled_and_says_its_relation() -> None:
    made = event(2.0)
    assert made.mechanism == "discrete-gaussian"
    assert made.sampling_rate == 1.0
    assert (made.unit, made.relation) == ("client", "contribution-set-to-zero")
    assert made.standard_deviation == 2000.0


def test_noise_in_shares_is_its_own_mechanism() -> None:
    made = event(2.0, distributed=True)
    assert made.mechanism == "distributed-discrete-gaussian"
    assert (made.unit, made.relation) == ("client", "contribution-set-to-zero")
    assert event(0.0, distributed=True).mechanism == "none"


def test_no_noise_is_its_own_mechanism() -> None:
    assert event(0.0).mechanism == "none"
    assert event(0.0).standard_deviation == 0.0


def test_the_good_one_is_accepted() -> None:
    assert PrivacyEvent(**GOOD).sensitivity == 1000


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("noise_multiplier", -1.0),
        ("noise_multiplier", float("nan")),
        ("noise_multiplier", float("inf")),
        ("noise_multiplier", 0.0),  # and yet a Gaussian
        ("sensitivity", 0),
        ("sensitivity", -5),
        ("sampling_rate", 0.0),
        ("sampling_rate", 1.5),
        ("sampling_rate", float("nan")),
        ("mechanism", "laplace"),
        ("unit", "trade"),
        ("relation", "contribution-replaced"),
        ("period", "2026-10-01/2027-01-01"),  # of a whole client?
    ],
)
def test_an_event_that_means_nothing_is_refused(setting: str, value: object) -> None:
    with pytest.raises(InvalidPlan) as refused:
        PrivacyEvent(**(GOOD | {setting: value}))
    assert refused.value.metadata["setting"] == setting
    assert "would do" in refused.value.message or "use" in refused.value.message


def test_noise_without_a_mechanism_is_refused() -> None:
    with pytest.raises(InvalidPlan):
        PrivacyEvent(**(GOOD | {"mechanism": "none"}))


def test_a_negative_multiplier_is_no_release() -> None:
    with pytest.raises(InvalidPlan):
        release_event(
            noise_multiplier=-1, sensitivity=1, model="m", round="r", attempt=1, client="c"
        )


def test_an_event_about_a_period_names_it() -> None:
    made = event(2.0, period="2026-10-01/2027-01-01")
    assert (made.unit, made.period) == ("client-period", "2026-10-01/2027-01-01")
    assert (event(2.0).unit, event(2.0).period) == ("client", "")
    for wrong in ({"unit": "client-period"}, {"unit": "client-period", "period": "Q4"}):
        with pytest.raises(InvalidPlan) as refused:
            PrivacyEvent(**(GOOD | wrong))
        assert refused.value.metadata["setting"] == "period"
