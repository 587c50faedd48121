"""A TCP proxy that cuts what goes through it, to try what a bad network does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_READ_BYTES = 1 << 16


class Proxy:
    """Forwards connections to one address. Make it with `forwarding`."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._dead = False
        self.address = ""
        #: Connections that were made.
        self.connections = 0

    def cut(self) -> None:
        """Break every connection; new ones may be made."""
        for writer in list(self._open):
            writer.transport.abort()

    def kill(self) -> None:
        """Break every connection, and each new one at once."""
        self._dead = True
        self.cut()

    def revive(self) -> None:
        """Forward again."""
        self._dead = False

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._dead:
            writer.transport.abort()
            return
        self.connections += 1
        try:
            onward = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, onward[1]}
        for source, sink in ((reader, onward[1]), (onward[0], writer)):
            task = asyncio.create_task(self._pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(_READ_BYTES):
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            self._open.discard(sink)
            sink.close()

    async def close(self) -> None:
        """Break everything and wait until it is gone."""
        self.kill()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def forwarding(target: str) -> AsyncIterator[Proxy]:
    """A proxy on a free port of 127.0.0.1 for `target` (`host:port`)."""
    proxy = Proxy(target)
    server = await asyncio.start_server(proxy.take, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    proxy.address = f"127.0.0.1:{port}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
