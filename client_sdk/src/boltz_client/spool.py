"""Files that let a transfer go on after a cut: sealed updates, and models on their way in.

A sealed update is one file, `<round id>-<attempt>.update`, mode 0600::

    ciphertext   manifest statement (protobuf)   u32be its size   "boltz spool v1\\0\\0"

It takes its name at once: a file without a whole tail, or whose ciphertext has not the manifest's
digest, does not exist as far as anyone can tell. It is on disk (fsync) before the manifest is
sent, so the first manifest that a server sees fixes bytes that this client can send again, also
after a power cut; only ciphertext is written. It is deleted when the round is over.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from boltz_client.private_files import check_private, sync_folder
from boltz_client.writeback import Writeback
from boltz_protocol import codec, limits
from boltz_protocol import messages as m
from boltz_protocol.errors import ConfigurationError, DigestMismatch, MeshError
from boltz_protocol.ids import RoundId
from boltz_protocol.statement import CLIENT_ALGORITHMS, Statement

_TAIL: Final = b"boltz spool v1\0\0"
_SIZE_BYTES: Final = 4
_READ_BYTES: Final = 1 << 20
_UPDATE_NAME: Final = re.compile(r"[0-9a-f]{32}-[0-9]{1,2}\.update")


@dataclass(frozen=True, slots=True)
class SealedUpdate:
    """An update whose bytes are fixed.

    Attributes:
        statement: the signed manifest.
        manifest: its content.
        path: the spool file; the ciphertext is its first `manifest.size_bytes` bytes.
    """

    statement: Statement
    manifest: m.UpdateManifest
    path: Path


class UpdateReader:
    """Ciphertext of a sealed update, read at any offset. Close it, or use it in `with`."""

    __slots__ = ("_descriptor", "_size_bytes")

    def __init__(self, sealed: SealedUpdate) -> None:
        self._size_bytes = sealed.manifest.size_bytes
        self._descriptor = os.open(sealed.path, os.O_RDONLY)

    def __enter__(self) -> UpdateReader:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def chunk(self, offset: int) -> bytes:
        """The chunk at an offset, a multiple of CHUNK_CIPHER_BYTES.

        Raises: DigestMismatch when the file became shorter than its manifest says.
        """
        assert offset % limits.CHUNK_CIPHER_BYTES == 0
        size = min(limits.CHUNK_CIPHER_BYTES, self._size_bytes - offset)
        data = os.pread(self._descriptor, size, offset)
        if len(data) != size:
            raise DigestMismatch("the spool file is shorter than its manifest says")
        return data


class Spool:
    """One folder (0700) of a key store. All methods do blocking file work."""

    __slots__ = ("folder",)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self, now_ms: int) -> None:
        """Make the folder, and drop updates of rounds that are over by any clock.

        Raises: ConfigurationError when it cannot be made or is open to others.
        """
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"{self.folder} cannot be made: {error.strerror}") from error
        check_private(self.folder)
        oldest_s = (now_ms - 2 * limits.MAX_PHASE_MS) / 1000
        for path in self.folder.iterdir():
            if _UPDATE_NAME.fullmatch(path.name) and path.stat().st_mtime < oldest_s:
                path.unlink()

    def _path(self, round_id: RoundId, attempt: int) -> Path:
        return self.folder / f"{round_id}-{attempt}.update"

    def create(self, round_id: RoundId, attempt: int) -> UpdateWriter:
        """A writer for a fresh update; the leavings of one that was cut off are overwritten."""
        return UpdateWriter(self._path(round_id, attempt))

    def has(self, round_id: RoundId, attempt: int) -> bool:
        """Whether there is anything to look at for a round; quick enough for the event loop."""
        return self._path(round_id, attempt).exists()

    def find(self, round_id: RoundId, attempt: int) -> SealedUpdate | None:
        """The update that was sealed for a round, by this run of the client or an earlier one.

        Returns: None where there is none, or only a part of one.
        """
        path = self._path(round_id, attempt)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            size = os.fstat(descriptor).st_size
            head = size - len(_TAIL) - _SIZE_BYTES
            if head < 0:
                return None
            end = os.pread(descriptor, _SIZE_BYTES + len(_TAIL), head)
            cipher_bytes = head - int.from_bytes(end[:_SIZE_BYTES], "big")
            if end[_SIZE_BYTES:] != _TAIL or cipher_bytes < 0:
                return None
            try:
                statement = codec.parse_statement(
                    os.pread(descriptor, head - cipher_bytes, cipher_bytes)
                )
                manifest = codec.parse_update_manifest(statement.payload)
            except MeshError:
                return None
            known = statement.type == m.UPDATE_MANIFEST
            if not known or statement.algorithm not in CLIENT_ALGORITHMS:
                return None
            if (manifest.round_id, manifest.attempt) != (round_id, attempt):
                return None
            if manifest.size_bytes != cipher_bytes:
                return None
            hasher = hashlib.sha256()
            left = cipher_bytes
            while left and (data := file.read(min(left, _READ_BYTES))):
                hasher.update(data)
                left -= len(data)
            if hasher.digest() != manifest.sha256:
                return None
        return SealedUpdate(statement, manifest, path)

    def find_all(self) -> list[SealedUpdate]:
        """Every whole update that is there."""
        names = [path.name for path in self.folder.iterdir() if _UPDATE_NAME.fullmatch(path.name)]
        keys = [name.removesuffix(".update").split("-") for name in sorted(names)]
        found = [self.find(RoundId(round_id), int(attempt)) for round_id, attempt in keys]
        return [sealed for sealed in found if sealed is not None]

    def discard(self, round_id: RoundId, attempt: int) -> None:
        """Delete an update that nobody will ask for any more."""
        self._path(round_id, attempt).unlink(missing_ok=True)


class UpdateWriter:
    """Writes one spool file. Nothing counts before `finish`; use it in `with`."""

    __slots__ = ("_descriptor", "_hasher", "_path", "_writeback", "size_bytes")

    def __init__(self, path: Path) -> None:
        self._path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        self._descriptor = os.open(path, flags, 0o600)
        self._hasher = hashlib.sha256()
        self._writeback = Writeback()
        self.size_bytes = 0

    def __enter__(self) -> UpdateWriter:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def write(self, cipher: bytes | memoryview) -> None:
        """Append ciphertext."""
        self._hasher.update(cipher)
        _write_all(self._descriptor, cipher)
        self.size_bytes += len(cipher)
        self._writeback.advance(self._descriptor, self.size_bytes)

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the ciphertext so far."""
        return self._hasher.digest()

    def finish(self, statement: Statement, manifest: m.UpdateManifest) -> SealedUpdate:
        """Append the signed manifest and bring the file to disk."""
        assert manifest.sha256 == self.sha256
        assert manifest.size_bytes == self.size_bytes
        encoded = codec.encode_statement(statement)
        _write_all(self._descriptor, encoded + len(encoded).to_bytes(_SIZE_BYTES, "big") + _TAIL)
        os.fsync(self._descriptor)
        sync_folder(self._path.parent)
        return SealedUpdate(statement, manifest, self._path)


# --- models on their way in ---------------------------------------------------------------------


class ModelSink:
    """Takes a model's bytes in order and knows their digest; in memory, or in a file.

    Args:
        path: where the file grows (its `.part`); None for memory.
        size_bytes: of the whole model file.

    A file that an earlier run left, whole or in part, is gone on with: its bytes are hashed first.
    """

    __slots__ = ("_buffer", "_descriptor", "_hasher", "_part", "_path", "offset", "size_bytes")

    def __init__(self, path: Path | None, size_bytes: int) -> None:
        self._path = path
        self._part = part_of(path) if path is not None else None
        self._hasher = hashlib.sha256()
        self._buffer = bytearray()
        self._descriptor: int | None = None
        self.size_bytes = size_bytes
        self.offset = 0
        if path is not None:
            assert self._part is not None
            if path.exists() and not self._part.exists():
                path.replace(self._part)
            self._descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT, 0o600)
            while data := os.read(self._descriptor, _READ_BYTES):
                self._hasher.update(data)
                self.offset += len(data)
            if self.offset > size_bytes:
                self.restart()

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes; the caller has checked that they belong here."""
        assert self.offset + len(data) <= self.size_bytes
        self._hasher.update(data)
        if self._descriptor is None:
            self._buffer += data
        else:
            _write_all(self._descriptor, data)
        self.offset += len(data)

    def restart(self) -> None:
        """Throw away what is there."""
        self._hasher = hashlib.sha256()
        self._buffer.clear()
        if self._descriptor is not None:
            # A fresh file: the old one may still be mapped by a model that somebody holds.
            assert self._part is not None
            os.close(self._descriptor)
            self._part.unlink()
            self._descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self.offset = 0

    def close(self) -> None:
        """Let the file go; what is in it can be gone on with. A second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def finish(self, sha256: bytes) -> bytes:
        """Check the digest and give the file its name.

        Returns: the whole file where it was kept in memory, else nothing.

        Raises: DigestMismatch; what was received is thrown away.
        """
        assert self.offset == self.size_bytes
        if self._hasher.digest() != sha256:
            self.restart()
            raise DigestMismatch("the model's bytes are not those that its manifest promises")
        self.close()
        if self._path is not None:
            assert self._part is not None
            # Not synced: after a power cut a damaged file is found by its digest and pulled again.
            self._part.replace(self._path)
        return bytes(self._buffer)


def part_of(path: Path) -> Path:
    """Where a model file grows before it is whole."""
    return path.with_name(path.name + ".part")


def remove_other_models(folder: Path, model_id: str, keep: Iterable[Path]) -> None:
    """Delete spooled files of a model but those to keep; maps of them stay readable."""
    kept = set(keep)
    # A model's id may hold a dot or a dash, but never an underscore.
    for path in folder.glob(f"{model_id}_*.safetensors*"):
        if path not in kept:
            path.unlink(missing_ok=True)


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
