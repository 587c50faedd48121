"""What every `BlobStore` must do. Inherit, and say how a store is made."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from pathlib import Path

import pytest

from boltz_mesh.storage.blobs import BlobRef, BlobStore, for_each_block, put_bytes, read_bytes
from boltz_protocol.errors import MalformedMessage, NotFound, StateConflict

FAR_FUTURE_MS = 1 << 50


class BlobStoreSuite(ABC):
    @abstractmethod
    def make(self, root: Path) -> BlobStore:
        """A store whose blobs outlive it: made again with the same root, it holds the same."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return tmp_path / "blobs"

    @pytest.fixture
    def store(self, root: Path) -> BlobStore:
        return self.make(root)

    @pytest.mark.parametrize("size", [0, 1, 4096, 3_000_001])
    def test_what_is_written_is_read(self, store: BlobStore, root: Path, size: int) -> None:
        data = os.urandom(size)
        with store.writer() as writer:
            view = memoryview(data)
            for start in range(0, size, 700_001):
                writer.write(view[start : start + 700_001])
            assert writer.offset == size
            assert writer.sha256 == hashlib.sha256(data).digest()
            ref = writer.commit()
        assert ref == BlobRef(hashlib.sha256(data).digest(), size)
        again = self.make(root)
        assert again.exists(ref.digest)
        assert read_bytes(again, ref.digest, max_bytes=size) == data
        parts = bytearray()
        with again.open(ref.digest) as reader:
            assert reader.size_bytes == size
            for_each_block(reader, parts.extend, block_bytes=65_537)
        assert parts == data

    def test_reading_at_any_offset(self, store: BlobStore) -> None:
        data = os.urandom(10_000)
        ref = put_bytes(store, data)
        with store.open(ref.digest) as reader:
            buffer = bytearray(100)
            assert reader.pread_into(buffer, 9_000) == 100
            assert buffer == data[9_000:9_100]
            assert reader.pread_into(buffer, 9_950) == 50
            assert reader.pread_into(buffer, 10_000) == 0
            assert reader.pread_into(memoryview(bytearray(0)), 5) == 0

    def test_a_longer_blob_than_expected(self, store: BlobStore) -> None:
        ref = put_bytes(store, b"12345")
        with pytest.raises(StateConflict, match="at most 4 were expected"):
            read_bytes(store, ref.digest, max_bytes=4)

    def test_the_same_bytes_twice_are_one_blob(self, store: BlobStore) -> None:
        assert put_bytes(store, b"same") == put_bytes(store, bytearray(b"same"))
        assert len(list(store.digests())) == 1

    def test_what_is_not_committed_does_not_exist(self, store: BlobStore) -> None:
        with store.writer() as writer:
            writer.write(b"gone")
        writer.close()
        assert list(store.digests()) == []
        with pytest.raises(NotFound):
            store.open(hashlib.sha256(b"gone").digest())

    def test_deleting(self, store: BlobStore) -> None:
        ref = put_bytes(store, b"bytes")
        assert store.delete(ref.digest)
        assert not store.delete(ref.digest)
        assert not store.exists(ref.digest)

    def test_an_upload_goes_on_where_it_stood(self, store: BlobStore, root: Path) -> None:
        data = os.urandom(2_500_000)
        with store.resume("round.1.client") as partial:
            assert partial.offset == 0
            partial.write(data[:1_000_000])
            assert partial.durable_offset == 0
            assert partial.sync() == partial.durable_offset == 1_000_000
            partial.write(data[1_000_000:1_400_000])
        assert list(store.digests()) == []
        with self.make(root).resume("round.1.client") as partial:  # the server was restarted
            assert partial.offset == partial.durable_offset == 1_400_000
            assert partial.sha256 == hashlib.sha256(data[:1_400_000]).digest()
            buffer = bytearray(300)
            assert partial.pread_into(buffer, 999_900) == 300
            assert buffer == data[999_900:1_000_200]
            partial.write(data[1_400_000:])
            ref = partial.commit()
        assert ref == BlobRef(hashlib.sha256(data).digest(), len(data))
        assert read_bytes(store, ref.digest, max_bytes=len(data)) == data
        with store.resume("round.1.client") as partial:
            assert partial.offset == 0

    def test_a_torn_chunk_is_cut_off(self, store: BlobStore) -> None:
        with store.resume("k") as partial:
            partial.write(b"abcdefghij")
        with store.resume("k", align_bytes=4) as partial:
            assert partial.offset == 8
            partial.write(b"IJ")
            assert partial.commit().digest == hashlib.sha256(b"abcdefghIJ").digest()

    def test_one_writer_for_an_upload(self, store: BlobStore) -> None:
        with store.resume("k") as partial:
            partial.write(b"first")
            with pytest.raises(StateConflict):
                store.resume("k")
        with store.resume("k") as partial:
            assert partial.offset == 5

    def test_dropping_an_upload(self, store: BlobStore) -> None:
        with store.resume("k") as partial:
            partial.write(b"first")
        assert store.discard_partial("k")
        assert not store.discard_partial("k")
        with store.resume("k") as partial:
            assert partial.offset == 0

    @pytest.mark.parametrize("key", ["", "../up", "a/b", ".hidden", "a" * 201, "a\n", "ä"])
    def test_keys_that_are_refused(self, store: BlobStore, key: str) -> None:
        with pytest.raises(MalformedMessage):
            store.resume(key)
        with pytest.raises(MalformedMessage):
            store.discard_partial(key)

    def test_the_sweep_takes_old_orphans_only(self, store: BlobStore) -> None:
        kept, orphan = put_bytes(store, b"kept"), put_bytes(store, b"orphan")
        with store.resume("left") as partial:
            partial.write(b"left behind")
        assert store.sweep({kept.digest}, older_than_ms=0, now_ms=0) == []
        with store.resume("left") as partial:
            assert partial.offset > 0
        assert store.sweep({kept.digest}, older_than_ms=1, now_ms=FAR_FUTURE_MS) == [orphan.digest]
        assert list(store.digests()) == [kept.digest]
        with store.resume("left") as partial:
            assert partial.offset == 0
