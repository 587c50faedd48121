"""Distributed noise: what each client adds, and what the sum of the shares is worth.

Each survivor adds discrete Gaussian noise of variance sigma^2 / (least survivors - colluders), so
that even the fewest survivors, without the colluders, who know their own noise and can take it off
again, leave at least sigma^2 in the sum. More survivors only add more: that is post-processing.

A sum of discrete Gaussians is not quite a discrete Gaussian. Kairouz, Liu and Steinke 2021 ("The
Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation", theorem 1
and proposition 14) bound the price for n shares of parameter s^2 >= 1/4 in d coordinates, with
Delta the L2 sensitivity, for the Renyi divergence of every order alpha, by

    (alpha / 2) (Delta / (sqrt(n) s) + tau sqrt(d))^2,
    tau = 10 * sum over k = 1 .. n - 1 of exp(-2 pi^2 s^2 k / (k + 1)).

That is the bound of one Gaussian whose noise multiplier z' has 1 / z' = 1 / z + tau sqrt(d). Shares
below `limits.MIN_NOISE_SHARE_SIGMA` are refused, so that the term stays below 1e-11 for any model.
(The proof bounds the likelihood ratio of the sum and one discrete Gaussian by exp(tau / 2) in each
coordinate, so no other measure of privacy can move by more than tau d, below 1e-7.)
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Final

from boltz_protocol.encoding import Encoding
from boltz_protocol.errors import InvalidPlan
from boltz_protocol.limits import MAX_COORDINATES, MAX_ROSTER, MIN_NOISE_SHARE_SIGMA

# What proposition 14 asks of each share: a variance parameter of at least 1/4.
_LEAST_SIGMA: Final = 0.5


def share_variance(encoding: Encoding, *, least_survivors: int, colluders: int) -> Fraction:
    """Variance parameter of one client's noise share, in squared ring units, exact.

    Args:
        encoding: the round's; its `sigma_squared` is what the sum is to have at least.
        least_survivors: fewest clients of a sum that is released.
        colluders: clients among them whose noise the server may know.

    Returns: 0 when the plan has no noise.

    Raises: InvalidPlan when all survivors may collude, or when a share is smaller than
        `limits.MIN_NOISE_SHARE_SIGMA`; `metadata["setting"]` names what to change and
        `metadata["would_do"]` a value.
    """
    assert colluders >= 0, "a number of clients"
    honest = least_survivors - colluders
    if honest < 1:
        raise InvalidPlan(
            f"of at least {least_survivors} survivors {colluders} may collude, so that nobody's "
            f"noise protects the others; at least {colluders + 1} survivors would do",
            setting="least_survivors",
            would_do=str(colluders + 1),
        )
    variance = encoding.sigma_squared / honest
    if 0 < variance < Fraction(MIN_NOISE_SHARE_SIGMA) ** 2:
        least = MIN_NOISE_SHARE_SIGMA * math.sqrt(honest) / encoding.bound_l2
        would_do = math.ceil(least * 1e9) / 1e9
        raise InvalidPlan(
            f"noise_multiplier {encoding.noise_multiplier:g} divided among {honest} clients is a "
            f"share of {math.sqrt(variance):.3g} ring units each; at least "
            f"{MIN_NOISE_SHARE_SIGMA:g} are needed: use 0 for no noise or at least {would_do}",
            setting="noise_multiplier",
            would_do=str(would_do),
        )
    return variance


def sum_excess(share_sigma: float, contributors: int) -> float:
    """tau of the module's head: how far a sum of shares is from one discrete Gaussian.

    Args:
        share_sigma: s, in ring units, at least 0.5.
        contributors: n, clients whose noise counts.
    """
    assert share_sigma >= _LEAST_SIGMA, "proposition 14 begins at a variance of 1/4"
    assert 1 <= contributors <= MAX_ROSTER, "a number of clients"
    exponent = -2 * (math.pi * share_sigma) ** 2
    return 10 * math.fsum(math.exp(exponent * k / (k + 1)) for k in range(1, contributors))


def effective_noise_multiplier(
    noise_multiplier: float, *, share_sigma: float, contributors: int, coordinates: int
) -> float:
    """The noise multiplier to account for when the noise is a sum of shares.

    Args:
        noise_multiplier: z, standard deviation of `contributors` shares together over the L2
            sensitivity; 0 for no noise.
        share_sigma: s, of one share in ring units, at least 0.5.
        contributors: n, the fewest clients whose noise counts: least survivors without colluders.
        coordinates: d, parameters and lanes.

    Returns: z' <= z with 1 / z' = 1 / z + tau sqrt(d), see the module's head; 0 for z = 0.
    """
    assert noise_multiplier >= 0, "a standard deviation"
    assert 1 <= coordinates <= MAX_COORDINATES, "a vector's length"
    if noise_multiplier == 0:
        return 0.0
    excess = sum_excess(share_sigma, contributors) * math.sqrt(coordinates)
    return 1 / (1 / noise_multiplier + excess)
