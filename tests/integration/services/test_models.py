"""Versions: what may be published, what comes out again, what is live."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from boltz_protocol import codec, limits
from boltz_protocol import messages as m
from boltz_protocol.certificates import load_certificate, verify_statement_certificate
from boltz_protocol.errors import (
    ChunkOutOfOrder,
    DigestMismatch,
    LimitExceeded,
    MalformedMessage,
    MeshError,
    NotFinite,
    NotFound,
    ShapeMismatch,
    StateConflict,
)
from boltz_protocol.model_file import encode_model, read_vector
from boltz_protocol.statement import MESH_ALGORITHMS, verify
from boltz_protocol.v1 import aggregator_pb2 as agg
from boltz_protocol.v1 import common_pb2 as common
from boltz_protocol.v1 import model_store_pb2 as store
from boltz_protocol.v1 import registry_pb2 as reg
from tests.support.calls import answered, refused
from tests.support.clients import RawClient
from tests.support.mesh import Mesh
from tests.support.models import (
    PullCall,
    Vector,
    declare,
    plan_toml,
    publish,
    publish_requests,
    pull,
    tensors,
)

BIG = 3 * (limits.MODEL_CHUNK_BYTES // 4) + 5


def ramp(size: int) -> Vector:
    return np.arange(size, dtype=np.float32)


async def apply(mesh: Mesh, text: str, *, dry_run: bool = False) -> agg.ApplyPlanResponse:
    request = agg.ApplyPlanRequest(plan_toml=text, dry_run=dry_run)
    return await answered(mesh.operator.aggregator.ApplyPlan(request))


async def versions(mesh: Mesh, model: str) -> dict[int, str]:
    """Version -> state, newest first."""
    request = store.ListVersionsRequest(model_id=model)
    listed = (await answered(mesh.operator.models.ListVersions(request))).versions
    return {
        store.ModelManifest.FromString(version.manifest.payload).version: store.VersionState.Name(
            version.state
        ).removeprefix("VERSION_STATE_")
        for version in listed
    }


# --- publish ------------------------------------------------------------------------------------


async def test_the_same_bytes_come_back(mesh: Mesh, clients: list[RawClient], model: str) -> None:
    vector = ramp(BIG)
    await declare(mesh, model, vector)
    content = encode_model(tensors(BIG), vector)
    for stubs in (clients[0].stubs, mesh.operator):
        pulled = await pull(stubs, model, credits=2)
        assert bytes(pulled.data) == content
    manifest = codec.parse_model_manifest(
        codec.statement_from_proto(pulled.version.manifest).payload
    )
    assert manifest.sha256 == hashlib.sha256(content).digest()
    assert (manifest.version, manifest.parent_version, manifest.round_id) == (1, 0, None)
    assert manifest.tensors == tensors(BIG)


async def test_what_is_at_rest_is_not_the_model(mesh: Mesh, model: str) -> None:
    vector = np.full(1000, 1.5, np.float32)
    await declare(mesh, model, vector)
    (row,) = await mesh.fetch("SELECT blob_digest FROM federated_models WHERE model_id = $1", model)
    name = row["blob_digest"].hex()
    (blob,) = [path for path in (mesh.data_dir / "blobs").rglob("*") if name in path.name]
    stored = blob.read_bytes()
    assert hashlib.sha256(stored).hexdigest() == name
    assert vector[:4].tobytes() not in stored
    assert b"weights" not in stored


async def test_manifests_verify_against_the_root(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model)
    keys = await answered(clients[0].stubs.registry.GetServerKeys(reg.GetServerKeysRequest()))
    root = load_certificate(keys.authority_certificate_der)
    certificate = verify_statement_certificate(
        [keys.statement_certificates_der[-1]], root=root, mesh=mesh.name, now=datetime.now(UTC)
    )
    answer = await answered(
        clients[0].stubs.models.GetManifest(store.GetManifestRequest(model_id=model))
    )
    for message, expected in (
        (answer.version.manifest, m.MODEL_MANIFEST),
        (keys.encryption_keys[-1], m.ENCRYPTION_KEY),
    ):
        verify(
            codec.statement_from_proto(message),
            expected_type=expected,
            public_key=certificate.public_key,
            allowed_algorithms=MESH_ALGORITHMS,
        )


def changed(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


CONTENT = encode_model(tensors(BIG), ramp(BIG))
NAN = np.float32(np.nan).tobytes()
SMALL = encode_model(tensors(8), ramp(8))


def without(requests: Sequence[store.PublishRequest], index: int) -> list[store.PublishRequest]:
    return [request for number, request in enumerate(requests) if number != index]


def big(**options: Any) -> list[store.PublishRequest]:
    return publish_requests("MODEL", CONTENT, **options)


@pytest.mark.parametrize(
    ("requests", "error", "match"),
    [
        (publish_requests("MODEL", SMALL), ShapeMismatch, "bytes"),
        (big(header={"size_bytes": 5}), ShapeMismatch, "bytes"),
        (big(header={"sha256": bytes(32)}), DigestMismatch, "digest"),
        (big(header={"sha256": b"short"}), MalformedMessage, "sha256"),
        (big(header={"model_id": "no-such-model"}), NotFound, "no-such-model"),
        (big(header={"model_id": "Not A Model"}), MalformedMessage, "model"),
        (big(header={"parent_version": 7}), StateConflict, "parent"),
        (big(header={"parent_version": (1 << 32) - 1}), StateConflict, "parent"),
        (big()[1:], MalformedMessage, "header"),
        ([], MalformedMessage, "header"),
        ([store.PublishRequest()], MalformedMessage, "header"),
        (big()[:1] + big()[:1], MalformedMessage, "chunks"),
        (without(big(), 2), ChunkOutOfOrder, "next one"),
        (big()[:-1], ChunkOutOfOrder, "ended"),
        ([*big(), big()[-1]], ChunkOutOfOrder, None),
        (big(chunk_bytes=limits.MODEL_CHUNK_BYTES + 4), LimitExceeded, "chunk"),
        (big(chunk_bytes=limits.MODEL_CHUNK_BYTES - 2), MalformedMessage, "number in two"),
        (
            publish_requests("MODEL", changed(CONTENT, len(CONTENT) - 4, NAN)),
            NotFinite,
            "weights",
        ),
        (publish_requests("MODEL", changed(CONTENT, 10, b"X")), ShapeMismatch, "header"),
    ],
)
async def test_files_that_are_refused(
    mesh: Mesh,
    model: str,
    requests: list[store.PublishRequest],
    error: type[MeshError],
    match: str | None,
) -> None:
    await apply(mesh, plan_toml(model, size=BIG))
    sent: list[store.PublishRequest] = []
    for request in requests:
        copy = store.PublishRequest()
        copy.CopyFrom(request)
        if copy.header.model_id == "MODEL":
            copy.header.model_id = model
        sent.append(copy)
    with refused(error, match):
        await publish(mesh.operator, sent)
    assert await versions(mesh, model) == {}
    # The next one is none the worse for it.
    await publish(mesh.operator, publish_requests(model, CONTENT))
    assert await versions(mesh, model) == {1: "PROMOTED"}


async def test_a_header_with_metadata_is_not_canonical(mesh: Mesh, model: str) -> None:
    import safetensors.numpy

    await apply(mesh, plan_toml(model))
    content = safetensors.numpy.save({"weights": ramp(8)}, metadata={"note": "hello"})
    with refused(ShapeMismatch):
        await publish(mesh.operator, publish_requests(model, content))


async def test_a_file_that_safetensors_wrote(mesh: Mesh, model: str) -> None:
    import safetensors.numpy

    await declare(mesh, model)
    content = safetensors.numpy.save({"weights": ramp(8)})
    await publish(mesh.operator, publish_requests(model, content))
    assert bytes((await pull(mesh.operator, model)).data) == content


# --- pull ---------------------------------------------------------------------------------------


async def test_a_pull_goes_on_at_any_offset(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model, ramp(BIG))
    size = len(CONTENT)
    for offset in (0, 1, limits.MODEL_CHUNK_BYTES, 2 * limits.MODEL_CHUNK_BYTES + 7, size - 1):
        pulled = await pull(clients[0].stubs, model, offset=offset)
        assert bytes(pulled.data) == CONTENT[offset:], offset
    at_the_end = await pull(clients[0].stubs, model, offset=size)
    assert not at_the_end.data
    cut = await pull(clients[0].stubs, model, stop_after=2)
    rest = await pull(clients[0].stubs, model, version=1, offset=len(cut.data))
    assert bytes(cut.data + rest.data) == CONTENT


async def test_credits_are_kept(mesh: Mesh, clients: list[RawClient], model: str) -> None:
    await declare(mesh, model, ramp(BIG))
    call = PullCall(clients[0].stubs.models.Pull, ())
    await call.write(store.PullRequest(open=store.PullOpen(model_id=model, credits=2)))
    assert await call.read() is not None  # the header
    assert [(await call.read()) is not None for _ in range(2)] == [True, True]
    # Nothing more comes without a credit: half-closing shows it without a wait.
    await call.done_writing()
    with refused(MalformedMessage, "too few credits"):
        await call.read()


@pytest.mark.parametrize("credits", [0, 65, 1 << 31])
async def test_credits_out_of_range(
    mesh: Mesh, clients: list[RawClient], model: str, credits: int
) -> None:
    await declare(mesh, model)
    with refused(MalformedMessage, "credits"):
        await pull(clients[0].stubs, model, credits=credits)


async def test_more_credits_than_may_be_outstanding(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model, ramp(BIG))
    call = PullCall(clients[0].stubs.models.Pull, ())
    await call.write(store.PullRequest(open=store.PullOpen(model_id=model, credits=1)))
    for _ in range(2):
        assert await call.read() is not None
    for _ in range(2):
        await call.write(store.PullRequest(credit=store.PullCredit(chunks=64)))
    with refused(LimitExceeded, "outstanding"):
        while await call.read() is not None:
            pass


@pytest.mark.parametrize(
    ("opening", "error"),
    [
        ({"model_id": "no-such-model"}, NotFound),
        ({"model_id": "Not A Model"}, MalformedMessage),
        ({"version": 9}, NotFound),
        ({"version": (1 << 32) - 1}, NotFound),
        ({"offset": 1 << 40}, MalformedMessage),
        ({"offset": len(SMALL) + 1}, MalformedMessage),
    ],
)
async def test_openings_that_are_refused(
    mesh: Mesh,
    clients: list[RawClient],
    model: str,
    opening: dict[str, Any],
    error: type[MeshError],
) -> None:
    await declare(mesh, model)
    call = PullCall(clients[0].stubs.models.Pull, ())
    fields: dict[str, Any] = {"model_id": model, "credits": 1} | opening
    await call.write(store.PullRequest(open=store.PullOpen(**fields)))
    with refused(error):
        await call.read()


@pytest.mark.parametrize(
    "requests",
    [
        [store.PullRequest()],
        [store.PullRequest(credit=store.PullCredit(chunks=1))],
        [],
    ],
)
async def test_pulls_that_do_not_open(
    clients: list[RawClient], requests: list[store.PullRequest]
) -> None:
    call = PullCall(clients[0].stubs.models.Pull, ())
    for request in requests:
        await call.write(request)
    await call.done_writing()
    with refused(MalformedMessage, "opening"):
        await call.read()


async def test_a_second_opening_in_one_pull(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model, ramp(BIG))
    call = PullCall(clients[0].stubs.models.Pull, ())
    for _ in range(2):
        await call.write(store.PullRequest(open=store.PullOpen(model_id=model, credits=1)))
    with refused(MalformedMessage, "only credits"):
        while await call.read() is not None:
            pass


# --- versions -----------------------------------------------------------------------------------


async def promote(mesh: Mesh, model: str, version: int) -> store.ModelVersion:
    request = store.PromoteRequest(model_id=model, version=version)
    return (await answered(mesh.operator.models.Promote(request))).version


async def test_promotion_and_rollback(mesh: Mesh, clients: list[RawClient], model: str) -> None:
    await declare(mesh, model)
    for value in (2.0, 3.0):
        content = encode_model(tensors(8), np.full(8, value, np.float32))
        header = {"parent_version": 1}
        await publish(mesh.operator, publish_requests(model, content, promote=False, header=header))
    assert await versions(mesh, model) == {3: "CANDIDATE", 2: "CANDIDATE", 1: "PROMOTED"}
    live = await promote(mesh, model, 3)
    assert (live.state, live.promoted_by) == (store.VERSION_STATE_PROMOTED, "local")
    assert await versions(mesh, model) == {3: "PROMOTED", 2: "CANDIDATE", 1: "RETIRED"}
    assert read_vector(bytes((await pull(clients[0].stubs, model)).data), tensors(8))[0] == 3.0
    await promote(mesh, model, 3)  # again: no change
    await promote(mesh, model, 1)  # what was live once may be live again
    assert await versions(mesh, model) == {3: "RETIRED", 2: "CANDIDATE", 1: "PROMOTED"}
    second = codec.parse_model_manifest(
        codec.statement_from_proto(
            (await pull(clients[0].stubs, model, version=2)).version.manifest
        ).payload
    )
    first = (await pull(clients[0].stubs, model, version=1)).version.manifest
    assert second.parent_version == 1
    assert second.parent_sha256 == store.ModelManifest.FromString(first.payload).sha256
    for version in (0, 9, (1 << 32) - 1):
        with refused(NotFound):
            await promote(mesh, model, version)


async def test_a_model_without_a_live_version(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await apply(mesh, plan_toml(model))
    await publish(mesh.operator, publish_requests(model, SMALL, promote=False))
    with refused(NotFound, "no promoted version"):
        await pull(clients[0].stubs, model)
    with refused(StateConflict, "promoted"):
        await answered(mesh.operator.aggregator.StartRound(agg.StartRoundRequest(model_id=model)))


async def test_pages_of_versions(mesh: Mesh, clients: list[RawClient], model: str) -> None:
    await declare(mesh, model)
    for _ in range(4):
        await publish(mesh.operator, publish_requests(model, SMALL, promote=False))
    stub = clients[0].stubs.models
    seen: list[int] = []
    token = ""
    for _ in range(4):
        page = common.Page(size=2, token=token)
        answer = await answered(
            stub.ListVersions(store.ListVersionsRequest(model_id=model, page=page))
        )
        seen.extend(
            store.ModelManifest.FromString(v.manifest.payload).version for v in answer.versions
        )
        token = answer.next_page_token
        if not token:
            break
    assert seen == [5, 4, 3, 2, 1]
    everything: list[str] = []
    token = ""
    while True:
        page = common.Page(size=2, token=token)
        answer = await answered(stub.ListVersions(store.ListVersionsRequest(page=page)))
        everything.extend(
            store.ModelManifest.FromString(v.manifest.payload).model_id for v in answer.versions
        )
        token = answer.next_page_token
        if not token:
            break
    assert everything == sorted(set(everything))
    assert model in everything


@pytest.mark.parametrize("token", ["LTE=", "OTk5OTk5OTk5OTk5OTk5OTk5", "eA=="])
async def test_page_tokens_of_other_makes(mesh: Mesh, model: str, token: str) -> None:
    await declare(mesh, model)
    with refused(MalformedMessage, "page token"):
        request = store.ListVersionsRequest(model_id=model, page=common.Page(token=token))
        await answered(mesh.operator.models.ListVersions(request))
    with refused(MalformedMessage, "page token"):
        rounds = agg.ListRoundsRequest(page=common.Page(token=token))
        await answered(mesh.operator.aggregator.ListRounds(rounds))
