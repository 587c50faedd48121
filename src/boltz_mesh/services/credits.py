"""Credits of a Pull: how many chunks the caller lets the server send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from boltz_protocol import limits
from boltz_protocol.errors import LimitExceeded, MalformedMessage
from boltz_protocol.v1 import model_store_pb2 as pb


class Credits:
    """Chunks that may still be sent. The caller cannot make the server hold more than the cap."""

    def __init__(self, first: int) -> None:
        self._left = 0
        self._more = asyncio.Event()
        self._add(first)

    def _add(self, chunks: int) -> None:
        if not 1 <= chunks <= limits.MAX_PULL_CREDITS:
            raise MalformedMessage(
                f"{chunks} credits; 1 to {limits.MAX_PULL_CREDITS} may be given", field="credits"
            )
        if self._left + chunks > limits.MAX_PULL_CREDITS:
            raise LimitExceeded(
                f"{self._left + chunks} credits are outstanding; "
                f"the cap is {limits.MAX_PULL_CREDITS}"
            )
        self._left += chunks
        self._more.set()

    async def add_from(self, requests: AsyncIterator[pb.PullRequest]) -> None:
        """Take credits until the caller sends no more."""
        async for request in requests:
            if request.WhichOneof("message") != "credit":
                raise MalformedMessage("only credits may follow the opening")
            self._add(request.credit.chunks)

    async def spend(self, adding: asyncio.Task[None]) -> None:
        """Use one credit, waiting for it if need be.

        Raises: what `add_from` met; MalformedMessage where the caller stopped giving credits.
        """
        while self._left == 0:
            self._more.clear()
            waiting = asyncio.create_task(self._more.wait())
            await asyncio.wait({waiting, adding}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if self._left == 0 and adding.done():
                adding.result()
                raise MalformedMessage("the caller gave too few credits and closed its side")
        if adding.done():
            adding.result()
        self._left -= 1
