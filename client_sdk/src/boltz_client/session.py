"""The driver of `participant`: one model's control stream, and the work that its offers ask for.

The machine decides, this runs its effects: it keeps the stream (opening it again with backoff),
hands offers to the checks, runs the owner's trainer in a thread, seals, uploads, and tells the
machine what came of it. Everything the trainer raises ends in a decline, never in a lost client.

Notices of a sealed round are taken one after the other as they come, beside that work; what one
raises ends the work.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.trace import StatusCode
from tenacity import AsyncRetrying, retry_if_exception, stop_never

from boltz_client import participant as p
from boltz_client.backoff import Backoff
from boltz_client.check_in import signed_check_in
from boltz_client.connection import Duplex, is_passing, send_all
from boltz_client.notices import Host, Notice, NoticeKind, Summary, Tally
from boltz_client.round_work import LocalTraining, RoundWork, within_deadline
from boltz_client.sealed_round import NOTICES, take_part
from boltz_client.tracing import call_metadata
from boltz_client.trainer import Trainer, TrainResult
from boltz_protocol import codec, limits, weights
from boltz_protocol import messages as m
from boltz_protocol.errors import (
    MalformedMessage,
    MeshError,
    NotInRoster,
    RoundClosed,
    SecondMessage,
    ShareRefused,
)
from boltz_protocol.ids import ModelId
from boltz_protocol.statement import Statement
from boltz_protocol.v1 import aggregator_pb2

ControlStream = Duplex[aggregator_pb2.ParticipateRequest, aggregator_pb2.ParticipateResponse]
_Work = Callable[[RoundWork], Coroutine[Any, Any, p.Event]]
#: Errors of the control stream that are about the round in work, and not about this client.
_OF_THE_ROUND: Final = (NotInRoster, RoundClosed, SecondMessage, ShareRefused)


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
        self._training = LocalTraining(host, trainer, model_id)
        self._model_id = model_id
        self._rounds_left = rounds
        self._quality_bucket = quality_bucket
        self._tally = Tally(model_id, notify)
        self._state = p.Participant()
        self._rounds: dict[p.RoundKey, RoundWork] = {}
        self._ended: deque[p.RoundKey] = deque(maxlen=limits.MAX_REMEMBERED_ROUNDS)
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
            return self._tally.summary()
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
            self._training.close()
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
            self._tally.tell(NoticeKind.DISCONNECTED, error=error)
            if welcomed and isinstance(error, _OF_THE_ROUND):
                if self._state.work is not None:
                    self._refuse(self._rounds[self._state.work.key], error)
            elif not (welcomed and is_passing(error)):
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
                self._tally.tell(NoticeKind.CHECKED_IN)
            case "offer":
                await self._receive_offer(codec.offer_from_proto(response.offer))
            case "outcome":
                await self._receive_outcome(codec.outcome_from_proto(response.outcome))
            case str(name) if name in NOTICES:
                await self._receive_notice(response)
            case _:
                # A newer server may push what this version does not know.
                pass

    async def _receive_offer(self, offer: m.RoundOffer) -> None:
        try:
            payload = await self._host.verified(offer.configuration, m.ROUND_CONFIGURATION)
            configuration = codec.parse_round_configuration(payload)
        except MeshError as error:
            if is_passing(error):
                raise
            # What the mesh did not sign is not an offer: there is nothing to decline.
            self._tally.tell(NoticeKind.IGNORED, error=error)
            return
        key = p.RoundKey(configuration.round_id, configuration.attempt)
        known = self._rounds.get(key)
        if known is None:
            self._rounds[key] = RoundWork.begin(offer, configuration)
        elif known.part is not None and (again := known.part.advertisement_again()) is not None:
            self._send(again)
        self._handle(p.Offered(key))
        work = self._state.work
        if work is None or work.key != key:
            self._drop(key)

    async def _receive_notice(self, response: aggregator_pb2.ParticipateResponse) -> None:
        work = self._state.work
        round = self._rounds.get(work.key) if work is not None else None
        if round is None or round.part is None:
            # Of a round that is not in work, or one whose secrets went with an earlier run.
            return
        with trace.use_span(round.span, end_on_exit=False, record_exception=False):
            try:
                taken = await round.part.take(response)
            except MeshError as error:
                if is_passing(error):
                    raise
                self._refuse(round, error)
                return
        if taken.passed_over is not None:
            self._tally.tell(NoticeKind.IGNORED, round.key, error=taken.passed_over)
        if taken.answer is not None:
            self._send(taken.answer)
        if round.part.is_left_out:
            self._late(round.key)

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
            self._tally.count("published" if outcome.phase is m.Phase.PUBLISHED else "aborted")
            if outcome.counted:
                self._tally.count("counted")
        self._tally.tell(NoticeKind.ENDED, key, outcome=outcome)
        self._handle(p.Ended(key))

    async def _signed_check_in(self) -> Statement:
        samples = self._samples
        if samples is None:
            samples = await self._training.sample_count()
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
                self._tally.tell(NoticeKind.OFFERED, key)
                self._work(key, self._examine)
            case p.Train(key):
                self._work(key, self._train)
            case p.Upload(key):
                self._work(key, self._upload)
            case p.SendDecline(key, reason):
                decline = m.RoundDecline(key.round_id, key.attempt, reason)
                self._send(
                    aggregator_pb2.ParticipateRequest(decline=codec.decline_to_proto(decline))
                )
            case p.Abandon(key):
                self._abandon(key)
            case p.Forget(key):
                # A round that an earlier run was offered may end now; it is not one of this run's.
                if self._drop(key):
                    self._count_down()
                self._start(self._discard(key))
            case p.Close():
                for round in self._rounds.values():
                    round.wipe()
                # `run` ends the last stream.
            case p.Reconnect():
                # `_keep_link` opens the next stream.
                pass

    def _send(self, request: aggregator_pb2.ParticipateRequest) -> None:
        # A mesh that asks and does not read gets no more; it asks again on the next stream.
        if self._outbox.qsize() < limits.MAX_STREAM_QUEUE:
            self._outbox.put_nowait(request)

    def _send_check_in(self, statement: Statement) -> None:
        self._send(aggregator_pb2.ParticipateRequest(check_in=codec.statement_to_proto(statement)))

    def _work(self, key: p.RoundKey, work: _Work) -> None:
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
        try:
            event = await within_deadline(round, self._host, work)
        except MeshError as error:
            if isinstance(error, RoundClosed) and round.is_sharer:
                self._late(key)
            else:
                self._refuse(round, error)
        else:
            self._handle(event)

    def _refuse(self, round: RoundWork, error: MeshError) -> None:
        """The round is over for this client."""
        round.fail(error)
        work = self._state.work
        if work is not None and work.key == round.key:
            waiting = work.stage is p.Stage.WAITING
            kind = NoticeKind.WITHHELD if waiting else NoticeKind.DECLINED
            self._tally.leave(kind, round.key, error)
        self._handle(p.Failed(round.key, error.reason))

    def _late(self, key: p.RoundKey) -> None:
        """Collecting has ended without this client, whose help the others still need."""
        work = self._state.work
        if work is not None and work.key == key and work.stage is not p.Stage.WAITING:
            self._tally.tell(NoticeKind.LATE, key)
        self._handle(p.Late(key))

    async def _examine(self, round: RoundWork) -> p.Event:
        # What an earlier run of this client sealed was accepted by it, and is sent as it is.
        if await round.find_sealed(self._host):
            return p.Accepted(round.key, sealed=True)
        round.accepted = await self._host.accept(round.offer, self._model_id)
        if round.configuration.mode is not m.RoundMode.OPEN:
            round.part = take_part(self._host, round.accepted)
            # Before training: the others wait for it.
            self._send(await round.part.advertise())
        return p.Accepted(round.key)

    async def _train(self, round: RoundWork) -> p.Event:
        base, result = await self._training.train(round)
        self._tally.tell(NoticeKind.TRAINED, round.key)
        await round.seal(self._host, base, result)
        await self._recount(result)
        return p.Sealed(round.key)

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
        if round.part is not None:
            round.part.uploading = True
        receipt = await self._host.upload(sealed, round.configuration.deadline_ms)
        key = p.RoundKey(receipt.round_id, receipt.attempt)
        self._tally.count("submitted")
        round.span.set_status(StatusCode.OK)
        round.span.end()
        self._tally.tell(
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
            round.wipe()
            round.span.end()
        return round is not None

    def _count_down(self) -> None:
        if self._rounds_left is not None:
            self._rounds_left -= 1
            if self._rounds_left <= 0:
                self.stop()
