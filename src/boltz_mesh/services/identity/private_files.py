"""Files that only the server's own user may read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from boltz_protocol.errors import ConfigurationError


def write_new_private_file(path: Path, content: bytes) -> None:
    """Create a file of mode 0600 with its content on disk. The folder is the caller's to sync.

    Raises:
        FileExistsError: there is one already; it is left alone.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_private_file(path: Path, *, forbidden_mode: int = 0o077) -> bytes:
    """Read a file after checking that nobody else can.

    Args:
        forbidden_mode: permission bits that must not be set.

    Raises:
        ConfigurationError: not there, not readable, or open to others.
    """
    check_private(path, forbidden_mode=forbidden_mode)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


def check_private(path: Path, *, forbidden_mode: int = 0o077) -> None:
    """Check a file's or folder's permissions. Raises: ConfigurationError."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    if mode & forbidden_mode:
        raise ConfigurationError(
            f"{path} has mode {mode:04o}: others can reach it. "
            f"Run: chmod {mode & ~forbidden_mode:o} {path}"
        )
