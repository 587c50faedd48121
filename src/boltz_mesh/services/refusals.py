"""Each refused message is counted; those that smell of an attack are security events as well."""

from __future__ import annotations

import logging
from typing import Final

from boltz_mesh.services.clock import Clock
from boltz_mesh.storage import security_events
from boltz_mesh.storage.postgres import Connection, Database
from boltz_protocol.errors import (
    ClientNotActive,
    DecryptionFailed,
    MeshError,
    NotInRoster,
    PermissionDenied,
    ReplayRefused,
    SecondDigest,
    SecondMessage,
    ShareRefused,
    SignatureInvalid,
    TokenRefused,
    Unauthenticated,
    Unavailable,
    WeightRefused,
)
from boltz_protocol.ids import ClientId, RoundId
from boltz_protocol.names import Peer, Role

_log: Final = logging.getLogger(__name__)
_SUSPICIOUS: Final = (
    ClientNotActive,
    DecryptionFailed,
    NotInRoster,
    PermissionDenied,
    ReplayRefused,
    SecondDigest,
    SecondMessage,
    ShareRefused,
    SignatureInvalid,
    TokenRefused,
    Unauthenticated,
    WeightRefused,
)


class Refusals:
    """Writes refusals down; one instance a server."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def observe(self, method: str, caller: Peer | None, error: MeshError) -> None:
        """Count a refusal. A database that cannot be reached must not hide the error itself."""
        who = "nobody" if caller is None else f"{caller.role} {caller.name}"
        _log.info("refused %s to %s: %s", method, who, error.reason)

        async def body(connection: Connection) -> None:
            now_ms = self._clock()
            await security_events.count_refusal(
                connection, method=method, reason=error.reason, at_ms=now_ms
            )
            if isinstance(error, _SUSPICIOUS):
                client = caller is not None and caller.role is Role.CLIENT
                await security_events.record_security_event(
                    connection,
                    kind=error.reason.lower(),
                    client_id=ClientId(caller.name) if caller is not None and client else None,
                    round_id=_round_of(error),
                    detail={"method": method, "caller": who},
                    at_ms=now_ms,
                )

        try:
            await self._database.run_tx("observe_refusal", body)
        except Unavailable:
            _log.warning("a refusal of %s could not be counted: no database", method)


def _round_of(error: MeshError) -> RoundId | None:
    """The round that an error names, where it names one."""
    named = error.metadata.get("round_id")
    return None if named is None else RoundId(named)
