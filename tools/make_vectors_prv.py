"""Make `tests/unit/privacy/prv_intervals.json`: epsilon by an accountant that is not ours.

`prv-accountant` (Gopi, Lee, Wutschitz 2021, "Numerical Composition of Differential Privacy")
composes privacy loss random variables and returns an interval that holds the true epsilon. It is
no dependency of the mesh: its figures are committed, and made again like this:

    python -m venv prv && prv/bin/pip install prv-accountant==0.2.0
    prv/bin/python tools/make_vectors_prv.py [FOLDER]

Relation: add or remove one, which is the mesh's "one contribution set to zero": the sum moves by 1
or not at all. The loss is that of the pair that the authors chose, the worse one for a Gaussian.
"""

from __future__ import annotations

import importlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).resolve().parent.parent / "tests" / "unit" / "privacy"
#: Half the width of the intervals, but for what delta's error adds.
EPSILON_ERROR: Final = 0.005
#: Of delta, as its authors advise.
DELTA_ERROR: Final = 1e-3
ROUNDS: Final = (1, 100)
SAMPLING_RATES: Final = (1.0, 0.1)
NOISE_MULTIPLIERS: Final = (1.0, 2.0, 4.0, 8.0)
DELTAS: Final = (1e-5, 1e-6, 1e-8)


def main(arguments: list[str]) -> None:
    """Write the intervals; a run takes about a minute."""
    prv = importlib.import_module("prv_accountant")
    points = []
    for rounds in ROUNDS:
        for rate in SAMPLING_RATES:
            for noise in NOISE_MULTIPLIERS:
                for delta in DELTAS:
                    mechanism = (
                        prv.GaussianMechanism(noise)
                        if rate == 1
                        else prv.PoissonSubsampledGaussianMechanism(
                            noise_multiplier=noise, sampling_probability=rate
                        )
                    )
                    accountant = prv.PRVAccountant(
                        prvs=[mechanism],
                        max_self_compositions=[rounds],
                        eps_error=EPSILON_ERROR,
                        delta_error=delta * DELTA_ERROR,
                    )
                    low, estimate, high = accountant.compute_epsilon(delta, [rounds])
                    points.append(
                        {
                            "noise_multiplier": noise,
                            "rounds": rounds,
                            "sampling_rate": rate,
                            "delta": delta,
                            "low": float(low),
                            "estimate": float(estimate),
                            "high": float(high),
                        }
                    )
    document = {
        "made_by": "tools/make_vectors_prv.py",
        "accountant": f"prv-accountant {version('prv-accountant')}",
        "numpy": version("numpy"),
        "scipy": version("scipy"),
        "epsilon_error": EPSILON_ERROR,
        "delta_error_over_delta": DELTA_ERROR,
        "points": points,
    }
    folder = Path(arguments[0]) if arguments else FOLDER
    text = json.dumps(document, indent=2)
    (folder / "prv_intervals.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
