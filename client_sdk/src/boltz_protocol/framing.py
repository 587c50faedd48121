"""Unambiguous concatenation: every field carries its length, so no two lists encode alike."""

from __future__ import annotations

import struct


def length_prefixed(*fields: bytes) -> bytes:
    """Each field as `u32be(len) || bytes`, one after the other.

    Args:
        fields: each shorter than 2^32 bytes.
    """
    return b"".join(struct.pack(">I", len(field)) + field for field in fields)
