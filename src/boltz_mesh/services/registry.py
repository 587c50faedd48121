"""The Registry service: enrolment, keys, clients and their status."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from boltz_mesh.services.clock import Clock, as_datetime
from boltz_mesh.services.guard import Context, caller_of
from boltz_mesh.services.identity.authority import Authority, Issued, client_key_of_request
from boltz_mesh.services.keyring import KeyRing
from boltz_mesh.services.paging import decode_token, encode_token, page_size
from boltz_mesh.services.texts import check_text
from boltz_mesh.services.trust import ClientTrusts
from boltz_mesh.storage import check_ins, clients, tokens
from boltz_mesh.storage.clients import Certificate, ClientStatus, Personal
from boltz_mesh.storage.postgres import Connection, Database
from boltz_protocol import codec
from boltz_protocol.certificates import der_chain, load_pem_chain
from boltz_protocol.errors import (
    ApprovalPending,
    ClientNotActive,
    MalformedMessage,
    PermissionDenied,
    TokenRefused,
)
from boltz_protocol.ids import ClientId, new_client_id, parse_client_id, parse_model_id
from boltz_protocol.join import TOKEN_BYTES, JoinString, new_token, token_hash
from boltz_protocol.keys import public_key_der, public_key_id
from boltz_protocol.messages import PROTOCOL_VERSION, check_region
from boltz_protocol.names import Role
from boltz_protocol.v1 import registry_pb2 as pb
from boltz_protocol.v1 import registry_pb2_grpc

_DEFAULT_TOKEN_MS = 24 * 3600 * 1000
_MIN_TOKEN_MS = 60 * 1000
_MAX_TOKEN_MS = 30 * _DEFAULT_TOKEN_MS
#: How long a pending client is told to wait before it asks again.
_APPROVAL_RETRY_MS = 5_000
_REQUEST_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Addresses:
    """`host:port` of the two TLS ports, as clients reach them."""

    enroll: str
    mesh: str


class RegistryService(registry_pb2_grpc.RegistryServicer):
    """One instance a server; `Enroll` is served on its own port."""

    def __init__(
        self,
        *,
        database: Database,
        authority: Authority,
        keyring: KeyRing,
        addresses: Addresses,
        always_requires_approval: bool,
        trusts: ClientTrusts,
        clock: Clock,
    ) -> None:
        self._database = database
        self._authority = authority
        self._keyring = keyring
        self._addresses = addresses
        self._always_requires_approval = always_requires_approval
        self._trusts = trusts
        self._clock = clock

    # --- enrolment ------------------------------------------------------------------------------

    async def Enroll(self, request: pb.EnrollRequest, context: Context) -> pb.EnrollResponse:
        """See the contract."""
        if len(request.token) != TOKEN_BYTES:
            raise TokenRefused("the enrolment token is unknown, used or past its end")
        if len(request.request_key) != _REQUEST_KEY_BYTES:
            raise MalformedMessage(
                f"request_key has {len(request.request_key)} bytes, not 32", field="request_key"
            )
        check_region(request.region)
        _check_profile(request.profile)
        _check_protocol(request)
        key = await asyncio.to_thread(client_key_of_request, request.csr_der)
        request_key_hash = hashlib.sha256(request.request_key).digest()

        async def body(connection: Connection) -> clients.Client:
            now_ms = self._clock()
            token = await tokens.redeem_token(
                connection,
                token_hash(request.token),
                request_key_hash=request_key_hash,
                new_client_id=new_client_id(),
                now_ms=now_ms,
            )
            assert token.client_id is not None
            known = await clients.find_client_by_request(connection, request_key_hash)
            if known is not None:
                if known.key_id != public_key_id(key):
                    raise TokenRefused("this enrolment was begun with another key")
                return await self._certified(connection, known, request.csr_der)
            needs_approval = token.requires_approval or self._always_requires_approval
            created = await clients.insert_client(
                connection,
                clients.NewClient(
                    client_id=token.client_id,
                    status=ClientStatus.PENDING if needs_approval else ClientStatus.ACTIVE,
                    region=request.region,
                    public_key_spki=public_key_der(key),
                    key_id=public_key_id(key),
                    request_key_hash=request_key_hash,
                    enrolled_at_ms=now_ms,
                    enrolled_by=token.created_by,
                    personal=_personal(request.profile),
                ),
            )
            return await self._certified(connection, created, request.csr_der)

        client = await self._database.run_tx("enroll", body)
        match client.status:
            case ClientStatus.ACTIVE:
                pass
            case ClientStatus.PENDING:
                raise ApprovalPending(
                    f"client {client.client_id} waits for an operator's approval",
                    retry_after_ms=_APPROVAL_RETRY_MS,
                    client_id=client.client_id,
                )
            case _:
                raise ClientNotActive(f"client {client.client_id} is {client.status}")
        assert client.certificate_chain is not None
        return pb.EnrollResponse(
            client_id=client.client_id,
            certificate_chain_der=der_chain(load_pem_chain(client.certificate_chain)),
            authority_certificate_der=self._authority.root_der,
            mesh_id=self._authority.mesh,
        )

    async def _certified(
        self, connection: Connection, client: clients.Client, csr_der: bytes
    ) -> clients.Client:
        """Issue the certificate of an active client that has none yet."""
        if client.status is not ClientStatus.ACTIVE or client.certificate_chain is not None:
            return client
        issued = self._authority.issue_client(
            csr_der, client.client_id, now=as_datetime(self._clock())
        )
        return await clients.set_client_certificate(
            connection, client.client_id, _certificate(issued)
        )

    async def CreateEnrollmentToken(
        self, request: pb.CreateEnrollmentTokenRequest, context: Context
    ) -> pb.CreateEnrollmentTokenResponse:
        """See the contract."""
        valid_for_ms = request.valid_for_ms or _DEFAULT_TOKEN_MS
        if not _MIN_TOKEN_MS <= valid_for_ms <= _MAX_TOKEN_MS:
            raise MalformedMessage(
                f"valid_for_ms is {valid_for_ms}; {_MIN_TOKEN_MS} (a minute) to {_MAX_TOKEN_MS} "
                "(30 days) is allowed",
                field="valid_for_ms",
            )
        caller = caller_of(context, self._authority.mesh)
        token = new_token()
        client_id = new_client_id()
        now_ms = self._clock()

        async def body(connection: Connection) -> None:
            await tokens.insert_token(
                connection,
                tokens.NewToken(
                    token_hash=token_hash(token),
                    role=tokens.Role.CLIENT,
                    requires_approval=request.requires_approval,
                    created_by=caller.name,
                    created_at_ms=now_ms,
                    expires_at_ms=now_ms + valid_for_ms,
                    client_id=client_id,
                ),
            )

        await self._database.run_tx("create_token", body)
        join = JoinString(
            mesh=self._authority.mesh,
            enroll_address=self._addresses.enroll,
            mesh_address=self._addresses.mesh,
            authority_fingerprint=self._authority.fingerprint,
            token=token,
        )
        return pb.CreateEnrollmentTokenResponse(
            join_string=join.encode(), client_id=client_id, expires_at_ms=now_ms + valid_for_ms
        )

    # --- keys -----------------------------------------------------------------------------------

    async def GetServerKeys(
        self, request: pb.GetServerKeysRequest, context: Context
    ) -> pb.GetServerKeysResponse:
        """See the contract."""
        return pb.GetServerKeysResponse(
            mesh_id=self._keyring.mesh_id,
            encryption_keys=[
                codec.statement_to_proto(statement) for statement in self._keyring.encryption_keys()
            ],
            statement_certificates_der=self._keyring.statement_certificates(),
            authority_certificate_der=self._keyring.root_der,
        )

    # --- clients --------------------------------------------------------------------------------

    async def GetClient(
        self, request: pb.GetClientRequest, context: Context
    ) -> pb.GetClientResponse:
        """See the contract."""
        client_id = parse_client_id(request.client_id)
        caller = caller_of(context, self._authority.mesh)
        if caller.role is Role.CLIENT and caller.name != client_id:
            raise PermissionDenied("a client may ask for its own record only", role=caller.role)
        return pb.GetClientResponse(client=await self._shown(client_id, caller.role))

    async def ListClients(
        self, request: pb.ListClientsRequest, context: Context
    ) -> pb.ListClientsResponse:
        """See the contract."""
        role = caller_of(context, self._authority.mesh).role
        size, after = page_size(request.page), decode_token(request.page)
        status = None
        if request.status != pb.CLIENT_STATUS_UNSPECIFIED:
            status = ClientStatus(_status_name(request.status))

        async def body(connection: Connection) -> list[pb.Client]:
            found = await clients.list_clients(connection, limit=size, status=status, after=after)
            return await _as_protos(connection, found, with_profile=role is not Role.AUDITOR)

        shown = await self._database.read("list_clients", body)
        token = encode_token(shown[-1].client_id) if len(shown) == size else ""
        return pb.ListClientsResponse(clients=shown, next_page_token=token)

    async def ApproveClient(
        self, request: pb.ApproveClientRequest, context: Context
    ) -> pb.ApproveClientResponse:
        """See the contract."""
        client = await self._move(request.client_id, ClientStatus.ACTIVE, "", context)
        return pb.ApproveClientResponse(client=client)

    async def SuspendClient(
        self, request: pb.SuspendClientRequest, context: Context
    ) -> pb.SuspendClientResponse:
        """See the contract."""
        client = await self._move(
            request.client_id, ClientStatus.SUSPENDED, request.reason, context
        )
        return pb.SuspendClientResponse(client=client)

    async def ReinstateClient(
        self, request: pb.ReinstateClientRequest, context: Context
    ) -> pb.ReinstateClientResponse:
        """See the contract."""
        client = await self._move(
            request.client_id, ClientStatus.ACTIVE, "", context, came_from=ClientStatus.SUSPENDED
        )
        return pb.ReinstateClientResponse(client=client)

    async def RevokeClient(
        self, request: pb.RevokeClientRequest, context: Context
    ) -> pb.RevokeClientResponse:
        """See the contract."""
        client = await self._move(request.client_id, ClientStatus.REVOKED, request.reason, context)
        return pb.RevokeClientResponse(client=client)

    # --- trust ----------------------------------------------------------------------------------

    async def GetClientTrust(
        self, request: pb.GetClientTrustRequest, context: Context
    ) -> pb.GetClientTrustResponse:
        """See the contract."""
        client_id = parse_client_id(request.client_id)
        caller = caller_of(context, self._authority.mesh)
        if caller.role is Role.CLIENT and caller.name != client_id:
            raise PermissionDenied("a client may ask for its own trust only", role=caller.role)
        model_id = parse_model_id(request.model_id) if request.model_id else None
        return await self._trusts.read(client_id, model_id, request.page)

    async def ReleaseClient(
        self, request: pb.ReleaseClientRequest, context: Context
    ) -> pb.ReleaseClientResponse:
        """See the contract."""
        client_id = parse_client_id(request.client_id)
        model_id = parse_model_id(request.model_id)
        check_text("reason", request.reason)
        caller = caller_of(context, self._authority.mesh)
        released = await self._trusts.release(
            client_id, model_id, by=caller.name, reason=request.reason
        )
        return pb.ReleaseClientResponse(trust=released)

    # --- what the others share ------------------------------------------------------------------

    async def _move(
        self,
        client_id_text: str,
        status: ClientStatus,
        reason: str,
        context: Context,
        came_from: ClientStatus = ClientStatus.PENDING,
    ) -> pb.Client:
        client_id = parse_client_id(client_id_text)
        check_text("reason", reason)
        caller = caller_of(context, self._authority.mesh)

        async def body(connection: Connection) -> None:
            await clients.set_client_status(
                connection,
                client_id,
                status,
                at_ms=self._clock(),
                by=caller.name,
                reason=reason,
                # Approving is not reinstating: each has its own method, and the log tells which.
                only_from=came_from if status is ClientStatus.ACTIVE else None,
            )

        await self._database.run_tx("set_client_status", body)
        return await self._shown(client_id, caller.role)

    async def _shown(self, client_id: ClientId, role: Role) -> pb.Client:
        async def body(connection: Connection) -> list[pb.Client]:
            found = await clients.get_client(connection, client_id)
            return await _as_protos(connection, [found], with_profile=role is not Role.AUDITOR)

        return (await self._database.read("get_client", body))[0]


async def _as_protos(
    connection: Connection, found: Sequence[clients.Client], *, with_profile: bool
) -> list[pb.Client]:
    names = [client.client_id for client in found]
    models = await check_ins.models_by_client(connection, names)
    personal = await clients.get_personals(connection, names) if with_profile else {}
    return [
        pb.Client(
            client_id=client.client_id,
            status=pb.ClientStatus.Value(f"CLIENT_STATUS_{client.status.upper()}"),
            region=client.region,
            key_id=client.key_id,
            enrolled_at_ms=client.enrolled_at_ms,
            certificate_not_after_ms=client.certificate_not_after_ms or 0,
            profile=_profile(personal.get(client.client_id)),
            checked_in_models=models.get(client.client_id, ()),
        )
        for client in found
    ]


def _status_name(status: pb.ClientStatus.ValueType) -> str:
    try:
        return pb.ClientStatus.Name(status).removeprefix("CLIENT_STATUS_").lower()
    except ValueError as error:
        raise MalformedMessage(f"client status {status} is not known", field="status") from error


def _certificate(issued: Issued) -> Certificate:
    return Certificate(
        chain=issued.chain_pem,
        fingerprint=bytes.fromhex(issued.fingerprint),
        not_after_ms=int(issued.not_after.timestamp() * 1000),
    )


def _check_protocol(request: pb.EnrollRequest) -> None:
    """A client that could never take part is told so now. Who says nothing speaks version 1."""
    if not request.HasField("protocol"):
        return
    spoken = codec.protocol_from_proto(request.protocol)
    if not spoken.oldest <= PROTOCOL_VERSION <= spoken.newest:
        raise MalformedMessage(
            f"the client speaks protocol versions {spoken.oldest} to {spoken.newest}; "
            f"this mesh speaks {PROTOCOL_VERSION}",
            field="protocol",
        )


def _check_profile(profile: pb.ClientProfile) -> None:
    check_text("profile.display_name", profile.display_name)
    check_text("profile.organisation", profile.organisation)
    check_text("profile.contact", profile.contact)


def _personal(profile: pb.ClientProfile) -> Personal:
    return Personal(profile.display_name, profile.organisation, profile.contact)


def _profile(personal: Personal | None) -> pb.ClientProfile | None:
    if personal is None:
        return None
    return pb.ClientProfile(
        display_name=personal.display_name,
        organisation=personal.organisation,
        contact=personal.contact,
    )
