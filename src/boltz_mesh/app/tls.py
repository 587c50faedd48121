"""TLS of the two ports, with a server certificate that is renewed while the server runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import grpc

from boltz_mesh.services.clock import Clock, as_datetime
from boltz_mesh.services.identity.authority import Authority, Credential

#: Renewed when so much of its life is left; certificates of servers live 90 days.
_RENEW_BEFORE: Final = timedelta(days=30)


class ServerTls:
    """Makes credentials whose certificate is looked at anew for each connection."""

    def __init__(
        self, authority: Authority, replica: str, names: Sequence[str], clock: Clock
    ) -> None:
        self._authority = authority
        self._replica = replica
        self._names = names
        self._clock = clock
        self._credential = self._issue()

    def _issue(self) -> Credential:
        return self._authority.issue_server(
            self._replica, self._names, now=as_datetime(self._clock())
        )

    def _configuration(self, *, ask_for_client: bool) -> grpc.ServerCertificateConfiguration:
        credential = self._credential
        chain = credential.issued.chain_pem
        if not ask_for_client:
            # Who enrols knows the root's fingerprint only, so the root itself is sent along.
            chain += self._authority.root_pem
        return grpc.ssl_server_certificate_configuration(
            [(credential.private_key_pem, chain)],
            root_certificates=self._authority.root_pem if ask_for_client else None,
        )

    def credentials(self, *, ask_for_client: bool) -> grpc.ServerCredentials:
        """Credentials for a port; with `ask_for_client`, a certificate of this mesh is required."""

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            left = self._credential.issued.not_after - as_datetime(self._clock())
            if left > _RENEW_BEFORE:
                return None  # the one in use stays
            self._credential = self._issue()
            return self._configuration(ask_for_client=ask_for_client)

        return grpc.dynamic_ssl_server_credentials(
            self._configuration(ask_for_client=ask_for_client),
            fetch,  # type: ignore[arg-type]  # None means "no change", which grpc-stubs forgot
            require_client_authentication=ask_for_client,
        )
