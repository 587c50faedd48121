"""The audit's own clients: each contributes exactly what the attack wants of it.

They are clients like any other, enrolled with keys of their own, over mutual TLS; what they "train"
is a vector that was put down for the model beforehand. It is the audit's own data.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from boltz_client import (
    MeshClient,
    Notice,
    NoticeKind,
    OwnerLimits,
    PeerMemory,
    RoundContext,
    TrainResult,
    enroll,
)
from boltz_mesh.app.privacy_audit.options import AuditMode
from boltz_mesh.app.privacy_audit.plans import CLIP_NORM
from boltz_protocol.messages import RoundMode
from boltz_protocol.model_file import Vector

#: Rows that every client claims, so that all have the same weight.
_ROWS: Final = 64
#: What refusals tell; the first ones are the cause.
_MAX_DECLINES: Final = 20


@dataclass(frozen=True, slots=True)
class _Scripted:
    """A trainer that hands over what was put down for the model.

    Attributes:
        deltas: model id -> float32 (parameters,).
    """

    deltas: dict[str, Vector] = field(default_factory=dict)

    def sample_count(self) -> int:
        """The same for every client and round."""
        return _ROWS

    def train(self, model: Mapping[str, Vector], round: RoundContext) -> TrainResult:
        """What was put down for the round's model; the library clips, encodes and masks it."""
        return TrainResult(delta=self.deltas[round.model_id])


@dataclass(frozen=True, slots=True)
class ScriptedClients:
    """All clients of an audit. Use `scripted_clients` to make them.

    Attributes:
        declines: what clients said that did not see a round through.
    """

    clients: Sequence[MeshClient]
    _trainers: Sequence[_Scripted]
    declines: deque[str] = field(default_factory=lambda: deque(maxlen=_MAX_DECLINES))

    @asynccontextmanager
    async def taking_part(self, model_id: str, deltas: Sequence[Vector]) -> AsyncIterator[None]:
        """While one round of a model runs: every client is checked in when the body begins.

        Args:
            deltas: of each client, float32 (parameters,).

        Raises: an exception group of what ends a participation, or of what the body raises.
        """
        waiting = set(range(len(self.clients)))
        ready = asyncio.Event()

        def told_of(number: int) -> Callable[[Notice], None]:
            def notify(notice: Notice) -> None:
                match notice.kind:
                    case NoticeKind.CHECKED_IN:
                        waiting.discard(number)
                        if not waiting:
                            ready.set()
                    case NoticeKind.DECLINED | NoticeKind.IGNORED | NoticeKind.WITHHELD:
                        error = notice.error
                        why = notice.kind.value if error is None else error.message
                        self.declines.append(f"client {number + 1}, {model_id}: {why}")

            return notify

        for trainer, delta in zip(self._trainers, deltas, strict=True):
            trainer.deltas[model_id] = delta
        async with asyncio.TaskGroup() as tasks:
            for number, (client, trainer) in enumerate(
                zip(self.clients, self._trainers, strict=True)
            ):
                tasks.create_task(
                    client.participate(trainer, model_id, rounds=1, notify=told_of(number))
                )
            await ready.wait()
            yield
        for trainer in self._trainers:
            del trainer.deltas[model_id]


@asynccontextmanager
async def scripted_clients(
    folder: Path, join_strings: Sequence[str], mode: AuditMode
) -> AsyncIterator[ScriptedClients]:
    """Enrol a client for each join string, with its key store in `folder`, and connect them.

    Raises: MeshError, as enrolment does.
    """
    owner = OwnerLimits(
        modes=frozenset({RoundMode[mode.upper()]}),
        models=("audit-*",),
        smallest_cohort=len(join_strings),
        largest_clip_norm=CLIP_NORM,
        largest_attempt=1,
    )
    memory = PeerMemory()
    async with AsyncExitStack() as stack:
        clients = []
        for number, text in enumerate(join_strings, start=1):
            store = folder / f"client-{number}"
            await enroll(text, store)
            clients.append(
                await stack.enter_async_context(MeshClient.open(store, owner=owner, memory=memory))
            )
        yield ScriptedClients(clients, [_Scripted() for _ in clients])
