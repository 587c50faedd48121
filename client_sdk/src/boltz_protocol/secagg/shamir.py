"""Shamir's secret sharing of 32 bytes (Shamir 1979, "How to Share a Secret").

The field has p = 2^256 + 297 elements, the least prime above 2^256, so that every 32-byte secret is
an element. The secret, read big-endian, is f(0) of a polynomial f of degree `threshold - 1` whose
other coefficients are uniform; the share of roster index i is f(i + 1), 33 bytes big-endian. Fewer
than `threshold` shares fit every secret equally well.

Reconstruction takes exactly `threshold` shares and weighs them by Lagrange's coefficients at 0,

    weight_j = product over m != j of x_m / (x_m - x_j)   (mod p),

which depend on the holders alone. Places are small integers, so the differences are multiplied as
plain integers; all inverses together cost one (Montgomery's trick), and the weights are kept for
the next secret with the same holders: in a complete graph, that is every secret of the round.

Running times depend on values. Shares are dealt and put together where the secret is known anyway.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import mul
from typing import Final

from boltz_protocol.errors import MalformedMessage
from boltz_protocol.limits import MAX_ROSTER, SECRET_BYTES, SHARE_BYTES

#: The field's size.
PRIME: Final = (1 << 256) + 297
# Sets of holders whose weights are kept: 256 x 67 numbers of 60 bytes are 1 MB.
_KEPT_HOLDERS: Final = 256


def split(
    secret: bytes,
    threshold: int,
    indexes: Iterable[int],
    *,
    draw: Callable[[int], int] = secrets.randbelow,
) -> dict[int, bytes]:
    """Deal shares, 33 bytes each, by roster index.

    Args:
        secret: 32 bytes.
        threshold: shares that give the secret back, at least 1 and at most as many as holders.
        indexes: roster indexes of the holders, each once.
        draw: a uniform number below its argument; another than the default is for tests.
    """
    holders = tuple(indexes)
    assert len(secret) == SECRET_BYTES, "a secret has 32 bytes"
    assert 1 <= threshold <= len(set(holders)) == len(holders), "threshold among distinct holders"
    assert 0 <= min(holders) <= max(holders) < MAX_ROSTER, "roster indexes"
    # Highest power first; a leading zero must be as likely as any other coefficient.
    coefficients = [draw(PRIME) for _ in range(threshold - 1)]
    coefficients.append(int.from_bytes(secret, "big"))
    return {
        index: _value_at(index + 1, coefficients).to_bytes(SHARE_BYTES, "big") for index in holders
    }


def _value_at(place: int, coefficients: list[int]) -> int:
    value = 0
    for coefficient in coefficients:
        value = (value * place + coefficient) % PRIME
    return value


def parse_share(share: bytes) -> int:
    """A share as an element of the field. Raises: MalformedMessage on a wrong length or range."""
    if len(share) != SHARE_BYTES:
        raise MalformedMessage(f"a share has {SHARE_BYTES} bytes, not {len(share)}")
    value = int.from_bytes(share, "big")
    if value >= PRIME:
        raise MalformedMessage("a share is not an element of the field of 2^256 + 297 elements")
    return value


@dataclass(frozen=True, slots=True)
class Interpolator:
    """Puts secrets together; safe to share between threads.

    Attributes:
        threshold: shares that are needed, and taken, for each secret.
    """

    threshold: int

    def reconstruct(self, shares: Mapping[int, bytes]) -> bytes:
        """The 32-byte secret of exactly `threshold` shares by roster index.

        A wrong share gives a wrong secret or an error: compare the secret with what its dealer
        signed, and the shares with their commitments.

        Raises: MalformedMessage for a share that is no element of the field, or when the shares
            do not belong to a 32-byte secret.
        """
        assert len(shares) == self.threshold, "exactly threshold shares"
        holders = tuple(sorted(shares))
        values = [parse_share(shares[index]) for index in holders]
        secret: int = sum(map(mul, values, _weights(holders))) % PRIME
        if secret >> (8 * SECRET_BYTES):
            raise MalformedMessage("the shares do not belong to one 32-byte secret")
        return secret.to_bytes(SECRET_BYTES, "big")


@lru_cache(maxsize=_KEPT_HOLDERS)
def _weights(holders: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's coefficients at 0 for ascending roster indexes, in the same order."""
    places = [index + 1 for index in holders]
    # weight_j = product of all places / divisor_j, divisor_j = x_j * product of (x_m - x_j).
    divisors = [
        place * math.prod([other - place for other in places if other != place]) % PRIME
        for place in places
    ]
    # One inverse of all divisors together, then backwards.
    running = [1]
    for divisor in divisors:
        running.append(running[-1] * divisor % PRIME)
    inverse = math.prod(places) * pow(running.pop(), -1, PRIME) % PRIME
    weights = []
    for divisor, before in zip(reversed(divisors), reversed(running), strict=True):
        weights.append(inverse * before % PRIME)
        inverse = inverse * divisor % PRIME
    return tuple(reversed(weights))
