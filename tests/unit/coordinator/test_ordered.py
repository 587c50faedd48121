"""Threads ahead of a consumer: in order, bounded, and none left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from boltz_mesh.coordinator.ordered import in_order


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def test_results_come_in_order(pool: ThreadPoolExecutor) -> None:
    assert list(in_order(pool, lambda index: index * index, 50, ahead=2)) == [
        index * index for index in range(50)
    ]
    assert list(in_order(pool, lambda index: index, 0, ahead=2)) == []


def test_no_more_is_begun_than_allowed(pool: ThreadPoolExecutor) -> None:
    begun: list[int] = []
    for consumed, _ in enumerate(in_order(pool, begun.append, 20, ahead=3)):
        assert len(begun) <= consumed + 3
    assert len(begun) == 20


def test_an_error_ends_it_with_nothing_running(pool: ThreadPoolExecutor) -> None:
    running = threading.Semaphore(0)

    def make(index: int) -> int:
        if index == 1:
            raise ValueError(index)
        running.release()
        return index

    with pytest.raises(ValueError, match="1"):
        list(in_order(pool, make, 10, ahead=2))
    assert pool.submit(lambda: "free").result(1) == "free"


def test_a_consumer_may_stop_early(pool: ThreadPoolExecutor) -> None:
    results = in_order(pool, lambda index: index, 10, ahead=2)
    assert next(results) == 0
    results.close()
    assert list(results) == []
