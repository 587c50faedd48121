"""Files that only their owner may read, replaced whole or not at all."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from typing import Final

from boltz_protocol.errors import ConfigurationError, KeyStoreLocked

#: What an interrupted `replace_private_file` leaves behind; never read.
TEMPORARY_SUFFIX: Final = ".tmp"
_OTHERS: Final = 0o077


def replace_private_file(path: Path, content: bytes) -> None:
    """Write a file of mode 0600, on disk before it takes its name.

    The caller is the only writer of the folder (it holds the folder's lock).
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_private(path: Path) -> None:
    """Check that only the owner can reach a file or folder.

    Raises:
        ConfigurationError: not there, open to others, or somebody else's.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    mode = stat.S_IMODE(status.st_mode)
    if mode & _OTHERS:
        raise ConfigurationError(
            f"{path} has mode {mode:04o}: others can reach it, and may have read the key. "
            f"Run: chmod {mode & ~_OTHERS:o} {path}"
        )
    if status.st_uid != os.geteuid():
        raise ConfigurationError(
            f"{path} belongs to user {status.st_uid}, this process runs as {os.geteuid()}"
        )


def lock_exclusively(path: Path) -> int:
    """Take the lock that a file stands for; closing the returned descriptor gives it back.

    The kernel also gives it back when the process ends, however it ends.

    Raises:
        KeyStoreLocked: another opener, in this process or another, holds it.
        ConfigurationError: the file system does not let it be made or locked.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be made: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise KeyStoreLocked(f"the key store {path.parent} is in use") from error
    except OSError as error:
        os.close(descriptor)
        raise ConfigurationError(f"{path} cannot be locked: {error.strerror}") from error
    return descriptor
