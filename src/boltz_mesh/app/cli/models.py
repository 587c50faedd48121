"""`boltz-mesh models ...`: versions, their files, promotion."""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import Progress

from boltz_mesh.app.cli.connection import Connect, Mesh, on_mesh
from boltz_mesh.app.cli.output import (
    as_dict,
    enum_name,
    print_fields,
    print_json,
    print_table,
    say,
    size,
    when,
)
from boltz_mesh.rounds.plan import plan_from_toml
from boltz_protocol import limits
from boltz_protocol.codec import parse_model_manifest, statement_from_proto
from boltz_protocol.errors import ConfigurationError, DigestMismatch, Unavailable
from boltz_protocol.messages import Dtype, ModelManifest, TensorSpec
from boltz_protocol.model_file import canonical_layout, file_parts, read_vector
from boltz_protocol.v1 import aggregator_pb2 as agg
from boltz_protocol.v1 import common_pb2 as common
from boltz_protocol.v1 import model_store_pb2 as pb

app = App(name="models", help="Model versions: list, show, pull, publish, promote.")


@app.command(name="ls")
def list_(model_id: str = "", /, *, connect: Connect = Connect()) -> None:
    """List the versions of a model, or the newest version of every model."""
    request = pb.ListVersionsRequest(model_id=model_id, page=common.Page(size=1000))

    async def call(mesh: Mesh) -> list[pb.ModelVersion]:
        return list((await mesh.models.ListVersions(request)).versions)

    versions = on_mesh(connect, call)
    if connect.json:
        print_json([_document(version) for version in versions])
        return
    print_table(
        "model versions",
        ["model", ">version", "state", ">from", "round", ">size", "sha256", "made"],
        [
            (
                (manifest := _manifest(version)).model_id,
                manifest.version,
                _state(version),
                manifest.parent_version or "-",
                manifest.round_id or "(published)",
                size(manifest.size_bytes),
                manifest.sha256.hex()[:16],
                when(manifest.created_at_ms),
            )
            for version in versions
        ],
    )


@app.command
def show(
    model_id: str,
    /,
    *,
    version: Annotated[int, Parameter(help="Which version; 0 is the promoted one.")] = 0,
    connect: Connect = Connect(),
) -> None:
    """Show one version's manifest."""

    async def call(mesh: Mesh) -> pb.ModelVersion:
        request = pb.GetManifestRequest(model_id=model_id, version=version)
        return (await mesh.models.GetManifest(request)).version

    _print(on_mesh(connect, call), connect)


@app.command
def pull(
    model_id: str,
    /,
    *,
    out: Annotated[Path, Parameter(help="Where to write the safetensors file.")],
    version: Annotated[int, Parameter(help="Which version; 0 is the promoted one.")] = 0,
    connect: Connect = Connect(),
) -> None:
    """Fetch a version's file. A cut-off file goes on where it stopped when called again."""

    async def call(mesh: Mesh) -> pb.ModelVersion:
        return await _pull(mesh, model_id, version, out, quiet=connect.json)

    answer = on_mesh(connect, call)
    if connect.json:
        print_json(_document(answer))
    else:
        manifest = _manifest(answer)
        say(f"{out}: {model_id} version {manifest.version}, {size(manifest.size_bytes)}")


@app.command
def publish(
    model_id: str,
    file: Annotated[Path, Parameter(help="A safetensors file with the plan's tensors.")],
    /,
    *,
    parent: Annotated[int, Parameter(help="Version it was made from; 0 for none.")] = 0,
    promote_now: Annotated[
        bool, Parameter(name="--promote", negative="", help="Make it the live version at once.")
    ] = False,
    connect: Connect = Connect(),
) -> None:
    """Store a version made elsewhere, such as the first one. Any safetensors file will do that has
    the plan's tensors: they are put into the plan's order on the way.
    """
    content = _mapped(file)

    async def call(mesh: Mesh) -> pb.ModelVersion:
        plan = (await mesh.aggregator.GetPlan(agg.GetPlanRequest(model_id=model_id))).plan
        tensors = tuple(
            TensorSpec(spec.name, tuple(spec.shape), Dtype.FLOAT32)
            for spec in plan_from_toml(plan.plan_toml).tensors
        )
        parts = list(file_parts(canonical_layout(tensors), read_vector(content, tensors)))
        return (
            await mesh.models.Publish(_publication(parts, model_id, parent, promote_now))
        ).version

    _print(on_mesh(connect, call), connect)


@app.command
def promote(model_id: str, version: int, /, *, connect: Connect = Connect()) -> None:
    """Make a version the one that clients pull and rounds start from."""

    async def call(mesh: Mesh) -> pb.ModelVersion:
        request = pb.PromoteRequest(model_id=model_id, version=version)
        return (await mesh.models.Promote(request)).version

    _print(on_mesh(connect, call), connect)


async def _publication(
    parts: list[memoryview], model_id: str, parent: int, promote_now: bool
) -> AsyncIterator[pb.PublishRequest]:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    header = pb.PublishHeader(
        model_id=model_id,
        sha256=digest.digest(),
        size_bytes=sum(map(len, parts)),
        parent_version=parent,
        promote=promote_now,
    )
    yield pb.PublishRequest(header=header)
    offset = 0
    for part in parts:
        for start in range(0, len(part), limits.MODEL_CHUNK_BYTES):
            data = bytes(part[start : start + limits.MODEL_CHUNK_BYTES])
            yield pb.PublishRequest(chunk=pb.ModelChunk(offset=offset, data=data))
            offset += len(data)


async def _pull(
    mesh: Mesh, model_id: str, version: int, out: Path, *, quiet: bool
) -> pb.ModelVersion:
    found = (
        await mesh.models.GetManifest(pb.GetManifestRequest(model_id=model_id, version=version))
    ).version
    manifest = _manifest(found)
    # The digest is in the name: what an earlier call left there belongs to this very version.
    partial = out.with_name(f"{out.name}.{manifest.sha256.hex()[:16]}.partial")
    with partial.open("ab") as file, _progress(quiet=quiet) as progress:
        offset = min(file.tell(), manifest.size_bytes)
        bar = progress.add_task(f"{model_id} v{manifest.version}", total=manifest.size_bytes)
        used = asyncio.Semaphore(0)
        outstanding = limits.MAX_PULL_CREDITS // 4

        async def requests() -> AsyncIterator[pb.PullRequest]:
            yield pb.PullRequest(
                open=pb.PullOpen(
                    model_id=model_id,
                    version=manifest.version,
                    offset=offset,
                    credits=outstanding,
                )
            )
            while True:
                await used.acquire()
                yield pb.PullRequest(credit=pb.PullCredit(chunks=1))

        async for answer in mesh.models.Pull(requests()):
            if answer.WhichOneof("message") == "chunk":
                file.write(answer.chunk.data)
                offset += len(answer.chunk.data)
                progress.update(bar, completed=offset)
                outstanding -= 1
                # Not where the server may have sent everything: grpc.aio turns a write to a call
                # that has just ended into that call's failure.
                if manifest.size_bytes - offset > outstanding * limits.MODEL_CHUNK_BYTES:
                    outstanding += 1
                    used.release()
        file.flush()
        os.fsync(file.fileno())
    if offset < manifest.size_bytes:
        raise Unavailable(f"the transfer was cut after {offset} of {manifest.size_bytes} bytes")
    with partial.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").digest()
    if digest != manifest.sha256:
        partial.unlink()
        raise DigestMismatch(f"the file that came is not {model_id} version {manifest.version}")
    partial.replace(out)
    return found


def _progress(*, quiet: bool) -> Progress:
    """On standard error: standard output is for the result."""
    console = Console(stderr=True)
    return Progress(disable=quiet or not console.is_terminal, transient=True, console=console)


def _mapped(file: Path) -> memoryview:
    try:
        with file.open("rb") as source:
            return memoryview(mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise ConfigurationError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{file} is empty") from error


def _manifest(version: pb.ModelVersion) -> ModelManifest:
    return parse_model_manifest(statement_from_proto(version.manifest).payload)


def _state(version: pb.ModelVersion) -> str:
    return enum_name(pb.VersionState.Name(version.state), "VERSION_STATE_")


def _document(version: pb.ModelVersion) -> dict[str, object]:
    manifest = pb.ModelManifest.FromString(version.manifest.payload)
    document = as_dict(manifest)
    # Digests in hex, as everywhere people compare them.
    for field in ("sha256", "parent_sha256", "optimizer_state_sha256"):
        document[field] = getattr(manifest, field).hex()
    return {**document, "state": _state(version), "promoted_by": version.promoted_by}


def _print(version: pb.ModelVersion, connect: Connect) -> None:
    if connect.json:
        print_json(_document(version))
        return
    manifest = _manifest(version)
    shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in manifest.tensors)
    print_fields(
        f"{manifest.model_id} version {manifest.version}",
        [
            ("state", _state(version)),
            ("made from", f"version {manifest.parent_version}" if manifest.parent_version else "-"),
            ("made by", f"round {manifest.round_id}" if manifest.round_id else "publication"),
            ("made", when(manifest.created_at_ms)),
            ("promoted", f"{when(version.promoted_at_ms)} {version.promoted_by}".strip()),
            ("sha256", manifest.sha256.hex()),
            ("size", size(manifest.size_bytes)),
            ("tensors", shapes if len(shapes) <= 400 else f"{len(manifest.tensors)} tensors"),
            ("plan revision", manifest.plan_revision),
        ],
    )
