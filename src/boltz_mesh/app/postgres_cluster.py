"""Making a PostgreSQL data directory, whole or not at all."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from boltz_mesh.app.postgres_binaries import RunAs
from boltz_protocol.errors import ConfigurationError

USER: Final = "boltz"
DATABASE: Final = "boltz_mesh"
#: What PostgreSQL's programs see: nothing of ours leaks in, neither PG* settings nor a locale.
ENVIRONMENT: Final[Mapping[str, str]] = MappingProxyType(
    {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
)
_OUTPUT_TAIL_BYTES: Final = 4096


def load_password(home: Path) -> str:
    """The password for connections over TCP, made on first use."""
    path = home / "password"
    if path.exists():
        return path.read_text()
    password = secrets.token_urlsafe(32)
    new = home / f"password.new-{secrets.token_hex(4)}"
    _write_private(new, password)
    new.rename(path)
    return password


async def create_cluster(
    cluster: Path, binaries: Path, run_as: RunAs, password: str, *, sync: bool
) -> None:
    """Make the data directory `cluster` with the mesh's user and empty database.

    It is made beside its final place and renamed. The caller holds the folder's lock, so what an
    interrupted attempt left can go. Raises: ConfigurationError with what the programs said.
    """
    home = cluster.parent
    for rest in home.glob(f"{cluster.name}.new-*"):
        shutil.rmtree(rest)
    if run_as.uid != os.geteuid():
        home.chmod(0o711)  # the server's user must be able to pass
    new = home / f"{cluster.name}.new-{secrets.token_hex(4)}"
    new.mkdir(mode=0o700)
    # initdb reads the password from a file and wants an empty folder: one level further down.
    data, password_file = new / "data", new / "password"
    _write_private(password_file, password)
    for path in (new, password_file):
        os.chown(path, run_as.uid, run_as.gid)
    initdb = [str(binaries / "initdb"), "-D", str(data), "-U", USER, f"--pwfile={password_file}"]
    # A Unix socket lies in the data directory, which only its owner may enter.
    initdb += ["--auth-local=trust", "--auth-host=scram-sha-256"]
    initdb += ["--encoding=UTF8", "--locale=C", "--data-checksums", "--no-instructions"]
    initdb += [] if sync else ["--no-sync"]
    await _run([*run_as.prefix, *initdb])
    single = [str(binaries / "postgres"), "--single", "-D", str(data)]
    single += ["-c", f"fsync={'on' if sync else 'off'}", "postgres"]
    await _run([*run_as.prefix, *single], f"CREATE DATABASE {DATABASE}\n".encode())
    data.rename(cluster)
    shutil.rmtree(new)
    if sync:
        _sync_folder(home)


async def _run(command: list[str], stdin: bytes = b"") -> None:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(ENVIRONMENT),
        cwd="/",
    )
    try:
        output, _ = await process.communicate(stdin)
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    # A single-user server reports a failed statement on its output and still ends with 0.
    if process.returncode != 0 or b"ERROR:" in output or b"FATAL:" in output:
        raise ConfigurationError(
            "the database folder could not be made: "
            + output[-_OUTPUT_TAIL_BYTES:].decode(errors="replace"),
            setting="data_dir",
        )


def _write_private(path: Path, text: str) -> None:
    with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
