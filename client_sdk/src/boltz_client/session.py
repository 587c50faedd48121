"""The driver of `participant`: one model's control stream, and the work that its offers ask for.

The machine decides, this runs its effects: it keeps the stream (opening it again with backoff),
hands offers to the checks, runs the owner's trainer in a thread, seals, uploads, and tells the
machine what came of it. Everything the trainer raises ends in a decline, never in a lost client.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode
from tenacity import AsyncRetrying, retry_if_exception, stop_never

from boltz_client import participant as p
from boltz_client.backoff import Backoff
from boltz_client.check_in import signed_check_in
from boltz_client.connection import Duplex, is_passing, send_all
from boltz_client.models import PulledModel
from boltz_client.notices import Host, Notice, NoticeKind, Summary
from boltz_client.offers import check_base
from boltz_client.round_work import RoundWork, in_trainer
from boltz_client.tracing import call_metadata, context_of, tracer
from boltz_client.trainer import Trainer, TrainResult
from boltz_protocol import codec, limits, weights
from boltz_protocol import messages as m
from boltz_protocol.errors import (
    ConfigurationError,
    MalformedMessage,
    MeshError,
    RoundClosed,
    TrainingFailed,
)
from boltz_protocol.ids import ModelId
from boltz_protocol.statement import Statement, digest
from boltz_protocol.v1 import aggregator_pb2

ControlStream = Duplex[aggregator_pb2.ParticipateRequest, aggregator_pb2.ParticipateResponse]


_Work = Callable[[RoundWork], Coroutine[Any, Any, p.Event]]


class Participation:
    """One `participate`; see `client.MeshClient.participate`, which is what to call."""

    def __init__(
        self,
        host: Host,
        trainer: Trainer,
        model_id: ModelId,
        *,
        rounds: int | None,
        quality_bucket: int,
        notify: Callable[[Notice], None] | None,
    ) -> None:
        self._host = host
        self._trainer = trainer
        self._model_id = model_id
        self._rounds_left = rounds
        self._quality_bucket = quality_bucket
        self._notify = notify if notify is not None else _nobody
        self._state = p.Participant()
        self._rounds: dict[p.RoundKey, RoundWork] = {}
        self._ended: deque[p.RoundKey] = deque(maxlen=limits.MAX_REMEMBERED_ROUNDS)
        self._base: PulledModel | None = None
        self._samples: int | None = None
        self._checked_in: m.CheckIn | None = None
        self._check_in: Statement | None = None
        self._outbox: asyncio.Queue[aggregator_pb2.ParticipateRequest] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: BaseException | None = None
        self._link: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._call: ControlStream | None = None
        self._stopping = False
        self._done = asyncio.Event()
        self._counts = dict.fromkeys(Summary.__slots__, 0)

    async def run(self) -> Summary:
        """Take part until stopped, done, or shut out."""
        try:
            if self._rounds_left == 0:
                self._stopping = True
            if not self._stopping:
                self._link = asyncio.create_task(self._keep_link())
                await asyncio.wait({self._link})
            if self._broken is not None:
                raise self._broken
            if self._link is not None and not self._link.cancelled() and not self._stopping:
                self._link.result()
            elif not self._stopping:
                raise asyncio.CancelledError
            return Summary(**self._counts)
        finally:
            self._handle(p.StopRequested())
            for round in self._rounds.values():
                round.stopped.set()
                if round.task is not None:
                    round.task.cancel()
            link = [task for task in (self._link, self._leaving) if task is not None]
            for task in link:
                task.cancel()
            # Deletions in the spool are let through to their end.
            await asyncio.gather(*self._tasks, *link, return_exceptions=True)
            self._done.set()

    def stop(self) -> None:
        """End `run`, which returns in order: what the mesh is still to be told goes out first."""
        if not self._stopping:
            self._stopping = True
            self._leaving = asyncio.create_task(self._leave())

    async def _leave(self) -> None:
        self._handle(p.StopRequested())
        call, link = self._call, self._link
        if call is not None and link is not None:
            # The mesh reads to the end of what was sent and then ends the stream; a stream that
            # is cancelled may lose its last words.
            try:
                async with asyncio.timeout(limits.LEAVE_GRACE_MS / 1000):
                    await self._outbox.join()
                    await call.done_writing()
                    await asyncio.wait({link})
            except (TimeoutError, MeshError):
                pass
        if link is not None:
            link.cancel()

    async def stopped(self) -> None:
        """Wait until `run` has ended."""
        await self._done.wait()

    # --- the control stream ---------------------------------------------------------------------

    async def _keep_link(self) -> None:
        jitter = secrets.SystemRandom()
        while not self._stopping:
            # A stream that was welcomed starts the backoff anew, but never hurries: a server that
            # restarts has many clients.
            async for attempt in AsyncRetrying(
                retry=retry_if_exception(is_passing),
                wait=Backoff(),
                stop=stop_never,
                reraise=True,
            ):
                with attempt:
                    await self._one_stream()
            if self._stopping:
                return
            await asyncio.sleep(jitter.uniform(0, limits.MIN_RECONNECT_WAIT_MS / 1000))

    async def _one_stream(self) -> None:
        """One control stream from check-in to its end.

        Returns when it was lost after a welcome; raises Unavailable when there never was one, and
        any other error as the mesh sent it.
        """
        self._check_in = await self._signed_check_in()
        self._outbox = asyncio.Queue()
        call = ControlStream(self._host.aggregator.Participate, call_metadata())
        self._call = call
        sender = asyncio.create_task(send_all(call, self._outbox))
        welcomed = False
        self._handle(p.StreamOpened())
        try:
            while (response := await call.read()) is not None:
                await self._receive(response)
                welcomed = welcomed or self._state.link is p.Link.ONLINE
        except MeshError as error:
            self._tell(NoticeKind.DISCONNECTED, error=error)
            if not (welcomed and is_passing(error)):
                raise
        finally:
            self._call = None
            call.cancel()
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            self._handle(p.StreamLost())

    async def _receive(self, response: aggregator_pb2.ParticipateResponse) -> None:
        match response.WhichOneof("message"):
            case "welcome":
                welcome = codec.welcome_from_proto(response.welcome)
                if welcome.protocol_version != m.PROTOCOL_VERSION:
                    raise MalformedMessage(
                        f"the mesh chose protocol version {welcome.protocol_version}",
                        field="protocol_version",
                    )
                self._host.saw_server_time(welcome.server_time_ms)
                self._handle(p.Welcomed())
                self._tell(NoticeKind.CHECKED_IN)
            case "offer":
                await self._receive_offer(codec.offer_from_proto(response.offer))
            case "outcome":
                await self._receive_outcome(codec.outcome_from_proto(response.outcome))
            case _:
                # A newer server may push what this version does not know.
                pass

    async def _receive_offer(self, offer: m.RoundOffer) -> None:
        try:
            configuration = await self._host.verified_configuration(offer)
        except MeshError as error:
            if is_passing(error):
                raise
            # What the mesh did not sign is not an offer: there is nothing to decline.
            self._tell(NoticeKind.IGNORED, error=error)
            return
        key = p.RoundKey(configuration.round_id, configuration.attempt)
        if key not in self._rounds:
            span = tracer().start_span(
                "boltz.client.round", context=context_of(offer.trace), kind=SpanKind.CONSUMER
            )
            self._rounds[key] = RoundWork(offer, configuration, span)
        self._handle(p.Offered(key))
        work = self._state.work
        if work is None or work.key != key:
            self._drop(key)

    async def _receive_outcome(self, outcome: m.RoundOutcome) -> None:
        key = p.RoundKey(outcome.round_id, outcome.attempt)
        if key in self._ended:
            # Told again after a reconnection.
            return
        self._ended.append(key)
        round = self._rounds.get(key)
        if outcome.counted and round is not None and round.task is not None:
            # A quick round ends before its receipt, which takes another stream, has come.
            await asyncio.wait({round.task}, timeout=limits.RECEIPT_GRACE_MS / 1000)
        if key in self._rounds or key in self._state.finished:
            self._count("published" if outcome.phase is m.Phase.PUBLISHED else "aborted")
            if outcome.counted:
                self._count("counted")
        self._tell(NoticeKind.ENDED, key, outcome=outcome)
        self._handle(p.Ended(key))

    async def _signed_check_in(self) -> Statement:
        samples = self._samples
        if samples is None:
            samples = await in_trainer(self._trainer.sample_count)
        return await self._sign_check_in(weights.sample_bucket(samples))

    async def _sign_check_in(self, sample_bucket: int) -> Statement:
        self._checked_in, statement = await signed_check_in(
            self._host, self._model_id, sample_bucket, self._quality_bucket
        )
        return statement

    # --- effects --------------------------------------------------------------------------------

    def _handle(self, event: p.Event) -> None:
        self._state, effects = p.step(self._state, event)
        for effect in effects:
            self._perform(effect)

    def _perform(self, effect: p.Effect) -> None:
        match effect:
            case p.SendCheckIn():
                assert self._check_in is not None
                self._send_check_in(self._check_in)
            case p.Examine(key):
                self._tell(NoticeKind.OFFERED, key)
                self._work(key, self._examine)
            case p.Train(key):
                self._work(key, self._train)
            case p.Upload(key):
                self._work(key, self._upload)
            case p.SendDecline(key, reason):
                decline = m.RoundDecline(key.round_id, key.attempt, reason)
                self._outbox.put_nowait(
                    aggregator_pb2.ParticipateRequest(decline=codec.decline_to_proto(decline))
                )
            case p.Abandon(key):
                self._abandon(key)
            case p.Forget(key):
                # A round that an earlier run was offered may end now; it is not one of this run's.
                if self._drop(key):
                    self._count_down()
                self._start(self._discard(key))
            case p.Reconnect() | p.Close():
                # `_keep_link` opens the next stream, `run` ends the last one.
                pass

    def _send_check_in(self, statement: Statement) -> None:
        self._outbox.put_nowait(
            aggregator_pb2.ParticipateRequest(check_in=codec.statement_to_proto(statement))
        )

    def _work(
        self, key: p.RoundKey, work: Callable[[RoundWork], Coroutine[Any, Any, p.Event]]
    ) -> None:
        round = self._rounds[key]
        round.task = self._start(self._guarded(key, round, work))

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A broken invariant of ours: `run` raises it.
            self._broken = error
            self.stop()

    async def _guarded(self, key: p.RoundKey, round: RoundWork, work: _Work) -> None:
        """Run one piece of work up to the deadline, and tell the machine what came of it."""
        left_s = (round.configuration.deadline_ms - self._host.server_time_ms()) / 1000
        try:
            with trace.use_span(round.span, end_on_exit=False, record_exception=False):
                try:
                    async with asyncio.timeout(max(0.0, left_s)):
                        event = await work(round)
                except TimeoutError as error:
                    raise RoundClosed("the round's deadline is over") from error
                except OSError as error:
                    raise ConfigurationError(
                        f"the spool {self._host.spool.folder} cannot be used: {error}"
                    ) from error
        except MeshError as error:
            round.stopped.set()
            round.span.set_status(StatusCode.ERROR, error.reason)
            round.span.record_exception(error)
            if self._state.work is not None and self._state.work.key == key:
                self._count("declined")
                self._tell(NoticeKind.DECLINED, key, error=error)
            event = p.Failed(key, error.reason)
        self._handle(event)

    async def _examine(self, round: RoundWork) -> p.Event:
        configuration = round.configuration
        key = p.RoundKey(configuration.round_id, configuration.attempt)
        # What an earlier run of this client sealed was accepted by it, and is sent as it is.
        sealed = None
        if self._host.spool.has(key.round_id, key.attempt):
            sealed = await asyncio.to_thread(self._host.spool.find, key.round_id, key.attempt)
        if (
            sealed is not None
            and sealed.manifest.client_id == self._host.client_id
            and sealed.manifest.configuration_sha256 == digest(round.offer.configuration)
        ):
            round.sealed = sealed
            return p.Accepted(key, sealed=True)
        round.accepted = await self._host.accept(round.offer, self._model_id)
        return p.Accepted(key)

    async def _train(self, round: RoundWork) -> p.Event:
        accepted = round.accepted
        assert accepted is not None
        configuration = accepted.configuration
        base = self._base
        if base is None or base.manifest.sha256 != configuration.model_sha256:
            # Let the last one go first: two large models need not be held at once.
            base = self._base = None
            base = await self._host.pull_model(self._model_id, configuration.base_version)
            self._base = base
        check_base(configuration, base.manifest)
        tensors = base.tensors()
        with tracer().start_as_current_span("boltz.client.train"):
            result = await in_trainer(lambda: self._trainer.train(tensors, round.context(base)))
        key = p.RoundKey(configuration.round_id, configuration.attempt)
        if not isinstance(result, TrainResult):
            raise TrainingFailed(f"the trainer returned {type(result).__name__}, not a TrainResult")
        self._tell(NoticeKind.TRAINED, key)
        round.sealed = await self._host.seal_update(accepted, base, result)
        await self._recount(result)
        return p.Sealed(key)

    async def _recount(self, result: TrainResult) -> None:
        if result.samples is None:
            return
        self._samples = result.samples
        bucket = weights.sample_bucket(result.samples)
        known = self._checked_in
        if known is not None and known.sample_bucket != bucket:
            statement = await self._sign_check_in(bucket)
            if self._state.link is p.Link.ONLINE:
                self._send_check_in(statement)

    async def _upload(self, round: RoundWork) -> p.Event:
        sealed = round.sealed
        assert sealed is not None
        receipt = await self._host.upload(sealed, round.configuration.deadline_ms)
        key = p.RoundKey(receipt.round_id, receipt.attempt)
        self._count("submitted")
        round.span.set_status(StatusCode.OK)
        round.span.end()
        self._tell(
            NoticeKind.SUBMITTED, key, receipt=receipt, size_bytes=sealed.manifest.size_bytes
        )
        return p.Receipted(key)

    async def _discard(self, key: p.RoundKey) -> None:
        await asyncio.to_thread(self._host.spool.discard, key.round_id, key.attempt)

    def _abandon(self, key: p.RoundKey) -> None:
        round = self._rounds[key]
        round.stopped.set()
        if round.task is not None and round.task is not asyncio.current_task():
            round.task.cancel()

    def _drop(self, key: p.RoundKey) -> bool:
        round = self._rounds.pop(key, None)
        if round is not None:
            round.span.end()
        return round is not None

    def _count(self, name: str) -> None:
        self._counts[name] += 1

    def _count_down(self) -> None:
        if self._rounds_left is not None:
            self._rounds_left -= 1
            if self._rounds_left <= 0:
                self.stop()

    def _tell(
        self,
        kind: NoticeKind,
        key: p.RoundKey | None = None,
        *,
        error: MeshError | None = None,
        outcome: m.RoundOutcome | None = None,
        receipt: m.UpdateReceipt | None = None,
        size_bytes: int = 0,
    ) -> None:
        self._notify(Notice(kind, self._model_id, key, error, outcome, receipt, size_bytes))


def _nobody(_: Notice) -> None:
    """Takes notices that nobody asked for."""
