"""Spool files: whole or not there."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boltz_client.spool import ModelSink, SealedUpdate, Spool, UpdateReader, remove_other_models
from boltz_protocol import codec, limits
from boltz_protocol import messages as m
from boltz_protocol.errors import ConfigurationError, DigestMismatch
from boltz_protocol.statement import sign_rsa_pss
from tests.support import samples
from tests.support.keys import vector_rsa_key


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    made = Spool(tmp_path / "spool")
    made.prepare(samples.NOW_MS)
    return made


def seal(spool: Spool, content: bytes = b"ciphertext" * 9, attempt: int = 1) -> SealedUpdate:
    with spool.create(samples.ROUND, attempt) as writer:
        writer.write(content[:40])
        writer.write(memoryview(content)[40:])
        manifest = replace(
            samples.update_manifest(),
            attempt=attempt,
            sha256=writer.sha256,
            size_bytes=writer.size_bytes,
        )
        payload = codec.encode_update_manifest(manifest)
        statement = sign_rsa_pss(
            type=m.UPDATE_MANIFEST, payload=payload, private_key=vector_rsa_key()
        )
        return writer.finish(statement, manifest)


def test_what_is_sealed_is_found_again(spool: Spool) -> None:
    assert spool.find(samples.ROUND, 1) is None
    assert not spool.has(samples.ROUND, 1)
    sealed = seal(spool)
    assert spool.has(samples.ROUND, 1)
    assert spool.find(samples.ROUND, 1) == sealed
    assert spool.find(samples.ROUND, 2) is None
    assert sealed.path.stat().st_mode & 0o777 == 0o600
    with UpdateReader(sealed) as reader:
        assert reader.chunk(0) == b"ciphertext" * 9
    spool.discard(samples.ROUND, 1)
    spool.discard(samples.ROUND, 1)
    assert spool.find(samples.ROUND, 1) is None


def test_a_second_seal_replaces_a_torn_first(spool: Spool) -> None:
    with spool.create(samples.ROUND, 1) as writer:
        writer.write(b"x" * 5000)
    assert spool.find(samples.ROUND, 1) is None
    assert spool.find(samples.ROUND, 1) != seal(spool)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)
@given(data=st.data())
def test_a_damaged_file_is_not_there(spool: Spool, data: st.DataObject) -> None:
    sealed = seal(spool)
    content = bytearray(sealed.path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
        sealed.path.write_bytes(content)
        assert spool.find(samples.ROUND, 1) is None
    else:
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= 1 << data.draw(st.integers(0, 7))
        sealed.path.write_bytes(content)
        found = spool.find(samples.ROUND, 1)
        # Bits of the signature and key id are the server's to check; the bytes must be the same.
        if found is not None:
            assert found.manifest.sha256 == hashlib.sha256(b"ciphertext" * 9).digest()


def test_a_file_under_another_rounds_name_is_not_there(spool: Spool) -> None:
    sealed = seal(spool)
    sealed.path.rename(sealed.path.with_name(f"{samples.ROUND}-2.update"))
    assert spool.find(samples.ROUND, 2) is None


def test_a_file_that_shrinks_under_the_reader_is_noticed(spool: Spool) -> None:
    sealed = seal(spool)
    with UpdateReader(sealed) as reader:
        os.truncate(sealed.path, 10)
        with pytest.raises(DigestMismatch):
            reader.chunk(0)


def test_old_updates_are_dropped_and_folders_must_be_private(spool: Spool, tmp_path: Path) -> None:
    sealed = seal(spool)
    os.utime(sealed.path, (samples.NOW_MS / 1000,) * 2)
    spool.prepare(samples.NOW_MS + limits.MAX_PHASE_MS)
    assert sealed.path.exists()
    spool.prepare(samples.NOW_MS + 3 * limits.MAX_PHASE_MS)
    assert not sealed.path.exists()
    spool.folder.chmod(0o755)
    with pytest.raises(ConfigurationError):
        spool.prepare(samples.NOW_MS)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError):
        Spool(tmp_path / "file" / "spool").prepare(samples.NOW_MS)


CONTENT = bytes(range(256)) * 20
DIGEST = hashlib.sha256(CONTENT).digest()


def test_a_model_in_memory() -> None:
    sink = ModelSink(None, len(CONTENT))
    sink.write(CONTENT[:100])
    sink.write(CONTENT[100:])
    assert sink.finish(DIGEST) == CONTENT
    sink.close()


def test_a_model_in_a_file_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "toy_1.safetensors"
    sink = ModelSink(path, len(CONTENT))
    sink.write(CONTENT[:1000])
    sink.close()
    assert not path.exists()
    sink = ModelSink(path, len(CONTENT))
    assert sink.offset == 1000
    sink.write(CONTENT[1000:])
    assert sink.finish(DIGEST) == b""
    assert path.read_bytes() == CONTENT
    # A whole file of an earlier pull needs no byte more.
    again = ModelSink(path, len(CONTENT))
    assert again.offset == len(CONTENT)
    again.finish(DIGEST)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_wrong_digest_throws_the_bytes_away(tmp_path: Path, in_memory: bool) -> None:
    path = None if in_memory else tmp_path / "toy_1.safetensors"
    sink = ModelSink(path, len(CONTENT))
    sink.write(CONTENT)
    with pytest.raises(DigestMismatch):
        sink.finish(b"x" * 32)
    assert sink.offset == 0
    sink.write(CONTENT)
    sink.finish(DIGEST)


def test_a_part_that_is_too_long_is_thrown_away(tmp_path: Path) -> None:
    path = tmp_path / "toy_1.safetensors"
    (tmp_path / "toy_1.safetensors.part").write_bytes(CONTENT + b"more")
    assert ModelSink(path, len(CONTENT)).offset == 0


def test_other_versions_are_removed(tmp_path: Path) -> None:
    names = ["toy_1_a.safetensors", "toy_2_b.safetensors.part", "toy_3_c.safetensors"]
    others = ["toy.x_1_a.safetensors", f"{samples.ROUND}-1.update"]
    for name in names + others:
        (tmp_path / name).write_text("")
    remove_other_models(tmp_path, "toy", [tmp_path / names[2]])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([names[2], *others])
