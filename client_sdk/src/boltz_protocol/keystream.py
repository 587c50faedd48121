"""Random bits for rounding and noise: the AES-256-CTR keystream of a fresh key.

Bytes are defined by the key alone (counter block zero first, NIST SP 800-38A section 6.5), in the
order in which they are drawn, whatever the sizes of the draws; so a vector can name a key and any
language can produce the same bits. Multi-byte numbers are little-endian.
"""

from __future__ import annotations

import os
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

KEY_BYTES: Final = 32
# CTR turns zeros into keystream. One block of zeros is shared; larger draws go through it in turns.
_ZEROS: Final = bytes(1 << 18)


class Keystream:
    """One keystream, used by one thread for one purpose and then thrown away.

    Args:
        key: 32 bytes. Code that protects anyone calls `Keystream.fresh()`; a key of one's own is
            for tests and vectors, where the same bits are wanted again.
    """

    __slots__ = ("_encryptor",)

    def __init__(self, key: bytes) -> None:
        assert len(key) == KEY_BYTES, "AES-256 takes a key of 32 bytes"
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    @classmethod
    def fresh(cls) -> Self:
        """A stream under a new key from the operating system, which nobody else can know."""
        return cls(os.urandom(KEY_BYTES))

    def fill(self, out: npt.NDArray[Any]) -> None:
        """Overwrite a contiguous array with the next `out.nbytes` bytes of the stream."""
        target = out.reshape(-1).view(np.uint8)
        for start in range(0, target.size, len(_ZEROS)):
            part = target[start : start + len(_ZEROS)]
            zeros = _ZEROS if part.size == len(_ZEROS) else memoryview(_ZEROS)[: part.size]
            self._encryptor.update_into(zeros, part.data)

    def uint16(self, count: int) -> npt.NDArray[np.uint16]:
        """The next `count` 16-bit numbers, shape (count,)."""
        out = np.empty(count, dtype="<u2")
        self.fill(out)
        return out

    def uint32(self, count: int) -> npt.NDArray[np.uint32]:
        """The next `count` 32-bit numbers, shape (count,)."""
        out = np.empty(count, dtype="<u4")
        self.fill(out)
        return out

    def uint64(self, count: int) -> npt.NDArray[np.uint64]:
        """The next `count` 64-bit numbers, shape (count,)."""
        out = np.empty(count, dtype="<u8")
        self.fill(out)
        return out
