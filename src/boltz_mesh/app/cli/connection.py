"""How the command line reaches a mesh: an operator's credential folder and one secure channel.

The folder (0700) holds `key.pem`, `chain.pem`, `root.pem` and `mesh.json` (`mesh` and `address`);
`boltz-mesh up` makes the first one, `boltz-mesh credential` makes more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import grpc
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cyclopts import Parameter

from boltz_mesh.services.identity.private_files import read_private_file
from boltz_protocol import limits
from boltz_protocol.certificates import load_pem_chain
from boltz_protocol.errors import ConfigurationError, MeshError, Unavailable
from boltz_protocol.ids import parse_name
from boltz_protocol.join import check_address
from boltz_protocol.status import from_rpc_error
from boltz_protocol.v1 import aggregator_pb2_grpc, model_store_pb2_grpc, registry_pb2_grpc

T = TypeVar("T")
#: A local or regional server answers a connection attempt well within this.
CONNECT_TIMEOUT_S: Final = 10.0


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Connect:
    """Options that every command which talks to a mesh has."""

    operator: Annotated[
        Path,
        Parameter(
            name="--operator",
            env_var="BOLTZ_MESH_OPERATOR",
            help="Folder with the operator's credential.",
        ),
    ] = Path("boltz-data/operator")
    json: Annotated[
        bool, Parameter(name="--json", negative="", help="Print JSON for programs.")
    ] = False


@dataclass(frozen=True, slots=True)
class CredentialFolder:
    """What is in a credential folder. `repr` hides the key."""

    mesh: str
    address: str
    root_pem: bytes
    chain_pem: bytes
    key_pem: bytes

    def __repr__(self) -> str:
        return f"CredentialFolder(mesh={self.mesh!r}, address={self.address!r}, key hidden)"


class _MeshFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    mesh: str
    address: str


def mesh_file(mesh: str, address: str) -> bytes:
    """The content of `mesh.json`."""
    return msgspec.json.encode(_MeshFile(mesh, address))


def read_credential(folder: Path) -> CredentialFolder:
    """Read and check a credential folder.

    Raises: ConfigurationError where it is missing, incomplete or readable by others.
    """
    if not folder.is_dir():
        raise ConfigurationError(
            f"there is no operator's credential at {folder}. Start a mesh with `boltz-mesh up` in "
            "this folder, or name the credential with --operator",
            setting="--operator",
        )
    key, chain, root, mesh = (
        read_private_file(folder / name)
        for name in ("key.pem", "chain.pem", "root.pem", "mesh.json")
    )
    try:
        described = msgspec.json.decode(mesh, type=_MeshFile)
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"{folder / 'mesh.json'} is damaged: {error}") from error
    _check_pem(folder, key, chain, root)
    parse_name("mesh", described.mesh)
    check_address(described.address)
    return CredentialFolder(described.mesh, described.address, root, chain, key)


def _check_pem(folder: Path, key: bytes, chain: bytes, root: bytes) -> None:
    """gRPC would say of a damaged file only that it cannot connect."""
    try:
        load_pem_private_key(key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"{folder / 'key.pem'} is damaged: not a private key") from error
    for name, pem in (("chain.pem", chain), ("root.pem", root)):
        try:
            load_pem_chain(pem)
        except MeshError as error:
            raise ConfigurationError(f"{folder / name} is damaged: {error.message}") from error


class Mesh:
    """Stubs of the three services over one channel."""

    def __init__(self, channel: grpc.aio.Channel, credential: CredentialFolder) -> None:
        self.channel = channel
        self.credential = credential
        self.registry: registry_pb2_grpc.RegistryAsyncStub = registry_pb2_grpc.RegistryStub(channel)
        self.models: model_store_pb2_grpc.ModelStoreAsyncStub = model_store_pb2_grpc.ModelStoreStub(
            channel
        )
        self.aggregator: aggregator_pb2_grpc.AggregatorAsyncStub = (
            aggregator_pb2_grpc.AggregatorStub(channel)
        )


@asynccontextmanager
async def connected(credential: CredentialFolder) -> AsyncIterator[Mesh]:
    """A channel to the mesh, known to answer.

    Raises: Unavailable when nobody answers there within CONNECT_TIMEOUT_S. Errors of calls inside
    the context leave as the typed errors that the server sent.
    """
    channel = grpc.aio.secure_channel(
        credential.address,
        grpc.ssl_channel_credentials(credential.root_pem, credential.key_pem, credential.chain_pem),
        options=[
            ("grpc.max_receive_message_length", limits.MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", limits.MAX_MESSAGE_BYTES),
        ],
    )
    async with channel:
        try:
            await asyncio.wait_for(_until_ready(channel), CONNECT_TIMEOUT_S)
        except TimeoutError as error:
            raise Unavailable(
                f"no mesh answers at {credential.address}. Is `boltz-mesh up` running?"
            ) from error
        except _NoConnection as error:
            raise _why_not(credential.address, str(error)) from error
        try:
            yield Mesh(channel, credential)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error


class _NoConnection(Exception):
    """The first attempt to connect has failed; the text is gRPC's."""


async def _until_ready(channel: grpc.aio.Channel) -> None:
    """Wait for the connection. gRPC would try again for ever: a person wants to know at once."""
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            # Only a call is told why. It fails at once, or the next attempt was better.
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=bytes,
                response_deserializer=bytes,
            )
            try:
                await check(b"")
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    raise _NoConnection(error.details() or "") from error
            return
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)


def _why_not(address: str, text: str) -> Unavailable:
    if "handshake" in text.lower():
        return Unavailable(
            f"what answers at {address} is another mesh, or does not accept this credential "
            "(is it expired?)"
        )
    return Unavailable(f"no mesh answers at {address}. Is `boltz-mesh up` running?")


def on_mesh(connect: Connect, body: Callable[[Mesh], Awaitable[T]]) -> T:
    """Run `body` against the mesh that `connect` names."""

    async def run() -> T:
        async with connected(read_credential(connect.operator)) as mesh:
            return await body(mesh)

    return asyncio.run(run())


Message = Any
