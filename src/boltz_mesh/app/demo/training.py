"""Training through the mesh, as its operator: plans, first versions, rounds, what came out.

Nothing here computes a model. Each record names the round and the version that the mesh made, and
`confirm` asks the model store about every one of them once more at the end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from boltz_mesh.app.cli.connection import Mesh
from boltz_mesh.app.cli.rounds import phase_name
from boltz_mesh.app.demo.broker_pool import BrokerPool
from boltz_mesh.app.demo.desks import start_of
from boltz_mesh.app.demo.evaluation import evaluate_linear, evaluate_mlp
from boltz_mesh.app.demo.linear import Float32Array
from boltz_mesh.app.demo.options import SIDE_BY_SIDE, DemoTask, TrainingRun
from boltz_mesh.app.demo.plans import plan_for, plan_toml
from boltz_mesh.app.demo.report import RoundRecord
from boltz_mesh.app.demo.store import manifest_of, publish_start, pull_vector
from boltz_mesh.app.demo.task import Market
from boltz_protocol.errors import MeshError, StateConflict, Unavailable
from boltz_protocol.v1 import aggregator_pb2 as pb
from boltz_protocol.v1 import registry_pb2

#: The longest phases of a round's plan together; the mesh ends a round before this.
ROUND_TIMEOUT_S: Final = 1200.0
#: Calls at a time that make join strings.
_TOKEN_CALLS: Final = 8

OnRound = Callable[[RoundRecord], None]
#: Told of a model and the phase of its round.
OnPhase = Callable[[str, str], None]


class RoundAborted(MeshError):
    """A round of the demo came to nothing; the message has the mesh's reason."""

    reason = "ROUND_ABORTED"
    status = "ABORTED"
    next_step = "Run the demo again with --keep, and look into the logs in the folder it names."


@dataclass(slots=True)
class Trained:
    """What came out of the mesh.

    Attributes:
        rounds: one record a round, in the order in which they ended.
        models: the last version of each run, float32 (parameters,).
    """

    rounds: list[RoundRecord] = field(default_factory=list)
    models: dict[TrainingRun, Float32Array] = field(default_factory=dict)


async def join_strings(mesh: Mesh, count: int) -> list[str]:
    """So many join strings, each for one client."""
    gate = asyncio.Semaphore(_TOKEN_CALLS)

    async def one() -> str:
        async with gate:
            request = registry_pb2.CreateEnrollmentTokenRequest()
            return (await mesh.registry.CreateEnrollmentToken(request)).join_string

    return list(await asyncio.gather(*(one() for _ in range(count))))


@dataclass(slots=True)
class RoundMeter:
    """Splits the bytes on the wire among the rounds that run.

    Between two readings the rounds that run side by side share evenly; what goes by while none
    runs (check-ins) goes to the next reading's. So the total is exact, a single round's part fair.
    """

    pool: BrokerPool
    _last: tuple[int, int] = (0, 0)
    _running: dict[str, tuple[float, float]] = field(default_factory=dict)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def begin(self, model_id: str) -> None:
        """A round of the model is about to start. Raises: Unavailable, ChildEnded."""
        async with self._turn:
            await self._share()
            self._running[model_id] = (0.0, 0.0)

    async def end(self, model_id: str) -> tuple[int, int]:
        """The model's round has ended: its bytes up and down. Raises: Unavailable, ChildEnded."""
        async with self._turn:
            await self._share()
            up, down = self._running.pop(model_id)
            return round(up), round(down)

    async def _share(self) -> None:
        if not self._running:
            return
        up, down = await self.pool.wire_bytes()
        parts = len(self._running)
        more_up, more_down = (up - self._last[0]) / parts, (down - self._last[1]) / parts
        self._last = (up, down)
        self._running = {
            model_id: (had_up + more_up, had_down + more_down)
            for model_id, (had_up, had_down) in self._running.items()
        }


@dataclass(frozen=True, slots=True)
class Training:
    """The operator's part of a demo.

    Attributes:
        meter: tells the bytes of each round.
        on_round: told of each round when it has ended.
        on_phase: told of each phase when a round enters it.
        trained: filled in as rounds end.
    """

    mesh: Mesh
    pool: BrokerPool
    meter: RoundMeter
    task: DemoTask
    market: Market
    on_round: OnRound
    on_phase: OnPhase
    trained: Trained = field(default_factory=Trained)

    async def run_all(self) -> Trained:
        """Every training run, `SIDE_BY_SIDE` at a time.

        Raises: an exception group of RoundAborted, StateConflict where mesh and desks disagree
        about what was counted, and what the mesh refuses.
        """
        waiting = iter(self.task.runs())

        async def work() -> None:
            for run in waiting:
                await self._run(run)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(SIDE_BY_SIDE):
                tasks.create_task(work())
        return self.trained

    async def _run(self, run: TrainingRun) -> None:
        """One training run, from its plan to its last version."""
        task, mesh = self.task, self.mesh
        plan = plan_toml(plan_for(task, run))
        await mesh.aggregator.ApplyPlan(pb.ApplyPlanRequest(plan_toml=plan))
        vector = start_of(self.market.public, run.origin, task.kind)
        await publish_start(mesh, run.model_id, task.kind, vector)
        await self.pool.join(run.model_id, task.preset.rounds)
        in_sums = 0
        for number in range(1, task.preset.rounds + 1):
            vector, survivors = await self._round(run, number)
            in_sums += survivors
        counted = await self.pool.left(run.model_id)
        if counted != in_sums:
            raise StateConflict(
                f"the sums of {run.model_id} had {in_sums} updates; its desks know of {counted}"
            )
        if run.seed is not None:
            await self._check_ledger(run)
        self.trained.models[run] = vector

    async def _check_ledger(self, run: TrainingRun) -> None:
        """The ledger has every round, nothing above the budget, and room for no more."""
        request = pb.GetPrivacyBudgetRequest(model_id=run.model_id)
        budget = await self.mesh.aggregator.GetPrivacyBudget(request)
        charged = (budget.rounds_charged, budget.rounds_left)
        if charged != (self.task.preset.rounds, 0) or budget.epsilon_spent > budget.epsilon_budget:
            raise StateConflict(
                f"the ledger of {run.model_id} has {charged[0]} rounds with epsilon "
                f"{budget.epsilon_spent:g} at delta {budget.delta:g} (unit: {budget.unit}; "
                f"relation: {budget.relation}), and room for {charged[1]} more"
            )

    async def _round(self, run: TrainingRun, number: int) -> tuple[Float32Array, int]:
        """One round and its record; the vector of the version that it made, and its survivors."""
        await self.meter.begin(run.model_id)
        begun = time.perf_counter()
        clock = _PhaseClock(run.model_id, self.on_phase)
        state = await _one_round(self.mesh, run.model_id, clock)
        seconds = time.perf_counter() - begun
        if state.phase != pb.PHASE_PUBLISHED:
            said = "".join(f"\n    {line}" for line in self.pool.declines)
            raise RoundAborted(
                f"round {number} of {run.model_id} was aborted: {state.reason}{said}",
                round_id=state.round_id,
            )
        kind = self.task.kind
        manifest, vector = await pull_vector(self.mesh, run.model_id, state.new_version, kind)
        bytes_up, bytes_down = await self.meter.end(run.model_id)
        record = RoundRecord(
            round_id=state.round_id,
            model_id=run.model_id,
            version=manifest.version,
            model_digest=manifest.sha256.hex(),
            row=run.row,
            origin=run.origin,
            seed=run.seed,
            number=number,
            seconds=seconds,
            bytes_up=bytes_up,
            bytes_down=bytes_down,
            selected=state.selected,
            survivors=state.received,
            phase_seconds=clock.seconds,
            test_mse=_error(self.task, self.market, run.origin, vector),
        )
        self.trained.rounds.append(record)
        self.on_round(record)
        return vector, record.survivors


@dataclass(slots=True)
class _PhaseClock:
    """How long one round stands in each phase, as it is watched.

    Attributes:
        seconds: phase -> seconds, without the one that it is in.
    """

    model_id: str
    on_phase: OnPhase
    seconds: dict[str, float] = field(default_factory=dict)
    _phase: str = ""
    _since: float = 0.0

    def enter(self, phase: str) -> None:
        """The round is in `phase`, perhaps still."""
        if phase == self._phase:
            return
        now = time.perf_counter()
        if self._phase:
            self.seconds[self._phase] = now - self._since
        self._phase, self._since = phase, now
        self.on_phase(self.model_id, phase)


async def confirm(mesh: Mesh, rounds: Sequence[RoundRecord]) -> None:
    """Ask the model store about every record's version. Raises: StateConflict where it differs."""
    for record in rounds:
        manifest = await manifest_of(mesh, record.model_id, record.version)
        if (manifest.round_id, manifest.sha256.hex()) != (record.round_id, record.model_digest):
            raise StateConflict(
                f"the model store does not confirm version {record.version} of {record.model_id} "
                f"with round {record.round_id} and digest {record.model_digest}"
            )


async def _one_round(mesh: Mesh, model_id: str, clock: _PhaseClock) -> pb.Round:
    """Start a round and follow it to its end. Raises: Unavailable when it has none."""
    last = (await mesh.aggregator.StartRound(pb.StartRoundRequest(model_id=model_id))).round
    try:
        async with asyncio.timeout(ROUND_TIMEOUT_S):
            async for state in _states(mesh, last.round_id):
                last = state
                clock.enter(phase_name(state))
    except TimeoutError as error:
        raise Unavailable(
            f"round {last.round_id} of {model_id} did not end within {ROUND_TIMEOUT_S:.0f} s"
        ) from error
    return last


async def _states(mesh: Mesh, round_id: str) -> AsyncIterator[pb.Round]:
    async for answer in mesh.aggregator.WatchRound(pb.WatchRoundRequest(round_id=round_id)):
        yield answer.round


def _error(task: DemoTask, market: Market, origin: int, vector: Float32Array) -> float:
    evaluate = evaluate_linear if task.kind == "linear" else evaluate_mlp
    return evaluate(market, {origin: vector}).mean
