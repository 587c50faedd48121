"""Memory for one update's integers, kept from round to round.

Fresh memory is zeroed page by page when it is first touched, which takes longer than all of the
arithmetic of an encoding. So a client keeps what it needed last, and between rounds tells the
operating system that it may have the pages if it runs short: what is in them is of no use then.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]

_ELEMENT_BYTES: Final = 4
# Not on every system; without it the pages stay as they are.
_LAZILY_FREE: Final[int | None] = getattr(mmap, "MADV_FREE", None)
_HUGE_PAGES: Final[int | None] = getattr(mmap, "MADV_HUGEPAGE", None)


class Workspace:
    """One piece of memory. Two threads at a time are served too; the second one's is not kept."""

    __slots__ = ("_kept", "_lock")

    def __init__(self) -> None:
        self._kept: mmap.mmap | None = None
        self._lock = threading.Lock()

    @contextmanager
    def integers(self, count: int) -> Iterator[Int32Array]:
        """An int32 array, shape (count,), of unknown content; it must not be used afterwards."""
        with self._lock:
            memory, self._kept = self._kept, None
        if memory is None or len(memory) != count * _ELEMENT_BYTES:
            memory = _anonymous(count * _ELEMENT_BYTES)
        try:
            yield np.frombuffer(memory, dtype=np.int32)
        finally:
            _advise(memory, _LAZILY_FREE)
            with self._lock:
                self._kept = memory


def _anonymous(size_bytes: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_ANONYMOUS"):
        return mmap.mmap(-1, size_bytes)
    # Private, unlike Python's default: shared memory gets no huge pages and is never given back.
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _advise(memory, _HUGE_PAGES)
    return memory


def _advise(memory: mmap.mmap, advice: int | None) -> None:
    if advice is not None:
        # A kernel built without it says so; it is advice only.
        with suppress(OSError):
            memory.madvise(advice)
