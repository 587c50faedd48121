"""The coordinator: holds the lease, and keeps one runner for every unfinished round.

It learns what to do from notifications alone (and reads everything again after a reconnect): a fact
in a round's inbox, a check-in for a model, a round that was started. Deadlines are the runners'.
When the lease is lost everything stops at once; the next holder goes on from the tables.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import tenacity

from boltz_mesh.coordinator.housekeeping import keep_house
from boltz_mesh.coordinator.parts import Parts
from boltz_mesh.coordinator.runner import RoundRunner
from boltz_mesh.storage import rounds
from boltz_mesh.storage.lease import CoordinatorLease
from boltz_mesh.storage.listen import Wakeup
from boltz_mesh.storage.postgres import Channel, Connection
from boltz_protocol import limits
from boltz_protocol.errors import StateConflict, Unavailable
from boltz_protocol.ids import RoundId

_log: Final = logging.getLogger(__name__)


async def coordinate(parts: Parts) -> None:
    """Wait for the lease, coordinate until it is lost, and again; until cancelled.

    Raises: ConfigurationError when the database refuses us for good.
    """
    while True:
        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type((Unavailable, StateConflict)),
            wait=tenacity.wait_random_exponential(
                multiplier=0.05, max=limits.MAX_DATABASE_RECONNECT_MS / 1000
            ),
            before_sleep=tenacity.before_sleep_log(_log, logging.WARNING),
        ):
            with attempt:
                await _one_term(parts)


async def _one_term(parts: Parts) -> None:
    async with await CoordinatorLease.acquire(parts.database.url, parts.holder) as lease:
        _log.info("coordinating with fencing token %d", lease.token)
        await Coordinator(parts, lease).run()


class Coordinator:
    """One term of the lease."""

    def __init__(self, parts: Parts, lease: CoordinatorLease) -> None:
        self._parts = parts
        self._lease = lease
        self._runners: dict[RoundId, RoundRunner] = {}
        self._tasks: dict[RoundId, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until the lease is lost. Raises: Unavailable and what else ends a watch."""
        watches = [
            asyncio.create_task(self._lease.lost.wait()),
            asyncio.create_task(keep_house(self._parts, self._lease)),
            asyncio.create_task(self._watch(Channel.ROUND_CHANGED, self._rounds_changed)),
            asyncio.create_task(self._watch(Channel.ROUND_INBOX, self._facts_came)),
            asyncio.create_task(self._watch(Channel.CHECK_IN_CHANGED, self._check_ins_changed)),
        ]
        try:
            done, _ = await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
            for watch in done:
                watch.result()
        finally:
            tasks = {*watches, *self._tasks.values()}
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _watch(self, channel: Channel, act: Callable[[Wakeup], Awaitable[None]]) -> None:
        with self._parts.listener.subscribe(channel) as wakeups:
            async for wakeup in wakeups:
                await act(wakeup)

    async def _rounds_changed(self, wakeup: Wakeup) -> None:
        """Take up what is not known yet; what is known moved by our own hand."""
        if not wakeup.resync and all(RoundId(r) in self._tasks for r in wakeup.payloads):
            return

        async def body(connection: Connection) -> list[rounds.Round]:
            return await rounds.list_open_rounds(connection)

        for found in await self._parts.database.read("list_open_rounds", body):
            if found.round_id not in self._tasks:
                self._take_up(found.round_id)

    async def _facts_came(self, wakeup: Wakeup) -> None:
        for round_id, runner in self._runners.items():
            if wakeup.resync or round_id in wakeup.payloads:
                runner.wake()

    async def _check_ins_changed(self, wakeup: Wakeup) -> None:
        for runner in self._runners.values():
            if wakeup.resync or runner.model_id in wakeup.payloads:
                runner.wake()

    def _take_up(self, round_id: RoundId) -> None:
        runner = RoundRunner(self._parts, round_id, fencing_token=self._lease.token)
        self._runners[round_id] = runner
        task = asyncio.create_task(runner.run(), name=f"round {round_id}")
        self._tasks[round_id] = task
        task.add_done_callback(lambda ended: self._ended(round_id, ended))

    def _ended(self, round_id: RoundId, task: asyncio.Task[None]) -> None:
        del self._runners[round_id]
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            del self._tasks[round_id]
            return
        # A defect in one round must not stop the others. Its entry stays, so that nobody here takes
        # it up again and again: the next coordinator will.
        _log.error("round %s stopped on a defect", round_id, exc_info=error)
