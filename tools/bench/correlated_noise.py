"""What noise that is correlated over the rounds would gain, at the same epsilon.

    python tools/bench/correlated_noise.py --rounds 64 --json

The matrix mechanism for running sums (Kairouz et al. 2021, "Practical and Private (Deep) Learning
Without Sampling or Shuffling"; Choquette-Choo et al. 2023, "(Amplified) Banded Matrix
Factorization") releases `A (x + C^-1 z)`: x the rounds' sums, z independent noise of variance
sens(C)^2 sigma^2. The epsilon depends on sigma alone, so that two choices of C are compared by

    error(C) = sens(C) * ||A C^-1||_F / sqrt(rounds),

the root mean square over the versions of the noise that lies on one coordinate, in units of sigma.
`C = I` is independent noise, what the mesh adds. The other choice here is the banded square root
(Kalinin and Lampert 2024, "Banded Square Root Matrix Factorization for Differentially Private Model
Training"): the Toeplitz matrix of binomial(2k, k) / 4^k, cut off after some bands.

`separation` b is the promise that no client takes part twice within b rounds. Nothing here is
random: the figures follow from the matrices.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Gain:
    """One setting.

    Attributes:
        separation: rounds from one participation of a client to its next one, at least.
        decay: how much of a round's step is left a round later: 1 for steps that add up, less
            where training pulls back towards its optimum.
        bands: of C, the best for this setting up to 64; 1 is independent noise.
        error: of the noise, over that of independent noise at the same epsilon.
        last: the same for the last version alone.
    """

    separation: int
    decay: float
    bands: int
    error: float
    last: float


def workload(rounds: int, decay: float) -> Matrix:
    """What versions are made of rounds: lower triangular, (rounds, rounds)."""
    steps = np.subtract.outer(np.arange(rounds), np.arange(rounds))
    return np.where(steps >= 0, decay ** np.maximum(steps, 0), 0.0)


def banded_root(rounds: int, bands: int) -> Matrix:
    """The first `bands` diagonals of the square root of the running sum, (rounds, rounds)."""
    coefficients = np.ones(bands)
    for k in range(1, bands):
        coefficients[k] = coefficients[k - 1] * (2 * k - 1) / (2 * k)
    root = np.zeros((rounds, rounds))
    for k in range(min(bands, rounds)):
        root += np.diag(np.full(rounds - k, coefficients[k]), -k)
    return root


def sensitivity(root: Matrix, separation: int) -> float:
    """The longest that one client's part of `C x` can be, its part of each round being at most 1.

    C^T C has no negative entry, and they fall with the distance of two rounds. So the worst
    contributions all point the same way, and the worst rounds are the densest that are allowed.
    """
    gram = root.T @ root
    chosen = np.arange(0, root.shape[0], separation)
    return float(np.sqrt(gram[np.ix_(chosen, chosen)].sum()))


def errors(root: Matrix, versions: Matrix, separation: int) -> tuple[float, float]:
    """Root mean square over the versions, and of the last one."""
    spread = np.linalg.solve(root.T, versions.T).T
    scale = sensitivity(root, separation)
    rounds = versions.shape[0]
    return (
        scale * float(np.linalg.norm(spread)) / float(np.sqrt(rounds)),
        scale * float(np.linalg.norm(spread[-1])),
    )


def gain(rounds: int, separation: int, decay: float) -> Gain:
    """The best number of bands for a setting, and what it gains."""
    versions = workload(rounds, decay)
    plain = errors(np.eye(rounds), versions, separation)
    tried = {
        bands: errors(banded_root(rounds, bands), versions, separation)
        for bands in range(1, min(64, rounds) + 1)
    }
    best = min(tried, key=lambda bands: tried[bands][0])
    return Gain(
        separation,
        decay,
        best,
        tried[best][0] / plain[0],
        tried[best][1] / plain[1],
    )


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=64)
    parser.add_argument("--separations", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--decays", type=float, nargs="+", default=[1.0, 0.95, 0.8])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    gains = [
        gain(options.rounds, separation, decay)
        for decay in options.decays
        for separation in options.separations
    ]
    if options.json:
        print(json.dumps({"rounds": options.rounds, "gains": [asdict(one) for one in gains]}))
        return
    print(f"{options.rounds} rounds; noise over that of independent noise at the same epsilon")
    print("separation  decay  bands  all versions  last version")
    for one in gains:
        print(
            f"{one.separation:10d}  {one.decay:5.2f}  {one.bands:5d}  {one.error:12.3f}"
            f"  {one.last:12.3f}"
        )


if __name__ == "__main__":
    main()
