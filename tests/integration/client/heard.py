"""What a client tells its owner, kept for a test to wait for."""

from __future__ import annotations

import asyncio

from boltz_client import Notice, NoticeKind


class Heard:
    """Notices of one client."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []
        self.changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, notice: Notice) -> None:
        self.notices.append(notice)
        self._tasks.add(asyncio.create_task(self._wake()))

    async def _wake(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, kind: NoticeKind, count: int = 1) -> Notice:
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(lambda: len(self.all(kind)) >= count)
        return self.all(kind)[count - 1]

    def all(self, kind: NoticeKind) -> list[Notice]:
        return [notice for notice in self.notices if notice.kind is kind]
