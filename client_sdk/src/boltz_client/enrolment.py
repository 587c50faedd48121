"""Turning a join string into a key store with a certificate in it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from boltz_client.authority import fetch_root
from boltz_client.backoff import Backoff, Clock, system_clock
from boltz_client.connection import answered, is_passing, secure_channel
from boltz_client.keystore import KeyStore, certificate_request, generate_client_key
from boltz_protocol import codec, limits
from boltz_protocol.certificates import load_certificate, load_pinned_root, pem_chain
from boltz_protocol.errors import ApprovalPending, MeshError
from boltz_protocol.ids import ClientId, parse_client_id
from boltz_protocol.join import JoinString, parse_join_string
from boltz_protocol.messages import ProtocolRange, check_region
from boltz_protocol.v1 import registry_pb2, registry_pb2_grpc


@dataclass(frozen=True, slots=True)
class Profile:
    """Personal data that the owner wishes to leave with the operator; all optional."""

    display_name: str = ""
    organisation: str = ""
    contact: str = ""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """Who this client is now."""

    client_id: ClientId
    mesh: str
    folder: Path


async def enroll(
    join_string: str,
    keystore_path: Path | str,
    *,
    region: str = "",
    profile: Profile | None = None,
    wait: bool = False,
    clock: Clock = system_clock,
) -> Enrolled:
    """Enrol with a join string; a call that was cut off may be made again with the same one.

    Args:
        join_string: from `boltz-mesh clients token`.
        keystore_path: a folder that is absent, empty, or an unfinished or finished enrolment with
            the same mesh. The private key is made there and never leaves it.
        region: where the data lies, such as "eu-west"; may be empty.
        wait: wait for an operator's approval rather than raise ApprovalPending.

    Raises:
        MalformedMessage: not a join string.
        ApprovalPending: an operator has yet to approve; call again with the same arguments.
        TokenRefused: the token is unknown, used or too old.
        CertificateInvalid: the server is not the mesh of the join string.
        Unavailable: the mesh could not be reached.
        ConfigurationError, KeyStoreLocked, StateConflict: the folder cannot be used.
    """
    join = parse_join_string(join_string)
    check_region(region)
    folder = Path(keystore_path)
    store = await asyncio.to_thread(_open_or_create, folder, join)
    with store:
        if store.client_id is None:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception(lambda error: _try_again(error, wait)),
                wait=Backoff(),
                stop=_unreachable_too_often,
                reraise=True,
            ):
                with attempt:
                    await _enroll_once(store, join, region, profile or Profile(), clock)
        client_id = store.client_id
        assert client_id is not None
        return Enrolled(client_id, store.identity.mesh, folder)


def _open_or_create(folder: Path, join: JoinString) -> KeyStore:
    if KeyStore.exists(folder):
        store = KeyStore.open(folder)
        try:
            store.check_join(join)
        except MeshError:
            store.close()
            raise
        return store
    return KeyStore.create(folder, join, generate_client_key())


def _try_again(error: BaseException, wait: bool) -> bool:
    return is_passing(error) or (wait and isinstance(error, ApprovalPending))


def _unreachable_too_often(state: RetryCallState) -> bool:
    # Waiting for a person has no end; a mesh that cannot be reached has.
    error = state.outcome.exception() if state.outcome is not None else None
    pending = isinstance(error, ApprovalPending)
    return not pending and state.attempt_number >= limits.MAX_ENROL_TRIES


async def _enroll_once(
    store: KeyStore, join: JoinString, region: str, profile: Profile, clock: Clock
) -> None:
    root = await asyncio.to_thread(fetch_root, join.enroll_address, join.authority_fingerprint)
    request = registry_pb2.EnrollRequest(
        token=join.token,
        csr_der=await asyncio.to_thread(certificate_request, store.private_key),
        request_key=bytes.fromhex(store.request_key),
        region=region,
        profile=registry_pb2.ClientProfile(
            display_name=profile.display_name,
            organisation=profile.organisation,
            contact=profile.contact,
        ),
        protocol=codec.protocol_to_proto(ProtocolRange()),
    )
    async with secure_channel(join.enroll_address, root_pem=pem_chain([root])) as channel:
        stub = registry_pb2_grpc.RegistryStub(channel)
        reply = await answered(stub.Enroll(request, timeout=limits.CALL_TIMEOUT_MS / 1000))
    await asyncio.to_thread(
        store.complete_enrolment,
        parse_client_id(reply.client_id),
        tuple(load_certificate(der) for der in reply.certificate_chain_der),
        load_pinned_root(reply.authority_certificate_der, join.authority_fingerprint),
        now=clock.now(),
    )
