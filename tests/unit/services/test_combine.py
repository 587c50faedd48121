"""Calls of one key are joined; each gets its own result or error, whoever does the work."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from boltz_mesh.services.combine import Combiner
from boltz_protocol.errors import MeshError, SecondMessage, Unavailable


class Desk:
    """Works off items; can be held up, and counts how it was called."""

    def __init__(self, *, most: int = 10) -> None:
        self.calls: list[tuple[str, list[int]]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.failing: MeshError | None = None
        self.combiner: Combiner[str, int, int] = Combiner(self.work, most=most)

    async def work(self, key: str, items: Sequence[int]) -> list[int | Exception]:
        self.calls.append((key, list(items)))
        await self.open.wait()
        if self.failing is not None:
            raise self.failing
        return [item * 10 if item >= 0 else SecondMessage(f"{item}") for item in items]

    def submit(self, item: int, key: str = "a") -> asyncio.Task[int]:
        return asyncio.create_task(self.combiner.submit(key, item))


async def _turns(count: int = 3) -> None:
    """Let every task run as far as it can."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_single_item_goes_through_at_once() -> None:
    desk = Desk()
    assert await desk.combiner.submit("a", 7) == 70
    assert desk.calls == [("a", [7])]


async def test_what_comes_meanwhile_is_worked_off_together_and_in_order() -> None:
    desk = Desk()
    desk.open.clear()
    tasks = [desk.submit(number) for number in range(5)]
    await _turns()
    desk.open.set()
    assert await asyncio.gather(*tasks) == [0, 10, 20, 30, 40]
    assert desk.calls == [("a", [0]), ("a", [1, 2, 3, 4])]


async def test_no_more_than_allowed_at_a_time() -> None:
    desk = Desk(most=2)
    desk.open.clear()
    tasks = [desk.submit(number) for number in range(6)]
    await _turns()
    desk.open.set()
    assert await asyncio.gather(*tasks) == [0, 10, 20, 30, 40, 50]
    assert [items for _, items in desk.calls] == [[0], [1, 2], [3, 4], [5]]


async def test_keys_do_not_wait_for_each_other() -> None:
    desk = Desk()
    desk.open.clear()
    tasks = [desk.submit(1, "a"), desk.submit(2, "b")]
    await _turns()
    assert desk.calls == [("a", [1]), ("b", [2])]
    desk.open.set()
    assert await asyncio.gather(*tasks) == [10, 20]


async def test_an_item_s_error_is_its_own() -> None:
    desk = Desk()
    desk.open.clear()
    tasks = [desk.submit(number) for number in (1, 2, -3, 4)]
    await _turns()
    desk.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[:2] == [10, 20]
    assert results[3] == 40
    assert isinstance(results[2], SecondMessage)


async def test_an_error_of_the_work_is_everybody_s_and_the_next_one_starts_afresh() -> None:
    desk = Desk()
    desk.open.clear()
    desk.failing = Unavailable("the database is away")
    tasks = [desk.submit(number) for number in range(3)]
    await _turns()
    desk.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, Unavailable) for result in results)
    desk.failing = None
    assert await desk.submit(5) == 50


async def test_when_the_one_that_works_is_cancelled_another_one_works_for_all() -> None:
    desk = Desk()
    desk.open.clear()
    first = desk.submit(0)
    await _turns()
    others = [desk.submit(number) for number in (1, 2, 3)]
    await _turns()
    first.cancel()
    await _turns()
    # The second one works for the rest; it is cancelled in its turn.
    assert desk.calls[1] == ("a", [1, 2, 3])
    others[0].cancel()
    desk.open.set()
    results = await asyncio.gather(first, *others, return_exceptions=True)
    assert [type(result) for result in results[:2]] == [asyncio.CancelledError] * 2
    assert results[2:] == [20, 30]
    assert desk.calls[2] == ("a", [2, 3])


async def test_one_that_is_cancelled_while_it_waits_is_left_out() -> None:
    desk = Desk()
    desk.open.clear()
    tasks = [desk.submit(number) for number in range(3)]
    await _turns()
    tasks[1].cancel()
    await _turns()
    desk.open.set()
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    assert [await tasks[0], await tasks[2]] == [0, 20]
    assert desk.calls == [("a", [0]), ("a", [2])]


async def test_nothing_is_kept_once_all_is_worked_off() -> None:
    desk = Desk()
    await asyncio.gather(*(desk.submit(number, str(number % 3)) for number in range(9)))
    assert not desk.combiner._queues
