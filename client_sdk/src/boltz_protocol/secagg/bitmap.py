"""Sets of roster positions as bitmaps: position i is bit i % 8 (least significant first) of byte
i // 8. A bitmap of a roster of `size` has ceil(size / 8) bytes, and its spare bits are zero, so
that one set has one encoding.
"""

from __future__ import annotations

from collections.abc import Iterable

from boltz_protocol.errors import MalformedMessage
from boltz_protocol.limits import MAX_ROSTER


def bitmap(positions: Iterable[int], size: int) -> bytes:
    """The bitmap of a set of positions.

    Args:
        positions: each 0 to `size` - 1, in any order.
        size: of the whole roster, 1 to `limits.MAX_ROSTER`.

    Returns: ceil(size / 8) bytes.
    """
    assert 1 <= size <= MAX_ROSTER, "a roster has 1 to MAX_ROSTER positions"
    out = bytearray(-(-size // 8))
    for position in positions:
        assert 0 <= position < size, "a position outside the roster"
        out[position >> 3] |= 1 << (position & 7)
    return bytes(out)


def indexes(encoded: bytes, size: int) -> tuple[int, ...]:
    """The positions in a bitmap, ascending.

    Args:
        encoded: from anybody.
        size: of the whole roster, 1 to `limits.MAX_ROSTER`.

    Raises: MalformedMessage where the bitmap belongs to a roster of another size.
    """
    assert 1 <= size <= MAX_ROSTER, "a roster has 1 to MAX_ROSTER positions"
    if len(encoded) != -(-size // 8):
        raise MalformedMessage(
            f"a bitmap of {len(encoded)} bytes for a roster of {size}", field="bitmap"
        )
    if size % 8 and encoded[-1] >> (size % 8):
        raise MalformedMessage(f"a bitmap with bits beyond a roster of {size}", field="bitmap")
    return tuple(
        8 * place + bit for place, byte in enumerate(encoded) for bit in range(8) if byte >> bit & 1
    )
