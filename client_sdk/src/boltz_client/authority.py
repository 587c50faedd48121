"""Getting hold of the mesh's root certificate with nothing but its fingerprint.

A join string carries the SHA-256 of the root, gRPC wants the root itself. The enrolment port sends
it at the end of its certificate chain. So one TLS handshake is made *without* verification, just
to read that chain; the certificate whose SHA-256 is the fingerprint is taken, and everything else
is thrown away, the connection with it. Nothing is sent over that connection.

Why this is sound: the bytes that are kept are authenticated by the fingerprint, which came with
the join string; making other bytes with the same SHA-256 is a second preimage. Whoever stands in
the middle of this first connection can only make it fail. The connection that carries the token
is a new one, verified in full (chain and host name) against this root alone.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
import ssl
from typing import Any, Final

from cryptography import x509

from boltz_protocol import limits
from boltz_protocol.certificates import load_pinned_root
from boltz_protocol.errors import CertificateInvalid, Unavailable

#: The leaf, the intermediates and the root.
_MAX_SENT: Final = limits.MAX_CHAIN_CERTIFICATES + 1


def fetch_root(address: str, authority_fingerprint: str) -> x509.Certificate:
    """Read the root from a server's chain (blocking; call it in a thread).

    Args:
        address: `host:port` of the enrolment port.
        authority_fingerprint: SHA-256 of the root's DER, 64 hex digits.

    Raises:
        Unavailable: no connection.
        CertificateInvalid: the chain holds no such certificate: another mesh, or an attack.
    """
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection(
                (host.strip("[]"), int(port)), timeout=limits.CALL_TIMEOUT_MS / 1000
            ) as raw,
            context.wrap_socket(raw) as connection,
        ):
            chain = _unverified_chain(connection)
    except OSError as error:
        raise Unavailable(f"no connection to the mesh at {address}: {error}") from error
    for der in chain[:_MAX_SENT]:
        if hmac.compare_digest(hashlib.sha256(der).hexdigest(), authority_fingerprint):
            return load_pinned_root(der, authority_fingerprint)
    raise CertificateInvalid(
        f"the server at {address} does not belong to the authority {authority_fingerprint}: "
        "this may be another mesh, or an attack"
    )


def _unverified_chain(connection: ssl.SSLSocket) -> list[bytes]:
    public = getattr(connection, "get_unverified_chain", None)
    if public is not None:  # Python 3.13 and later
        return [bytes(der) for der in public()]
    # The same method, before it was given a public name (CPython 3.10 to 3.12).
    inner: Any = connection._sslobj  # type: ignore[attr-defined]
    certificates = inner.get_unverified_chain() or ()
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in certificates]
