"""Blobs in a directory: the common suite, and what only a directory has."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from boltz_mesh.storage.blobs import BlobStore, put_bytes, read_bytes
from boltz_mesh.storage.directory_blobs import DirectoryBlobs
from boltz_protocol.errors import StateConflict
from tests.support.blob_suite import FAR_FUTURE_MS, BlobStoreSuite


class TestDirectoryBlobs(BlobStoreSuite):
    def make(self, root: Path) -> BlobStore:
        return DirectoryBlobs(root)

    def test_files_are_private_and_fanned_out(self, store: BlobStore, root: Path) -> None:
        name = put_bytes(store, b"x").digest.hex()
        path = root / "objects" / name[:2] / name[2:4] / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(root.stat().st_mode) == 0o700
        assert list((root / "tmp").iterdir()) == []
        assert str(root) in repr(store)

    def test_a_blob_that_comes_again_is_young_again(self, store: BlobStore, root: Path) -> None:
        """Between finding it there and the row's commit the sweep must not take it."""
        name = put_bytes(store, b"x").digest.hex()
        path = root / "objects" / name[:2] / name[2:4] / name
        os.utime(path, (1, 1))
        put_bytes(store, b"x")
        assert store.sweep(set(), older_than_ms=0, now_ms=10_000) == []

    def test_a_writer_that_was_killed_leaves_a_file_for_the_sweep(
        self, store: BlobStore, root: Path
    ) -> None:
        (root / "tmp" / "dead").write_bytes(b"half")
        store.sweep(set(), older_than_ms=0, now_ms=FAR_FUTURE_MS)
        assert list((root / "tmp").iterdir()) == []

    def test_strange_files_are_left_alone(self, store: BlobStore, root: Path) -> None:
        ref = put_bytes(store, b"x")
        folder = root / "objects" / ref.digest.hex()[:2] / ref.digest.hex()[2:4]
        (folder / "README").write_text("not ours")
        assert list(store.digests()) == [ref.digest]
        store.sweep(set(), older_than_ms=0, now_ms=FAR_FUTURE_MS)
        assert (folder / "README").exists()

    def test_without_hard_links(self, store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_links(source: object, target: object) -> None:
            raise OSError(errno.EPERM, "not here")

        monkeypatch.setattr(os, "link", no_links)
        ref = put_bytes(store, b"x")
        assert read_bytes(store, ref.digest, max_bytes=1) == b"x"

    def test_a_full_disk_is_not_hidden(
        self, store: BlobStore, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(source: object, target: object) -> None:
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(os, "link", full)
        with pytest.raises(OSError, match="full"):
            put_bytes(store, b"x")
        assert list(store.digests()) == []
        assert list((root / "tmp").iterdir()) == []

    @pytest.mark.parametrize("other", [None, b"a newer upload"])
    def test_a_name_that_moved_on_while_it_was_opened(
        self, store: BlobStore, root: Path, monkeypatch: pytest.MonkeyPatch, other: bytes | None
    ) -> None:
        """The one before committed between our open and our lock: never write into its blob."""
        path = root / "partial" / "k"
        import fcntl

        lock = fcntl.flock

        def late(fd: int, how: int) -> None:
            path.unlink()
            if other is not None:
                path.write_bytes(other)
            lock(fd, how)

        monkeypatch.setattr(fcntl, "flock", late)
        with pytest.raises(StateConflict, match="just ended"):
            store.resume("k")
