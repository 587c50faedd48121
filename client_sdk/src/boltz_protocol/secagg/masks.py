"""Masks: keystreams that are added on one side and subtracted on the other, modulo 2^32.

A mask is the AES-256-CTR keystream of its key from counter block zero on (NIST SP 800-38A,
section 6.5), read as little-endian 32-bit numbers: bytes 4c to 4c + 3 mask coordinate c, counted
through the whole vector. Chunk i therefore begins at counter block i * 2^16, and any chunk can be
masked without those before it. On the wire only the low 24 bits of the sum remain.

Of two clients the one with the smaller roster index adds their pair mask and the other subtracts
it; a client's self mask is added (Bonawitz et al. 2017, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from boltz_protocol.limits import CHUNK_PARAMETERS, MAX_COORDINATES, SECRET_BYTES

UInt32Array = npt.NDArray[np.uint32]
Sign = Literal[1, -1]

_WORD_BYTES: Final = 4
_AES_BLOCK_BYTES: Final = 16
#: Counter blocks of one chunk.
_CHUNK_BLOCKS: Final = CHUNK_PARAMETERS * _WORD_BYTES // _AES_BLOCK_BYTES
# Coordinates masked at once: 256 KiB of values and as much scratch stay in the second-level cache
# while every stream passes over them.
_BLOCK: Final = 1 << 16
# CTR turns zeros into keystream; one block of zeros is shared by all.
_ZEROS: Final = memoryview(bytes(_BLOCK * _WORD_BYTES))


@dataclass(frozen=True, slots=True, eq=False)
class MaskStream:
    """One mask, to be added or subtracted. It has no position, so threads may share it.

    Attributes:
        key: 32 bytes from `keys.pair_mask_key` or `keys.self_mask_key`; hidden in `repr`.
        sign: 1 to add the mask, -1 to subtract it.
    """

    key: bytes = field(repr=False)
    sign: Sign

    def __post_init__(self) -> None:
        assert len(self.key) == SECRET_BYTES, "AES-256 takes a key of 32 bytes"
        assert self.sign in (1, -1), "a mask is added or subtracted"

    def removed(self) -> MaskStream:
        """The mask that takes this one off again."""
        return MaskStream(self.key, -1 if self.sign == 1 else 1)


def pair_sign(own: int, peer: int) -> Sign:
    """How a client applies the mask it has with a peer; both are roster indexes."""
    assert own != peer, "nobody has a pair mask with itself"
    return 1 if own < peer else -1


def apply_masks(values: UInt32Array, chunk: int, streams: Sequence[MaskStream]) -> None:
    """Add or subtract all masks to one chunk in place, modulo 2^32. The order does not matter.

    Threads may work on different arrays at the same time with the same streams.

    Args:
        values: contiguous uint32, shape (n,), at most `limits.CHUNK_PARAMETERS`.
        chunk: the chunk's index in the vector.
        streams: masks; none leaves the values as they are.
    """
    assert values.dtype == np.uint32, "sums live in uint32"
    assert values.ndim == 1, "a chunk is a vector"
    assert values.size <= CHUNK_PARAMETERS, "one chunk at a time"
    assert 0 <= chunk < MAX_COORDINATES // CHUNK_PARAMETERS, "a chunk of a vector"
    start = (chunk * _CHUNK_BLOCKS).to_bytes(_AES_BLOCK_BYTES, "big")
    ciphers = [(_keystream(stream.key, start), stream.sign) for stream in streams]
    scratch = np.empty(min(_BLOCK, values.size), dtype="<u4")
    for first in range(0, values.size, _BLOCK):
        block = values[first : first + _BLOCK]
        mask = scratch[: block.size]
        zeros, target = _ZEROS[: mask.nbytes], mask.view(np.uint8).data
        for cipher, sign in ciphers:
            cipher.update_into(zeros, target)
            if sign == 1:
                np.add(block, mask, out=block)
            else:
                np.subtract(block, mask, out=block)


def _keystream(key: bytes, counter: bytes) -> CipherContext:
    return Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()
