"""The demo's side of its broker processes: start them, give orders, wait for their news."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from boltz_mesh.app.demo import brokers, data
from boltz_mesh.app.demo.children import Child, child_environment, end_all, start
from boltz_mesh.app.demo.data import PriceTable
from boltz_mesh.app.demo.messages import (
    MAX_LINE_BYTES,
    Declined,
    Enrol,
    Enrolled,
    Failed,
    Join,
    Joined,
    Left,
    Measure,
    Measured,
    Order,
    Setup,
    line_of,
    parse_news,
)
from boltz_mesh.app.demo.options import DemoTask
from boltz_mesh.app.demo.plans import least_survivors
from boltz_protocol.errors import Unavailable

#: A broker makes fifteen keys at most in some seconds, while others do so too.
ENROL_TIMEOUT_S: Final = 300.0
#: Check-ins are one message each.
JOIN_TIMEOUT_S: Final = 120.0
#: What declines tell; the first ones are the cause.
MAX_DECLINES: Final = 20


@dataclass(slots=True)
class BrokerPool:
    """All brokers. Use `broker_pool` to make one.

    Attributes:
        declines: what desks said that did not see a round through.
        counted: updates of each model that became part of a version, as the desks were told.
    """

    children: Sequence[Child]
    desks_each: int
    declines: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_DECLINES))
    counted: dict[str, int] = field(default_factory=dict)
    _measures: int = 0
    _wire: dict[int, tuple[int, int]] = field(default_factory=dict)
    _said: set[tuple[str, str]] = field(default_factory=set)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def watch(self) -> None:
        """Take in the brokers' news, for ever. Raises: ChildEnded when one fails or ends."""
        async with asyncio.TaskGroup() as tasks:
            for child in self.children:
                tasks.create_task(self._watch_one(child))

    async def enrol(self, join_strings: Sequence[str]) -> None:
        """Enrol every desk, each with a join string of its own, and wait until all are.

        Raises: Unavailable, ChildEnded.
        """
        assert len(join_strings) == len(self.children) * self.desks_each
        for number, child in enumerate(self.children):
            first = number * self.desks_each
            own = tuple(join_strings[first : first + self.desks_each])
            await _order(child, Enrol(join_strings=own))
        await self._wait_for("enrolled", ENROL_TIMEOUT_S)

    async def join(self, model_id: str, rounds: int) -> None:
        """Let every desk take part in a model's rounds, and wait until all are checked in.

        Raises: Unavailable, ChildEnded.
        """
        for child in self.children:
            await _order(child, Join(model_id=model_id, rounds=rounds))
        await self._wait_for(f"joined {model_id}", JOIN_TIMEOUT_S)

    async def left(self, model_id: str) -> int:
        """Wait until every desk was told of the last round; updates counted over all rounds."""
        await self._wait_for(f"left {model_id}", JOIN_TIMEOUT_S)
        return self.counted[model_id]

    async def wire_bytes(self) -> tuple[int, int]:
        """Bytes that all clients have sent to the mesh and received from it, enrolment left out.

        Raises: Unavailable, ChildEnded.
        """
        self._measures += 1
        number = self._measures
        self._wire[number] = (0, 0)
        for child in self.children:
            await _order(child, Measure(number=number))
        await self._wait_for(f"measured {number}", JOIN_TIMEOUT_S)
        return self._wire.pop(number)

    async def _watch_one(self, child: Child) -> None:
        while True:
            news = parse_news(await child.line())
            async with self._news:
                match news:
                    case Enrolled():
                        self._said.add((child.name, "enrolled"))
                    case Joined(model_id=model_id):
                        self._said.add((child.name, f"joined {model_id}"))
                    case Left(model_id=model_id, counted=counted):
                        self._said.add((child.name, f"left {model_id}"))
                        self.counted[model_id] = self.counted.get(model_id, 0) + counted
                    case Measured(number=number, sent=sent, received=received):
                        self._said.add((child.name, f"measured {number}"))
                        before = self._wire[number]
                        self._wire[number] = (before[0] + sent, before[1] + received)
                    case Declined():
                        self.declines.append(
                            f"{child.name}, desk {news.desk + 1}, {news.model_id}: {news.why}"
                        )
                    case Failed(why=why):
                        raise await child.ended(why)
                self._news.notify_all()

    async def _wait_for(self, what: str, timeout_s: float) -> None:
        def missing() -> list[str]:
            return [c.name for c in self.children if (c.name, what) not in self._said]

        try:
            async with asyncio.timeout(timeout_s), self._news:
                await self._news.wait_for(lambda: not missing())
        except TimeoutError as error:
            late = missing()
            raise Unavailable(
                f"{', '.join(late[:5])}{' and others' if len(late) > 5 else ''} did not say "
                f"{what!r} within {timeout_s:.0f} s"
            ) from error


@asynccontextmanager
async def broker_pool(
    task: DemoTask, table: PriceTable, folder: Path, environment: Mapping[str, str]
) -> AsyncIterator[BrokerPool]:
    """A process for each stock, each with its own folder and its own prices.

    Args:
        table: every stock; a broker gets its own closes and the index.
        folder: exists; private to this user.
        environment: of this process.
    """
    children: list[Child] = []
    try:
        for number, stock in enumerate(task.brokers):
            # Names of a user's files may hold anything; folders are numbered.
            own = folder / f"broker-{number + 1:02}"
            own.mkdir(mode=0o700)
            await asyncio.to_thread(data.save, table.only(stock), own / brokers.PRICES)
            child = await start(
                f"broker {stock}",
                brokers.__name__,
                [],
                log=own / "broker.log",
                environment=child_environment(environment),
                limit=MAX_LINE_BYTES,
            )
            children.append(child)
            setup = Setup(
                folder=str(own),
                kind=task.kind,
                trainer=task.trainer,
                preset=task.preset,
                smallest_cohort=least_survivors(task.clients),
            )
            await _order(child, setup)
        yield BrokerPool(children, task.preset.layout.per_broker)
    finally:
        await end_all(children)


async def _order(child: Child, order: Order) -> None:
    await child.write(line_of(order))
