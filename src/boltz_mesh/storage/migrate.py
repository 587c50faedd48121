"""Numbered SQL files, each applied once, in order, in a transaction of its own.

Any number of replicas may start at once: an advisory lock lets one migrate while the others wait
in the database. A file that was applied must never change; its SHA-256 is compared at each start.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Final

import asyncpg

from boltz_mesh.storage.postgres import LOCK_CLASS, Connection, LockName, connect
from boltz_protocol.errors import ConfigurationError

_FILE_NAME: Final = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_PACKAGE: Final = "boltz_mesh.storage.migrations"


@dataclass(frozen=True, slots=True)
class Migration:
    """One SQL file."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """Hex digest of the file's text."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def load_migrations() -> tuple[Migration, ...]:
    """The files of this release, by number. Numbers are 1, 2, 3 and so on without a gap."""
    found: list[Migration] = []
    for entry in resources.files(_PACKAGE).iterdir():
        if (match := _FILE_NAME.fullmatch(entry.name)) is not None:
            found.append(Migration(int(match[1]), entry.name, entry.read_text(encoding="utf-8")))
    found.sort(key=lambda migration: migration.version)
    assert [migration.version for migration in found] == list(range(1, len(found) + 1))
    return tuple(found)


async def migrate(url: str, migrations: Sequence[Migration] | None = None) -> tuple[str, ...]:
    """Bring the database at `url` up to this release. Returns the names of the files applied now.

    Raises: ConfigurationError when an applied file differs from ours, or when the database is
    newer than this release; Unavailable when it cannot be reached.
    """
    wanted = load_migrations() if migrations is None else tuple(migrations)
    connection = await connect(url, application_name="boltz-mesh migrate")
    try:
        # The lock belongs to the session: it ends with the connection, whatever happens.
        await connection.execute(
            "-- migrate\nSELECT pg_advisory_lock($1, $2)",
            LOCK_CLASS,
            LockName.MIGRATION.value,
            timeout=None,
        )
        return await _apply(connection, wanted)
    finally:
        await connection.close()


async def _apply(connection: Connection, wanted: Sequence[Migration]) -> tuple[str, ...]:
    await connection.execute(
        "-- migrate\n"
        "CREATE TABLE IF NOT EXISTS schema_migrations ("
        " version integer PRIMARY KEY, name text NOT NULL, sha256 text NOT NULL,"
        " applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"
    )
    rows = await connection.fetch("-- migrate\nSELECT version, sha256 FROM schema_migrations")
    applied = {int(row["version"]): str(row["sha256"]) for row in rows}
    validate_history(applied, wanted)
    done: list[str] = []
    for migration in wanted:
        if migration.version in applied:
            continue
        try:
            async with connection.transaction():
                await connection.execute(migration.sql, timeout=None)
                await connection.execute(
                    "-- migrate\n"
                    "INSERT INTO schema_migrations (version, name, sha256) VALUES ($1, $2, $3)",
                    migration.version,
                    migration.name,
                    migration.sha256,
                )
        except asyncpg.PostgresError as error:
            raise ConfigurationError(
                f"migration {migration.name} failed and was rolled back: {error}",
                setting="DATABASE_URL",
            ) from error
        done.append(migration.name)
    return tuple(done)


def validate_history(applied: dict[int, str], wanted: Sequence[Migration]) -> None:
    """Check that what was applied (version to SHA-256) is a prefix of what this release has.

    Raises: ConfigurationError.
    """
    ours = {migration.version: migration for migration in wanted}
    for version, sha256 in sorted(applied.items()):
        if version not in ours:
            raise ConfigurationError(
                f"the database has migration {version}, which this release does not know: it was "
                "made by a newer release; start that one",
                setting="DATABASE_URL",
            )
        if ours[version].sha256 != sha256:
            raise ConfigurationError(
                f"migration {ours[version].name} was applied with other contents: an applied file "
                "must not change; restore it and put the change into a new file",
                setting="DATABASE_URL",
            )
