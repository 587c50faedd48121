"""`boltz-mesh up`, `demo`, `credential` and `status`."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
from pathlib import Path
from typing import Annotated, Final, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from boltz_mesh.app.cli.connection import Connect, Mesh, on_mesh, read_credential
from boltz_mesh.app.cli.output import Exit, as_dict, print_fields, print_json, say, when
from boltz_mesh.app.cli.rounds import phase_name, progress_line
from boltz_mesh.app.config import Config, load_config
from boltz_protocol import limits
from boltz_protocol.errors import ConfigurationError
from boltz_protocol.v1 import aggregator_pb2 as agg
from boltz_protocol.v1 import common_pb2 as common
from boltz_protocol.v1 import model_store_pb2 as store
from boltz_protocol.v1 import registry_pb2 as reg

#: From glibc's malloc.h.
_M_ARENA_MAX: Final = -8
_M_MMAP_THRESHOLD: Final = -3
_M_TRIM_THRESHOLD: Final = -1
#: Free memory that the heap keeps: what the chunks of a handful of transfers take in turns.
_KEPT_BYTES: Final = 64 << 20


def up(
    *,
    config: Annotated[Path | None, Parameter(help="A TOML file with settings.")] = None,
    data_dir: Annotated[
        str | None, Parameter(help="Where the mesh keeps its files; boltz-data by default.")
    ] = None,
    mesh: Annotated[str | None, Parameter(help="Name of the mesh.")] = None,
    host: Annotated[str | None, Parameter(help="Address to listen on.")] = None,
    port: Annotated[int | None, Parameter(help="Port of the mesh; 0 for any free one.")] = None,
    enroll_port: Annotated[int | None, Parameter(help="Port for enrolment.")] = None,
    health_port: Annotated[int | None, Parameter(help="Plain port for health probes.")] = None,
    name: Annotated[
        list[str] | None,
        Parameter(help="Name or address that clients use; may be given several times."),
    ] = None,
    validation: Annotated[
        str | None,
        Parameter(help="Folder of MODEL.npz files to measure contributions on."),
    ] = None,
) -> int:
    """Start a mesh: server, coordinator and, unless DATABASE_URL is set, a database of its own."""
    settings = load_config(
        config,
        os.environ,
        {
            "mesh": {"data_dir": data_dir, "id": mesh},
            "listen": {
                "host": host,
                "port": port,
                "enroll_port": enroll_port,
                "health_port": health_port,
                "names": name,
            },
            "validation": {"folder": validation},
        },
    )
    logging.basicConfig(
        level=settings.telemetry.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    _settle_heap()
    import uvloop  # noqa: PLC0415  # the other commands start without it

    return uvloop.run(_serve(settings))


def _settle_heap() -> None:
    """Let glibc keep one heap for all threads: each of its own keeps what it once needed, so that
    the server's memory grows with its threads. And let that heap keep what chunks come and go in:
    handed back and touched anew, each page is zeroed once more. Other C libraries are left as they
    are.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, limits.MAX_MESSAGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


async def _serve(settings: Config) -> int:
    # Imported here: the other commands start without the server's libraries.
    from boltz_mesh.app.server import running_server  # noqa: PLC0415

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    console = Console(highlight=False, soft_wrap=True)
    with console.status("starting"):
        context = running_server(settings)
        server = await context.__aenter__()
    # What is there now stays: the collector need not look at it again and again.
    gc.freeze()
    try:
        database = "embedded" if server.embedded_database else "DATABASE_URL"
        health = f"{server.health_port} (plain)" if server.health_port else "off"
        for label, value in (
            ("mesh", server.mesh_id),
            ("listening", f"{server.addresses.mesh} (mutual TLS)"),
            ("enrolment", f"{server.addresses.enroll} (TLS)"),
            ("health", health),
            ("authority", f"sha256:{server.fingerprint}"),
            ("database", database),
            ("data", str(settings.data_dir)),
            ("operator", str(server.operator)),
        ):
            console.print(Text.assemble((f"{label:<10}", "bold"), " ", value))
        console.print(
            "\nInvite a client:  boltz-mesh clients token\n"
            "Declare a model:  boltz-mesh plan example > plan.toml\n"
            "                  boltz-mesh plan apply plan.toml\n"
            "Stop:             Ctrl-C\n"
            "ready"
        )
        waiting = asyncio.ensure_future(stop.wait())
        failed = asyncio.ensure_future(server.failed)
        await asyncio.wait({waiting, failed}, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            failed.result()
        waiting.cancel()
        failed.cancel()
    finally:
        with console.status("stopping"):
            await context.__aexit__(None, None, None)
    console.print("stopped")
    return Exit.OK


def credential(
    name: Annotated[str, Parameter(help="Who it is for, 1 to 63 of a-z 0-9 . -")],
    /,
    *,
    out: Annotated[Path, Parameter(help="New folder to write it to.")],
    role: Annotated[Literal["operator", "auditor"], Parameter(help="What it allows.")] = "operator",
    config: Annotated[Path | None, Parameter(help="The server's TOML file.")] = None,
    data_dir: Annotated[str | None, Parameter(help="The server's data directory.")] = None,
) -> None:
    """Make a credential for an operator or an auditor, on the machine that holds the authority."""
    from boltz_mesh.app.credentials import issue_credential  # noqa: PLC0415

    settings = load_config(config, os.environ, {"mesh": {"data_dir": data_dir}})
    if not settings.data_dir.is_dir():
        raise ConfigurationError(
            f"there is no mesh in {settings.data_dir}; name its folder with --data-dir",
            setting="--data-dir",
        )
    issue_credential(settings, name, role, out)
    say(f"{role} {name}: {out}. Use it with --operator {out}")


_Overview = tuple[list[reg.Client], list[agg.Round], list[store.ModelVersion]]


def status(*, connect: Connect = Connect()) -> None:
    """Show what a mesh has and does now."""

    async def call(mesh: Mesh) -> _Overview:
        clients = await mesh.registry.ListClients(
            reg.ListClientsRequest(page=common.Page(size=1000))
        )
        rounds = await mesh.aggregator.ListRounds(agg.ListRoundsRequest(page=common.Page(size=20)))
        versions = await mesh.models.ListVersions(
            store.ListVersionsRequest(page=common.Page(size=1000))
        )
        return list(clients.clients), list(rounds.rounds), list(versions.versions)

    clients, rounds, versions = on_mesh(connect, call)
    described = read_credential(connect.operator)
    active = sum(client.status == reg.CLIENT_STATUS_ACTIVE for client in clients)
    pending = sum(client.status == reg.CLIENT_STATUS_PENDING for client in clients)
    present = sum(bool(client.checked_in_models) for client in clients)
    running = [state for state in rounds if not state.ended_at_ms]
    if connect.json:
        print_json(
            {
                "mesh": described.mesh,
                "address": described.address,
                "clients": {"active": active, "pending": pending, "checked_in": present},
                "models": len(versions),
                "running_rounds": [as_dict(state) for state in running],
                "last_round": as_dict(rounds[0]) if rounds else None,
            }
        )
        return
    last = (
        f"{phase_name(rounds[0])}, {rounds[0].model_id}, started {when(rounds[0].started_at_ms)}"
        if rounds
        else "none yet"
    )
    print_fields(
        f"mesh {described.mesh} at {described.address}",
        [
            ("clients", f"{active} active, {pending} waiting for approval, {present} checked in"),
            ("models", len(versions)),
            ("running", ", ".join(progress_line(state) for state in running) or "no round"),
            ("last round", last),
        ],
    )
