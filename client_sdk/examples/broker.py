"""A broker with several desks: each desk is a client of its own, all in one process.

Run `boltz-mesh up` somewhere, apply a plan for a model with one tensor `coef` of shape [12], and
hand each desk a join string (`boltz-mesh clients token`), one a line on standard input:

    python broker.py volatility --stores ./desks < joins.txt

The rows are made up here; read your own trades instead. They never leave this process: what is
sent is a clipped, rounded, encrypted change of 12 numbers a desk and round.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from boltz_client import (
    MeshClient,
    MeshError,
    Notice,
    NoticeKind,
    OwnerLimits,
    RoundContext,
    RoundMode,
    TrainResult,
    enroll,
)

Array = npt.NDArray[np.float64]
COLUMNS = 12


@dataclass(frozen=True)
class Desk:
    """Ridge regression of one desk, pulled towards the shared model."""

    features: Array
    targets: Array

    def sample_count(self) -> int:
        """Rows of this desk."""
        return len(self.targets)

    def train(self, model: dict[str, npt.NDArray[np.float32]], round: RoundContext) -> TrainResult:
        """One closed-form step (H + lambda I)^-1 (g - H w)."""
        weights = model["coef"].astype(np.float64)
        rows = len(self.targets)
        gram = self.features.T @ self.features / rows
        gradient = self.features.T @ self.targets / rows - gram @ weights
        ridge = round.number("lambda", 2.0) * np.eye(len(weights))
        step = np.linalg.solve(gram + ridge, gradient)
        loss = float(np.mean((self.features @ weights - self.targets) ** 2))
        return TrainResult(delta={"coef": step}, metrics={"loss": loss})


def rows_of(desk: int) -> Desk:
    """Stand-in for a desk's own data: smooth functions of the row number."""
    row = np.arange(57.0)[:, None] + 57 * desk
    features = np.sin(row * (1 + np.arange(COLUMNS)) * 0.37) + 0.2 * np.cos(row * 0.011)
    return Desk(features, features @ np.linspace(-0.5, 0.5, COLUMNS) + 0.1 * np.sin(row[:, 0]))


def say(desk: int, notice: Notice) -> None:
    """One line a notice that matters."""
    if notice.error is not None:
        print(f"desk {desk}: {notice.kind.value}: {notice.error.message}")
    elif notice.kind is NoticeKind.SUBMITTED:
        print(f"desk {desk}: sent {notice.size_bytes} encrypted bytes")
    elif notice.outcome is not None:
        print(f"desk {desk}: the round made version {notice.outcome.new_version}")


async def main(model: str, stores: Path, joins: list[str], rounds: int | None) -> None:
    """Enrol whoever is not enrolled, then take part with all desks."""
    folders = [stores / f"desk{index}" for index in range(len(joins))]
    for folder, join in zip(folders, joins, strict=True):
        await enroll(join, folder)
    limits = OwnerLimits(modes=frozenset({RoundMode.SEALED, RoundMode.OPEN}), smallest_cohort=2)
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(MeshClient.open(folder, owner=limits))
            for folder in folders
        ]
        summaries = await asyncio.gather(
            *(
                client.participate(
                    rows_of(index),
                    model,
                    rounds=rounds,
                    notify=lambda notice, index=index: say(index, notice),  # type: ignore[misc]
                )
                for index, client in enumerate(clients)
            )
        )
    for index, summary in enumerate(summaries):
        print(f"desk {index}: {summary}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--stores", type=Path, default=Path("desks"))
    parser.add_argument("--rounds", type=int, default=None)
    options = parser.parse_args()
    try:
        asyncio.run(main(options.model, options.stores, sys.stdin.read().split(), options.rounds))
    except MeshError as error:
        sys.exit(f"{error.message}\n{error.advice()}")
