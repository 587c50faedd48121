"""A cancelled task waits for its thread: the file it closes next is still in use until then."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from boltz_mesh.services.threads import in_thread


async def test_the_result_and_the_error_come_through() -> None:
    with ThreadPoolExecutor(1) as executor:
        assert await in_thread(executor, lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            await in_thread(executor, lambda: 1 // 0)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancellation_waits_for_the_thread(fails: bool) -> None:
    started, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        assert may_end.wait(10)
        ended.set()
        if fails:
            raise OSError("the disk is full")

    with ThreadPoolExecutor(1) as executor:
        task = asyncio.create_task(in_thread(executor, work))
        await asyncio.to_thread(started.wait)
        for _ in range(2):  # also where it is cancelled again
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=0.02)
            assert not done
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()
