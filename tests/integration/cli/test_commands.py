"""Every sub-command against a real server: tables, JSON, files, exit codes."""

from __future__ import annotations

import asyncio
import hashlib
import stat
from pathlib import Path

import numpy as np

from boltz_mesh.rounds.plan import plan_from_toml
from boltz_mesh.rounds.plan_robust import defence
from boltz_mesh.storage.postgres import Channel
from boltz_protocol.errors import ApprovalPending
from boltz_protocol.join import parse_join_string
from boltz_protocol.model_file import encode_model, read_vector
from boltz_protocol.v1 import aggregator_pb2 as agg
from tests.integration.cli.running import Cli
from tests.support.calls import answered, refused
from tests.support.clients import RawClient, client_key, enrol_request, reached, seal, submit
from tests.support.mesh import Mesh
from tests.support.models import declare, plan_toml, tensors

# --- clients ------------------------------------------------------------------------------------


async def test_a_join_string_is_the_last_line(cli: Cli, mesh: Mesh) -> None:
    made = await cli.on(mesh, "clients", "token", "--valid", "30m")
    assert made.code == 0
    sentence, join = made.out.splitlines()
    parsed = parse_join_string(join)
    assert parsed.enroll_address == mesh.addresses.enroll
    assert sentence.startswith("client ")
    assert "can join until" in sentence
    answer = await answered(mesh.enrolment.registry.Enroll(enrol_request(join, client_key(40))))
    assert answer.client_id in sentence


async def test_the_life_of_a_client(cli: Cli, mesh: Mesh) -> None:
    document = (await cli.on(mesh, "clients", "token", "--requires-approval", "--json")).document
    client_id = document["client_id"]
    request = enrol_request(document["join_string"], client_key(41))
    with refused(ApprovalPending):
        await answered(mesh.enrolment.registry.Enroll(request))
    pending = (await cli.on(mesh, "clients", "ls", "--status", "pending", "--json")).document
    assert client_id in [client["client_id"] for client in pending]
    approved = await cli.on(mesh, "clients", "approve", client_id)
    assert (approved.code, "active" in approved.out) == (0, True)
    await answered(mesh.enrolment.registry.Enroll(request))
    table = await cli.on(mesh, "clients", "ls")
    (line,) = [line for line in table.out.splitlines() if line.startswith(client_id)]
    assert line.split()[1] == "active"
    for command, status in (
        (["suspend", client_id, "--reason", "holiday"], "CLIENT_STATUS_SUSPENDED"),
        (["reinstate", client_id], "CLIENT_STATUS_ACTIVE"),
        (["revoke", client_id], "CLIENT_STATUS_REVOKED"),
    ):
        moved = await cli.on(mesh, "clients", *command, "--json")
        assert moved.document["status"] == status
    shown = await cli.on(mesh, "clients", "show", client_id)
    assert "revoked" in shown.out
    gone = await cli.on(mesh, "clients", "reinstate", client_id)
    assert (gone.code, gone.out) == (3, "")
    assert "error: a revoked client cannot become active" in gone.err
    assert "next:" in gone.err


# --- plans --------------------------------------------------------------------------------------


async def test_plans(cli: Cli, mesh: Mesh, model: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(plan_toml(model))
    dry = await cli.on(mesh, "plan", "apply", str(file), "--dry-run")
    assert (dry.code, "Nothing was changed" in dry.out) == (0, True)
    first = await cli.on(mesh, "plan", "apply", str(file))
    said, liars = first.out.splitlines()
    assert said == f"{model}: revision 1 applied; it allows rounds without limit."
    assert liars == f"Liars: {defence('open', 'weighted-mean')}."
    again = await cli.on(mesh, "plan", "apply", "-", stdin=plan_toml(model))
    assert again.out.startswith(f"{model}: revision 1 says the same already.\n")
    assert (await cli.on(mesh, "plan", "apply", str(file), "--json")).document["changed"] is False
    shown = await cli.on(mesh, "plan", "show", model)
    assert shown.out.startswith("# revision 1, applied ")
    assert f"\n# liars: {defence('open', 'weighted-mean')}\n" in shown.out
    assert plan_from_toml(shown.out) == plan_from_toml(plan_toml(model))
    assert (await cli.on(mesh, "plan", "show", model, "--json")).document["model_id"] == model


async def test_a_sealed_plan_is_told_all_that_stands_against_liars(
    cli: Cli, mesh: Mesh, model: str
) -> None:
    text = plan_toml(model, mode="sealed", min=3)
    applied = await cli.on(mesh, "plan", "apply", "-", stdin=text)
    shown = await cli.on(mesh, "plan", "show", model)
    for said in (applied.out, shown.out):
        assert "the range check of the sum are all that stands against a client that lies" in said


async def test_the_example_plan_works_as_it_stands(cli: Cli, mesh: Mesh) -> None:
    example = await cli("plan", "example")
    dry = await cli.on(mesh, "plan", "apply", "-", "--dry-run", "--json", stdin=example.out)
    assert dry.document["plan"]["rounds_allowed"] > 0


async def test_a_plan_that_is_refused_says_what_would_do(cli: Cli, mesh: Mesh, model: str) -> None:
    text = plan_toml(model, clip_norm=-1)
    result = await cli.on(mesh, "plan", "apply", "-", stdin=text)
    assert (result.code, result.out) == (3, "")
    assert "clip_norm" in result.err
    assert "would do" in result.err


async def test_budgets(cli: Cli, mesh: Mesh, model: str) -> None:
    await declare(mesh, model)
    none = await cli.on(mesh, "budget", model)
    assert (none.code, "without noise" in none.out) == (0, True)
    noisy = plan_toml(
        f"{model}-dp",
        privacy="client-dp",
        noise=4.0,
        tables="[budget]\nepsilon = 2.0\ndelta = 1e-5\n",
    )
    await cli.on(mesh, "plan", "apply", "-", stdin=noisy)
    table = await cli.on(mesh, "budget", f"{model}-dp")
    assert "nobody has spent anything" in table.out
    assert "contribution-set-to-zero" in table.out
    assert "over its lifetime    0.000 (at delta 1e-05, one client," in table.out
    assert "0 events" in table.out
    shown = await cli.on(mesh, "budget", "show", f"{model}-dp", "--verify")
    assert "checked just now" in shown.out
    document = (await cli.on(mesh, "budget", f"{model}-dp", "--json")).document
    assert document["epsilon_spent"] == 0
    assert document["epsilon_budget"] == 2.0
    assert document["rounds_left"] >= 1


# --- models -------------------------------------------------------------------------------------


async def test_models(cli: Cli, mesh: Mesh, model: str, tmp_path: Path) -> None:
    await cli.on(mesh, "plan", "apply", "-", stdin=plan_toml(model, size=300_000))
    vector = np.arange(300_000, dtype=np.float32)
    content = encode_model(tensors(300_000), vector)
    file = tmp_path / "first.safetensors"
    file.write_bytes(content)
    first = await cli.on(mesh, "models", "publish", model, str(file), "--promote", "--json")
    digest = hashlib.sha256(content).hexdigest()
    assert (first.document["state"], first.document["sha256"]) == ("promoted", digest)
    second = await cli.on(mesh, "models", "publish", model, str(file), "--parent", "1")
    assert "candidate" in second.out
    shown = await cli.on(mesh, "models", "show", model, "--version", "2")
    assert "version 1" in shown.out
    assert "weights [300000]" in shown.out
    listed = await cli.on(mesh, "models", "ls", model)
    assert [line.split()[1:3] for line in listed.out.splitlines()[2:]] == [
        ["2", "candidate"],
        ["1", "promoted"],
    ]
    everything = (await cli.on(mesh, "models", "ls", "--json")).document
    assert model in [row["model_id"] for row in everything]
    out = tmp_path / "pulled.safetensors"
    pulled = await cli.on(mesh, "models", "pull", model, "--out", str(out))
    assert (pulled.out, pulled.err) == (f"{out}: {model} version 1, 1.2 MB\n", "")
    assert out.read_bytes() == content
    # A file that an earlier call left half done goes on where it stopped.
    again = tmp_path / "again.safetensors"
    partial = tmp_path / f"again.safetensors.{digest[:16]}.partial"
    partial.write_bytes(content[:1000])
    assert (await cli.on(mesh, "models", "pull", model, "--out", str(again), "--json")).code == 0
    assert again.read_bytes() == content
    assert not partial.exists()
    # Other bytes there are found out.
    partial = tmp_path / f"bad.safetensors.{digest[:16]}.partial"
    partial.write_bytes(b"x" * 1000)
    bad = await cli.on(mesh, "models", "pull", model, "--out", str(tmp_path / "bad.safetensors"))
    assert (bad.code, "is not" in bad.err) == (3, True)
    assert not partial.exists()
    promoted = await cli.on(mesh, "models", "promote", model, "2", "--json")
    assert promoted.document["state"] == "promoted"


# --- rounds -------------------------------------------------------------------------------------


async def test_a_round_from_the_command_line(
    cli: Cli, mesh: Mesh, clients: list[RawClient], model: str, tmp_path: Path
) -> None:
    start = np.zeros(8, np.float32)
    await declare(mesh, model, start)
    streams = [await client.participate(model) for client in clients[:3]]
    running = asyncio.create_task(cli.on(mesh, "round", "start", model, "--wait"))
    offers = [await stream.offer() for stream in streams]
    for client, offer in zip(clients, offers, strict=False):
        await submit(client, seal(offer, np.full(8, 0.25, np.float32)))
    result = await running
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    round_id = offers[0].configuration.round_id
    assert lines[0] == f"round {round_id} started from version 1"
    assert lines[-1] == "published: version 2 from 3 updates"
    watched = await cli.on(mesh, "round", "watch", round_id, "--json")
    assert watched.document["phase"] == "PHASE_PUBLISHED"
    shown = await cli.on(mesh, "round", "show", round_id)
    assert "3/3" in shown.out
    (line,) = [line for line in shown.out.splitlines() if line.startswith(round_id)]
    assert " 1 " in line
    assert "->" not in line
    listed = await cli.on(mesh, "round", "ls", model, "--last", "5", "--json")
    assert [row["round_id"] for row in listed.document] == [round_id]
    out = tmp_path / "model.safetensors"
    await cli.on(mesh, "models", "pull", model, "--out", str(out))
    np.testing.assert_allclose(read_vector(out.read_bytes(), tensors(8)), 0.25, atol=1e-4)
    for stream in streams:
        stream.cancel()


async def test_a_round_shows_where_its_clip_norm_goes(
    cli: Cli, mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model, tables="[adaptive_clipping]\nlearning_rate = 1.0\n")
    streams = [await client.participate(model) for client in clients[:3]]
    running = asyncio.create_task(cli.on(mesh, "round", "start", model, "--wait"))
    offers = [await stream.offer() for stream in streams]
    for client, offer in zip(clients, offers, strict=False):
        await submit(client, seal(offer, np.full(8, 0.25, np.float32)))
    # All are within: 1.0 * exp(-0.5).
    told = "published: version 2 from 3 updates; clip norm 1 -> 0.6065"
    assert (await running).out.splitlines()[-1] == told
    round_id = offers[0].configuration.round_id
    shown = await cli.on(mesh, "round", "show", round_id)
    assert "1 -> 0.6065" in shown.out
    (row,) = (await cli.on(mesh, "round", "show", round_id, "--json")).document
    assert row["clip_norm"] == 1.0
    assert abs(row["next_clip_norm"] - 0.6065) < 1e-4
    assert abs(row["metrics"]["clip-indicator"] - 0.5) < 1e-4


async def test_a_round_that_is_aborted(cli: Cli, mesh: Mesh, model: str) -> None:
    await declare(mesh, model)
    running = asyncio.create_task(cli.on(mesh, "round", "start", model, "--wait", "--json"))
    started = await first_round(mesh, model)
    second = await cli.on(mesh, "round", "start", model)
    assert (second.code, second.out) == (3, "")
    abort = await cli.on(mesh, "round", "abort", started, "--reason", "wrong plan")
    assert abort.code == 0
    result = await running
    assert result.code == 5
    assert result.document["reason"] == "wrong plan"
    assert (await cli.on(mesh, "round", "watch", started)).code == 5
    again = await cli.on(mesh, "round", "abort", started, "--reason", "twice")
    assert (again.code, "cannot be aborted" in again.err) == (3, True)


async def first_round(mesh: Mesh, model: str) -> str:
    """The id of a model's round, once a command has started it."""
    request = agg.ListRoundsRequest(model_id=model)
    found: list[str] = []

    async def listed() -> bool:
        answer = await answered(mesh.operator.aggregator.ListRounds(request))
        found.extend(round.round_id for round in answer.rounds)
        return bool(found)

    await mesh.wait(Channel.ROUND_CHANGED, listed)
    await reached(mesh, found[0], agg.PHASE_SELECTING)
    return found[0]


# --- the mesh -----------------------------------------------------------------------------------


async def test_status(cli: Cli, mesh: Mesh, clients: list[RawClient], model: str) -> None:
    await declare(mesh, model)
    stream = await clients[0].participate(model)
    table = await cli.on(mesh, "status")
    assert table.out.startswith(f"mesh {mesh.name} at {mesh.addresses.mesh}")
    document = (await cli.on(mesh, "status", "--json")).document
    assert document["clients"]["active"] >= len(clients)
    assert document["clients"]["checked_in"] >= 1
    stream.cancel()


async def test_a_credential_for_an_auditor(cli: Cli, mesh: Mesh, tmp_path: Path) -> None:
    folder = tmp_path / "bea"
    made = await cli(
        "credential",
        "bea",
        "--role",
        "auditor",
        "--out",
        str(folder),
        "--data-dir",
        str(mesh.data_dir),
    )
    assert (made.code, str(folder) in made.out) == (0, True)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    allowed = await cli("round", "ls", "--operator", str(folder))
    assert allowed.code == 0
    denied = await cli("clients", "token", "--operator", str(folder))
    assert (denied.code, denied.out) == (3, "")
    assert "auditor may not call" in denied.err
    twice = await cli("credential", "bea", "--out", str(folder), "--data-dir", str(mesh.data_dir))
    assert (twice.code, "exists already" in twice.err) == (3, True)
