"""One arriving update: decrypted and checked chunk by chunk while it streams in.

Pure of network and disk: the caller hands over ciphertext chunks in order, in a worker thread.
"""

from __future__ import annotations

from boltz_protocol.encoding import Encoding
from boltz_protocol.envelope import Opener, SequentialOpener
from boltz_protocol.errors import ChunkOutOfOrder, LimitExceeded
from boltz_protocol.limits import CHUNK_CIPHER_BYTES
from boltz_protocol.packing import norm_squared_packed24


class IncomingUpdate:
    """Checks an update whose chunks come in order, and adds up its exact norm.

    Args:
        opener: of the update's envelope; its layout says how many bytes each chunk has.
        encoding: the norm is checked against its bound; None for a masked vector, which looks like
            noise: there each client checks its own, and the server the sum's range.
    """

    def __init__(self, opener: Opener, encoding: Encoding | None) -> None:
        self._opener = SequentialOpener(opener)
        self._layout = opener.layout
        self._encoding = encoding
        self._norm_squared = 0
        self._plain = bytearray(min(opener.layout.chunk_bytes, max(1, opener.layout.size_bytes)))

    @property
    def next_offset(self) -> int:
        """Ciphertext bytes taken so far."""
        index = self._opener.next_index
        layout = self._layout
        return layout.cipher_size_bytes if index == layout.count else layout.cipher_offset(index)

    @property
    def complete(self) -> bool:
        """Whether every chunk has come."""
        return self._opener.next_index == self._layout.count

    @property
    def size_bytes(self) -> int:
        """Ciphertext bytes of the whole update."""
        return self._layout.cipher_size_bytes

    def validate(self, offset: int, size_bytes: int, expected: int) -> None:
        """Check a chunk's place and size before anything is done with it.

        Args:
            expected: the offset after the chunk before, which may still wait to be taken.

        Raises: LimitExceeded, ChunkOutOfOrder.
        """
        if size_bytes > CHUNK_CIPHER_BYTES:
            raise LimitExceeded(f"a chunk of {size_bytes} bytes; the cap is {CHUNK_CIPHER_BYTES}")
        if offset != expected:
            raise ChunkOutOfOrder(
                f"a chunk at offset {offset}; the next one is at {expected}",
                committed_bytes=expected,
            )

    def take(self, cipher: bytes | memoryview) -> None:
        """Decrypt the next chunk and add its squares.

        Raises: MalformedMessage (length), DecryptionFailed, NormExceeded as soon as it is certain.
        """
        size = self._opener.open_next_into(cipher, self._plain)
        if self._encoding is not None:
            self._norm_squared += norm_squared_packed24(memoryview(self._plain)[:size])
            self._encoding.check_norm(self._norm_squared)

    def finish(self) -> None:
        """Raises: DecryptionFailed where chunks are missing, NormExceeded."""
        self._opener.finish()
        if self._encoding is not None:
            self._encoding.check_norm(self._norm_squared)
