from __future__ import annotations

import time
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boltz_protocol.errors import MalformedMessage
from boltz_protocol.limits import MAX_ROSTER
from boltz_protocol.secagg.shamir import PRIME, Interpolator, parse_share, split
from tests.support.keys import load_vectors

VECTORS = load_vectors("secagg_masks")["shamir"]
SECRETS = st.binary(min_size=32, max_size=32)


def _interpolate(points: dict[int, int], place: int) -> int:
    """The value at `place` of the least polynomial through the points, by the book."""
    total = 0
    for x, y in points.items():
        term = y
        for other in points:
            if other != x:
                term = term * (place - other) * pow(x - other, -1, PRIME) % PRIME
        total += term
    return total % PRIME


def _points(shares: dict[int, bytes]) -> dict[int, int]:
    return {index + 1: int.from_bytes(share, "big") for index, share in shares.items()}


def _probably_prime(number: int) -> bool:
    """Miller and Rabin's test, twenty bases."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71):
        power = pow(base, odd, number)
        if power in (1, number - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True


def test_the_field_is_the_least_above_all_secrets() -> None:
    assert _probably_prime(PRIME)
    assert not any(_probably_prime(number) for number in range(2**256 + 1, PRIME, 2))


@pytest.mark.parametrize("vector", VECTORS)
def test_vectors(vector: dict[str, object]) -> None:
    secret, threshold = bytes.fromhex(str(vector["secret"])), vector["threshold"]
    assert isinstance(threshold, int)
    shares: dict[int, bytes] = {
        share["index"]: bytes.fromhex(share["share"])
        for share in vector["shares"]  # type: ignore[attr-defined]
    }
    # Drawn from the highest power down.
    drawn = [int(text, 16) for text in vector["coefficients"]]  # type: ignore[attr-defined]
    assert split(secret, threshold, shares, draw=lambda below: drawn.pop() % below) == shares
    for holders in combinations(shares, threshold):
        chosen = {index: shares[index] for index in holders}
        assert Interpolator(threshold).reconstruct(chosen) == secret


@given(secret=SECRETS, data=st.data())
def test_any_threshold_of_shares_gives_the_secret_back(secret: bytes, data: st.DataObject) -> None:
    index = st.integers(0, MAX_ROSTER - 1)
    holders = data.draw(st.lists(index, unique=True, min_size=1, max_size=20))
    threshold = data.draw(st.integers(1, len(holders)))
    shares = split(secret, threshold, holders)
    assert list(shares) == holders
    assert {len(share) for share in shares.values()} == {33}
    chosen = data.draw(st.permutations(holders))[:threshold]
    some = {index: shares[index] for index in chosen}
    assert Interpolator(threshold).reconstruct(some) == secret
    assert _interpolate(_points(some), 0) == int.from_bytes(secret, "big")


@given(secret=SECRETS, other=SECRETS, threshold=st.integers(2, 9))
def test_one_share_too_few_fits_every_secret(secret: bytes, other: bytes, threshold: int) -> None:
    """For any other secret there is exactly one polynomial that gives the shares one has."""
    seen = dict(list(split(secret, threshold, range(threshold)).items())[:-1])
    points = {0: int.from_bytes(other, "big"), **_points(seen)}
    missing = _interpolate(points, threshold).to_bytes(33, "big")
    complete = {**seen, threshold - 1: missing}
    assert Interpolator(threshold).reconstruct(complete) == other


def test_too_few_shares_taken_for_enough_give_something_else() -> None:
    secret = bytes(range(32))
    shares = split(secret, 5, range(5))
    fewer = {index: shares[index] for index in range(4)}
    assert Interpolator(4).reconstruct(fewer) != secret


def test_coefficients_are_drawn_over_the_whole_field() -> None:
    asked: list[int] = []

    def draw(below: int) -> int:
        asked.append(below)
        return 0

    # With zeros for coefficients every share is the secret: nothing else goes into it.
    shares = split(b"\x07" * 32, 4, (0, 9, 17, 4000), draw=draw)
    assert asked == [PRIME] * 3
    assert set(shares.values()) == {b"\0" + b"\x07" * 32}
    assert split(bytes(32), 4, range(4)) != split(bytes(32), 4, range(4))


def test_shares_outside_the_field_are_refused() -> None:
    shares = split(bytes(32), 2, (0, 1))
    for wrong in (b"", shares[0][1:], shares[0] + b"\0", PRIME.to_bytes(33, "big"), b"\xff" * 33):
        with pytest.raises(MalformedMessage):
            parse_share(wrong)
        with pytest.raises(MalformedMessage):
            Interpolator(2).reconstruct({0: shares[0], 1: wrong})
    assert parse_share((PRIME - 1).to_bytes(33, "big")) == PRIME - 1


@pytest.mark.parametrize("value", [2**256, PRIME - 1])
def test_a_value_that_is_no_secret_is_refused(value: int) -> None:
    shares = {
        index: ((value + 12345 * (index + 1)) % PRIME).to_bytes(33, "big") for index in (3, 8)
    }
    with pytest.raises(MalformedMessage, match="32-byte secret"):
        Interpolator(2).reconstruct(shares)


def test_a_wrong_share_does_not_give_the_secret() -> None:
    secret = b"\x55" * 32
    shares = split(secret, 3, range(3))
    shares[1] = shares[1][:-1] + bytes([shares[1][-1] ^ 1])
    assert Interpolator(3).reconstruct(shares) != secret


@pytest.mark.parametrize(
    ("size", "threshold", "holders"),
    [
        (31, 1, (0,)),
        (32, 0, (0,)),
        (32, 3, (0, 1)),
        (32, 1, ()),
        (32, 1, (0, 0)),
        (32, 1, (-1, 0)),
        (32, 1, (MAX_ROSTER,)),
    ],
)
def test_what_cannot_be_shared_asserts(size: int, threshold: int, holders: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        split(bytes(size), threshold, holders)


@pytest.mark.parametrize("count", [2, 4])
def test_another_number_of_shares_asserts(count: int) -> None:
    shares = split(bytes(32), 2, range(4))
    with pytest.raises(AssertionError):
        Interpolator(3).reconstruct({index: shares[index] for index in range(count)})


def test_the_secrets_of_a_hundred_clients_take_a_few_milliseconds() -> None:
    """Every client with holders of its own, so that nothing is kept from one to the next."""
    rounds = [
        [split(bytes(32), 11, range(first, first + 96, 6)) for first in range(start, start + 100)]
        for start in (1000, 2000, 3000)
    ]
    interpolator, spent = Interpolator(11), []
    for dealt in rounds:
        begun = time.process_time()
        for shares in dealt:
            interpolator.reconstruct(dict(list(shares.items())[-11:]))
        spent.append(time.process_time() - begun)
    assert min(spent) < 0.05
