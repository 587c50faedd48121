"""A client that trains nothing: it answers every round with the same delta. Started by `round`.

    idle_client.py STORE MODEL

It enrols with the join string on its standard input, prints `ready`, and ends when that closes.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import numpy as np

from boltz_client import (
    MeshClient,
    Notice,
    NoticeKind,
    OwnerLimits,
    RoundContext,
    TrainResult,
    enroll,
)
from boltz_client.heap import keep_heap
from boltz_client.owner import ALL_MODES
from boltz_protocol.model_file import Vector


class Idle:
    """Keeps one delta for ever: what is measured is the mesh, not a training."""

    def __init__(self) -> None:
        self._delta: Vector | None = None

    def sample_count(self) -> int:
        """As many for everybody."""
        return 1000

    def train(self, model: dict[str, Vector], round: RoundContext) -> TrainResult:
        """The same vector in each round, about as long as the clip norm."""
        if self._delta is None:
            parameters = sum(tensor.size for tensor in model.values())
            noise = np.random.Generator(np.random.PCG64(parameters))
            self._delta = noise.standard_normal(parameters, dtype=np.float32)
            self._delta *= np.float32(round.clip_norm / np.sqrt(parameters))
        return TrainResult(delta=self._delta)


def report(notice: Notice) -> None:
    """Tell the benchmark that this client is checked in, and what goes wrong."""
    if notice.kind is NoticeKind.CHECKED_IN:
        print("ready", flush=True)
    elif notice.error is not None:
        print(f"{notice.kind.value}: {notice.error}", file=sys.stderr, flush=True)


async def main(store: Path, model: str) -> None:
    """Enrol, take part, leave."""
    loop = asyncio.get_running_loop()
    join = (await loop.run_in_executor(None, sys.stdin.readline)).strip()
    await enroll(join, store)
    async with MeshClient.open(store, owner=OwnerLimits(modes=ALL_MODES)) as client:
        running = asyncio.create_task(client.participate(Idle(), model, notify=report))
        end = asyncio.ensure_future(loop.run_in_executor(None, sys.stdin.read))
        await asyncio.wait({running, end}, return_when=asyncio.FIRST_COMPLETED)
        await client.stop()
        await running


if __name__ == "__main__":
    keep_heap()  # as `boltz-client` does
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
