"""What a client checks of the other clients of a sealed round: who they are and what they signed.

A peer is known by its certificate, which must lead up to the pinned root and carry the client id of
its roster entry; what the entry says of it must be what it signed itself when it checked in. So a
server can neither put words into a peer's mouth nor show keys of its own under a peer's name; it
could only have its authority issue certificates to clients that it made up (see
`OwnerLimits.known_peers`).
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from boltz_protocol import codec, limits
from boltz_protocol import messages as m
from boltz_protocol.certificates import ClientCertificate, load_certificate, verify_client_chain
from boltz_protocol.errors import CertificateInvalid, RoundRefused
from boltz_protocol.framing import length_prefixed
from boltz_protocol.secagg.client import VerifyPeer
from boltz_protocol.statement import CLIENT_ALGORITHMS, Statement, verify


@dataclass(frozen=True, slots=True)
class _Verified:
    """A certificate, and the time over which its whole chain holds."""

    certificate: ClientCertificate
    not_before: datetime
    not_after: datetime


class PeerChecks:
    """Verifies peers of one mesh. Threads may share it.

    Args:
        mesh_id: name of the mesh.
        root: its root certificate, pinned at enrolment.
        server_time_ms: Unix time by the server's clock.
    """

    __slots__ = ("_lock", "_mesh_id", "_root", "_server_time_ms", "_verified")

    def __init__(
        self, mesh_id: str, root: x509.Certificate, server_time_ms: Callable[[], int]
    ) -> None:
        self._mesh_id = mesh_id
        self._root = root
        self._server_time_ms = server_time_ms
        self._lock = threading.Lock()
        # SHA-256 of a chain -> what came of it. Certificates live for many rounds.
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()

    def advertisements(self, configuration: m.RoundConfiguration) -> VerifyPeer:
        """What verifies neighbours of one round: chain, check-in and signed keys.

        The function raises:
            CertificateInvalid, LimitExceeded: the chain does not lead from this client to the root.
            SignatureInvalid: the peer did not sign its check-in or its keys.
            MalformedMessage: its check-in does not parse.
            RoundRefused: its entry does not repeat its check-in.
        """

        def verified(entry: m.RosterEntry, statement: Statement) -> bytes:
            public_key = self._public_key(entry)
            self._check_spoken(entry, public_key, configuration)
            return _signed(statement, m.KEY_ADVERTISEMENT, public_key)

        return verified

    def survivors_seen(self, entry: m.RosterEntry, statement: Statement) -> bytes:
        """The payload of a SurvivorsSeen that the client of an entry signed.

        Raises: CertificateInvalid, LimitExceeded, SignatureInvalid, MalformedMessage.
        """
        return _signed(statement, m.SURVIVORS_SEEN, self._public_key(entry))

    def _public_key(self, entry: m.RosterEntry) -> RSAPublicKey:
        certificate = self._certificate(entry.certificate_chain_der)
        if certificate.client_id != entry.client_id:
            raise CertificateInvalid(
                f"position {entry.index} is shown with the certificate of another client"
            )
        return certificate.public_key

    def _certificate(self, chain_der: tuple[bytes, ...]) -> ClientCertificate:
        now = datetime.fromtimestamp(self._server_time_ms() / 1000, UTC)
        name = hashlib.sha256(length_prefixed(*chain_der)).digest()
        with self._lock:
            known = self._verified.get(name)
        if known is None or not known.not_before <= now <= known.not_after:
            known = self._verify(chain_der, now)
            with self._lock:
                self._verified[name] = known
                while len(self._verified) > limits.MAX_CACHED_PEERS:
                    self._verified.popitem(last=False)
        return known.certificate

    def _verify(self, chain_der: tuple[bytes, ...], now: datetime) -> _Verified:
        certificate = verify_client_chain(chain_der, root=self._root, mesh=self._mesh_id, now=now)
        chain = [*map(load_certificate, chain_der), self._root]
        return _Verified(
            certificate,
            not_before=max(link.not_valid_before_utc for link in chain),
            not_after=min(link.not_valid_after_utc for link in chain),
        )

    def _check_spoken(
        self, entry: m.RosterEntry, public_key: RSAPublicKey, configuration: m.RoundConfiguration
    ) -> None:
        """The entry repeats what its client signed. Raises: as `advertisements`."""
        spoken = codec.parse_check_in(_signed(entry.check_in, m.CHECK_IN, public_key))
        if (
            spoken.mesh_id != self._mesh_id
            or spoken.client_id != entry.client_id
            or spoken.session_id != entry.session_id
            or spoken.model_id != configuration.model_id
            or spoken.sample_bucket != entry.sample_bucket
            or spoken.quality_bucket != entry.quality_bucket
        ):
            raise RoundRefused(f"the entry of position {entry.index} does not repeat its check-in")


def _signed(statement: Statement, expected_type: str, public_key: RSAPublicKey) -> bytes:
    return verify(
        statement,
        expected_type=expected_type,
        public_key=public_key,
        allowed_algorithms=CLIENT_ALGORITHMS,
    )
