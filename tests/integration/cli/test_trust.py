"""`boltz-mesh clients trust` and `release`: explained, recomputed, and a forged row found."""

from __future__ import annotations

import re

import numpy as np

from boltz_mesh.storage import trust
from boltz_mesh.storage.postgres import Connection
from boltz_mesh.trust.outcome import Outcome, evidence_of
from boltz_mesh.trust.reputation import ROUNDS, Evidence, EvidenceKind
from boltz_protocol.ids import ClientId, ModelId
from tests.integration.cli.running import Cli
from tests.support.clients import RawClient, published, seal, start_round, submit
from tests.support.mesh import Mesh
from tests.support.models import declare
from tests.unit.trust.readings import OPPOSED, reading


async def play(mesh: Mesh, clients: list[RawClient], model: str) -> str:
    """One round, of which the third client declines; returns its id."""
    await declare(mesh, model)
    streams = [await client.participate(model) for client in clients[:3]]
    started = await start_round(mesh, model)
    offers = [await stream.offer() for stream in streams]
    await streams[2].decline(offers[2])
    for number in (0, 1):
        await submit(clients[number], seal(offers[number], np.full(8, 0.1, np.float32)))
    await published(mesh, started.round_id)
    for stream in streams:
        stream.cancel()
    return started.round_id


async def put(mesh: Mesh, model: str, client_id: str, *evidence: Evidence) -> None:
    async def body(connection: Connection) -> None:
        for one in evidence:
            await trust.append_evidence(
                connection,
                ModelId(model),
                ClientId(client_id),
                one,
                round_id=None,
                attempt=None,
                ordinal=1,
                at_ms=1_790_000_000_000,
            )

    await mesh.database.run_tx("test_put", body)


async def forge(mesh: Mesh, statement: str, *arguments: object) -> None:
    """What a person could do who may change the tables themselves."""

    async def body(connection: Connection) -> None:
        await connection.execute("ALTER TABLE trust_evidence DISABLE TRIGGER USER")
        await connection.execute(statement, *arguments)
        await connection.execute("ALTER TABLE trust_evidence ENABLE TRIGGER USER")

    await mesh.database.run_tx("test_forge", body)


async def test_a_score_is_explained_and_recomputed(
    cli: Cli, mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    round_id = await play(mesh, clients, model)
    client = clients[0].client_id
    await put(mesh, model, client, evidence_of(Outcome(reading(**OPPOSED))))
    shown = await cli.on(mesh, "clients", "trust", client, "--model", model)
    assert shown.code == 0, shown.err
    lines = shown.out.splitlines()
    assert [line.split()[-1] for line in lines[:3]] == ["trust", client, model]
    assert lines[-1] == "recomputed from its 2 steps: all of them agree"
    (counted,) = [line for line in lines if "its update counted" in line]
    # Round 1, half an experience gained: mean 0.6 less 0.262, 1.59 times a newcomer.
    assert re.split(r"\s{2,}", counted.strip())[2:] == [
        "its update counted", "0.500", "-", "0.500", "0.000", "0.336", "1.59",
    ]  # fmt: skip
    (against,) = [line for line in lines if "pulled against the others from far away" in line]
    assert "distance z 7.812" in against
    assert "agreement -1" in against

    result = await cli.on(mesh, "clients", "trust", client, "--model", model, "--json")
    (document,) = result.document
    assert (document["agrees"], document["objections"]) == (True, [])
    assert (document["model_id"], document["score_256"]) == (model, 140)
    first = document["steps"][0]
    assert first["round_id"] == round_id
    assert (first["kind"], first["reason"]) == ("TRUST_EVIDENCE_KIND_CONDUCT", "counted")
    assert first["inputs"] == {"outcome": "published", "conduct": "counted", "incidents": []}
    assert (first["gain_256"], first["trust_256"], first["agrees"]) == (128, 86, True)

    # Without a model: all that there is, of other tests too.
    every = await cli.on(mesh, "clients", "trust", client, "--json")
    assert model in [one["model_id"] for one in every.document]
    declined = await cli.on(mesh, "clients", "trust", clients[2].client_id, "--model", model)
    assert "declined" in declined.out


async def test_a_client_about_which_nothing_is_known(
    cli: Cli, mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    made = (await cli.on(mesh, "clients", "token", "--json")).document
    unknown = await cli.on(mesh, "clients", "trust", made["client_id"])
    assert (unknown.code, unknown.out) == (3, "")
    assert "error: no client" in unknown.err
    nothing = await cli.on(mesh, "clients", "trust", clients[0].client_id, "--model", model)
    assert nothing.code == 0
    assert "what led there: none" in nothing.out
    assert "recomputed from its 0 steps: all of them agree" in nothing.out


async def test_forged_rows_are_found(
    cli: Cli, mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await play(mesh, clients, model)
    client = clients[1].client_id
    await forge(
        mesh,
        "UPDATE trust_evidence SET gain_256 = 4096, positive_256 = 4096, trust_256 = 228"
        " WHERE model_id = $1 AND client_id = $2",
        model,
        client,
    )
    shown = await cli.on(mesh, "clients", "trust", client, "--model", model)
    assert shown.code == 7
    assert "DISAGREES" in shown.out
    assert (
        "does not agree: step 1: the inputs make it counted with gain 128 and loss 0, and the row "
        "says counted with 4096 and 0" in shown.out
    )
    assert "does not agree: the mesh says +4096 -0 and trust 228 now" in shown.out
    result = await cli.on(mesh, "clients", "trust", client, "--model", model, "--json")
    assert result.code == 7
    assert '"agrees": false' in result.out

    # A row that is taken out altogether, of a client with two.
    other = clients[0].client_id
    await put(mesh, model, other, Evidence(EvidenceKind.OUTCOME, "far-off", 0, 64))
    await forge(
        mesh,
        "DELETE FROM trust_evidence WHERE model_id = $1 AND client_id = $2 AND seq = 1",
        model,
        other,
    )
    shown = await cli.on(mesh, "clients", "trust", other, "--model", model)
    assert shown.code == 7
    assert "row 2 stands where row 1 should" in shown.out
    assert "1 of 2 steps were shown" in shown.out


async def test_an_operator_releases_a_client(
    cli: Cli, mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    client = clients[0].client_id
    why = {ROUNDS: 12, "distance": 7.5}
    await put(mesh, model, client, Evidence(EvidenceKind.QUARANTINE, "far-off", inputs=why))
    shown = await cli.on(mesh, "clients", "trust", client, "--model", model)
    assert shown.code == 0, shown.out
    assert "until round 13 has ended" in shown.out
    assert "quarantine for 12 rounds: far-off (distance 7.5)" in shown.out
    released = await cli.on(
        mesh, "clients", "release", client, "--model", model, "--reason", "checked"
    )
    assert (released.code, "until round" in released.out) == (0, False)
    again = await cli.on(mesh, "clients", "release", client, "--model", model)
    assert again.code == 3
    assert "is in no quarantine" in again.err
    shown = await cli.on(mesh, "clients", "trust", client, "--model", model)
    assert "released by an operator (because checked, by local)" in shown.out
    await put(mesh, model, client, Evidence(EvidenceKind.QUARANTINE, "far-off", inputs=why))
    told = await cli.on(mesh, "clients", "release", client, "--model", model, "--json")
    assert told.document["trust_256"] == 54
