"""A few threads ahead of one consumer: results in order, no more in memory than threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")


def in_order(
    executor: Executor, make: Callable[[int], T], count: int, *, ahead: int
) -> Generator[T, None, None]:
    """`make(0)`, `make(1)`, ... run on `executor`, at most `ahead` of them begun and not consumed.

    Close it to stop early: it then leaves none running, what has begun is waited for.
    """
    assert ahead >= 1
    waiting: deque[Future[T]] = deque()
    begun = 0
    try:
        while begun < count or waiting:
            while begun < count and len(waiting) < ahead:
                waiting.append(executor.submit(make, begun))
                begun += 1
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            if not future.cancel():
                future.exception()
