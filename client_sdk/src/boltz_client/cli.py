"""The `boltz-client` command.

Exit codes: 0 done; 1 an error of this program; 2 wrong usage, or a wrong file or setting on this
machine; 3 refused by the mesh; 4 the mesh cannot be reached; 5 refused by the owner's own limits
or by the checks of an offer. Errors are one sentence and one piece of advice on standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

# Before gRPC is loaded: it would write connection notes of its own between our lines.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from boltz_client.charges import Budget
from boltz_client.client import MeshClient
from boltz_client.enrolment import Profile, enroll
from boltz_client.heap import keep_heap
from boltz_client.notices import Notice, NoticeKind, Summary
from boltz_client.owner import DEFAULT_DELTA, is_own_refusal
from boltz_client.owner_options import owner_limits, owner_parser
from boltz_client.privacy_command import add_privacy_command
from boltz_client.trainer import RoundContext, Trainer, TrainResult
from boltz_protocol.errors import (
    ConfigurationError,
    KeyStoreLocked,
    MalformedMessage,
    MeshError,
    NotFinite,
    ShapeMismatch,
    StateConflict,
    TrainingFailed,
    Unavailable,
)
from boltz_protocol.ids import parse_model_id
from boltz_protocol.model_file import Vector, read_vector, split_vector

OK: Final = 0
BROKEN: Final = 1
USAGE: Final = 2
REFUSED: Final = 3
UNREACHABLE: Final = 4
OWN_LIMITS: Final = 5

_DEFAULT_STORE: Final = "~/.boltz-mesh/client"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    keep_heap()
    run: Callable[[argparse.Namespace], Any] = options.run
    try:
        code = asyncio.run(run(options))
    except MeshError as error:
        if options.debug:
            traceback.print_exc()
        _say_error(error, as_json=options.json)
        return exit_code(error)
    except KeyboardInterrupt:
        return OK
    assert isinstance(code, int)
    return code


def exit_code(error: MeshError) -> int:
    """The exit code that stands for an error."""
    match error:
        case Unavailable():
            return UNREACHABLE
        case _ if is_own_refusal(error):
            return OWN_LIMITS
        case ConfigurationError() | KeyStoreLocked() | TrainingFailed():
            return USAGE
        case MalformedMessage() | StateConflict() | ShapeMismatch() | NotFinite():
            # The same words from the mesh are a refusal; on this machine they are a usage error.
            return REFUSED if error.metadata.get("grpc_code") else USAGE
        case _:
            return REFUSED


def _say_error(error: MeshError, *, as_json: bool) -> None:
    if as_json:
        content = {"error": error.reason, "message": error.message, "advice": error.advice()}
        print(json.dumps(content), file=sys.stderr)
    else:
        print(f"boltz-client: {error.message}\n  {error.advice()}", file=sys.stderr)


def _print(options: argparse.Namespace, content: dict[str, Any], text: str) -> None:
    print(json.dumps(content) if options.json else text, flush=True)


# --- commands -----------------------------------------------------------------------------------


async def _enroll(options: argparse.Namespace) -> int:
    # A secret in the arguments shows in the list of processes; "-" reads it from standard input.
    join = sys.stdin.readline() if options.join == "-" else options.join
    profile = Profile(options.name, options.organisation, options.contact)
    enrolled = await enroll(
        join, _store(options), region=options.region, profile=profile, wait=options.wait
    )
    _print(
        options,
        {"client_id": enrolled.client_id, "mesh": enrolled.mesh, "store": str(enrolled.folder)},
        f"Enrolled with {enrolled.mesh} as {enrolled.client_id}; keys are in {enrolled.folder}.",
    )
    return OK


async def _pull(options: argparse.Namespace) -> int:
    async with MeshClient.open(_store(options)) as client:
        model = await client.pull_model(options.model, options.version)
        out = Path(options.out)
        try:
            await asyncio.to_thread(model.save, out)
        except OSError as error:
            raise ConfigurationError(f"{out} cannot be written: {error.strerror}") from error
    manifest = model.manifest
    _print(
        options,
        {
            "model": manifest.model_id,
            "version": manifest.version,
            "sha256": manifest.sha256.hex(),
            "size_bytes": manifest.size_bytes,
            "parameters": manifest.parameters,
            "out": str(out),
        },
        f"Version {manifest.version} of {manifest.model_id}: {manifest.parameters} parameters, "
        f"signed by {manifest.mesh_id}, written to {out}.",
    )
    return OK


async def _participate(options: argparse.Namespace) -> int:
    return await _take_part(options, load_trainer(options.trainer), options.rounds)


async def _submit(options: argparse.Namespace) -> int:
    try:
        content = await asyncio.to_thread(Path(options.weights).read_bytes)
    except OSError as error:
        raise ConfigurationError(f"{options.weights} cannot be read: {error.strerror}") from error
    return await _take_part(options, FileTrainer(content, options.samples), 1)


async def _take_part(options: argparse.Namespace, trainer: Trainer, rounds: int | None) -> int:
    errors: list[MeshError] = []

    def notify(notice: Notice) -> None:
        if notice.kind is NoticeKind.DECLINED and notice.error is not None:
            errors.append(notice.error)
        _print(options, _notice_fields(notice), _notice_text(notice))

    owner = owner_limits(options)
    async with MeshClient.open(_store(options), owner=owner, region=options.region) as client:
        loop = asyncio.get_running_loop()
        stopping: set[asyncio.Task[None]] = set()

        def stop() -> None:
            stopping.add(loop.create_task(client.stop()))

        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, stop)
        try:
            summary = await client.participate(
                trainer,
                options.model,
                rounds=rounds,
                quality_bucket=options.quality,
                notify=notify,
            )
        finally:
            for name in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(name)
            await asyncio.gather(*stopping)
    _print(
        options,
        {name: getattr(summary, name) for name in Summary.__slots__},
        f"Took part in {summary.submitted} rounds: {summary.counted} counted, "
        f"{summary.aborted} aborted, {summary.declined} declined"
        f"{f' ({summary.refused} by the own limits)' if summary.refused else ''}.",
    )
    if rounds == 1 and errors:
        # A single round that was declined is a failure of the command.
        raise errors[-1]
    return OK


async def _budget(options: argparse.Namespace) -> int:
    async with MeshClient.open(_store(options)) as client:
        mesh = await client.privacy_budget(options.model)
        # Both at the mesh's delta, or there would be nothing to compare.
        delta = mesh.delta or DEFAULT_DELTA
        model_id = parse_model_id(options.model)
        own = await asyncio.to_thread(client.ledger.spent, model_id, delta)
        charged = len(await asyncio.to_thread(client.ledger.events, model_id))
    of_mesh = {name: getattr(mesh, name) for name in Budget.__slots__}
    scope = f"at delta {delta:g}, unit: client; relation: {mesh.relation}"
    period = f"of {mesh.period}: " if mesh.period else ""
    _print(
        options,
        {
            "own": {"epsilon_spent": _figure(own), "rounds_charged": charged, "unit": "client"},
            "mesh": {
                name: _figure(value) if name.startswith("epsilon") else value
                for name, value in of_mesh.items()
            }
            | {"chain_head": mesh.chain_head.hex()},
            "delta": delta,
        },
        f"own ledger: epsilon {_epsilon(own)}, {charged} rounds charged ({scope})\n"
        f"the mesh's: epsilon {_epsilon(mesh.epsilon_lifetime)}, {mesh.rounds_lifetime} rounds "
        f"charged ({scope})\n"
        f"budget:     {period}epsilon {_epsilon(mesh.epsilon_spent)} spent, "
        f"{_epsilon(mesh.epsilon_held)} with what is held, "
        f"of {_epsilon(mesh.epsilon_budget) if mesh.delta else 'no budget'} "
        f"(at delta {delta:g}, unit: {mesh.unit}; relation: {mesh.relation})\n"
        "The own ledger charges every update before it is sent, the mesh every release. The "
        f"model's ledger has {mesh.chain_length} events, ending in {mesh.chain_head.hex()}.",
    )
    return OK


def _figure(epsilon: float) -> float | None:
    """As JSON has it: no word for infinity, so null."""
    return epsilon if math.isfinite(epsilon) else None


def _epsilon(epsilon: float) -> str:
    """Three decimals, rounded up."""
    return f"{math.ceil(epsilon * 1000) / 1000:.3f}" if math.isfinite(epsilon) else "without bound"


async def _status(options: argparse.Namespace) -> int:
    async with MeshClient.open(_store(options)) as client:
        status = await client.status()
        identity = client.store.identity
        ends = client.store.not_after
    _print(
        options,
        {
            "client_id": identity.client_id,
            "mesh": identity.mesh,
            "address": identity.mesh_address,
            "status": status,
            "certificate_not_after": ends.isoformat(),
        },
        f"{identity.client_id} of {identity.mesh} at {identity.mesh_address}: {status.lower()}; "
        f"the certificate ends on {ends:%Y-%m-%d}.",
    )
    return OK


# --- trainers -----------------------------------------------------------------------------------


class FileTrainer:
    """Submits weights that were trained elsewhere and written to a safetensors file."""

    def __init__(self, content: bytes, samples: int) -> None:
        self._content = content
        self._samples = samples

    def sample_count(self) -> int:
        """As the caller said."""
        return self._samples

    def train(self, model: dict[str, Vector], round: RoundContext) -> TrainResult:
        """Hand over what is in the file."""
        vector = read_vector(self._content, round.tensors)
        return TrainResult(weights=split_vector(round.tensors, vector))


def load_trainer(name: str) -> Trainer:
    """Import `module:attribute`: a trainer, or a class or function that makes one.

    Raises: ConfigurationError naming what is wrong.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ConfigurationError(f"{name!r} is not of the form module:attribute")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"the trainer {name!r} cannot be imported: {error}") from error
    made = found() if isinstance(found, type) or not hasattr(found, "train") else found
    if not (hasattr(made, "train") and hasattr(made, "sample_count")):
        raise ConfigurationError(f"{name!r} has no methods train and sample_count")
    trainer: Trainer = made
    return trainer


# --- words --------------------------------------------------------------------------------------


def _notice_fields(notice: Notice) -> dict[str, Any]:
    fields: dict[str, Any] = {"event": notice.kind.value, "model": notice.model_id}
    if notice.key is not None:
        fields |= {"round_id": notice.key.round_id, "attempt": notice.key.attempt}
    if notice.error is not None:
        fields |= {"error": notice.error.reason, "message": notice.error.message}
    if notice.outcome is not None:
        fields |= {
            "phase": notice.outcome.phase.name,
            "reason": notice.outcome.reason,
            "new_version": notice.outcome.new_version,
            "counted": notice.outcome.counted,
        }
    if notice.receipt is not None:
        fields |= {"sha256": notice.receipt.sha256.hex(), "size_bytes": notice.size_bytes}
    return fields


def _notice_text(notice: Notice) -> str:
    subject = f"round {notice.key.round_id[:8]}" if notice.key is not None else notice.model_id
    detail = ""
    if notice.error is not None:
        detail = f": {notice.error.message}"
    elif notice.outcome is not None:
        outcome = notice.outcome
        detail = (
            f": version {outcome.new_version} was made"
            if outcome.new_version
            else f": aborted ({outcome.reason})"
        )
    elif notice.receipt is not None:
        detail = f": {notice.size_bytes} bytes"
    return f"{subject}: {notice.kind.value}{detail}"


def _store(options: argparse.Namespace) -> Path:
    return Path(options.store).expanduser()


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--store", default=_DEFAULT_STORE, help="key store folder (%(default)s)")
    common.add_argument("--json", action="store_true", help="one JSON object a line")
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    parser = argparse.ArgumentParser(
        prog="boltz-client",
        description="Take part in a Boltz Mesh.",
        epilog="Exit codes: 0 done, 1 program error, 2 usage or a local setting, "
        "3 refused by the mesh, 4 mesh not reachable, 5 refused by the owner's limits.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    found = commands.add_parser("enroll", parents=[common], help="join a mesh")
    found.add_argument("join", metavar="JOIN", help="join string, or - to read it from stdin")
    found.add_argument("--wait", action="store_true", help="wait for an operator's approval")
    found.add_argument("--region", default="", help="where the data lies, such as eu-west")
    found.add_argument("--name", default="", help="display name for the operator")
    found.add_argument("--organisation", default="")
    found.add_argument("--contact", default="")
    found.set_defaults(run=_enroll)

    found = commands.add_parser("pull", parents=[common], help="fetch and verify a model")
    found.add_argument("model", metavar="MODEL")
    found.add_argument("--version", type=int, default=0, help="0 is the promoted one")
    found.add_argument("--out", required=True, metavar="FILE", help="safetensors file to write")
    found.set_defaults(run=_pull)

    owner = owner_parser()
    owner.add_argument("--region", default="")
    owner.add_argument("--quality", type=int, default=3, choices=range(4), help="declared quality")

    found = commands.add_parser("participate", parents=[common, owner], help="take part in rounds")
    found.add_argument("model", metavar="MODEL")
    found.add_argument("--trainer", required=True, metavar="MODULE:ATTRIBUTE")
    found.add_argument("--rounds", type=int, default=None, help="leave after so many")
    found.set_defaults(run=_participate)

    found = commands.add_parser(
        "submit", parents=[common, owner], help="take part in one round with weights from a file"
    )
    found.add_argument("model", metavar="MODEL")
    found.add_argument("--weights", required=True, metavar="FILE", help="safetensors file")
    found.add_argument("--samples", type=int, required=True, help="rows it was trained on")
    found.set_defaults(run=_submit)

    found = commands.add_parser(
        "budget", parents=[common], help="privacy spent, by the own ledger and by the mesh's"
    )
    found.add_argument("model", metavar="MODEL")
    found.set_defaults(run=_budget)

    add_privacy_command(commands, common)

    found = commands.add_parser("status", parents=[common], help="what the mesh says about us")
    found.set_defaults(run=_status)
    return parser
