"""Where the authority's key lives: a folder of ours, or files that somebody else keeps.

Own folder (0700): `authority.key` (PKCS #8, PEM) and `authority.pem` (the root), both 0600. The
folder is made beside its place and renamed into it, so that it is there whole or not at all, and
of two servers that start at once one wins and the other reads the winner's.
"""

from __future__ import annotations

import shutil
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from boltz_mesh.services.identity.authority import Authority, AuthorityKey, Lifetimes, new_root
from boltz_mesh.services.identity.private_files import (
    check_private,
    read_private_file,
    sync_folder,
    write_new_private_file,
)
from boltz_protocol.certificates import load_pem_chain, pem_chain
from boltz_protocol.errors import CertificateInvalid, ConfigurationError, LimitExceeded

ROOT_LIFETIME: Final = timedelta(days=3650)
_KEY_FILE: Final = "authority.key"
_CHAIN_FILE: Final = "authority.pem"
# Kubernetes mounts secrets readable by the pod's group (fsGroup); others must stay out.
_OUTSIDE_FORBIDDEN_MODE: Final = 0o027


def open_or_create_authority(
    folder: Path, *, mesh: str, now: datetime, lifetimes: Lifetimes | None = None
) -> Authority:
    """The authority kept in `folder`; made there on the first start.

    Raises:
        ConfigurationError: the folder is open to others, incomplete, of another mesh, or its place
            cannot be written.
        CertificateInvalid: the root is not valid now.
        MalformedMessage: the mesh's name has not the form of one.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        _create(folder, mesh, now)
    check_private(folder)
    key = _load_key(read_private_file(folder / _KEY_FILE), folder / _KEY_FILE)
    chain = _load_chain(folder / _CHAIN_FILE)
    authority = Authority(mesh=mesh, key=key, chain=chain, now=now, lifetimes=lifetimes)
    if f"CN={mesh}," not in f"{authority.root.subject.rfc4514_string()},":
        raise ConfigurationError(
            f"{folder} holds the authority of {authority.root.subject.rfc4514_string()!r}, "
            f"not of the mesh {mesh!r}"
        )
    return authority


def outside_authority(
    *,
    certificate_path: Path,
    key_path: Path,
    chain_path: Path | None,
    mesh: str,
    now: datetime,
    lifetimes: Lifetimes | None = None,
) -> Authority:
    """An authority that somebody else made: a root, or an intermediate with its chain.

    Args:
        certificate_path: the issuing certificate (PEM); the rest of its chain may follow in it.
        key_path: its private key: EC P-256 or P-384 or RSA-3072, PEM, not encrypted.
        chain_path: what `certificate_path` lacks, up to and with the root; None for a root.

    Raises:
        ConfigurationError: a file is missing, open to others, or does not belong to the others.
        CertificateInvalid: a certificate may not issue others, or is not valid now.
    """
    key = _load_key(read_private_file(key_path, forbidden_mode=_OUTSIDE_FORBIDDEN_MODE), key_path)
    chain = _load_chain(certificate_path)
    if chain_path is not None:
        chain += _load_chain(chain_path)
    return Authority(mesh=mesh, key=key, chain=chain, now=now, lifetimes=lifetimes)


def _create(folder: Path, mesh: str, now: datetime) -> None:
    key, root = new_root(mesh, now=now, lifetime=ROOT_LIFETIME)
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be made: {error.strerror}") from error
    try:
        write_new_private_file(staging / _KEY_FILE, key_pem)
        write_new_private_file(staging / _CHAIN_FILE, pem_chain([root]))
        sync_folder(staging)
        # Fails on a folder with content: then another process was first, and its files count.
        staging.rename(folder)
    except OSError as error:
        shutil.rmtree(staging)
        if not (folder / _KEY_FILE).exists():
            raise ConfigurationError(f"{folder} cannot be made: {error.strerror}") from error
    sync_folder(folder.parent)


def _load_chain(path: Path) -> list[x509.Certificate]:
    try:
        return list(load_pem_chain(path.read_bytes()))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except (CertificateInvalid, LimitExceeded) as error:
        raise ConfigurationError(f"{path} does not hold certificates in PEM") from error


def _load_key(pem: bytes, path: Path) -> AuthorityKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"{path} is not an unencrypted private key in PEM") from error
    if not isinstance(key, EllipticCurvePrivateKey | RSAPrivateKey):
        raise ConfigurationError(f"{path} holds neither an EC nor an RSA key")
    return key
