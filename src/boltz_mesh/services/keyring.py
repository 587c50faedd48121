"""The mesh's own keys, unwrapped in memory: it signs, it says what to encrypt for, it unwraps.

One Ed25519 statement key certified by the root; RSA-3072 encryption keys that live a day and are
made anew when half of that is over; one key-encryption key in a file (0600) that wraps the others
and every content key at rest. Replicas share them through the database, so one replica can
unwrap what was encrypted for a key that another made.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from boltz_mesh.services.clock import Clock, as_datetime
from boltz_mesh.services.identity.authority import Authority
from boltz_mesh.services.identity.private_files import read_private_file, write_new_private_file
from boltz_mesh.storage import server_keys
from boltz_mesh.storage.postgres import LOCK_CLASS, Connection, Database, LockName
from boltz_mesh.storage.server_keys import ServerKey, ServerKeyKind
from boltz_protocol import limits
from boltz_protocol.codec import encode_encryption_key, encode_statement, parse_statement
from boltz_protocol.context import BlobContext
from boltz_protocol.envelope import ContentKey, unwrap_as_recipient
from boltz_protocol.errors import ConfigurationError, MeshError, UnknownKey
from boltz_protocol.ids import KeyId, RoundId, parse_key_id
from boltz_protocol.key_wrap import KeyEncryptionKey, unwrap_secret, wrap_secret
from boltz_protocol.keys import generate_rsa_key, public_key_der, public_key_id
from boltz_protocol.messages import EncryptionKey
from boltz_protocol.statement import Statement, sign_ed25519

ENCRYPTION_KEY_TYPE: Final = "boltz_mesh.v1.EncryptionKey"
_RSA_OAEP: Final = "rsa-oaep-sha256"
_ED25519: Final = "ed25519"


@dataclass(frozen=True, slots=True)
class _Encryption:
    key_id: KeyId
    private_key: RSAPrivateKey = field(repr=False)
    statement: Statement
    not_before_ms: int
    not_after_ms: int


@dataclass(frozen=True, slots=True)
class _Signing:
    private_key: Ed25519PrivateKey = field(repr=False)
    certificate_der: bytes
    not_after_ms: int


def open_or_create_kek(path: Path) -> KeyEncryptionKey:
    """The key-encryption key in a file of its own (0600), made there on the first start.

    Raises: ConfigurationError where the file is open to others or damaged.
    """
    if not path.exists():
        made = KeyEncryptionKey.generate()
        document = {"key_id": made.key_id, "material": made.material.hex()}
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # another replica was first: its key counts
            write_new_private_file(path, json.dumps(document).encode())
    try:
        document = json.loads(read_private_file(path))
        return KeyEncryptionKey(
            parse_key_id(document["key_id"]), bytes.fromhex(document["material"])
        )
    except (ValueError, KeyError, TypeError, AssertionError, MeshError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(
            f"{path} is damaged; without it nothing at rest can be read: restore it from a backup"
        ) from error


class KeyRing:
    """Made by `open`. Private keys never leave it."""

    def __init__(
        self, database: Database, authority: Authority, kek: KeyEncryptionKey, clock: Clock
    ) -> None:
        self.kek = kek
        self._database = database
        self._authority = authority
        self._clock = clock
        self._signing: dict[KeyId, _Signing] = {}
        self._encryption: dict[KeyId, _Encryption] = {}
        self._making = asyncio.Lock()
        #: Content keys of running rounds: an update is opened when it comes and again when it is
        #: folded, and the second time should not cost another 2 ms of RSA.
        self._content_keys: dict[RoundId, dict[bytes, ContentKey]] = {}

    def __repr__(self) -> str:
        return f"KeyRing({self.mesh_id!r}, {len(self._encryption)} encryption keys)"

    @classmethod
    async def open(
        cls, database: Database, authority: Authority, kek: KeyEncryptionKey, clock: Clock
    ) -> KeyRing:
        """Read the keys, and make those that are missing.

        Raises: DecryptionFailed where the key-encryption key is not the one they were wrapped by.
        """
        ring = cls(database, authority, kek, clock)
        await ring.refresh()
        return ring

    @property
    def mesh_id(self) -> str:
        """The mesh's name."""
        return self._authority.mesh

    @property
    def root_der(self) -> bytes:
        """The mesh's root certificate."""
        return self._authority.root_der

    # --- statements -----------------------------------------------------------------------------

    def sign_statement(self, type: str, payload: bytes) -> Statement:
        """Sign a payload as the mesh (about 50 us). Raises: LimitExceeded."""
        newest = max(self._signing.values(), key=lambda key: key.not_after_ms)
        return sign_ed25519(type=type, payload=payload, private_key=newest.private_key)

    def statement_certificates(self) -> list[bytes]:
        """Certificates (DER) of the valid statement keys, the one that ends last at the end."""
        now_ms = self._clock()
        valid = [key for key in self._signing.values() if key.not_after_ms > now_ms]
        return [key.certificate_der for key in sorted(valid, key=lambda key: key.not_after_ms)]

    # --- encryption -----------------------------------------------------------------------------

    def encryption_keys(self) -> list[Statement]:
        """Announcements of the valid encryption keys, the one that ends last at the end."""
        now_ms = self._clock()
        valid = [key for key in self._encryption.values() if key.not_after_ms > now_ms]
        return [key.statement for key in sorted(valid, key=lambda key: key.not_after_ms)]

    async def encryption_key_until(self, needed_until_ms: int) -> Statement:
        """The announcement of a key that is valid now and at `needed_until_ms`; made if need be.

        Raises: UnknownKey where `needed_until_ms` lies beyond any key's life.
        """
        for _ in range(2):
            newest = max(self._encryption.values(), key=lambda key: key.not_after_ms)
            if newest.not_after_ms >= needed_until_ms:
                return newest.statement
            await self.refresh(needed_until_ms)
        raise UnknownKey(f"no encryption key will be valid at {needed_until_ms}")

    async def unwrap_content_key(
        self, round_id: RoundId, key_id: KeyId, wrapped: bytes
    ) -> ContentKey:
        """Unwrap the content key of an update of a round (2 ms the first time, in a thread).

        Raises: UnknownKey (never ours, or past its end), DecryptionFailed.
        """
        known = self._content_keys.get(round_id, {}).get(wrapped)
        if known is not None:
            return known
        key = self._encryption.get(key_id)
        if key is None:
            await self.refresh()  # another replica may have made it
            key = self._encryption.get(key_id)
        if key is None or key.not_after_ms <= self._clock():
            raise UnknownKey(f"encryption key {key_id} is not one of this mesh that is valid now")
        content_key = await asyncio.to_thread(unwrap_as_recipient, wrapped, key.private_key)
        if sum(map(len, self._content_keys.values())) < limits.MAX_UNWRAPPED_KEYS:
            self._content_keys.setdefault(round_id, {})[wrapped] = content_key
        return content_key

    def forget_round(self, round_id: RoundId) -> None:
        """Let the content keys of a round go: it has ended."""
        self._content_keys.pop(round_id, None)

    # --- keeping --------------------------------------------------------------------------------

    async def refresh(self, needed_until_ms: int | None = None) -> None:
        """Read all valid keys, make what is missing or about to end, destroy what has ended."""
        async with self._making:
            now_ms = self._clock()
            half_life_ms = now_ms + limits.SERVER_KEY_LIFETIME_MS // 2
            until_ms = max(half_life_ms, needed_until_ms or 0)
            # Made outside the transaction: it takes up to half a second.
            spare: RSAPrivateKey | None = None

            async def body(connection: Connection) -> bool:
                await connection.execute(
                    "-- refresh_keys\nSELECT pg_advisory_xact_lock($1, $2)",
                    LOCK_CLASS,
                    LockName.SERVER_KEYS.value,
                )
                for kind in (ServerKeyKind.ENCRYPTION, ServerKeyKind.STATEMENT):
                    await server_keys.destroy_expired_server_keys(connection, kind, now_ms)
                signing = await server_keys.valid_server_keys(
                    connection, ServerKeyKind.STATEMENT, now_ms
                )
                if not any(key.not_after_ms > half_life_ms for key in signing):
                    signing.append(await self._insert_signing(connection, now_ms))
                self._signing = {key.key_id: self._unwrapped_signing(key) for key in signing}
                encryption = await server_keys.valid_server_keys(
                    connection, ServerKeyKind.ENCRYPTION, now_ms
                )
                enough = any(key.not_after_ms >= until_ms for key in encryption)
                if not enough and spare is not None:
                    encryption.append(await self._insert_encryption(connection, spare, now_ms))
                    enough = True
                known = self._encryption
                self._encryption = {
                    key.key_id: known.get(key.key_id) or self._unwrapped_encryption(key)
                    for key in encryption
                }
                return enough

            if not await self._database.run_tx("refresh_keys", body):
                spare = await asyncio.to_thread(generate_rsa_key)
                await self._database.run_tx("refresh_keys", body)

    async def _insert_signing(self, connection: Connection, now_ms: int) -> ServerKey:
        private_key = Ed25519PrivateKey.generate()
        issued = self._authority.certify_statement_key(
            private_key.public_key(), now=as_datetime(now_ms)
        )
        key_id = public_key_id(private_key.public_key())
        key = ServerKey(
            key_id=key_id,
            kind=ServerKeyKind.STATEMENT,
            algorithm=_ED25519,
            public=public_key_der(private_key.public_key()),
            wrapped_private=self._wrapped(private_key, key_id),
            kek_id=self.kek.key_id,
            statement=None,
            certificate=issued.chain_der[0],
            not_before_ms=now_ms,
            not_after_ms=int(issued.not_after.timestamp() * 1000),
        )
        await server_keys.insert_server_key(connection, key)
        return key

    async def _insert_encryption(
        self, connection: Connection, private_key: RSAPrivateKey, now_ms: int
    ) -> ServerKey:
        public = public_key_der(private_key.public_key())
        key_id = public_key_id(private_key.public_key())
        not_after_ms = now_ms + limits.SERVER_KEY_LIFETIME_MS
        announced = EncryptionKey(
            mesh_id=self.mesh_id,
            key_id=key_id,
            public_key_spki=public,
            not_before_ms=now_ms,
            not_after_ms=not_after_ms,
            algorithm=_RSA_OAEP,
        )
        statement = self.sign_statement(ENCRYPTION_KEY_TYPE, encode_encryption_key(announced))
        key = ServerKey(
            key_id=key_id,
            kind=ServerKeyKind.ENCRYPTION,
            algorithm=_RSA_OAEP,
            public=public,
            wrapped_private=self._wrapped(private_key, key_id),
            kek_id=self.kek.key_id,
            statement=encode_statement(statement),
            certificate=None,
            not_before_ms=now_ms,
            not_after_ms=not_after_ms,
        )
        await server_keys.insert_server_key(connection, key)
        return key

    def _context(self, key_id: KeyId) -> BlobContext:
        return BlobContext(self.mesh_id, "server-key", (key_id,))

    def _wrapped(self, private_key: RSAPrivateKey | Ed25519PrivateKey, key_id: KeyId) -> bytes:
        der = private_key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return wrap_secret(der, self.kek, self._context(key_id))

    def _unwrapped(self, key: ServerKey) -> object:
        assert key.wrapped_private is not None, "valid keys are not destroyed"
        der = unwrap_secret(key.wrapped_private, self.kek, self._context(key.key_id))
        return serialization.load_der_private_key(der, password=None)

    def _unwrapped_signing(self, key: ServerKey) -> _Signing:
        private_key = self._unwrapped(key)
        assert isinstance(private_key, Ed25519PrivateKey)
        assert key.certificate is not None
        x509.load_der_x509_certificate(key.certificate)
        return _Signing(private_key, key.certificate, key.not_after_ms)

    def _unwrapped_encryption(self, key: ServerKey) -> _Encryption:
        private_key = self._unwrapped(key)
        assert isinstance(private_key, RSAPrivateKey)
        assert key.statement is not None
        return _Encryption(
            key.key_id,
            private_key,
            parse_statement(key.statement),
            key.not_before_ms,
            key.not_after_ms,
        )
