from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from hypothesis import given
from hypothesis import strategies as st

from boltz_protocol import limits
from boltz_protocol.context import BlobContext, EnvelopeContext, UpdateContext
from boltz_protocol.envelope import (
    ChunkLayout,
    ContentKey,
    Opener,
    Sealer,
    SequentialOpener,
    key_commitment,
    seal_update,
    unwrap_as_recipient,
    wrap_for_recipient,
)
from boltz_protocol.errors import (
    ChunkOutOfOrder,
    DecryptionFailed,
    LimitExceeded,
    MalformedMessage,
)
from boltz_protocol.ids import ClientId, KeyId, RoundId, SessionId
from boltz_protocol.keys import load_rsa_public_key, public_key_id
from tests.support.keys import load_vectors, other_rsa_key, short_rsa_key, vector_rsa_key

TAG = limits.GCM_TAG_BYTES
KEY = ContentKey(bytes(range(32)))
CONTEXT = UpdateContext(
    mesh="demo",
    round_id=RoundId("11" * 16),
    attempt=1,
    client_id=ClientId("22" * 16),
    session_id=SessionId("33" * 16),
    recipient_key_id=public_key_id(vector_rsa_key().public_key()),
    model_digest=b"\x44" * 32,
    config_digest=b"\x55" * 32,
)
OTHER_CONTEXTS: list[EnvelopeContext] = [
    replace(CONTEXT, mesh="demo2"),
    replace(CONTEXT, round_id=RoundId("12" * 16)),
    replace(CONTEXT, attempt=2),
    replace(CONTEXT, client_id=ClientId("23" * 16)),
    replace(CONTEXT, session_id=SessionId("34" * 16)),
    replace(CONTEXT, recipient_key_id=KeyId("00" * 16)),
    replace(CONTEXT, model_digest=b"\x45" * 32),
    replace(CONTEXT, config_digest=b"\x56" * 32),
    BlobContext("demo", "model", ("forecast", "7")),
]


def seal(
    content: bytes, chunk_bytes: int, context: EnvelopeContext = CONTEXT
) -> tuple[ChunkLayout, bytes, list[bytes]]:
    layout = ChunkLayout(len(content), chunk_bytes)
    sealer = Sealer(KEY, context, layout)
    chunks = []
    for i in range(layout.count):
        out = bytearray(chunk_bytes + TAG)
        plain = content[i * chunk_bytes : (i + 1) * chunk_bytes]
        chunks.append(bytes(out[: sealer.seal_into(i, plain, out)]))
    return layout, sealer.commitment, chunks


def stream(opener: Opener, chunks: list[bytes]) -> bytes:
    sequence = SequentialOpener(opener)
    out = bytearray(opener.layout.chunk_bytes)
    content = b""
    for chunk in chunks:
        content += out[: sequence.open_next_into(chunk, out)]
    sequence.finish()
    return content


def context_of(case: dict[str, Any]) -> EnvelopeContext:
    fields = case["context"]
    if case["context_type"] == "blob":
        return BlobContext(fields["mesh"], fields["kind"], tuple(fields["ids"]))
    digests = {name: bytes.fromhex(fields[name]) for name in ("model_digest", "config_digest")}
    return UpdateContext(**(fields | digests))


def test_vectors() -> None:
    vectors = load_vectors("crypto_envelope")
    recipient = load_rsa_public_key(bytes.fromhex(vectors["recipient_key_spki"]))
    assert recipient == vector_rsa_key().public_key()
    key = unwrap_as_recipient(bytes.fromhex(vectors["wrapped_key"]), vector_rsa_key())
    assert key.material.hex() == vectors["content_key"]
    for case in vectors["contexts"]:
        context = context_of(case)
        assert context.encode().hex() == case["encoding"]
        for content in case["contents"]:
            plain = bytes.fromhex(content["content"])
            layout, commitment, chunks = seal(plain, content["chunk_bytes"], context)
            assert commitment.hex() == content["commitment"]
            assert [chunk.hex() for chunk in chunks] == [c["cipher"] for c in content["chunks"]]
            nonces = [layout.nonce(i).hex() for i in range(layout.count)]
            assert nonces == [c["nonce"] for c in content["chunks"]]
            assert stream(Opener(key, context, layout, commitment), chunks) == plain


@given(content=st.binary(max_size=200), chunk_bytes=st.integers(1, 64))
def test_round_trip_in_any_order(content: bytes, chunk_bytes: int) -> None:
    layout, commitment, chunks = seal(content, chunk_bytes)
    assert sum(map(len, chunks)) == layout.cipher_size_bytes
    opener = Opener(KEY, CONTEXT, layout, commitment)
    assert stream(opener, chunks) == content
    stored = b"".join(chunks)
    plain = bytearray(len(content))
    for i in reversed(range(layout.count)):
        start = layout.cipher_offset(i)
        cipher = memoryview(stored)[start : start + layout.cipher_bytes(i)]
        target = memoryview(plain)[i * chunk_bytes :]
        assert opener.open_into(i, cipher, target) == layout.plain_bytes(i)
    assert plain == content


def test_works_in_place() -> None:
    layout = ChunkLayout(5, 8)
    buffer = bytearray(b"hello" + bytes(TAG))
    sealer = Sealer(KEY, CONTEXT, layout)
    assert sealer.seal_into(0, memoryview(buffer)[:5], buffer) == 5 + TAG
    opener = Opener(KEY, CONTEXT, layout, sealer.commitment)
    assert opener.open_into(0, buffer, buffer) == 5
    assert buffer[:5] == b"hello"


@pytest.mark.parametrize("other", OTHER_CONTEXTS)
def test_another_context_opens_nothing(other: EnvelopeContext) -> None:
    layout, commitment, chunks = seal(b"secret", 4)
    with pytest.raises(DecryptionFailed, match="commitment"):
        Opener(KEY, other, layout, commitment)
    # Even a receiver that took the commitment for granted would see nothing.
    opener = Opener(KEY, other, layout, Sealer(KEY, other, layout).commitment)
    with pytest.raises(DecryptionFailed):
        opener.open_into(0, chunks[0], bytearray(4))


def test_another_key_or_commitment_is_refused_before_the_first_chunk() -> None:
    layout, commitment, _ = seal(b"secret", 4)
    with pytest.raises(DecryptionFailed, match="commitment"):
        Opener(ContentKey(bytes(32)), CONTEXT, layout, commitment)
    for wrong in (b"", commitment[:-1], commitment + b"\0", bytes(32)):
        with pytest.raises(DecryptionFailed, match="commitment"):
            Opener(KEY, CONTEXT, layout, wrong)


def test_the_commitment_to_a_known_key() -> None:
    assert key_commitment(KEY, CONTEXT) == Sealer(KEY, CONTEXT, ChunkLayout(0, 1)).commitment
    assert len({key_commitment(KEY, context) for context in OTHER_CONTEXTS}) == 9


def test_truncation_reordering_repetition_and_extension_fail() -> None:
    content = bytes(range(16))
    layout, commitment, chunks = seal(content, 4)
    opener = Opener(KEY, CONTEXT, layout, commitment)
    assert stream(opener, chunks) == content
    for wrong in (
        chunks[:-1],
        [],
        [chunks[1], chunks[0], *chunks[2:]],
        [chunks[0], chunks[0], *chunks[2:]],
        [chunks[3], *chunks[1:]],
        [*chunks[:3], chunks[0]],
    ):
        with pytest.raises(DecryptionFailed):
            stream(opener, wrong)
    with pytest.raises(ChunkOutOfOrder):
        stream(opener, [*chunks, chunks[0]])


def test_a_shorter_manifest_does_not_hide_the_end() -> None:
    _, commitment, chunks = seal(bytes(16), 4)
    shorter = Opener(KEY, CONTEXT, ChunkLayout(12, 4), commitment)
    with pytest.raises(DecryptionFailed, match="chunk 2"):
        stream(shorter, chunks[:3])
    longer = Opener(KEY, CONTEXT, ChunkLayout(20, 4), commitment)
    with pytest.raises(DecryptionFailed, match="chunk 3"):
        stream(longer, [*chunks, chunks[0]])


@given(position=st.integers(0, 8 + TAG - 1), bit=st.integers(0, 7))
def test_any_flipped_bit_is_refused_and_nothing_stays_behind(position: int, bit: int) -> None:
    layout, commitment, chunks = seal(b"contents", 8)
    damaged = bytearray(chunks[0])
    damaged[position] ^= 1 << bit
    out = bytearray(b"\xff" * 8)
    with pytest.raises(DecryptionFailed):
        Opener(KEY, CONTEXT, layout, commitment).open_into(0, damaged, out)
    assert out == bytes(8)


def test_wrong_lengths_and_indices() -> None:
    layout, commitment, chunks = seal(bytes(10), 4)
    opener = Opener(KEY, CONTEXT, layout, commitment)
    for index, chunk in ((0, chunks[2]), (2, chunks[0]), (0, b""), (0, chunks[0] + b"\0")):
        with pytest.raises(MalformedMessage, match="bytes, not"):
            opener.open_into(index, chunk, bytearray(4))
    for index in (-1, 3):
        with pytest.raises(ChunkOutOfOrder):
            opener.open_into(index, chunks[0], bytearray(4))
        with pytest.raises(ChunkOutOfOrder):
            layout.cipher_offset(index)
        with pytest.raises(ChunkOutOfOrder):
            Sealer(KEY, CONTEXT, layout).seal_into(index, bytes(4), bytearray(4 + TAG))


def test_a_failed_chunk_may_be_sent_again_and_a_stream_resumed() -> None:
    content = bytes(range(10))
    layout, commitment, chunks = seal(content, 4)
    opener = Opener(KEY, CONTEXT, layout, commitment)
    sequence = SequentialOpener(opener, next_index=1)
    out = bytearray(4)
    with pytest.raises(DecryptionFailed):
        sequence.open_next_into(chunks[0], out)
    assert sequence.next_index == 1
    assert sequence.open_next_into(chunks[1], out) == 4
    assert out == content[4:8]
    with pytest.raises(DecryptionFailed, match="2 of 3"):
        sequence.finish()
    assert sequence.open_next_into(chunks[2], out) == 2
    sequence.finish()


def test_a_chunk_is_sealed_once_only_even_by_racing_threads() -> None:
    sealer = Sealer(KEY, CONTEXT, ChunkLayout(8, 4))
    failures: list[AssertionError] = []

    def work() -> None:
        for index in range(2):
            try:
                sealer.seal_into(index, bytes(4), bytearray(4 + TAG))
            except AssertionError as error:
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failures) == 6
    with pytest.raises(AssertionError, match="another length"):
        Sealer(KEY, CONTEXT, ChunkLayout(8, 4)).seal_into(0, bytes(3), bytearray(4 + TAG))


def test_an_opener_serves_several_threads() -> None:
    content = bytes(1 << 18)
    layout, commitment, chunks = seal(content, 1 << 14)
    opener = Opener(KEY, CONTEXT, layout, commitment)
    good: list[bool] = []

    def work() -> None:
        out = bytearray(layout.chunk_bytes)
        sizes = [opener.open_into(i, chunk, out) for i, chunk in enumerate(chunks)]
        good.append(sum(sizes) == len(content) and not any(out))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert good == [True] * 4


@pytest.mark.parametrize(
    ("size", "chunk", "count", "last"),
    [(0, 4, 1, 0), (1, 4, 1, 1), (4, 4, 1, 4), (5, 4, 2, 1), (8, 4, 2, 4), (9, 4, 3, 1)],
)
def test_layout(size: int, chunk: int, count: int, last: int) -> None:
    layout = ChunkLayout(size, chunk)
    assert layout.count == count
    assert layout.plain_bytes(count - 1) == last
    assert layout.cipher_size_bytes == size + count * TAG
    assert layout.cipher_offset(count - 1) == (count - 1) * (chunk + TAG)
    assert [layout.nonce(i)[-1] for i in range(count)] == [0] * (count - 1) + [1]


def test_layout_caps() -> None:
    ChunkLayout(limits.MAX_ENVELOPE_CHUNKS, 1)
    for size, chunk in ((limits.MAX_ENVELOPE_CHUNKS + 1, 1), (1, limits.MODEL_CHUNK_BYTES + 1)):
        with pytest.raises(LimitExceeded):
            ChunkLayout(size, chunk)
    for size, chunk in ((-1, 4), (4, 0), (4, -1)):
        with pytest.raises(MalformedMessage):
            ChunkLayout(size, chunk)


def test_seal_update_end_to_end() -> None:
    private = vector_rsa_key()
    layout = ChunkLayout(6, 4)
    sealer, wrapped = seal_update(CONTEXT, private.public_key(), layout)
    assert len(wrapped) == 384
    chunks = []
    for index, plain in enumerate((b"secr", b"et")):
        out = bytearray(4 + TAG)
        chunks.append(bytes(out[: sealer.seal_into(index, plain, out)]))
    key = unwrap_as_recipient(wrapped, private)
    assert stream(Opener(key, CONTEXT, layout, sealer.commitment), chunks) == b"secret"
    again, wrapped_again = seal_update(CONTEXT, private.public_key(), layout)
    assert again.commitment != sealer.commitment
    assert wrapped_again != wrapped


def test_seal_update_refuses_a_recipient_that_the_context_does_not_name() -> None:
    with pytest.raises(DecryptionFailed, match="another recipient"):
        seal_update(CONTEXT, other_rsa_key().public_key(), ChunkLayout(6, 4))


def test_wrapped_keys_that_do_not_open() -> None:
    private = vector_rsa_key()
    wrapped = wrap_for_recipient(KEY, private.public_key())
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    labelled = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"label")
    for wrong in (
        b"",
        wrapped[:-1],
        wrapped + b"\0",
        bytes(384),
        wrapped[:-1] + bytes([wrapped[-1] ^ 1]),
        wrap_for_recipient(KEY, other_rsa_key().public_key()),
        private.public_key().encrypt(bytes(31), oaep),
        private.public_key().encrypt(KEY.material, labelled),
    ):
        with pytest.raises(DecryptionFailed):
            unwrap_as_recipient(wrong, private)
    with pytest.raises(MalformedMessage, match="2048"):
        wrap_for_recipient(KEY, short_rsa_key().public_key())


def test_keys_hide() -> None:
    assert "000102" not in repr(KEY)
    assert repr(KEY) == "ContentKey(hidden)"
    assert ContentKey.generate().material != ContentKey.generate().material
    with pytest.raises(AssertionError):
        ContentKey(bytes(31))
