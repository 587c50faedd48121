"""The C heap of a process that is a client and little else."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Final

from boltz_protocol import limits

#: From glibc's malloc.h.
_M_MMAP_THRESHOLD: Final = -3
_M_TRIM_THRESHOLD: Final = -1
#: Free memory that the heap keeps: what the chunks of a transfer take in turns.
_KEPT_BYTES: Final = 32 << 20


def keep_heap() -> None:
    """Let glibc keep what chunks come and go in: handed back to the system and touched anew, each
    page is zeroed once more, which is a seventh of a large pull's CPU time.

    For programs, to be called once at their start: it is the whole process that is changed, so no
    library does it by itself. Other C libraries are left as they are.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, limits.MAX_MESSAGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
