"""`boltz-mesh round ...`: start, watch, list, abort."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

import grpc
from cyclopts import App, Parameter
from rich.console import Console
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential,
)

from boltz_mesh.app.cli.connection import Connect, Mesh, on_mesh
from boltz_mesh.app.cli.contributions import print_contributions
from boltz_mesh.app.cli.output import (
    Exit,
    as_dict,
    enum_name,
    print_json,
    print_table,
    say,
    size,
    when,
)
from boltz_protocol.errors import Unavailable
from boltz_protocol.status import from_rpc_error
from boltz_protocol.v1 import aggregator_pb2 as pb
from boltz_protocol.v1 import common_pb2 as common

app = App(name="round", help="Rounds of training: start, watch, list, abort.")

#: How long a watch waits for a mesh that went away.
_RECONNECT_S = 120
_ENDED = frozenset({pb.PHASE_PUBLISHED, pb.PHASE_ABORTED})


@app.command
def start(
    model_id: str,
    /,
    *,
    wait: Annotated[
        bool, Parameter(negative="", help="Stay until the round ends; exit code 5 if aborted.")
    ] = False,
    connect: Connect = Connect(),
) -> int:
    """Start a round of a model."""

    async def call(mesh: Mesh) -> pb.Round:
        request = pb.StartRoundRequest(model_id=model_id)
        started = (await mesh.aggregator.StartRound(request)).round
        if not connect.json:
            say(f"round {started.round_id} started from version {started.base_version}")
        return await _follow(mesh, started.round_id, connect) if wait else started

    return _end(on_mesh(connect, call), connect)


@app.command
def watch(round_id: str, /, *, connect: Connect = Connect()) -> int:
    """Follow a round until it ends; exit code 5 if it is aborted."""

    async def call(mesh: Mesh) -> pb.Round:
        return await _follow(mesh, round_id, connect)

    return _end(on_mesh(connect, call), connect)


@app.command
def show(round_id: str, /, *, connect: Connect = Connect()) -> None:
    """Show one round as it is now, and what each client or group contributed, where it shows."""

    async def call(mesh: Mesh) -> pb.GetRoundResponse:
        return await mesh.aggregator.GetRound(pb.GetRoundRequest(round_id=round_id))

    answer = on_mesh(connect, call)
    if connect.json:
        shown = [as_dict(each) for each in answer.contributions]
        print_json([as_dict(answer.round) | ({"contributions": shown} if shown else {})])
        return
    _print([answer.round], connect)
    if answer.contributions:
        print_contributions(answer.contributions)


@app.command(name="ls")
def list_(
    model_id: str = "",
    /,
    *,
    last: Annotated[int, Parameter(help="How many, newest first, up to 1000.")] = 20,
    connect: Connect = Connect(),
) -> None:
    """List rounds, newest first, of one model or of all."""
    request = pb.ListRoundsRequest(model_id=model_id, page=common.Page(size=last))

    async def call(mesh: Mesh) -> list[pb.Round]:
        return list((await mesh.aggregator.ListRounds(request)).rounds)

    _print(on_mesh(connect, call), connect)


@app.command
def abort(round_id: str, /, *, reason: str, connect: Connect = Connect()) -> None:
    """End a round without a result. What it has charged by then stays charged."""

    async def call(mesh: Mesh) -> pb.Round:
        request = pb.AbortRoundRequest(round_id=round_id, reason=reason)
        return (await mesh.aggregator.AbortRound(request)).round

    answer = on_mesh(connect, call)
    if connect.json:
        print_json(as_dict(answer))
    else:
        say(f"round {round_id}: abort requested")


async def _follow(mesh: Mesh, round_id: str, connect: Connect) -> pb.Round:
    """Show a round's progress until it ends; the last state is returned."""
    console = Console(highlight=False)
    last = pb.Round()
    with console.status("connecting", spinner="dots") as status:
        async for attempt in AsyncRetrying(
            # A mesh that restarts goes on with its rounds, and so does who watches them.
            retry=retry_if_exception_type(Unavailable),
            stop=stop_after_delay(_RECONNECT_S),
            wait=wait_exponential(multiplier=0.2, max=5),
            before_sleep=lambda _: status.update("the mesh cannot be reached; trying again"),
            reraise=True,
        ):
            with attempt:
                async for current in _states(mesh, round_id):
                    if not connect.json:
                        line = progress_line(current)
                        status.update(line)
                        if current.phase != last.phase:
                            console.print(line)
                    last = current
    return last


async def _states(mesh: Mesh, round_id: str) -> AsyncIterator[pb.Round]:
    try:
        async for answer in mesh.aggregator.WatchRound(pb.WatchRoundRequest(round_id=round_id)):
            yield answer.round
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


def progress_line(state: pb.Round) -> str:
    """What a round is doing, in one line."""
    phase = phase_name(state)
    match state.phase:
        case pb.PHASE_COLLECTING:
            return f"{phase}: {state.received} of {state.selected} updates, {state.dropped} dropped"
        case pb.PHASE_PUBLISHED:
            line = f"{phase}: version {state.new_version} from {state.received} updates"
            return f"{line}; clip norm {clip_norm(state)}" if state.next_clip_norm else line
        case pb.PHASE_ABORTED:
            return f"{phase}: {state.reason}"
        case _:
            return phase


def phase_name(state: pb.Round) -> str:
    """`PHASE_COLLECTING` as `collecting`."""
    return enum_name(pb.Phase.Name(state.phase), "PHASE_")


def clip_norm(state: pb.Round) -> str:
    """The clip norm of a round, and with adaptive clipping the one that follows from it."""
    if not state.clip_norm:
        return "-"
    follows = f" -> {state.next_clip_norm:.4g}" if state.next_clip_norm else ""
    return f"{state.clip_norm:.4g}{follows}"


def _end(state: pb.Round, connect: Connect) -> int:
    if connect.json:
        print_json(as_dict(state))
    return Exit.ABORTED if state.phase == pb.PHASE_ABORTED else Exit.OK


def _print(rounds: list[pb.Round], connect: Connect) -> None:
    if connect.json:
        print_json([as_dict(state) for state in rounds])
        return
    print_table(
        "rounds",
        [
            "round",
            "model",
            "phase",
            ">from",
            ">made",
            ">updates",
            ">seconds",
            ">up",
            ">clip norm",
            "started",
            "note",
        ],
        [
            (
                state.round_id,
                state.model_id,
                phase_name(state),
                state.base_version,
                state.new_version or "-",
                f"{state.received}/{state.selected}",
                f"{(state.ended_at_ms - state.started_at_ms) / 1000:.2f}"
                if state.phase in _ENDED
                else "-",
                size(state.bytes_up),
                clip_norm(state),
                when(state.started_at_ms),
                state.reason,
            )
            for state in rounds
        ],
    )
