"""An edge device: one client, strict limits, the blocking API, one program to start at boot.

    python edge_device.py JOIN_STRING volatility --store ./store

Start it again at any time: it is enrolled already then, and an update that was on its way when the
device went down is sent on from the byte where it stopped.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import numpy.typing as npt

from boltz_client import MeshError, Notice, OwnerLimits, RoundContext, RoundMode, blocking
from boltz_client.adapters.numpy import FunctionTrainer

ROWS, COLUMNS = 490, 12


def train(
    model: dict[str, npt.NDArray[np.float32]], round: RoundContext
) -> dict[str, npt.NDArray[np.float64]]:
    """Gradient descent on what the device has seen; here smooth made-up rows."""
    row = np.arange(float(ROWS))[:, None]
    features = np.sin(row * (1 + np.arange(COLUMNS)) * 0.41)
    targets = features @ np.linspace(0.5, -0.5, COLUMNS)
    weights = model["coef"].astype(np.float64)
    for _ in range(int(round.number("epochs", 20))):
        if round.should_stop():
            break
        error = features @ weights - targets
        weights -= round.number("rate", 0.1) * features.T @ error / ROWS
    return {"coef": weights}


def say(notice: Notice) -> None:
    """A line for the device's log."""
    print(notice.kind.value, notice.error.message if notice.error is not None else "", flush=True)


def main() -> None:
    """Enrol if need be, then take part until interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("join")
    parser.add_argument("model")
    parser.add_argument("--store", default="store")
    parser.add_argument("--rounds", type=int, default=None)
    options = parser.parse_args()
    modes = frozenset({RoundMode.SEALED, RoundMode.OPEN})
    limits = OwnerLimits(modes=modes, largest_weight_share=0.9)
    try:
        blocking.enroll(options.join, options.store, wait=True)
        with blocking.MeshClient.open(options.store, owner=limits) as client:
            trainer = FunctionTrainer(train, samples=ROWS)
            print(client.participate(trainer, options.model, rounds=options.rounds, notify=say))
    except MeshError as error:
        sys.exit(f"{error.message}\n{error.advice()}")
    except KeyboardInterrupt:
        print("stopped")


if __name__ == "__main__":
    main()
