"""Credential folders of operators and auditors: written once, moved when the address changes."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from boltz_mesh.app.cli.connection import mesh_file, read_credential
from boltz_mesh.app.config import Config
from boltz_mesh.services.clock import as_datetime, system_clock
from boltz_mesh.services.identity.authority import Authority, Credential
from boltz_mesh.services.identity.authority_files import (
    open_or_create_authority,
    outside_authority,
)
from boltz_mesh.services.identity.private_files import write_new_private_file
from boltz_protocol.errors import AlreadyExists


def write_credential(
    folder: Path, credential: Credential, authority: Authority, *, address: str
) -> None:
    """Write `key.pem`, `chain.pem`, `root.pem` and `mesh.json` (0600) into a new folder (0700).

    Raises: AlreadyExists where the folder is there.
    """
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError as error:
        raise AlreadyExists(f"{folder} exists already") from error
    write_new_private_file(folder / "key.pem", credential.private_key_pem)
    write_new_private_file(folder / "chain.pem", credential.issued.chain_pem)
    write_new_private_file(folder / "root.pem", authority.root_pem)
    write_new_private_file(folder / "mesh.json", mesh_file(authority.mesh, address))


def issue_credential(
    config: Config, name: str, role: Literal["operator", "auditor"], folder: Path
) -> None:
    """Issue one from the authority in the data directory, for where the mesh listens now.

    Raises: AlreadyExists, ConfigurationError, MalformedMessage (the name).
    """
    now = as_datetime(system_clock())
    first = read_credential(config.data_dir / "operator")
    named = msgspec.structs.replace(config.mesh, id=first.mesh)
    authority = open_authority(msgspec.structs.replace(config, mesh=named), now)
    issue = authority.issue_operator if role == "operator" else authority.issue_auditor
    write_credential(folder, issue(name, now=now), authority, address=first.address)


def open_authority(config: Config, now: datetime) -> Authority:
    """The mesh's own authority in the data directory, or the outside one that is configured."""
    section = config.authority
    if not section.certificate:
        return open_or_create_authority(config.data_dir / "authority", mesh=config.mesh.id, now=now)
    return outside_authority(
        certificate_path=Path(section.certificate),
        key_path=Path(section.key),
        chain_path=Path(section.chain) if section.chain else None,
        mesh=config.mesh.id,
        now=now,
    )


def move_credential(folder: Path, mesh: str, address: str) -> None:
    """Let a credential folder point to where the mesh listens now."""
    target = folder / "mesh.json"
    content = mesh_file(mesh, address)
    if target.exists() and target.read_bytes() == content:
        return
    staging = folder / "mesh.json.new"
    staging.unlink(missing_ok=True)
    write_new_private_file(staging, content)
    os.replace(staging, target)
