"""Blocking work in threads, for calls that may be cancelled while it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")


async def in_thread(executor: Executor, call: Callable[[], T]) -> T:
    """Run `call` in a thread and wait for it, also where the waiting task is cancelled."""
    return await to_its_end(asyncio.get_running_loop().run_in_executor(executor, call))


async def to_its_end(working: asyncio.Future[T]) -> T:
    """Wait for a thread's work. A cancellation is passed on when the thread has finished.

    A thread cannot be stopped, and it works on files that the cancelled task is about to close: the
    number of a closed file may be another file's a moment later.
    """
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        while not working.done():
            try:
                await asyncio.wait({working})
            except asyncio.CancelledError:
                continue  # cancelled once more; the reason to wait is the same
        if not working.cancelled():
            working.exception()  # taken note of: the cancellation says enough
        raise
