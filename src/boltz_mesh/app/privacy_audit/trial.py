"""One round on a model of its own, and what an operator sees of it afterwards.

Nothing else is looked at: the version before, the version after, how many updates are in it, and
the ledger's own figure. No update, no key and no memory of the server.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from boltz_mesh.app.cli.connection import Mesh
from boltz_mesh.app.cli.rounds import phase_name
from boltz_mesh.app.privacy_audit.canaries import Float64Array
from boltz_mesh.app.privacy_audit.clients import ScriptedClients
from boltz_mesh.app.privacy_audit.options import AuditMode
from boltz_mesh.app.privacy_audit.plans import Noise, trial_plan
from boltz_mesh.rounds.plan import TensorSpec as PlanTensor
from boltz_protocol import limits
from boltz_protocol.errors import MeshError, StateConflict, Unavailable
from boltz_protocol.messages import TensorSpec
from boltz_protocol.model_file import Vector, encode_model
from boltz_protocol.v1 import aggregator_pb2 as pb
from boltz_protocol.v1 import model_store_pb2, registry_pb2

#: All phases of a trial's plan together; the mesh ends a round before this.
ROUND_TIMEOUT_S: Final = 600.0


class TrialAborted(MeshError):
    """A round of the audit came to nothing; the message has the mesh's reason."""

    reason = "TRIAL_ABORTED"
    status = "ABORTED"
    next_step = "Run the audit again with --keep, and look into the logs in the folder it names."


@dataclass(frozen=True, slots=True)
class LedgerFigure:
    """What the mesh's ledger says of one trial's release, as `GetPrivacyBudget` told it.

    Attributes:
        epsilon: at `delta`, for the client that has spent most.
    """

    epsilon: float
    delta: float
    unit: str
    relation: str


@dataclass(frozen=True, slots=True)
class Released:
    """What was published.

    Attributes:
        sum: of all contributions, as it follows from the two versions, float64 (parameters,).
        ledger: None for a round without noise.
    """

    sum: Float64Array
    ledger: LedgerFigure | None


@dataclass(frozen=True, slots=True)
class Laboratory:
    """A mesh with the audit's clients, and how its rounds go.

    Attributes:
        tensors: of every model.
    """

    mesh: Mesh
    clients: ScriptedClients
    mode: AuditMode
    tensors: tuple[TensorSpec, ...]

    @property
    def parameters(self) -> int:
        """Coordinates of a model."""
        return sum(spec.elements for spec in self.tensors)

    async def run(self, model_id: str, deltas: Sequence[Vector], noise: Noise | None) -> Released:
        """One round of a new model that starts at zero.

        Args:
            deltas: of each client, float32 (parameters,).
            noise: None for a round without.

        Raises: TrialAborted, StateConflict, and what the mesh refuses.
        """
        plan = trial_plan(
            model_id,
            self.mode,
            tuple(PlanTensor(name=spec.name, shape=spec.shape) for spec in self.tensors),
            len(self.clients.clients),
            noise,
        )
        await self.mesh.aggregator.ApplyPlan(pb.ApplyPlanRequest(plan_toml=plan))
        start = np.zeros(self.parameters, dtype=np.float32)
        await self._publish(model_id, start)
        async with self.clients.taking_part(model_id, deltas):
            ended = await self._round(model_id)
        # Any client or operator may pull a version; the library checks signature and digest.
        pulled = await self.clients.clients[0].pull_model(model_id, ended.new_version)
        # The plan's optimizer adds the mean; all weights are the same.
        moved = pulled.vector.astype(np.float64) - start
        ledger = None if noise is None else await self._ledger(model_id)
        return Released(moved * ended.received, ledger)

    async def _publish(self, model_id: str, vector: Vector) -> None:
        content = encode_model(self.tensors, vector)
        assert len(content) <= limits.MODEL_CHUNK_BYTES, "one chunk holds a model of the audit"

        async def requests() -> AsyncIterator[model_store_pb2.PublishRequest]:
            header = model_store_pb2.PublishHeader(
                model_id=model_id,
                sha256=hashlib.sha256(content).digest(),
                size_bytes=len(content),
                promote=True,
            )
            yield model_store_pb2.PublishRequest(header=header)
            chunk = model_store_pb2.ModelChunk(offset=0, data=content)
            yield model_store_pb2.PublishRequest(chunk=chunk)

        await self.mesh.models.Publish(requests())

    async def _round(self, model_id: str) -> pb.Round:
        request = pb.StartRoundRequest(model_id=model_id)
        last = (await self.mesh.aggregator.StartRound(request)).round
        watch = pb.WatchRoundRequest(round_id=last.round_id)
        try:
            async with asyncio.timeout(ROUND_TIMEOUT_S):
                async for answer in self.mesh.aggregator.WatchRound(watch):
                    last = answer.round
        except TimeoutError as error:
            raise Unavailable(
                f"the round of {model_id} did not end within {ROUND_TIMEOUT_S:.0f} s"
            ) from error
        if last.phase != pb.PHASE_PUBLISHED:
            said = "".join(f"\n    {line}" for line in self.clients.declines)
            raise TrialAborted(
                f"the round of {model_id} ended {phase_name(last)}: {last.reason}{said}",
                round_id=last.round_id,
            )
        return last

    async def _ledger(self, model_id: str) -> LedgerFigure:
        request = pb.GetPrivacyBudgetRequest(model_id=model_id)
        told = await self.mesh.aggregator.GetPrivacyBudget(request)
        if told.rounds_charged != 1:
            raise StateConflict(f"the ledger of {model_id} has {told.rounds_charged} rounds, not 1")
        return LedgerFigure(told.epsilon_spent, told.delta, told.unit, told.relation)


async def join_strings(mesh: Mesh, count: int) -> list[str]:
    """So many join strings, each for one client."""
    return [
        (
            await mesh.registry.CreateEnrollmentToken(registry_pb2.CreateEnrollmentTokenRequest())
        ).join_string
        for _ in range(count)
    ]
