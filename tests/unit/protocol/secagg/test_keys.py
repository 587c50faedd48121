from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boltz_protocol.errors import DecryptionFailed, MalformedMessage
from boltz_protocol.limits import MAX_ROSTER, SEALED_SHARES_BYTES
from boltz_protocol.secagg.keys import (
    KeyPair,
    commit_nonce,
    commit_seed,
    commit_share,
    open_shares,
    pair_mask_key,
    seal_shares,
    self_mask_key,
    share_key,
)
from tests.support.keys import load_vectors

VECTORS = load_vectors("secagg_masks")
CONTEXT = bytes.fromhex(VECTORS["context"])
P = 2**255 - 19
# The u-coordinates of order 1, 2, 4 and 8 on the curve and its twist, and their spellings that are
# not reduced (https://cr.yp.to/ecdh.html#validate).
ORDER_8 = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
LOW_ORDER = (0, 1, *ORDER_8, P - 1, P, P + 1)


def _of(index: int, kind: str) -> bytes:
    return bytes.fromhex(VECTORS["clients"][index][kind])


def _ends(kind: str) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    low, high = ((c["client_id"], bytes.fromhex(c[kind])) for c in VECTORS["clients"])
    return low, high


def _sealed_of(vector: dict[str, Any]) -> tuple[bytes, bytes, bytes, bytes]:
    names = ("mask_share", "mask_salt", "seed_share", "seed_salt")
    mask_share, mask_salt, seed_share, seed_salt = (bytes.fromhex(vector[name]) for name in names)
    return mask_share, mask_salt, seed_share, seed_salt


@pytest.mark.parametrize("kind", ["mask", "share"])
def test_vector_of_the_exchange(kind: str) -> None:
    low, high = (KeyPair(_of(i, f"{kind}_private_key")) for i in range(2))
    assert low.public == _of(0, f"{kind}_public_key")
    assert high.public == _of(1, f"{kind}_public_key")
    shared = bytes.fromhex(VECTORS[f"{kind}_shared_secret"])
    assert low.exchange(high.public) == high.exchange(low.public) == shared
    assert low.private_bytes() == _of(0, f"{kind}_private_key")


def test_vectors_of_the_mask_keys() -> None:
    shared = bytes.fromhex(VECTORS["mask_shared_secret"])
    low, high = _ends("mask_public_key")
    assert pair_mask_key(shared, CONTEXT, low, high).hex() == VECTORS["pair_mask_key"]
    for index, (client_id, _) in enumerate((low, high)):
        key = self_mask_key(_of(index, "seed"), CONTEXT, client_id)
        assert key.hex() == VECTORS["self_mask_keys"][index]


def test_vectors_of_the_commitments() -> None:
    assert commit_nonce(bytes.fromhex(VECTORS["nonce"])).hex() == VECTORS["nonce_commitment"]
    for index, client in enumerate(VECTORS["clients"]):
        commitment = commit_seed(CONTEXT, client["index"], _of(index, "seed"))
        assert commitment.hex() == VECTORS["seed_commitments"][index]


@pytest.mark.parametrize("direction", [0, 1])
def test_vectors_of_the_sealed_shares(direction: int) -> None:
    vector = VECTORS["sealed_shares"][direction]
    ends = _ends("share_public_key")
    dealer, holder = ends if direction == 0 else ends[::-1]
    key = share_key(bytes.fromhex(VECTORS["share_shared_secret"]), CONTEXT, dealer, holder)
    assert key.hex() == vector["share_key"]
    shares = _sealed_of(vector)
    assert seal_shares(key, *shares).hex() == vector["sealed"]
    assert open_shares(key, bytes.fromhex(vector["sealed"])) == shares
    names = ("mask_key_commitment", "seed_share_commitment")
    for kind, name in enumerate(names, start=1):
        share, salt = shares[2 * kind - 2 : 2 * kind]
        made = commit_share(CONTEXT, vector["dealer"], vector["holder"], kind, share, salt)
        assert made.hex() == vector[name]


def test_fresh_pairs_differ_and_agree() -> None:
    one, other = KeyPair.generate(), KeyPair.generate()
    assert one.public != other.public
    assert one.exchange(other.public) == other.exchange(one.public)


@given(st.binary(min_size=32, max_size=32))
def test_a_pair_made_again_from_its_bytes_is_the_same(private: bytes) -> None:
    pair = KeyPair(private)
    assert pair.private_bytes() == private
    assert KeyPair(pair.private_bytes()).public == pair.public


@pytest.mark.parametrize("point", LOW_ORDER)
@pytest.mark.parametrize("top_bit", [0, 1])
def test_points_of_low_order_are_refused(point: int, top_bit: int) -> None:
    public = (point | top_bit << 255).to_bytes(32, "little")
    with pytest.raises(MalformedMessage, match="low order"):
        KeyPair.generate().exchange(public)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_keys_of_another_length_are_refused(size: int) -> None:
    with pytest.raises(MalformedMessage):
        KeyPair(bytes(size))
    with pytest.raises(MalformedMessage):
        KeyPair.generate().exchange(bytes(size))


def test_repr_hides_the_private_half() -> None:
    pair = KeyPair.generate()
    assert pair.public.hex() in repr(pair)
    for secret in (pair.private_bytes().hex(), repr(pair.private_bytes())[2:-1]):
        assert secret not in repr(pair)


def test_every_input_of_a_key_matters() -> None:
    secret, context, a, b = b"s" * 32, b"c" * 32, ("a", b"A" * 32), ("b", b"B" * 32)
    keys = [
        *(
            derive(*inputs)
            for derive in (pair_mask_key, share_key)
            for inputs in (
                (secret, context, a, b),
                (secret, context, b, a),
                (context, secret, a, b),
                (b"t" * 32, context, a, b),
                (secret, b"d" * 32, a, b),
                (secret, context, ("x", a[1]), b),
                (secret, context, (a[0], b"X" * 32), b),
                (secret, context, a, ("x", b[1])),
                (secret, context, a, (b[0], b"X" * 32)),
            )
        ),
        self_mask_key(secret, context, "a"),
        self_mask_key(secret, context, "b"),
        self_mask_key(b"t" * 32, context, "a"),
        self_mask_key(secret, b"d" * 32, "a"),
    ]
    assert {len(key) for key in keys} == {32}
    assert len(set(keys)) == len(keys)


def test_every_input_of_a_commitment_matters() -> None:
    context, share, salt = b"c" * 32, b"s" * 33, b"t" * 32
    commitments = [
        commit_share(context, 1, 2, 1, share, salt),
        commit_share(context, 2, 1, 1, share, salt),
        commit_share(context, 1, 3, 1, share, salt),
        commit_share(context, 1, 2, 2, share, salt),
        commit_share(context, 1, 2, 1, b"S" * 33, salt),
        commit_share(context, 1, 2, 1, share, b"T" * 32),
        commit_share(b"C" * 32, 1, 2, 1, share, salt),
        commit_seed(context, 1, salt),
        commit_seed(context, 2, salt),
        commit_seed(context, 1, b"T" * 32),
        commit_seed(b"C" * 32, 1, salt),
        commit_nonce(salt),
        commit_nonce(context),
    ]
    assert {len(commitment) for commitment in commitments} == {32}
    assert len(set(commitments)) == len(commitments)


def test_sealed_shares_that_were_touched_do_not_open() -> None:
    key, shares = b"k" * 32, (b"a" * 33, b"b" * 32, b"c" * 33, b"d" * 32)
    sealed = seal_shares(key, *shares)
    assert len(sealed) == SEALED_SHARES_BYTES
    assert open_shares(key, sealed) == shares
    for place in range(len(sealed)):
        touched = bytearray(sealed)
        touched[place] ^= 1
        with pytest.raises(DecryptionFailed):
            open_shares(key, bytes(touched))
    for wrong in (b"", sealed[:-1], sealed + b"\0", bytes(len(sealed))):
        with pytest.raises(DecryptionFailed):
            open_shares(key, wrong)
    with pytest.raises(DecryptionFailed):
        open_shares(b"K" * 32, sealed)


def test_what_was_sealed_in_one_direction_does_not_open_in_the_other() -> None:
    one, other = KeyPair.generate(), KeyPair.generate()
    shared = one.exchange(other.public)
    a, b = ("a", one.public), ("b", other.public)
    sealed = seal_shares(share_key(shared, CONTEXT, a, b), bytes(33), bytes(32), bytes(33), CONTEXT)
    with pytest.raises(DecryptionFailed):
        open_shares(share_key(shared, CONTEXT, b, a), sealed)


def test_what_the_caller_must_have_checked_asserts() -> None:
    key, salt, share = bytes(32), bytes(32), bytes(33)
    broken: list[Any] = [
        lambda: self_mask_key(bytes(31), CONTEXT, "a"),
        lambda: self_mask_key(key, b"", "a"),
        lambda: pair_mask_key(key, CONTEXT, ("a", bytes(31)), ("b", key)),
        lambda: share_key(key, CONTEXT, ("a", key), ("a", salt)),
        lambda: commit_nonce(b""),
        lambda: commit_seed(CONTEXT, -1, key),
        lambda: commit_seed(CONTEXT, MAX_ROSTER, key),
        lambda: commit_share(CONTEXT, 0, 1, 3, share, salt),
        lambda: commit_share(CONTEXT, 0, 1, 1, salt, salt),
        lambda: commit_share(CONTEXT, 0, 1, 1, share, share),
        lambda: seal_shares(key, salt, salt, share, salt),
        lambda: seal_shares(key, share, salt, share, share),
        lambda: open_shares(share, bytes(SEALED_SHARES_BYTES)),
    ]
    for call in broken:
        with pytest.raises(AssertionError):
            call()
