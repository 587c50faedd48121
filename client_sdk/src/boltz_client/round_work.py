"""One round in work: what belongs to it, and the owner's code run for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import trace

from boltz_client.models import PulledModel
from boltz_client.offers import AcceptedRound
from boltz_client.spool import SealedUpdate
from boltz_client.trainer import RoundContext
from boltz_protocol import messages as m
from boltz_protocol.errors import MeshError, TrainingFailed


@dataclass(slots=True)
class RoundWork:
    """What belongs to one round while it is of interest."""

    offer: m.RoundOffer
    configuration: m.RoundConfiguration
    span: trace.Span
    stopped: threading.Event = field(default_factory=threading.Event)
    accepted: AcceptedRound | None = None
    sealed: SealedUpdate | None = None
    task: asyncio.Task[None] | None = None

    def context(self, base: PulledModel) -> RoundContext:
        """What the trainer is told."""
        configuration = self.configuration
        return RoundContext(
            round_id=configuration.round_id,
            attempt=configuration.attempt,
            model_id=configuration.model_id,
            base_version=configuration.base_version,
            tensors=base.manifest.tensors,
            hyperparameters=configuration.hyperparameters,
            lanes=tuple(lane.name for lane in configuration.lanes),
            clip_norm=configuration.clip_norm,
            deadline_ms=configuration.deadline_ms,
            stopped=self.stopped,
        )


async def in_trainer(work: Callable[[], Any]) -> Any:
    """Run the owner's code in a thread. Raises: TrainingFailed for whatever it raises."""
    try:
        return await asyncio.to_thread(work)
    except MeshError:
        raise
    except Exception as error:
        # The owner's code may raise anything; the round is declined and the error is told.
        raise TrainingFailed(f"the trainer raised {type(error).__name__}: {error}") from error
