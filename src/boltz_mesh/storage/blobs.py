"""Blobs: large ciphertexts, named by the SHA-256 of their bytes, outside the database.

The interface, and helpers on top of it. Nothing here is async: call it from a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

from boltz_protocol.errors import StateConflict

_READ_BYTES: Final = 1 << 20
#: Bytes of any kind that `write` takes without copying.
Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class BlobRef:
    """A stored blob: SHA-256 of its bytes (32 bytes), and their number."""

    digest: bytes
    size_bytes: int


class BlobWriter(Protocol):
    """Takes a blob's bytes in order. `with` closes it; what was not committed is dropped."""

    @property
    def offset(self) -> int:
        """Bytes written so far."""
        ...

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the bytes written so far (32 bytes)."""
        ...

    def write(self, data: Buffer) -> None:
        """Append."""
        ...

    def commit(self) -> BlobRef:
        """Make the blob durable under its digest, and close."""
        ...

    def close(self) -> None:
        """Close. Safe to call twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class PartialBlob(BlobWriter, Protocol):
    """A blob whose bytes outlive the writer: close it, and a later `resume` goes on."""

    @property
    def durable_offset(self) -> int:
        """Bytes that are known to be on disk: what may be acknowledged."""
        ...

    def sync(self) -> int:
        """Flush to disk. Returns the durable offset."""
        ...

    def pread_into(self, buffer: bytearray | memoryview, offset: int) -> int:
        """Read back what was written, from `offset`. Returns the bytes read."""
        ...


class BlobReader(Protocol):
    """Reads a blob at any offset. `with` closes it."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole blob."""
        ...

    def pread_into(self, buffer: bytearray | memoryview, offset: int) -> int:
        """Fill `buffer` from `offset`. Returns the bytes read: fewer only at the end."""
        ...

    def close(self) -> None:
        """Close. Safe to call twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class BlobStore(Protocol):
    """What the mesh needs of a blob store. All calls block."""

    def writer(self) -> BlobWriter:
        """A new blob."""
        ...

    def resume(self, key: str, *, align_bytes: int = 1) -> PartialBlob:
        """The upload named `key`, from where it stands; a new one starts at 0.

        With `align_bytes` a torn tail is cut off, down to a multiple of it. Raises: StateConflict
        while another writer has it open; MalformedMessage for a key that is not `[A-Za-z0-9._-]`.
        """
        ...

    def discard_partial(self, key: str) -> bool:
        """Drop an upload. Returns whether it was there."""
        ...

    def open(self, digest: bytes) -> BlobReader:
        """Read a blob. Raises: NotFound."""
        ...

    def exists(self, digest: bytes) -> bool:
        """Whether the blob is there."""
        ...

    def delete(self, digest: bytes) -> bool:
        """Delete a blob. Returns whether it was there."""
        ...

    def digests(self) -> Iterator[bytes]:
        """Every blob that is there, in no order."""
        ...

    def sweep(
        self, referenced: Collection[bytes], *, older_than_ms: int, now_ms: int
    ) -> list[bytes]:
        """Delete blobs that nothing refers to, and unfinished ones, last touched that long ago.

        The age protects a blob whose row is about to be committed. Returns the digests deleted.
        """
        ...


def put_bytes(store: BlobStore, data: Buffer) -> BlobRef:
    """Store a small blob that is in memory."""
    with store.writer() as writer:
        writer.write(data)
        return writer.commit()


def read_bytes(store: BlobStore, digest: bytes, *, max_bytes: int) -> bytearray:
    """A whole blob. Raises: NotFound; StateConflict when it is longer than the caller allows."""
    with store.open(digest) as reader:
        if reader.size_bytes > max_bytes:
            raise StateConflict(
                f"blob of {reader.size_bytes} bytes, at most {max_bytes} were expected",
                blob_digest=digest.hex(),
            )
        buffer = bytearray(reader.size_bytes)
        reader.pread_into(buffer, 0)
        return buffer


def for_each_block(
    reader: BlobReader, take: Callable[[memoryview], None], *, block_bytes: int = _READ_BYTES
) -> None:
    """Give a blob's bytes to `take`, block by block, in a buffer that is used again."""
    buffer = memoryview(bytearray(block_bytes))
    offset = 0
    while count := reader.pread_into(buffer, offset):
        take(buffer[:count])
        offset += count
