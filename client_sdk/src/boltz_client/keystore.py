"""The client's key store: one folder (0700) that holds who this client is.

    lock       held while the store is open: two processes with one key would spoil each other's
               rounds (the newest session wins on the server)
    key.pem    the client's RSA-3072 private key, PKCS #8; made here, never leaves
    chain.pem  certificate chain, leaf first   } from enrolment on
    root.pem   the mesh's root certificate     }
    mesh.json  which mesh, where, the request key, and, once enrolled, the client id

`mesh.json` is written last, both when the store is made and when it is enrolled, so it tells how
far the store has come. The request key is on disk before the first request: when the reply to an
enrolment is lost, the same request key gets the same answer. Other files of this client (its
privacy ledger, its spool) may stand in the folder beside these.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from boltz_client.mesh_identity import MeshIdentity, new_mesh_identity, parse_mesh_identity
from boltz_client.private_files import (
    TEMPORARY_SUFFIX,
    check_private,
    lock_exclusively,
    replace_private_file,
)
from boltz_protocol.certificates import (
    certificate_fingerprint,
    der_chain,
    load_pem_chain,
    pem_chain,
    verify_client_chain,
)
from boltz_protocol.errors import (
    CertificateInvalid,
    ConfigurationError,
    LimitExceeded,
    MalformedMessage,
    StateConflict,
)
from boltz_protocol.ids import ClientId
from boltz_protocol.join import JoinString, check_address
from boltz_protocol.keys import (
    check_rsa_key,
    generate_rsa_key,
    load_rsa_private_key_pem,
    rsa_private_key_pem,
)

_LOCK: Final = "lock"
_KEY: Final = "key.pem"
_CHAIN: Final = "chain.pem"
_ROOT: Final = "root.pem"
_MESH: Final = "mesh.json"
# What a `create` that was cut off may leave; nothing was enrolled with it.
_CUT_OFF: Final = frozenset({_LOCK, _KEY, _KEY + TEMPORARY_SUFFIX, _MESH + TEMPORARY_SUFFIX})
_DELETE_ADVICE: Final = "Delete the folder and enrol again with a new join string"


def generate_client_key() -> RSAPrivateKey:
    """A fresh RSA-3072 key. Takes 0.05 to 0.5 s and blocks: call it in a thread."""
    return generate_rsa_key()


def certificate_request(private_key: RSAPrivateKey) -> bytes:
    """A PKCS #10 request in DER that proves possession of the key; the mesh sets all names."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.sign(private_key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


@dataclass(frozen=True, slots=True, repr=False)
class _Contents:
    private_key: RSAPrivateKey
    identity: MeshIdentity
    chain: tuple[x509.Certificate, ...] = ()
    root: x509.Certificate | None = None


class KeyStore:
    """An open, locked key store. Use it as a context manager, or `close` it.

    All methods do small blocking file work. Make it with `create` or `open`.
    """

    __slots__ = ("_chain", "_identity", "_lock", "_root", "folder", "private_key")

    def __init__(self, folder: Path, lock: int, contents: _Contents) -> None:
        self.folder = folder
        self.private_key = contents.private_key
        self._lock: int | None = lock
        self._identity = contents.identity
        self._chain = contents.chain
        self._root = contents.root

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a whole store, enrolled or not, stands there."""
        return (folder / _MESH).exists()

    @classmethod
    def create(cls, folder: Path, join: JoinString, private_key: RSAPrivateKey) -> KeyStore:
        """Make a store that is not enrolled yet, and open it. The token is not kept.

        An earlier attempt that was cut off before it was whole is begun again.

        Args:
            folder: absent, or empty.
            private_key: from `generate_client_key`.

        Raises:
            ConfigurationError: the folder holds other things or cannot be made.
            KeyStoreLocked: somebody else is making it.
            MalformedMessage: the key is not an RSA key that meshes accept.
        """
        check_rsa_key(private_key.public_key())
        lock = _make_folder(folder)
        try:
            if not {path.name for path in folder.iterdir()} <= _CUT_OFF:
                raise ConfigurationError(
                    f"{folder} is not empty: open the key store there, or name another folder"
                )
            identity = new_mesh_identity(join)
            replace_private_file(folder / _KEY, rsa_private_key_pem(private_key))
            replace_private_file(folder / _MESH, identity.encode())
        except BaseException:
            os.close(lock)
            raise
        return cls(folder, lock, _Contents(private_key, identity))

    @classmethod
    def open(cls, folder: Path) -> KeyStore:
        """Open and lock a store, after checking that it is whole, consistent and private.

        Raises:
            ConfigurationError: absent, half-written, damaged, or open to others.
            KeyStoreLocked: another opener holds it.
        """
        check_private(folder)
        if not (folder / _LOCK).exists():
            raise ConfigurationError(f"{folder} is not a key store")
        lock = lock_exclusively(folder / _LOCK)
        try:
            for name in (_KEY, _CHAIN, _ROOT, _MESH):
                (folder / (name + TEMPORARY_SUFFIX)).unlink(missing_ok=True)
            return cls(folder, lock, _load(folder))
        except BaseException:
            os.close(lock)
            raise

    def __enter__(self) -> KeyStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"KeyStore({str(self.folder)!r}, {self._identity.mesh}, {self.client_id})"

    def close(self) -> None:
        """Give the lock back. A second call does nothing."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def identity(self) -> MeshIdentity:
        """Which mesh, and who this client is there."""
        return self._identity

    @property
    def client_id(self) -> ClientId | None:
        """None until enrolled."""
        return self._identity.client_id

    @property
    def request_key(self) -> str:
        """64 hex digits that make a repeated enrolment recognisable."""
        return self._identity.request_key

    @property
    def private_key_pem(self) -> bytes:
        """PKCS #8, not encrypted, as TLS libraries read it: a secret."""
        return rsa_private_key_pem(self.private_key)

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """Leaf first, without the root; empty until enrolled."""
        return self._chain

    @property
    def chain_pem(self) -> bytes:
        """`chain` as TLS libraries read it. Raises: StateConflict until enrolled."""
        self._require_enrolled()
        return pem_chain(self._chain)

    @property
    def root(self) -> x509.Certificate:
        """The mesh's root, as pinned by the join string. Raises: StateConflict until enrolled."""
        root = self._root
        self._require_enrolled()
        assert root is not None
        return root

    @property
    def root_pem(self) -> bytes:
        """`root` as TLS libraries read it. Raises: StateConflict until enrolled."""
        return pem_chain([self.root])

    @property
    def not_after(self) -> datetime:
        """When the certificate ends; aware, UTC. Raises: StateConflict until enrolled."""
        self._require_enrolled()
        return self._chain[0].not_valid_after_utc

    def complete_enrolment(
        self,
        client_id: ClientId,
        chain: tuple[x509.Certificate, ...],
        root: x509.Certificate,
        *,
        now: datetime,
    ) -> None:
        """Check and keep what the mesh answered. The same answer twice is fine.

        Raises:
            CertificateInvalid: another authority, another key, another name, or not valid now.
            StateConflict: enrolled already, as another client.
        """
        if self.client_id not in {None, client_id}:
            raise StateConflict(f"the store is enrolled as {self.client_id}, not {client_id}")
        identity = replace(self._identity, client_id=client_id)
        _check_chain(identity, self.private_key, chain, root, now)
        replace_private_file(self.folder / _ROOT, pem_chain([root]))
        replace_private_file(self.folder / _CHAIN, pem_chain(chain))
        replace_private_file(self.folder / _MESH, identity.encode())
        self._identity, self._chain, self._root = identity, chain, root

    def replace_chain(self, chain: tuple[x509.Certificate, ...], *, now: datetime) -> None:
        """Keep a renewed certificate for the same key and name.

        Raises:
            CertificateInvalid: another authority, another key, another name, or not valid now.
            StateConflict: not enrolled yet.
        """
        _check_chain(self._identity, self.private_key, chain, self.root, now)
        replace_private_file(self.folder / _CHAIN, pem_chain(chain))
        self._chain = chain

    def move(self, *, enroll_address: str, mesh_address: str) -> None:
        """Keep new addresses of the same mesh. Raises: MalformedMessage."""
        check_address(enroll_address)
        check_address(mesh_address)
        identity = replace(self._identity, enroll_address=enroll_address, mesh_address=mesh_address)
        replace_private_file(self.folder / _MESH, identity.encode())
        self._identity = identity

    def check_join(self, join: JoinString) -> None:
        """Check that a join string is for this store's mesh.

        Raises:
            StateConflict: it is for another one; use another folder.
        """
        if join.authority_fingerprint != self._identity.authority_fingerprint:
            raise StateConflict(
                f"the key store {self.folder} belongs to the mesh {self._identity.mesh!r} of "
                "another authority than the join string's"
            )

    def _require_enrolled(self) -> None:
        if self.client_id is None:
            raise StateConflict(f"the key store {self.folder} is not enrolled yet")


def _make_folder(folder: Path) -> int:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be made: {error.strerror}") from error
    check_private(folder)
    return lock_exclusively(folder / _LOCK)


def _load(folder: Path) -> _Contents:
    if not (folder / _MESH).exists():
        raise ConfigurationError(f"the key store {folder} is half-written. {_DELETE_ADVICE}")
    identity = _parse_identity(folder)
    private_key = _parse_private_key(folder)
    if identity.client_id is None:
        return _Contents(private_key, identity)
    try:
        chain = load_pem_chain(_read(folder, _CHAIN))
        root, *more = load_pem_chain(_read(folder, _ROOT))
        if more:
            raise CertificateInvalid("several roots")
        # As of its own beginning: an expired certificate can be renewed, so it may be opened.
        now = chain[0].not_valid_before_utc
        _check_chain(identity, private_key, chain, root, now)
    except (CertificateInvalid, LimitExceeded) as error:
        raise ConfigurationError(
            f"the certificates in {folder} do not go with its key and mesh: {error.message}. "
            f"{_DELETE_ADVICE}"
        ) from error
    return _Contents(private_key, identity, chain, root)


def _read(folder: Path, name: str) -> bytes:
    if not (folder / name).exists():
        raise ConfigurationError(f"the key store {folder} lacks {name}. {_DELETE_ADVICE}")
    check_private(folder / name)
    return (folder / name).read_bytes()


def _parse_identity(folder: Path) -> MeshIdentity:
    try:
        return parse_mesh_identity(_read(folder, _MESH))
    except MalformedMessage as error:
        raise ConfigurationError(
            f"{folder / _MESH} is damaged: {error.message}. {_DELETE_ADVICE}"
        ) from error


def _parse_private_key(folder: Path) -> RSAPrivateKey:
    try:
        return load_rsa_private_key_pem(_read(folder, _KEY))
    except MalformedMessage as error:
        raise ConfigurationError(
            f"{folder / _KEY} is damaged: {error.message}. {_DELETE_ADVICE}"
        ) from error


def _check_chain(
    identity: MeshIdentity,
    private_key: RSAPrivateKey,
    chain: tuple[x509.Certificate, ...],
    root: x509.Certificate,
    now: datetime,
) -> None:
    if certificate_fingerprint(root) != identity.authority_fingerprint:
        raise CertificateInvalid("the root is not the one that the join string pinned")
    client = verify_client_chain(der_chain(chain), root=root, mesh=identity.mesh, now=now)
    if client.client_id != identity.client_id:
        raise CertificateInvalid(f"the certificate names the client {client.client_id}")
    if client.public_key != private_key.public_key():
        raise CertificateInvalid("the certificate is for another key")
