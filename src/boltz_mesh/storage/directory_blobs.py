"""Blobs in a local directory.

    root/objects/ab/cd/<digest>   a blob; never changed once it is there
    root/partial/<key>            an upload that can be resumed
    root/tmp/<random>             a blob being written

A blob appears whole or not at all: it is written under another name, flushed, linked to its own
name, and its folder is flushed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from boltz_mesh.storage.blobs import BlobReader, BlobRef, BlobWriter, Buffer, PartialBlob
from boltz_mesh.storage.writeback import Writeback
from boltz_protocol import limits
from boltz_protocol.errors import MalformedMessage, NotFound, StateConflict

_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DIGEST_NAME: Final = re.compile(r"[0-9a-f]{64}")
_READ_BYTES: Final = 1 << 20


class _File:
    """An open file, written through a running hash."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._open = True
        self._hash = hashlib.sha256()
        self._offset = 0
        self._writeback = Writeback()

    @property
    def offset(self) -> int:
        return self._offset

    @property
    def sha256(self) -> bytes:
        return self._hash.digest()

    def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self._offset += len(view)
        while len(view):
            view = view[os.write(self._fd, view) :]
        self._writeback.advance(self._fd, self._offset)

    def close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _DirectoryWriter(_File):
    def __init__(self, store: DirectoryBlobs, path: Path) -> None:
        super().__init__(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        self._store = store
        self._path = path

    def commit(self) -> BlobRef:
        os.fsync(self._fd)
        ref = BlobRef(self._hash.digest(), self._offset)
        self._store.publish(self._path, ref.digest)
        self.close()
        return ref

    def close(self) -> None:
        if self._open:
            self._path.unlink(missing_ok=True)
        super().close()


class _DirectoryPartial(_File):
    def __init__(self, store: DirectoryBlobs, path: Path, align_bytes: int) -> None:
        super().__init__(os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600))
        self._store = store
        self._path = path
        try:
            self._lock()
            size_bytes = os.fstat(self._fd).st_size
            os.ftruncate(self._fd, size_bytes - size_bytes % align_bytes)
            self._rehash()
            # The name must outlast a crash as well as the bytes.
            _sync_folder(path.parent)
            self._durable_offset = 0
            self.sync()
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateConflict(
                "another stream is sending this upload", retry_after_ms=limits.DATABASE_RETRY_MS
            ) from None
        # The one who held the lock may have committed or dropped the file we opened.
        mine = os.fstat(self._fd)
        try:
            named = self._path.stat()
        except FileNotFoundError:
            named = None
        if named is None or (mine.st_dev, mine.st_ino) != (named.st_dev, named.st_ino):
            raise StateConflict(
                "this upload has just ended", retry_after_ms=limits.DATABASE_RETRY_MS
            )

    def _rehash(self) -> None:
        buffer = bytearray(_READ_BYTES)
        while count := os.preadv(self._fd, [buffer], self._offset):
            self._hash.update(memoryview(buffer)[:count])
            self._offset += count

    @property
    def durable_offset(self) -> int:
        return self._durable_offset

    def sync(self) -> int:
        if self._durable_offset != self._offset:
            os.fdatasync(self._fd)
            self._durable_offset = self._offset
        return self._durable_offset

    def pread_into(self, buffer: bytearray | memoryview, offset: int) -> int:
        return _pread_into(self._fd, buffer, offset)

    def commit(self) -> BlobRef:
        os.fsync(self._fd)
        ref = BlobRef(self._hash.digest(), self._offset)
        self._store.publish(self._path, ref.digest)
        self.close()
        return ref


class _DirectoryReader:
    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._open = True
        self._size_bytes = os.fstat(fd).st_size

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def pread_into(self, buffer: bytearray | memoryview, offset: int) -> int:
        return _pread_into(self._fd, buffer, offset)

    def close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class DirectoryBlobs:
    """A `BlobStore` in a local directory (made when missing, 0700)."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._objects = root / "objects"
        self._partial = root / "partial"
        self._tmp = root / "tmp"
        for folder in (root, self._objects, self._partial, self._tmp):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sync_folder(root)

    def __repr__(self) -> str:
        return f"DirectoryBlobs({str(self._root)!r})"

    def writer(self) -> BlobWriter:
        """See BlobStore."""
        return _DirectoryWriter(self, self._tmp / secrets.token_hex(16))

    def resume(self, key: str, *, align_bytes: int = 1) -> PartialBlob:
        """See BlobStore. The bytes that are there are read once, to go on with their hash."""
        return _DirectoryPartial(self, self._partial / _checked(key), align_bytes)

    def discard_partial(self, key: str) -> bool:
        """See BlobStore."""
        return _unlinked(self._partial / _checked(key))

    def open(self, digest: bytes) -> BlobReader:
        """See BlobStore."""
        try:
            return _DirectoryReader(os.open(self._path(digest), os.O_RDONLY))
        except FileNotFoundError:
            raise NotFound("this blob is not stored", blob_digest=digest.hex()) from None

    def exists(self, digest: bytes) -> bool:
        """See BlobStore."""
        return self._path(digest).exists()

    def delete(self, digest: bytes) -> bool:
        """See BlobStore. Not flushed: what comes back after a crash is an orphan for the sweep."""
        return _unlinked(self._path(digest))

    def digests(self) -> Iterator[bytes]:
        """See BlobStore."""
        return (bytes.fromhex(path.name) for path in self._object_files())

    def sweep(
        self, referenced: Collection[bytes], *, older_than_ms: int, now_ms: int
    ) -> list[bytes]:
        """See BlobStore."""
        wanted = frozenset(referenced)
        newest_ms = now_ms - older_than_ms
        for folder in (self._partial, self._tmp):
            for path in folder.iterdir():
                if _touched_before(path, newest_ms):
                    _unlinked(path)
        return [
            bytes.fromhex(path.name)
            for path in self._object_files()
            if bytes.fromhex(path.name) not in wanted
            and _touched_before(path, newest_ms)
            and _unlinked(path)
        ]

    def publish(self, path: Path, digest: bytes) -> None:
        """Give a flushed file its name as a blob, durably; `path` is gone afterwards."""
        final = self._path(digest)
        if not final.parent.is_dir():
            final.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (final.parent.parent, self._objects):
                _sync_folder(folder)
        try:
            # A fresh name: link refuses to replace, and is quicker than a rename that does.
            os.link(path, final)
        except FileExistsError:
            os.utime(final)  # the same bytes are there; keep the sweep away from them
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                raise
            path.rename(final)  # a file system without hard links
        path.unlink(missing_ok=True)
        _sync_folder(final.parent)

    def _path(self, digest: bytes) -> Path:
        assert len(digest) == hashlib.sha256().digest_size
        name = digest.hex()
        return self._objects / name[:2] / name[2:4] / name

    def _object_files(self) -> Iterator[Path]:
        for first in self._objects.iterdir():
            for second in first.iterdir():
                for path in second.iterdir():
                    if _DIGEST_NAME.fullmatch(path.name):
                        yield path


def _checked(key: str) -> str:
    if len(key) > limits.MAX_BLOB_KEY_CHARS or _KEY.fullmatch(key) is None:
        raise MalformedMessage("a blob key is made of letters, digits, '.', '_' and '-'")
    return key


def _pread_into(fd: int, buffer: bytearray | memoryview, offset: int) -> int:
    view = memoryview(buffer).cast("B")
    done = 0
    # One preadv reads at most 2 GiB, and may be cut short by a signal.
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def _unlinked(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        return True
    return False


def _touched_before(path: Path, at_ms: int) -> bool:
    try:
        return path.stat().st_mtime_ns < at_ms * 1_000_000
    except FileNotFoundError:
        return False


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
