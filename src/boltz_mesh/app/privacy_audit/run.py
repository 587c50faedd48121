"""The audit, put together: a throw-away mesh, its clients, rounds with noise and without, bounds.

Everything that is started here ends with it. The mesh is `boltz-mesh up` as a process of its own
with a database of its own; the clients live in this process.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
import numpy as np

from boltz_mesh.app.cli.connection import connected
from boltz_mesh.app.demo.children import Child, ChildEnded
from boltz_mesh.app.demo.mesh_process import mesh_process
from boltz_mesh.app.privacy_audit import canaries
from boltz_mesh.app.privacy_audit.canaries import Float64Array, Outcome
from boltz_mesh.app.privacy_audit.clients import scripted_clients
from boltz_mesh.app.privacy_audit.options import AuditMode, AuditOptions
from boltz_mesh.app.privacy_audit.plans import CLIP_NORM, Noise
from boltz_mesh.app.privacy_audit.report import AuditReport, report_of
from boltz_mesh.app.privacy_audit.trial import Laboratory, LedgerFigure, join_strings
from boltz_protocol.errors import MeshError
from boltz_protocol.messages import TensorSpec
from boltz_protocol.status import from_rpc_error

T = TypeVar("T")
#: Coordinates of a canary model: a power of two well above the canaries.
PARAMETERS: Final = 256
TENSORS: Final = (TensorSpec("weights", (PARAMETERS,)),)
#: Rounds of different models that run at a time: while one waits for the disk, others compute.
SIDE_BY_SIDE: Final = 4
#: How far beyond the clip norm a canary reaches: a clip that is missing shows as well.
OVERREACH: Final = 4.0
#: How long an error waits for the mesh, whose end may be the cause of it.
_CAUSE_TIMEOUT_S: Final = 1.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Progress:
    """Who is told how it goes.

    Attributes:
        say: one sentence.
        trial_done: trials done so far, of how many, in both kinds of round together.
    """

    say: Say
    trial_done: Callable[[int, int], None]


def run_audit(
    options: AuditOptions, environment: Mapping[str, str], progress: Progress, *, keep: bool
) -> AuditReport:
    """Run the whole audit.

    Args:
        environment: of this process, for the mesh's.
        keep: leave the folder with keys and logs behind.

    Raises:
        ChildEnded: the mesh ended before its time.
        TrialAborted: a round came to nothing.
        MeshError: what else the mesh refuses.
        KeyboardInterrupt: interrupted; everything is cleaned up.
    """
    begun = time.perf_counter()
    guesses = options.guesses()
    noise = Noise(options.noise_multiplier, options.epsilon)

    async def attack(laboratory: Laboratory) -> tuple[_Trials, _Trials]:
        trials = _Trials(laboratory, options, progress.trial_done)
        bare = _Trials(laboratory, options, progress.trial_done, begun=options.trials)
        await trials.run("noised", noise)
        await bare.run("bare", None)
        return trials, bare

    with private_folder(keep, progress.say) as folder:
        noised, bare = run_interruptible(
            on_laboratory(
                attack,
                folder=folder,
                environment=environment,
                clients=options.canaries,
                mode=options.mode,
                tensors=TENSORS,
                say=progress.say,
            )
        )
    return report_of(
        options,
        noised=noised.outcome(),
        bare=bare.outcome(),
        ledger=noised.ledger(),
        guesses=guesses,
        seconds=time.perf_counter() - begun,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


class _Trials:
    """All trials of one kind.

    Args:
        begun: trials of another kind that went before, for the progress.
    """

    def __init__(
        self,
        laboratory: Laboratory,
        options: AuditOptions,
        done: Callable[[int, int], None],
        begun: int = 0,
    ) -> None:
        self._laboratory = laboratory
        self._options = options
        self._done = done
        self._begun = begun
        self._rows = canaries.directions(options.canaries, PARAMETERS)
        self._found: list[tuple[Float64Array, tuple[bool, ...]]] = []
        self._ledger: list[LedgerFigure] = []

    async def run(self, kind: str, noise: Noise | None) -> None:
        """Run all of them, `SIDE_BY_SIDE` at a time. Raises: an exception group."""
        waiting = iter(range(1, self._options.trials + 1))

        async def work() -> None:
            for number in waiting:
                await self._one(f"audit-{kind}-{number:04}", noise)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(SIDE_BY_SIDE):
                tasks.create_task(work())

    async def _one(self, model_id: str, noise: Noise | None) -> None:
        coins = canaries.toss(self._options.canaries)
        deltas = [
            (OVERREACH * CLIP_NORM * row * coin).astype(np.float32)
            for row, coin in zip(self._rows, coins, strict=True)
        ]
        released = await self._laboratory.run(model_id, deltas, noise)
        self._found.append((canaries.scores(released.sum, self._rows, CLIP_NORM), coins))
        if released.ledger is not None:
            self._ledger.append(released.ledger)
        self._done(self._begun + len(self._found), 2 * self._options.trials)

    def outcome(self) -> Outcome:
        """Scores and coins of all of them."""
        return Outcome.of(self._found)

    def ledger(self) -> LedgerFigure:
        """The largest figure of the ledger over all trials; of rounds with noise only."""
        return max(self._ledger, key=lambda figure: figure.epsilon)


async def on_laboratory(
    body: Callable[[Laboratory], Awaitable[T]],
    *,
    folder: Path,
    environment: Mapping[str, str],
    clients: int,
    mode: AuditMode,
    tensors: tuple[TensorSpec, ...],
    say: Say,
) -> T:
    """Run `body` on a new mesh with so many clients.

    Raises: ChildEnded, MeshError; the one error that explains the others.
    """
    begun = time.perf_counter()
    async with mesh_process(folder, environment) as server:
        credential = await server.ready()

        async def work() -> T:
            async with connected(credential) as mesh:
                joins = await join_strings(mesh, clients)
                async with scripted_clients(folder, joins, mode) as taking_part:
                    say(
                        f"mesh at {credential.address} with mutual TLS and {clients} enrolled "
                        f"clients, ready in {time.perf_counter() - begun:.1f} s"
                    )
                    return await body(Laboratory(mesh, taking_part, mode, tensors))

        try:
            return await _beside(work(), server.watch())
        except BaseExceptionGroup as group:
            raise await _cause(group, server.child) from group


async def _beside(job: Coroutine[Any, Any, T], watcher: Coroutine[Any, Any, None]) -> T:
    """The job's result; a watcher that ends with an error ends the job too."""
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watcher)
        result = await job
        watching.cancel()
    return result


async def _cause(group: BaseExceptionGroup[BaseException], mesh: Child) -> BaseException:
    """The one error to tell: a mesh that ended explains all others, a typed error an untyped."""
    leaves = list(_leaves(group))
    kinds = (ChildEnded, MeshError, grpc.RpcError, BaseException)
    told = next(leaf for kind in kinds for leaf in leaves if isinstance(leaf, kind))
    if isinstance(told, grpc.RpcError):
        told = from_rpc_error(told)
    if isinstance(told, MeshError) and not isinstance(told, ChildEnded):
        # A connection may be seen to break before the process behind it is seen to end.
        with suppress(TimeoutError):
            await asyncio.wait_for(mesh.process.wait(), _CAUSE_TIMEOUT_S)
            return await mesh.ended(told.message)
    return told


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def run_interruptible(job: Coroutine[Any, Any, T]) -> T:
    """Run to the end; SIGTERM cleans up as Ctrl-C does. Raises: KeyboardInterrupt."""

    async def guarded() -> T:
        current = asyncio.current_task()
        assert current is not None
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, current.cancel)
        try:
            return await job
        except asyncio.CancelledError as error:
            raise KeyboardInterrupt from error
        finally:
            loop.remove_signal_handler(signal.SIGTERM)

    return asyncio.run(guarded())


@contextmanager
def private_folder(keep: bool, say: Say) -> Iterator[Path]:
    """A private folder for keys, logs and the mesh's data; removed unless it is kept."""
    folder = Path(tempfile.mkdtemp(prefix="boltz-audit-"))
    try:
        yield folder
    finally:
        if keep:
            say(f"kept: {folder} (it holds private keys)")
        else:
            shutil.rmtree(folder)
