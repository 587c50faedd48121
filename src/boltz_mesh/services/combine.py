"""What arrives at about the same time, worked off together.

Sixty clients answer a step within a few milliseconds, and each answer takes six round trips to the
database. So whoever comes while others are being worked on waits for its turn with those that came
meanwhile, and one of them does the work for all (flat combining, Hendler et al. 2010). Nobody waits
while nothing is being worked on: a single answer goes through at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False, slots=True)
class _Turn(Generic[Item, Result]):
    item: Item
    done: bool = False
    result: Result | None = None
    error: Exception | None = None


@dataclass(eq=False, slots=True)
class _Queue(Generic[Item, Result]):
    turns: list[_Turn[Item, Result]] = field(default_factory=list)
    working: asyncio.Lock = field(default_factory=asyncio.Lock)


class Combiner(Generic[Key, Item, Result]):
    """Joins calls of one key. Belongs to one event loop.

    Args:
        work: takes the items of one key and gives, in their order, the result of each or the error
            that its caller is to get. It must bear repetition: where the caller that runs it is
            cancelled, another one runs it again, also for what was done by then. An error that it
            raises is everybody's.
        most: items at a time. What waits is bounded by the callers: each waits for its own.
    """

    def __init__(
        self,
        work: Callable[[Key, Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        most: int,
    ) -> None:
        self._work = work
        self._most = most
        self._queues: dict[Key, _Queue[Item, Result]] = {}

    async def submit(self, key: Key, item: Item) -> Result:
        """Have an item worked on, with what else waits for the key; its result.

        Raises: the item's error.
        """
        queue = self._queues.setdefault(key, _Queue())
        turn: _Turn[Item, Result] = _Turn(item)
        queue.turns.append(turn)
        try:
            async with queue.working:
                if not turn.done:
                    # Those before it are done or gone, so that it is the first.
                    await self._work_off(key, queue.turns[: self._most])
        finally:
            queue.turns = [other for other in queue.turns if not other.done and other is not turn]
            # Nobody may find a queue that another one is about to find gone.
            if not queue.turns and not queue.working.locked():
                self._queues.pop(key, None)
        if turn.error is not None:
            raise turn.error
        assert turn.done, "worked on by itself or by another one"
        return turn.result  # type: ignore[return-value]  # None only where Result allows it

    async def _work_off(self, key: Key, turns: Sequence[_Turn[Item, Result]]) -> None:
        outcomes: Sequence[Result | Exception]
        try:
            outcomes = await self._work(key, [turn.item for turn in turns])
        except Exception as error:
            outcomes = [error] * len(turns)
        for turn, outcome in zip(turns, outcomes, strict=True):
            turn.done = True
            if isinstance(outcome, Exception):
                turn.error = outcome
            else:
                turn.result = outcome
