"""Noise follows from what a rule declares, and a rule that declares nothing gets none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import pytest

from boltz_mesh.aggregation.calibration import Calibration, calibrate
from boltz_mesh.aggregation.rule import ProvenRule
from boltz_mesh.aggregation.weighted_mean import WEIGHTED_MEAN
from boltz_protocol.errors import InvalidPlan


@dataclass(frozen=True)
class Declared:
    """A rule that declares what it is told, whatever the round."""

    bound: int
    name: str = "declared"

    def l2_sensitivity(self, n: int, f: int, clip: int, weights: Sequence[int]) -> int:
        return self.bound


@dataclass(frozen=True)
class GrowsWithFewer:
    """Not allowed: the fewer survive, the more one can change."""

    name: str = "growing"

    def l2_sensitivity(self, n: int, f: int, clip: int, weights: Sequence[int]) -> int:
        return clip // n


def noise_of(rule: ProvenRule, z: float, *, clip: int = 1000, n: int = 3) -> Calibration:
    return calibrate(rule, noise_multiplier=z, clip=clip, weights=(255,) * n)


def test_sigma_is_z_times_what_the_rule_declares_exactly() -> None:
    assert noise_of(WEIGHTED_MEAN, 1.1).sigma_squared == (Fraction(1.1) * 1000) ** 2
    assert noise_of(Declared(7), 1.1).sigma_squared == (Fraction(1.1) * 7) ** 2
    assert noise_of(Declared(2000), 0.5).sensitivity == 2000  # more than the clip, if it says so
    assert noise_of(WEIGHTED_MEAN, 0.0).sigma_squared == 0


@pytest.mark.parametrize(("z", "would_do"), [(0.01, "0.0714286"), (1e6, "149797")])
def test_noise_that_cannot_be_drawn_is_refused(z: float, would_do: str) -> None:
    with pytest.raises(InvalidPlan, match=f"{would_do} would do") as error:
        noise_of(Declared(7), z)
    assert error.value.metadata["setting"] == "noise_multiplier"


def test_the_noise_must_cover_whoever_survives() -> None:
    growing = GrowsWithFewer()
    calibration = noise_of(growing, 1.0, n=4)
    calibration.check_covers(growing, clip=1000, weights=(255,) * 4)
    with pytest.raises(AssertionError, match="fewer survivors"):
        calibration.check_covers(growing, clip=1000, weights=(255,) * 2)
    # Without noise there is nothing to cover.
    noise_of(growing, 0.0, n=4).check_covers(growing, clip=1000, weights=(255,) * 2)


def test_a_bound_of_nothing_crashes() -> None:
    with pytest.raises(AssertionError):
        noise_of(Declared(0), 1.0)
