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
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from boltz_protocol import codec, limits
from boltz_protocol import messages as m
from boltz_protocol.certificates import ClientCertificate, load_certificate, verify_client_chain
from boltz_protocol.errors import CertificateInvalid, RoundRefused
from boltz_protocol.framing import length_prefixed
from boltz_protocol.secagg.client import VerifyPeer
from boltz_protocol.statement import CLIENT_ALGORITHMS, Statement, verify
from boltz_protocol.weights import check_weight


@dataclass(frozen=True, slots=True)
class _Verified:
    """A certificate, and the time over which its whole chain holds."""

    certificate: ClientCertificate
    not_before: datetime
    not_after: datetime


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class PeerMemory:
    """What was verified of peers, so as not to verify it in each round.

    Several clients of one process may share it, whatever their meshes: all that is remembered is
    filed under the mesh and the root that it was verified for. Threads may share it.
    """

    __slots__ = ("_lock", "certificates", "check_ins")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: SHA-256 of mesh, root and chain -> what came of it. Certificates live for many rounds.
        self.certificates: OrderedDict[bytes, _Verified] = OrderedDict()
        #: The same, and a check-in -> what it says. A session speaks one for many rounds.
        self.check_ins: OrderedDict[tuple[bytes, Statement], m.CheckIn] = OrderedDict()

    def __repr__(self) -> str:
        return f"PeerMemory({len(self.certificates)} certificates, {len(self.check_ins)} check-ins)"

    def recall(self, what: OrderedDict[_Key, _Value], name: _Key) -> _Value | None:
        """What is known under a name, if anything."""
        with self._lock:
            return what.get(name)

    def keep(self, what: OrderedDict[_Key, _Value], name: _Key, value: _Value) -> None:
        """Remember; the oldest goes when there is too much."""
        with self._lock:
            what[name] = value
            while len(what) > limits.MAX_CACHED_PEERS:
                what.popitem(last=False)


class PeerChecks:
    """Verifies peers of one mesh. Threads may share it.

    Args:
        mesh_id: name of the mesh.
        root: its root certificate, pinned at enrolment.
        server_time_ms: Unix time by the server's clock.
        memory: of what was verified before; its own where none is given.
    """

    __slots__ = ("_anchor", "_memory", "_mesh_id", "_root", "_server_time_ms")

    def __init__(
        self,
        mesh_id: str,
        root: x509.Certificate,
        server_time_ms: Callable[[], int],
        memory: PeerMemory | None = None,
    ) -> None:
        self._mesh_id = mesh_id
        self._root = root
        self._server_time_ms = server_time_ms
        self._memory = memory if memory is not None else PeerMemory()
        self._anchor = length_prefixed(mesh_id.encode(), root.public_bytes(Encoding.DER))

    def advertisements(self, configuration: m.RoundConfiguration) -> VerifyPeer:
        """What verifies neighbours of one round: chain, check-in and signed keys.

        The function raises:
            CertificateInvalid, LimitExceeded: the chain does not lead from this client to the root.
            SignatureInvalid: the peer did not sign its check-in or its keys.
            MalformedMessage: its check-in does not parse.
            RoundRefused: its entry does not repeat its check-in.
            WeightRefused: its weight is not what its buckets and its trust make it.
        """

        def verified(entry: m.RosterEntry, statement: Statement) -> bytes:
            public_key = self._public_key(entry)
            self._check_spoken(entry, public_key, configuration)
            check_weight(entry, configuration)
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
        name, memory = self._name(chain_der), self._memory
        known = memory.recall(memory.certificates, name)
        if known is None or not known.not_before <= now <= known.not_after:
            known = self._verify(chain_der, now)
            memory.keep(memory.certificates, name, known)
        return known.certificate

    def _name(self, chain_der: tuple[bytes, ...]) -> bytes:
        return hashlib.sha256(self._anchor + length_prefixed(*chain_der)).digest()

    def _verify(self, chain_der: tuple[bytes, ...], now: datetime) -> _Verified:
        certificate = verify_client_chain(chain_der, root=self._root, mesh=self._mesh_id, now=now)
        chain = [*map(load_certificate, chain_der), self._root]
        return _Verified(
            certificate,
            not_before=max(link.not_valid_before_utc for link in chain),
            not_after=min(link.not_valid_after_utc for link in chain),
        )

    def _check_in(self, entry: m.RosterEntry, public_key: RSAPublicKey) -> m.CheckIn:
        # By the chain as well: the same words under another certificate are another claim.
        name, memory = (self._name(entry.certificate_chain_der), entry.check_in), self._memory
        known = memory.recall(memory.check_ins, name)
        if known is None:
            known = codec.parse_check_in(_signed(entry.check_in, m.CHECK_IN, public_key))
            memory.keep(memory.check_ins, name, known)
        return known

    def _check_spoken(
        self, entry: m.RosterEntry, public_key: RSAPublicKey, configuration: m.RoundConfiguration
    ) -> None:
        """The entry repeats what its client signed. Raises: as `advertisements`."""
        spoken = self._check_in(entry, public_key)
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
