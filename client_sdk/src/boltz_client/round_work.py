"""One round in work: what belongs to it, and the owner's code run for it."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from opentelemetry import trace

from boltz_client.models import PulledModel
from boltz_client.notices import Host
from boltz_client.offers import AcceptedRound, check_base
from boltz_client.participant import Event, RoundKey
from boltz_client.sealed_round import SealedRound, without_frames
from boltz_client.spool import SealedUpdate
from boltz_client.tracing import context_of, tracer
from boltz_client.trainer import RoundContext, Trainer, TrainResult
from boltz_protocol import messages as m
from boltz_protocol.errors import ConfigurationError, MeshError, RoundClosed, TrainingFailed
from boltz_protocol.ids import ModelId
from boltz_protocol.statement import digest

#: An abandoned training may go on for as long as its owner's code does; a few may pile up.
_TRAINING_THREADS: Final = 4


@dataclass(slots=True)
class RoundWork:
    """What belongs to one round while it is of interest.

    Attributes:
        part: this client's part in the protocol of a sealed round, with its secrets.
    """

    offer: m.RoundOffer
    configuration: m.RoundConfiguration
    span: trace.Span
    stopped: threading.Event = field(default_factory=threading.Event)
    accepted: AcceptedRound | None = None
    part: SealedRound | None = None
    sealed: SealedUpdate | None = None
    task: asyncio.Task[None] | None = None

    @classmethod
    def begin(cls, offer: m.RoundOffer, configuration: m.RoundConfiguration) -> RoundWork:
        """With a span in the round's trace."""
        span = tracer().start_span(
            "boltz.client.round", context=context_of(offer.trace), kind=trace.SpanKind.CONSUMER
        )
        return cls(offer, configuration, span)

    @property
    def key(self) -> RoundKey:
        """Which attempt of which round."""
        return RoundKey(self.configuration.round_id, self.configuration.attempt)

    @property
    def is_sharer(self) -> bool:
        """Whether others count on this client beyond its upload."""
        return self.part is not None and self.part.is_sharer

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
            lanes=tuple(lane.name for lane in configuration.metric_lanes),
            clip_norm=configuration.delta_clip_norm,
            deadline_ms=configuration.deadline_ms,
            stopped=self.stopped,
        )

    def fail(self, error: MeshError) -> None:
        """Stop the trainer, forget the secrets, and write the error into the trace."""
        self.stopped.set()
        self.wipe()
        self.span.set_status(trace.StatusCode.ERROR, error.reason)
        self.span.record_exception(error)

    def wipe(self) -> None:
        """Forget the secrets of a sealed round."""
        if self.part is not None:
            self.part.wipe()

    async def seal(self, host: Host, base: PulledModel, result: TrainResult) -> None:
        """Fix the update's bytes, once the masks are there in a sealed round."""
        assert self.accepted is not None
        if self.part is None:
            self.sealed = await host.seal_update(self.accepted, base, result)
            return
        try:
            masks = await self.part.masks()
            self.sealed = await host.seal_update(self.accepted, base, result, masks)
        except (MeshError, OSError) as error:
            raise without_frames(error) from error.__cause__

    async def find_sealed(self, host: Host) -> bool:
        """Whether an earlier run of this client sealed an update for this very round."""
        if not host.spool.has(self.key.round_id, self.key.attempt):
            return False
        sealed = await asyncio.to_thread(host.spool.find, self.key.round_id, self.key.attempt)
        if (
            sealed is None
            or sealed.manifest.client_id != host.client_id
            or sealed.manifest.configuration_sha256 != digest(self.offer.configuration)
        ):
            return False
        self.sealed = sealed
        return True


async def within_deadline(
    round: RoundWork, host: Host, work: Callable[[RoundWork], Coroutine[Any, Any, Event]]
) -> Event:
    """Run one piece of work in the round's span, up to the end of its collecting.

    Raises: RoundClosed after that; ConfigurationError when the spool cannot be used.
    """
    left_s = (round.configuration.deadline_ms - host.server_time_ms()) / 1000
    with trace.use_span(round.span, end_on_exit=False, record_exception=False):
        try:
            async with asyncio.timeout(max(0.0, left_s)):
                return await work(round)
        except TimeoutError as error:
            raise RoundClosed("the round's deadline is over") from error
        except OSError as error:
            raise ConfigurationError(
                f"the spool {host.spool.folder} cannot be used: {error}"
            ) from error


class LocalTraining:
    """The owner's trainer, and the base model that it was given last.

    It has threads of its own: in a process with many clients, long trainings must not keep the
    short steps of the protocol waiting.
    """

    def __init__(self, host: Host, trainer: Trainer, model_id: ModelId) -> None:
        self._host = host
        self._trainer = trainer
        self._model_id = model_id
        self._base: PulledModel | None = None
        self._threads = ThreadPoolExecutor(_TRAINING_THREADS, thread_name_prefix="boltz-trainer")

    def close(self) -> None:
        """Start nothing more; what runs is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def sample_count(self) -> int:
        """Rows of the next training. Raises: TrainingFailed."""
        count: int = await self._in_trainer(self._trainer.sample_count)
        return count

    async def train(self, round: RoundWork) -> tuple[PulledModel, TrainResult]:
        """Pull the base model and train from it.

        Raises: RoundRefused when it is another than the round's; TrainingFailed; as `pull_model`.
        """
        configuration = round.configuration
        base = self._base
        wanted = (configuration.base_version, configuration.model_sha256)
        # The version too: two of them may have the same parameters, after a round of no change.
        if base is None or (base.manifest.version, base.manifest.sha256) != wanted:
            # Let the last one go first: two large models need not be held at once.
            base = self._base = None
            base = await self._host.pull_model(self._model_id, configuration.base_version)
            self._base = base
        check_base(configuration, base.manifest)
        tensors = base.tensors()
        with tracer().start_as_current_span("boltz.client.train"):
            context = round.context(base)
            result = await self._in_trainer(lambda: self._trainer.train(tensors, context))
        if not isinstance(result, TrainResult):
            raise TrainingFailed(f"the trainer returned {type(result).__name__}, not a TrainResult")
        return base, result

    async def _in_trainer(self, work: Callable[[], Any]) -> Any:
        """Run the owner's code in a thread. Raises: TrainingFailed for whatever it raises."""
        variables = contextvars.copy_context()
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, variables.run, work
            )
        except MeshError:
            raise
        except Exception as error:
            # The owner's code may raise anything; the round is declined and the error is told.
            raise TrainingFailed(f"the trainer raised {type(error).__name__}: {error}") from error
