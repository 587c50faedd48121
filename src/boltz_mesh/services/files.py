"""Files at rest: models, optimizer states, aggregates. Encrypted blobs under a key of their own.

A file is chunks of MODEL_CHUNK_BYTES (`boltz_protocol.envelope`), bound to what it is by its
`BlobContext`; its content key is wrapped by the key-encryption key. Everything here blocks: call it
from a thread. One writer and one reader hold one chunk each, whatever the file's size.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from boltz_mesh.storage.blobs import BlobStore
from boltz_mesh.storage.models import StoredBlob
from boltz_protocol import limits
from boltz_protocol.context import BlobContext
from boltz_protocol.envelope import ChunkLayout, ContentKey, Opener, Sealer, key_commitment
from boltz_protocol.errors import DigestMismatch
from boltz_protocol.ids import ModelId, RoundId
from boltz_protocol.key_wrap import KeyEncryptionKey, unwrap_key, wrap_key

Buffer = bytes | bytearray | memoryview


def model_context(mesh_id: str, model_id: ModelId, version: int) -> BlobContext:
    """Binds a model's file to its version."""
    return BlobContext(mesh_id, "model", (model_id, str(version)))


def optimizer_context(mesh_id: str, model_id: ModelId, version: int) -> BlobContext:
    """Binds a server optimizer's state to the version that it belongs to."""
    return BlobContext(mesh_id, "optimizer-state", (model_id, str(version)))


def aggregate_context(mesh_id: str, round_id: RoundId, attempt: int) -> BlobContext:
    """Binds a noised aggregate to its round and attempt."""
    return BlobContext(mesh_id, "aggregate", (round_id, str(attempt)))


class EncryptedWriter:
    """Writes one file from its first byte to its last.

    Of a file of several chunks one is sealed, hashed and written in a thread of the writer's own
    while the next one is filled.

    Args:
        size_bytes: plain size, known beforehand; `commit` asserts that so much was written.
        hashed: whether the SHA-256 of the plain bytes is wanted; without it `commit` gives none.
    """

    def __init__(
        self,
        blobs: BlobStore,
        kek: KeyEncryptionKey,
        context: BlobContext,
        size_bytes: int,
        *,
        hashed: bool = True,
    ) -> None:
        content_key = ContentKey.generate()
        self._layout = ChunkLayout(size_bytes, limits.MODEL_CHUNK_BYTES)
        self._sealer = Sealer(content_key, context, self._layout)
        self._wrapped_key = wrap_key(content_key, kek, context)
        self._hash = hashlib.sha256() if hashed else None
        # Two chunks, one filled and one sealed, each with room for its tag: sealed in place.
        room = min(limits.MODEL_CHUNK_BYTES, size_bytes) + limits.GCM_TAG_BYTES
        self._chunk, self._other = memoryview(bytearray(room)), memoryview(bytearray(room))
        self._filled = 0
        self._index = 0
        self._offset = 0
        self._thread = ThreadPoolExecutor(1) if self._layout.count > 1 else None
        self._sealing: Future[None] | None = None
        self._blob = blobs.writer()

    @property
    def offset(self) -> int:
        """Plain bytes written so far."""
        return self._offset

    def write(self, data: Buffer) -> None:
        """Append plain bytes, as many as come."""
        view = memoryview(data).cast("B")
        assert self._offset + len(view) <= self._layout.size_bytes, "more than was announced"
        if self._hash is not None:
            self._hash.update(view)
        self._offset += len(view)
        while len(view):
            wanted = self._layout.plain_bytes(self._index)
            taken = min(len(view), wanted - self._filled)
            self._chunk[self._filled : self._filled + taken] = view[:taken]
            self._filled += taken
            view = view[taken:]
            if self._filled == wanted:
                self._end_chunk()

    def _end_chunk(self) -> None:
        self._finish_sealing()
        if self._thread is None:
            self._seal(self._index, self._chunk, self._filled)
        else:
            self._sealing = self._thread.submit(self._seal, self._index, self._chunk, self._filled)
            self._chunk, self._other = self._other, self._chunk
        self._index += 1
        self._filled = 0

    def _seal(self, index: int, chunk: memoryview, filled: int) -> None:
        written = self._sealer.seal_into(index, chunk[:filled], chunk)
        self._blob.write(chunk[:written])

    def _finish_sealing(self) -> None:
        if self._sealing is not None:
            sealing, self._sealing = self._sealing, None
            sealing.result()

    def commit(self) -> StoredBlob:
        """Make the file durable. The blob is an orphan until a row refers to it."""
        assert self._offset == self._layout.size_bytes, "less than was announced"
        if self._layout.size_bytes == 0:
            self._end_chunk()
        self._finish_sealing()
        ref = self._blob.commit()
        digest = b"" if self._hash is None else self._hash.digest()
        return StoredBlob(digest, ref.digest, self._wrapped_key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown()  # waits: what seals still writes to the blob
        self._blob.close()


class EncryptedReader:
    """Reads one file at any offset; quick when offsets go upwards.

    Raises:
        NotFound: the blob is gone.
        DecryptionFailed: another key or context than the file was written under.
        DigestMismatch: the blob has not the size that the row gives it.
    """

    def __init__(
        self,
        blobs: BlobStore,
        kek: KeyEncryptionKey,
        context: BlobContext,
        stored: StoredBlob,
        size_bytes: int,
    ) -> None:
        content_key = unwrap_key(stored.wrapped_key, kek, context)
        self._layout = ChunkLayout(size_bytes, limits.MODEL_CHUNK_BYTES)
        commitment = key_commitment(content_key, context)
        self._opener = Opener(content_key, context, self._layout, commitment)
        self._blob = blobs.open(stored.blob_digest)
        if self._blob.size_bytes != self._layout.cipher_size_bytes:
            self._blob.close()
            raise DigestMismatch(
                f"a stored file has {self._blob.size_bytes} bytes, "
                f"not {self._layout.cipher_size_bytes}"
            )
        self._chunk = memoryview(
            bytearray(min(limits.MODEL_CHUNK_BYTES, size_bytes) + limits.GCM_TAG_BYTES)
        )
        self._held = -1

    @property
    def size_bytes(self) -> int:
        """Plain size."""
        return self._layout.size_bytes

    def read_into(self, out: bytearray | memoryview, offset: int) -> int:
        """Fill `out` with the plain bytes from `offset`; returns how many: fewer only at the end.

        Raises: DecryptionFailed where the blob was altered.
        """
        view = memoryview(out).cast("B")
        done = 0
        while done < len(view) and offset + done < self._layout.size_bytes:
            index, start = divmod(offset + done, limits.MODEL_CHUNK_BYTES)
            self._hold(index)
            taken = min(len(view) - done, self._layout.plain_bytes(index) - start)
            view[done : done + taken] = self._chunk[start : start + taken]
            done += taken
        return done

    def read_chunk_into(self, index: int, out: memoryview) -> int:
        """Fill the front of `out` with chunk `index`; returns its plain bytes. Any thread may.

        Args:
            out: room for the chunk and its tag.

        Raises: DecryptionFailed where the blob was altered.
        """
        cipher = out[: self._layout.cipher_bytes(index)]
        # A blob that is too short leaves old bytes in the buffer: they do not authenticate.
        self._blob.pread_into(cipher, self._layout.cipher_offset(index))
        return self._opener.open_into(index, cipher, out)

    def _hold(self, index: int) -> None:
        if index == self._held:
            return
        self._held = -1
        self.read_chunk_into(index, self._chunk)
        self._held = index

    def close(self) -> None:
        """Close the blob."""
        self._blob.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
