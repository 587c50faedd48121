from __future__ import annotations

import hashlib
import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import opendp.prelude as dp
import pytest
from scipy import stats  # type: ignore[import-untyped]

from boltz_protocol import noise
from boltz_protocol.errors import InvalidPlan
from boltz_protocol.fixed_exp import exp_below, gaussian_masses
from boltz_protocol.keystream import Keystream
from boltz_protocol.noise import DiscreteGaussian, discrete_gaussian
from tests.support.keys import load_vectors

# Keys are fixed, so that a test either always passes or never does.
KEY = hashlib.sha256(b"noise tests").digest()
LEAST_P = 1e-4


class Scripted(Keystream):
    """A stream with chosen bytes, for cases that chance brings once in 2^48 draws."""

    __slots__ = ("_script",)

    def __init__(self, script: bytes) -> None:
        super().__init__(bytes(32))
        self._script = script

    def fill(self, out: npt.NDArray[Any]) -> None:
        taken, self._script = self._script[: out.nbytes], self._script[out.nbytes :]
        assert len(taken) == out.nbytes, "the script is too short"
        out.reshape(-1).view(np.uint8)[:] = np.frombuffer(taken, dtype=np.uint8)

    @property
    def used_up(self) -> bool:
        return not self._script


def _sample(sampler: DiscreteGaussian, count: int, key: bytes = KEY) -> npt.NDArray[np.int32]:
    out = np.empty(count, dtype=np.int32)
    sampler.sample_into(out, Keystream(key))
    return out


def _p_value(samples: npt.NDArray[np.int32], sigma: float) -> float:
    """Chi-square against the exact law, in bins of about equal mass (single values if few)."""
    reach = math.ceil(8 * sigma)
    values = np.arange(-reach, reach + 1)
    pmf = np.exp(-(values.astype(np.float64) ** 2) / (2 * sigma * sigma))
    cdf = np.cumsum(pmf / pmf.sum())
    # Each bin holds at least 1/200 of the mass; the two outer ones take the tails.
    cuts = [0]
    for index, mass in enumerate(cdf):
        if mass - cdf[cuts[-1]] > 0.005 and 1 - mass > 0.005:
            cuts.append(index)
    edges = values[cuts[1:]]
    expected = np.diff([0.0, *cdf[cuts[1:]], 1.0]) * samples.size
    observed = np.bincount(np.searchsorted(edges, samples, side="left"), minlength=expected.size)
    return float(stats.chisquare(observed, expected, sum_check=False).pvalue)


@pytest.mark.parametrize("sigma", [0.5, 0.8, 1.0, 3.0, 20.25, 131.0, 1161.0, 2047.0])
def test_direct_samples_follow_the_exact_law(sigma: float) -> None:
    samples = _sample(discrete_gaussian(Fraction(sigma) ** 2), 400_000)
    assert _p_value(samples, sigma) > LEAST_P
    assert abs(samples.mean()) < 5 * sigma / math.sqrt(samples.size)


@pytest.mark.parametrize("sigma", [2049.0, 5000.5, 2.0**16, 2.0**18 + 0.25, 2.0**20])
def test_scaled_samples_follow_the_exact_law(sigma: float) -> None:
    samples = _sample(discrete_gaussian(Fraction(sigma) ** 2), 400_000)
    assert abs(samples.mean()) < 5 * sigma / math.sqrt(samples.size)
    assert samples.std() == pytest.approx(sigma, rel=0.006)
    assert stats.kstest(samples[:200_000] / sigma, "norm").pvalue > LEAST_P
    # The low bits are uniform only if the decision to keep is right.
    low = np.bincount(samples & 7, minlength=8)
    assert stats.chisquare(low).pvalue > LEAST_P


@pytest.mark.parametrize("sigma", [4.0, 9.5, 40.0])
def test_scaled_method_is_exact_value_by_value(
    monkeypatch: pytest.MonkeyPatch, sigma: float
) -> None:
    # With a tiny coarse sigma, rejections and minus zeros are common and a wrong rule shows.
    monkeypatch.setattr(noise, "_DIRECT_SIGMA", 1)
    monkeypatch.setattr(noise, "_COARSE_SIGMA", 2)
    sampler = discrete_gaussian.__wrapped__(Fraction(sigma) ** 2)
    assert sampler._shift >= 1
    samples = _sample(sampler, 400_000)
    assert _p_value(samples, sigma) > LEAST_P


def test_variance_is_the_discrete_one() -> None:
    values = np.arange(-10, 11)
    pmf = np.exp(-(values**2) / 0.5)
    wanted = float((values**2 * pmf).sum() / pmf.sum())
    samples = _sample(discrete_gaussian(Fraction(1, 4)), 1_000_000)
    assert samples.astype(np.float64).var() == pytest.approx(wanted, rel=0.01)


def test_opendp_agrees() -> None:
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=int)), dp.l2_distance(T=float)
    theirs = np.array(dp.m.make_gaussian(*space, scale=7.5)([0] * 20_000))
    ours = _sample(discrete_gaussian(Fraction(15, 2) ** 2), 200_000)
    edges = np.arange(-15, 16, 2)
    table = np.stack([np.bincount(np.searchsorted(edges, x), minlength=17) for x in (ours, theirs)])
    assert stats.chi2_contingency(table).pvalue > 1e-6


def test_neighbouring_samples_are_independent() -> None:
    samples = _sample(discrete_gaussian(Fraction(3000) ** 2), 400_000).astype(np.float64)
    for lag in (1, 2, 7):
        assert abs(np.corrcoef(samples[lag:], samples[:-lag])[0, 1]) < 5 / math.sqrt(samples.size)


def test_same_key_same_noise_fresh_key_other_noise() -> None:
    for sigma in (131, 2**18):
        sampler = discrete_gaussian(Fraction(sigma) ** 2)
        assert np.array_equal(_sample(sampler, 70_000), _sample(sampler, 70_000))
        out = np.empty(100, dtype=np.int32)
        sampler.sample_into(out, Keystream.fresh())
        assert not np.array_equal(out, _sample(sampler, 100))


def test_adding_is_sampling_and_a_sum() -> None:
    sampler = discrete_gaussian(Fraction(131) ** 2)
    values = np.arange(noise.BLOCK + 100, dtype=np.int32)
    sampler.add_into(values, Keystream(KEY))
    assert np.array_equal(values - np.arange(values.size), _sample(sampler, values.size))
    sampler.add_into(values[:0], Keystream(KEY))


@pytest.mark.parametrize("sigma", [0.5, 131.0, 2048.0, 2049.0, 2.0**18, 2.0**20])
def test_distance_is_small_and_reach_is_kept(sigma: float) -> None:
    sampler = discrete_gaussian(Fraction(sigma) ** 2)
    assert 0 < sampler.distance() < 2.0**-110
    assert 13.2 * sigma <= sampler.reach < 13.3 * sigma + 600 + 2 * sigma / 256
    assert np.abs(_sample(sampler, 100_000)).max() <= sampler.reach


@pytest.mark.parametrize("sigma", [Fraction(0), Fraction(499, 1000), Fraction((1 << 20) + 1)])
def test_sigma_out_of_range_is_refused(sigma: Fraction) -> None:
    with pytest.raises(InvalidPlan) as refusal:
        discrete_gaussian(sigma**2)
    assert refusal.value.metadata["setting"] == "noise_multiplier"


def test_tables_are_kept_and_cannot_be_changed() -> None:
    sampler = discrete_gaussian(Fraction(131) ** 2)
    assert discrete_gaussian(Fraction(131) ** 2) is sampler
    with pytest.raises(ValueError, match="read-only"):
        sampler._table.guide[0] = 1


# A threshold at one third is 0x5555... to all 128 bits.
@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ([0x5555_5555_5555_0000, 0x5555_5555_5555_5554], 0),
        ([0x5555_5555_5555_0000, 0x5555_5555_5555_5555], 1),
        ([0x5555_5555_5554_0000], 0),
        ([0x5555_5555_5556_0000], 1),
    ],
)
def test_ties_are_decided_by_further_bits(more: list[int], wanted: int) -> None:
    table = noise._table([1, 2], 0)
    script = (0x5555).to_bytes(2, "little")
    script += b"".join(number.to_bytes(8, "little") for number in more)
    stream = Scripted(script)
    out = np.empty(1, dtype=np.int32)
    table.sample_into(out, stream)
    assert out.tolist() == [wanted]
    assert stream.used_up


@pytest.mark.parametrize(("low", "wanted"), [(0, 2), (2, 3), (5, 4), (255, 4)])
def test_a_tie_with_several_thresholds_steps_back_as_far_as_needed(low: int, wanted: int) -> None:
    # Three thresholds that share their upper 64 bits, as in the far tail.
    one = 1 << 127
    masses = [1 << 126, one - (1 << 126), 1, 2, one - 3]
    table = noise._table(masses, 0)
    script = (0x8000).to_bytes(2, "little") + bytes(8) + low.to_bytes(8, "little")
    out = np.empty(1, dtype=np.int32)
    table.sample_into(out, Scripted(script))
    assert out.tolist() == [wanted]


def test_the_last_uniform_number_gives_the_last_value() -> None:
    table = noise._table([1, 1, 1], -1)
    undecided = noise._table([(1 << 128) - 1, 1], 7)
    out = np.empty(1, dtype=np.int32)
    table.sample_into(out, Scripted(b"\xff" * 10))
    assert out.tolist() == [1]
    undecided.sample_into(out, Scripted(b"\xff" * 18))
    assert out.tolist() == [8]
    undecided.sample_into(out, Scripted(b"\xff" * 17 + b"\xfe"))
    assert out.tolist() == [7]


def test_doubtful_decisions_are_made_exactly() -> None:
    sampler = discrete_gaussian(Fraction(2**18) ** 2)
    numerator = 1 << 30
    threshold = exp_below(numerator / (2 * sampler.sigma_squared))
    for number, dropped in ((threshold - 1, False), (threshold, True), (threshold + 1, True)):
        low = (number & (2**64 - 1)).to_bytes(8, "little")
        assert sampler._drops_exactly(numerator, number >> 64, Scripted(low)) is dropped


def test_doubt_in_a_block_reaches_the_exact_decision() -> None:
    sampler = discrete_gaussian(Fraction(2**18) ** 2)
    coarse, offset = 5, 700
    numerator = offset * (offset + (coarse << (sampler._shift + 1)))
    threshold = exp_below(numerator / (2 * sampler.sigma_squared))
    for number, dropped in ((threshold - 1, False), (threshold, True)):
        script = ((number >> 64 & (2**48 - 1)) << 16).to_bytes(8, "little")
        script += (number & (2**64 - 1)).to_bytes(8, "little")
        drop = sampler._drop(
            np.array([coarse], dtype=np.int32),
            np.array([offset], dtype=np.int32),
            np.array([number >> 112 << 16], dtype=np.uint32),
            Scripted(script),
        )
        assert drop.tolist() == [dropped]


@pytest.mark.parametrize("variance", [Fraction(1, 4), Fraction(131) ** 2, Fraction(7, 3)])
def test_masses_are_exponentials(variance: Fraction) -> None:
    masses = gaussian_masses(variance, 5)
    assert masses[0] == 1 << 256
    for k, mass in enumerate(masses):
        assert mass / 2.0**256 == pytest.approx(math.exp(-k * k / (2 * float(variance))), rel=1e-12)
    assert exp_below(Fraction(0)) == 1 << 128
    assert exp_below(Fraction(3, 2)) / 2.0**128 == pytest.approx(math.exp(-1.5), rel=1e-14)


def test_vectors() -> None:
    for case in load_vectors("numerics_noise"):
        sampler = discrete_gaussian(Fraction(case["sigma_squared"]))
        table = sampler._table
        assert table.first == case["table_first_value"]
        assert table.count == case["table_thresholds"]
        assert sampler._shift == case["table_shift"]
        halves = np.stack([table.high[: table.count], table.low[: table.count]], axis=1)
        assert hashlib.sha256(halves.astype(">u8").tobytes()).hexdigest() == case["table_sha256"]
        samples = _sample(sampler, case["count"], bytes.fromhex(case["key"]))
        assert samples[:32].tolist() == case["samples"]
        digest = hashlib.sha256(samples.astype(">i4").tobytes()).hexdigest()
        assert digest == case["samples_sha256"]
