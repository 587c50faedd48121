"""The mesh's keys as this client has verified them: statement keys and encryption keys.

Statement keys are certified by the pinned root; a statement of the mesh counts only under one of
them. Everything is pure; `MeshClient` fetches certificates when a key id is not known.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from boltz_protocol import codec, limits
from boltz_protocol import messages as m
from boltz_protocol.certificates import StatementCertificate, verify_statement_certificate
from boltz_protocol.errors import LimitExceeded, MalformedMessage, UnknownKey
from boltz_protocol.keys import load_rsa_public_key, public_key_id
from boltz_protocol.statement import MESH_ALGORITHMS, Statement, digest, verify

#: Statement keys of one mesh that are valid at the same time: a few, while they rotate.
_MAX_STATEMENT_KEYS: Final = 16


@dataclass(frozen=True, slots=True)
class Recipient:
    """A key to encrypt for, parsed and verified."""

    key: m.EncryptionKey
    public_key: RSAPublicKey


class MeshKeys:
    """Verified keys of one mesh. Not for use by several threads at once.

    Args:
        mesh_id: name of the mesh.
        root: its root certificate, pinned at enrolment.
    """

    __slots__ = ("_mesh_id", "_recipients", "_root", "_statement_keys", "_verified")

    def __init__(self, mesh_id: str, root: x509.Certificate) -> None:
        self._mesh_id = mesh_id
        self._root = root
        self._statement_keys: dict[str, StatementCertificate] = {}
        self._recipients: OrderedDict[bytes, Recipient] = OrderedDict()
        # Digests cover all that a signature covers: what was verified once need not be again.
        self._verified: OrderedDict[bytes, None] = OrderedDict()

    def learn(self, certificates_der: Iterable[bytes], now_ms: int) -> None:
        """Take in certificates of statement keys; earlier ones are dropped.

        Raises:
            CertificateInvalid: not issued by the root for a statement key of this mesh, or not
                valid now.
            LimitExceeded: more than any mesh has.
        """
        certificates = list(certificates_der)
        if len(certificates) > _MAX_STATEMENT_KEYS:
            raise LimitExceeded(
                f"{len(certificates)} statement keys; the cap is {_MAX_STATEMENT_KEYS}"
            )
        now = datetime.fromtimestamp(now_ms / 1000, UTC)
        learnt = [
            verify_statement_certificate([der], root=self._root, mesh=self._mesh_id, now=now)
            for der in certificates
        ]
        self._statement_keys = {found.verified.key_id: found for found in learnt}

    @property
    def empty(self) -> bool:
        """Whether no statement key was taken in yet."""
        return not self._statement_keys

    def knows(self, key_id: str) -> bool:
        """Whether a statement key was taken in."""
        return key_id in self._statement_keys

    def verify(self, statement: Statement, expected_type: str, now_ms: int) -> bytes:
        """The payload of a statement of the mesh.

        Raises:
            UnknownKey: the key was not taken in, or its certificate has ended.
            SignatureInvalid: another type, algorithm or signature.
            LimitExceeded, MalformedMessage: a field is over its cap or has not its form.
        """
        found = self._statement_keys.get(statement.key_id)
        if found is None:
            raise UnknownKey(
                f"the mesh signed with the key {statement.key_id[:32]!r}, which is not certified",
                key_id=statement.key_id[:32],
            )
        if now_ms > found.verified.not_after.timestamp() * 1000:
            raise UnknownKey(
                f"the certificate of the statement key {statement.key_id} has ended",
                key_id=statement.key_id,
            )
        name = digest(statement)
        if name in self._verified and statement.type == expected_type:
            return statement.payload
        payload = verify(
            statement,
            expected_type=expected_type,
            public_key=found.public_key,
            allowed_algorithms=MESH_ALGORITHMS,
        )
        self._verified[name] = None
        _shorten(self._verified)
        return payload

    def recipient(self, statement: Statement, *, now_ms: int, until_ms: int) -> Recipient:
        """The encryption key in a statement of the mesh; verified once, then remembered.

        Args:
            now_ms: the key must be in use by now.
            until_ms: the key must still be in use then.

        Raises:
            UnknownKey: signed by an unknown key, or not valid over the whole time.
            MalformedMessage: another mesh's, or an id that is not the key's.
            SignatureInvalid, LimitExceeded: as `verify`.
        """
        name = digest(statement)
        found = self._recipients.get(name)
        if found is None:
            payload = self.verify(statement, m.ENCRYPTION_KEY, now_ms)
            key = codec.parse_encryption_key(payload)
            if key.mesh_id != self._mesh_id:
                raise MalformedMessage(f"an encryption key of the mesh {key.mesh_id!r}")
            public_key = load_rsa_public_key(key.public_key_spki)
            if public_key_id(public_key) != key.key_id:
                raise MalformedMessage("an encryption key's id is not that of its public key")
            found = Recipient(key, public_key)
            self._recipients[name] = found
            _shorten(self._recipients)
        # Clocks differ a little; the end is what protects, and it is the mesh's own promise.
        if found.key.not_before_ms > now_ms + limits.MAX_CLOCK_SKEW_MS:
            raise UnknownKey(f"the encryption key {found.key.key_id} is not in use yet")
        if found.key.not_after_ms < until_ms:
            raise UnknownKey(f"the encryption key {found.key.key_id} ends before the round does")
        return found


def _shorten(cache: OrderedDict[bytes, Any]) -> None:
    while len(cache) > limits.MAX_CACHED_STATEMENTS:
        cache.popitem(last=False)
