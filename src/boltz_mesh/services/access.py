"""Which role may call which method: one table, and what is not in it is refused.

`Enroll` is missing on purpose: it is served on a TLS port of its own that asks for no certificate,
and nowhere else. Roles that no method lists (server, statement) can call nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from boltz_protocol.errors import PermissionDenied
from boltz_protocol.names import Peer, Role

_CLIENT: Final = frozenset({Role.CLIENT})
_OPERATOR: Final = frozenset({Role.OPERATOR})
_READERS: Final = frozenset({Role.OPERATOR, Role.AUDITOR})
_PULLERS: Final = frozenset({Role.CLIENT, Role.OPERATOR})
_ALL: Final = frozenset({Role.CLIENT, Role.OPERATOR, Role.AUDITOR})

_SERVICES: Final[Mapping[str, Mapping[str, frozenset[Role]]]] = {
    "boltz_mesh.v1.Registry": {
        "GetServerKeys": _ALL,
        "GetClient": _ALL,  # a client its own record only
        "ListClients": _READERS,
        "CreateEnrollmentToken": _OPERATOR,
        "ApproveClient": _OPERATOR,
        "SuspendClient": _OPERATOR,
        "ReinstateClient": _OPERATOR,
        "RevokeClient": _OPERATOR,
        "GetClientTrust": _ALL,  # a client its own trust only
        "ReleaseClient": _OPERATOR,
    },
    "boltz_mesh.v1.ModelStore": {
        "Publish": _OPERATOR,
        "Pull": _PULLERS,
        "GetManifest": _ALL,
        "ListVersions": _ALL,
        "Promote": _OPERATOR,
    },
    "boltz_mesh.v1.Aggregator": {
        "Participate": _CLIENT,
        "SubmitUpdate": _CLIENT,
        "ApplyPlan": _OPERATOR,
        "GetPlan": _READERS,
        "StartRound": _OPERATOR,
        "AbortRound": _OPERATOR,
        "GetRound": _READERS,
        "ListRounds": _READERS,
        "WatchRound": _READERS,
        "GetPrivacyBudget": _ALL,  # a client its own budget only
    },
    "grpc.health.v1.Health": {"Check": _ALL, "Watch": _ALL, "List": _ALL},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": _ALL},
    # Channelz shows addresses of every peer: for operators only.
    "grpc.channelz.v1.Channelz": {
        "GetTopChannels": _OPERATOR,
        "GetServers": _OPERATOR,
        "GetServer": _OPERATOR,
        "GetServerSockets": _OPERATOR,
        "GetChannel": _OPERATOR,
        "GetSubchannel": _OPERATOR,
        "GetSocket": _OPERATOR,
    },
}

#: "/package.Service/Method" -> roles.
ACCESS: Final[Mapping[str, frozenset[Role]]] = MappingProxyType(
    {
        f"/{service}/{method}": roles
        for service, methods in _SERVICES.items()
        for method, roles in methods.items()
    }
)


def check_access(method: str, caller: Peer) -> None:
    """Raises: PermissionDenied, unless the table says that the caller's role may call `method`."""
    if caller.role not in ACCESS.get(method, frozenset()):
        raise PermissionDenied(f"the role {caller.role} may not call {method}", role=caller.role)
