"""`boltz-mesh clients ...`: who belongs to the mesh."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from boltz_mesh.app.cli import client_trust
from boltz_mesh.app.cli.connection import Connect, Mesh, on_mesh
from boltz_mesh.app.cli.output import (
    as_dict,
    enum_name,
    print_fields,
    print_json,
    print_table,
    say,
    when,
)
from boltz_mesh.rounds.plan import duration_ms
from boltz_protocol.errors import ConfigurationError, InvalidPlan
from boltz_protocol.v1 import common_pb2 as common
from boltz_protocol.v1 import registry_pb2 as pb

app = App(name="clients", help="Who belongs to the mesh: invite, list, approve, trust, shut out.")
app.command(client_trust.trust)
app.command(client_trust.release)


@app.command
def token(
    *,
    valid: Annotated[str, Parameter(help="How long it can be used, such as 30m or 48h.")] = "24h",
    requires_approval: Annotated[
        bool, Parameter(negative="", help="An operator must approve the client first.")
    ] = False,
    connect: Connect = Connect(),
) -> None:
    """Make a one-time join string. Hand it over on a channel you trust: it is a secret."""
    try:
        valid_for_ms = duration_ms("--valid", valid)
    except InvalidPlan as error:  # durations are written as in plans, but this is none
        raise ConfigurationError(error.message, setting="--valid") from error
    request = pb.CreateEnrollmentTokenRequest(
        valid_for_ms=valid_for_ms,
        requires_approval=requires_approval,
    )

    async def call(mesh: Mesh) -> pb.CreateEnrollmentTokenResponse:
        return await mesh.registry.CreateEnrollmentToken(request)

    answer = on_mesh(connect, call)
    if connect.json:
        print_json(as_dict(answer))
        return
    # The join string alone on its line, so that a script can take it with `tail -n 1`.
    say(f"client {answer.client_id} can join until {when(answer.expires_at_ms)} with:")
    print(answer.join_string)


@app.command(name="ls")
def list_(
    *,
    status: Annotated[
        str, Parameter(help="Only pending, active, suspended or revoked clients.")
    ] = "",
    connect: Connect = Connect(),
) -> None:
    """List the clients."""
    wanted = pb.CLIENT_STATUS_UNSPECIFIED
    if status:
        names = {
            enum_name(name, "CLIENT_STATUS_"): value for name, value in pb.ClientStatus.items()
        }
        if status not in names or not names[status]:
            raise ValueError("--status is one of pending, active, suspended, revoked")
        wanted = names[status]

    async def call(mesh: Mesh) -> list[pb.Client]:
        clients: list[pb.Client] = []
        page = ""
        while True:
            answer = await mesh.registry.ListClients(
                pb.ListClientsRequest(status=wanted, page=common.Page(size=1000, token=page))
            )
            clients.extend(answer.clients)
            page = answer.next_page_token
            if not page:
                return clients

    clients = on_mesh(connect, call)
    if connect.json:
        print_json([as_dict(client) for client in clients])
        return
    print_table(
        "clients",
        ["client", "status", "name", "organisation", "region", "enrolled", "checked in for"],
        [
            (
                client.client_id,
                _status(client),
                client.profile.display_name,
                client.profile.organisation,
                client.region,
                when(client.enrolled_at_ms),
                ", ".join(client.checked_in_models),
            )
            for client in clients
        ],
    )


@app.command
def show(client_id: str, /, *, connect: Connect = Connect()) -> None:
    """Show one client."""

    async def call(mesh: Mesh) -> pb.Client:
        return (await mesh.registry.GetClient(pb.GetClientRequest(client_id=client_id))).client

    _print(on_mesh(connect, call), connect)


@app.command
def approve(client_id: str, /, *, connect: Connect = Connect()) -> None:
    """Let a pending client in."""

    async def call(mesh: Mesh) -> Any:
        return await mesh.registry.ApproveClient(pb.ApproveClientRequest(client_id=client_id))

    _print(on_mesh(connect, call).client, connect)


@app.command
def suspend(client_id: str, /, *, reason: str = "", connect: Connect = Connect()) -> None:
    """Shut a client out for a while; its open streams end at once."""

    async def call(mesh: Mesh) -> Any:
        return await mesh.registry.SuspendClient(
            pb.SuspendClientRequest(client_id=client_id, reason=reason)
        )

    _print(on_mesh(connect, call).client, connect)


@app.command
def reinstate(client_id: str, /, *, connect: Connect = Connect()) -> None:
    """Let a suspended client in again."""

    async def call(mesh: Mesh) -> Any:
        return await mesh.registry.ReinstateClient(pb.ReinstateClientRequest(client_id=client_id))

    _print(on_mesh(connect, call).client, connect)


@app.command
def revoke(client_id: str, /, *, reason: str = "", connect: Connect = Connect()) -> None:
    """Shut a client out for good; its open streams end at once."""

    async def call(mesh: Mesh) -> Any:
        return await mesh.registry.RevokeClient(
            pb.RevokeClientRequest(client_id=client_id, reason=reason)
        )

    _print(on_mesh(connect, call).client, connect)


def _status(client: pb.Client) -> str:
    return enum_name(pb.ClientStatus.Name(client.status), "CLIENT_STATUS_")


def _print(client: pb.Client, connect: Connect) -> None:
    if connect.json:
        print_json(as_dict(client))
        return
    print_fields(
        f"client {client.client_id}",
        [
            ("status", _status(client)),
            ("name", client.profile.display_name or "-"),
            ("organisation", client.profile.organisation or "-"),
            ("contact", client.profile.contact or "-"),
            ("region", client.region or "-"),
            ("signing key", client.key_id),
            ("enrolled", when(client.enrolled_at_ms)),
            ("certificate ends", when(client.certificate_not_after_ms)),
            ("checked in for", ", ".join(client.checked_in_models) or "-"),
        ],
    )
