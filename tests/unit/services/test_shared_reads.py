"""Chunks of a model file that several pulls want: made once, kept, closed by the last one."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from boltz_mesh.services.files import EncryptedReader, EncryptedWriter, model_context
from boltz_mesh.services.shared_reads import SharedFile, SharedReads
from boltz_mesh.storage.directory_blobs import DirectoryBlobs
from boltz_mesh.storage.models import StoredBlob
from boltz_protocol import limits
from boltz_protocol.chunk_wire import encode_chunk
from boltz_protocol.errors import DecryptionFailed, NotFound
from boltz_protocol.ids import ModelId
from boltz_protocol.key_wrap import KeyEncryptionKey

CHUNK = limits.MODEL_CHUNK_BYTES
#: More chunks than are kept, and a last one that is short.
COUNT = 18
CONTEXT = model_context("demo", ModelId("model"), 1)


@dataclass
class Shelf:
    """One stored file, and how often it was opened."""

    blobs: DirectoryBlobs
    kek: KeyEncryptionKey
    content: bytes
    stored: StoredBlob
    reads: SharedReads
    readers: list[EncryptedReader] = field(default_factory=list)

    def open(self) -> EncryptedReader:
        reader = EncryptedReader(self.blobs, self.kek, CONTEXT, self.stored, len(self.content))
        self.readers.append(reader)
        return reader

    def message(self, offset: int) -> bytes:
        end = (offset // CHUNK + 1) * CHUNK
        return encode_chunk(offset, self.content[offset:end])

    def forgotten(self) -> bool:
        """Whether the next one who wants the file opens it anew."""
        return not self.reads._files and not self.reads._kept


@pytest.fixture
async def shelf(tmp_path: Path) -> AsyncIterator[Shelf]:
    blobs, kek = DirectoryBlobs(tmp_path), KeyEncryptionKey.generate()
    content = hashlib.shake_128(b"model").digest((COUNT - 1) * CHUNK + 1000)
    with EncryptedWriter(blobs, kek, CONTEXT, len(content)) as writer:
        writer.write(content)
        stored = writer.commit()
    with ThreadPoolExecutor(2) as executor:
        yield Shelf(blobs, kek, content, stored, SharedReads(executor))


async def test_every_chunk_comes_as_it_goes_on_the_wire(shelf: Shelf) -> None:
    async with shelf.reads.opened(shelf.stored.blob_digest, shelf.open) as file:
        for offset in range(0, len(shelf.content), CHUNK):
            assert await file.message(offset) == shelf.message(offset)
    assert shelf.forgotten()


async def test_what_two_pulls_want_is_made_once(shelf: Shelf) -> None:
    digest = shelf.stored.blob_digest
    async with shelf.reads.opened(digest, shelf.open) as one:
        first = one.message(0)
        async with shelf.reads.opened(digest, shelf.open) as two:
            assert two.message(0) is first
            assert await first == shelf.message(0)
        # The other one's end takes nothing away from this one.
        assert one.message(0) is first
        assert await one.message(CHUNK) == shelf.message(CHUNK)
    assert len(shelf.readers) == 1
    async with shelf.reads.opened(digest, shelf.open) as again:
        assert await again.message(0) == shelf.message(0)
    assert len(shelf.readers) == 2


async def test_only_the_newest_chunks_are_kept(shelf: Shelf) -> None:
    async with shelf.reads.opened(shelf.stored.blob_digest, shelf.open) as file:
        first, second = file.message(0), file.message(CHUNK)
        for index in range(2, 17):
            await file.message(index * CHUNK)
            assert file.message(0) is first  # its use keeps it
        assert file.message(CHUNK) is not second
        assert await file.message(CHUNK) == shelf.message(CHUNK)


async def test_a_pull_may_go_on_inside_a_chunk(shelf: Shelf) -> None:
    offset = 3 * CHUNK + 4096
    async with shelf.reads.opened(shelf.stored.blob_digest, shelf.open) as file:
        assert await file.message(offset) == shelf.message(offset)
        # What nobody else can want is not kept.
        assert not shelf.reads._kept


async def test_an_altered_chunk_is_told_to_all_and_not_kept(shelf: Shelf) -> None:
    (path,) = [path for path in _blob_files(shelf) if path.stat().st_size > CHUNK]
    with path.open("r+b") as file_at_rest:
        file_at_rest.seek(100)
        byte = file_at_rest.read(1)
        file_at_rest.seek(100)
        file_at_rest.write(bytes([byte[0] ^ 1]))
    async with shelf.reads.opened(shelf.stored.blob_digest, shelf.open) as file:
        reading = file.message(0)
        results = await asyncio.gather(reading, file.message(0), return_exceptions=True)
        assert [type(result) for result in results] == [DecryptionFailed] * 2
        assert file.message(0) is not reading
        await asyncio.gather(file.message(0), return_exceptions=True)
        assert await file.message(CHUNK) == shelf.message(CHUNK)


async def test_a_file_that_cannot_be_opened_is_forgotten(shelf: Shelf) -> None:
    digest = shelf.stored.blob_digest
    shelf.blobs.delete(digest)

    async def use() -> None:
        async with shelf.reads.opened(digest, shelf.open):
            raise AssertionError("it is gone")

    results = await asyncio.gather(use(), use(), return_exceptions=True)
    assert [type(result) for result in results] == [NotFound] * 2
    assert shelf.forgotten()


async def test_a_pull_that_is_cancelled_leaves_others_their_chunk(shelf: Shelf) -> None:
    digest = shelf.stored.blob_digest
    opened = asyncio.Event()

    async def pull() -> bytes:
        async with shelf.reads.opened(digest, shelf.open) as file:
            opened.set()
            return await asyncio.shield(file.message(0))

    async with shelf.reads.opened(digest, shelf.open) as file:
        task = asyncio.create_task(pull())
        await opened.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await file.message(0) == shelf.message(0)


async def test_the_file_is_closed_when_its_last_chunk_is_made(shelf: Shelf) -> None:
    digest = shelf.stored.blob_digest
    before = set(os.listdir("/proc/self/fd"))

    async def leave_at_once() -> SharedFile:
        async with shelf.reads.opened(digest, shelf.open) as file:
            for index in range(8):
                file.message(index * CHUNK)  # nobody waits for it
            return file

    file = await leave_at_once()
    assert not file._reading
    assert set(os.listdir("/proc/self/fd")) == before
    assert shelf.forgotten()


def _blob_files(shelf: Shelf) -> list[Path]:
    return list(shelf.blobs._object_files())
