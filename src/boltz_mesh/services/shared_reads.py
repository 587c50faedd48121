"""Model files on their way out: what several pulls want at about the same time is made once.

When a round begins, all its clients pull one version. To read, decrypt and frame a chunk costs as
much as to send it, so the chunks that were made last are kept as they go on the wire, for whoever
comes a little later. A pull that is alone, or too far behind, pays for its own chunks as it would
have anyway. Nothing is kept of a file that nobody pulls.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import Final

from boltz_mesh.services.files import EncryptedReader
from boltz_mesh.services.threads import to_its_end
from boltz_protocol import limits
from boltz_protocol.chunk_wire import encode_chunk

#: Chunks of all files that are kept, 1 MiB each. Pulls that began together are rarely further apart
#: than their credits let them be.
_KEPT_CHUNKS: Final = 16


class SharedReads:
    """The model files that are being pulled. One instance a server, used on its event loop.

    Args:
        executor: for what blocks.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._files: dict[bytes, SharedFile] = {}
        self._kept: OrderedDict[tuple[bytes, int], asyncio.Future[bytes]] = OrderedDict()

    @asynccontextmanager
    async def opened(
        self, digest: bytes, open_file: Callable[[], EncryptedReader]
    ) -> AsyncIterator[SharedFile]:
        """Use a file.

        Args:
            digest: names its blob.
            open_file: opens it, where nobody has it open; blocks.

        Raises: what `open_file` raises.
        """
        file = self._files.get(digest)
        if file is None:
            loop = asyncio.get_running_loop()
            opening = loop.run_in_executor(self._executor, open_file)
            file = self._files[digest] = SharedFile(self._executor, self._kept, digest, opening)
        file.users += 1
        try:
            await to_its_end(file.opening)
            yield file
        finally:
            file.users -= 1
            if file.users == 0:
                # Forgotten first: who comes while it closes opens it anew.
                del self._files[digest]
                await file.close()


class SharedFile:
    """One file that somebody pulls; made by `SharedReads`.

    Attributes:
        opening: the file's reader.
        users: pulls that have it open.
    """

    def __init__(
        self,
        executor: Executor,
        kept: OrderedDict[tuple[bytes, int], asyncio.Future[bytes]],
        digest: bytes,
        opening: asyncio.Future[EncryptedReader],
    ) -> None:
        self.opening = opening
        self.users = 0
        self._executor = executor
        self._kept = kept
        self._digest = digest
        self._reading: set[asyncio.Future[bytes]] = set()
        # Where chunks are decrypted, one for each thread that does so at the same time.
        self._buffers: deque[memoryview] = deque()

    def message(self, offset: int) -> asyncio.Future[bytes]:
        """What is behind `offset` in its chunk, as a message; begun now, unless it is there.

        The future is others' too: it is not to be cancelled.
        """
        index, skipped = divmod(offset, limits.MODEL_CHUNK_BYTES)
        if skipped:
            # A pull that goes on inside a chunk: nobody else wants the same piece.
            return self._begun(index, skipped)
        key = (self._digest, index)
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            return found
        reading = self._kept[key] = self._begun(index, 0)
        while len(self._kept) > _KEPT_CHUNKS:
            self._kept.popitem(last=False)
        reading.add_done_callback(lambda done: self._forget_failure(key, done))
        return reading

    def _forget_failure(self, key: tuple[bytes, int], done: asyncio.Future[bytes]) -> None:
        # It is told to those who wait for it; whoever comes later tries again.
        if not done.cancelled() and done.exception() and self._kept.get(key) is done:
            del self._kept[key]

    def _begun(self, index: int, skipped: int) -> asyncio.Future[bytes]:
        loop = asyncio.get_running_loop()
        reading = loop.run_in_executor(self._executor, self._made, index, skipped)
        self._reading.add(reading)
        reading.add_done_callback(self._reading.discard)
        return reading

    def _made(self, index: int, skipped: int) -> bytes:
        reader = self.opening.result()
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = memoryview(bytearray(limits.MODEL_CHUNK_BYTES + limits.GCM_TAG_BYTES))
        size = reader.read_chunk_into(index, buffer)
        message = encode_chunk(index * limits.MODEL_CHUNK_BYTES + skipped, buffer[skipped:size])
        self._buffers.append(buffer)
        return message

    async def close(self) -> None:
        """Forget the chunks, wait for those that are being made, and close."""
        for key in [key for key in self._kept if key[0] == self._digest]:
            del self._kept[key]
        if self.opening.exception() is None:
            try:
                if self._reading:
                    await to_its_end(asyncio.ensure_future(asyncio.wait(self._reading)))
            finally:
                self.opening.result().close()
