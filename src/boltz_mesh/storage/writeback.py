"""Bringing a long file to disk while it is still being written.

The kernel would begin seconds later, or when the file is flushed at its end: then whoever waits for
the flush waits for all of it, while no processor has anything to do. This is a hint and makes
nothing durable; the flush at the end stays.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Final

#: Bytes that are handed to the disk at a time.
_STEP_BYTES: Final = 8 << 20
#: SYNC_FILE_RANGE_WRITE of Linux: begin to write, wait for nothing.
_WRITE: Final = 2


def _found() -> Callable[[int, int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    function.restype = ctypes.c_int
    return lambda fd, offset, size, flags: int(function(fd, offset, size, flags))


_sync_file_range: Final = _found()


class Writeback:
    """How much of one file, written from front to back, the disk has been asked to take."""

    __slots__ = ("_begun",)

    def __init__(self) -> None:
        self._begun = 0

    def advance(self, fd: int, offset: int) -> None:
        """The file has `offset` bytes now."""
        size_bytes = offset - self._begun
        if size_bytes >= _STEP_BYTES and _sync_file_range is not None:
            # Should it fail, the flush at the end fails too, and is listened to.
            _sync_file_range(fd, self._begun, size_bytes, _WRITE)
            self._begun = offset
