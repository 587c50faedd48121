"""Trust on a real mesh: a whole run recomputed from the log alone; quarantine; who may see it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from boltz_mesh.coordinator.configure import roster_weights
from boltz_mesh.rounds.conduct import conduct_in
from boltz_mesh.rounds.plan import plan_from_toml
from boltz_mesh.rounds.serialise import event_of
from boltz_mesh.storage import check_ins, trust
from boltz_mesh.storage.postgres import Connection
from boltz_mesh.trust.conduct import conduct_inputs, judge_conduct
from boltz_mesh.trust.replay import Step, replay
from boltz_mesh.trust.reputation import (
    GAIN_256,
    NEWCOMER,
    ROUNDS,
    Evidence,
    EvidenceKind,
    TrustState,
    apply,
)
from boltz_protocol import codec, weights
from boltz_protocol.errors import (
    LimitExceeded,
    MalformedMessage,
    NormExceeded,
    NotFound,
    PermissionDenied,
    SecondDigest,
    StateConflict,
)
from boltz_protocol.ids import ClientId, ModelId, new_client_id
from boltz_protocol.v1 import common_pb2 as common
from boltz_protocol.v1 import registry_pb2 as reg
from tests.integration.services.playing import abort, all_in, constant, leave
from tests.support.calls import answered, refused
from tests.support.clients import (
    ControlStream,
    Offer,
    RawClient,
    Upload,
    aborted,
    published,
    seal,
    start_round,
    submit,
)
from tests.support.mesh import Identity, Mesh, Stubs
from tests.support.models import declare, plan_toml

#: Rounds that take all four clients, and go on without some at the deadline.
FOUR: dict[str, Any] = {"min": 2, "target": 4, "max": 4, "collecting": "1200ms"}


async def told(stubs: Stubs, client_id: str, model: str = "", **page: Any) -> Any:
    request = reg.GetClientTrustRequest(
        client_id=client_id, model_id=model, page=common.Page(**page)
    )
    return await answered(stubs.registry.GetClientTrust(request))


async def rows_of(mesh: Mesh, model: str, client_id: str) -> list[Step]:
    async def body(connection: Connection) -> list[Step]:
        return await trust.list_evidence(
            connection, ModelId(model), ClientId(client_id), after=0, limit=1000
        )

    return await mesh.database.read("test_rows", body)


# --- a whole run --------------------------------------------------------------------------------


class Run:
    """Rounds of four clients, of which some do not do what they should."""

    def __init__(self, mesh: Mesh, clients: Sequence[RawClient], model: str) -> None:
        self.mesh, self.clients, self.model = mesh, clients, model
        self.streams: list[ControlStream] = []

    async def begin(self) -> tuple[str, list[Offer]]:
        started = await start_round(self.mesh, self.model)
        return started.round_id, [await stream.offer() for stream in self.streams]

    async def good(self, offers: list[Offer], *numbers: int) -> None:
        for number in numbers:
            await submit(self.clients[number], seal(offers[number], constant(0.1)))

    async def end(self, round_id: str, *, result: bool = True) -> None:
        await (published if result else aborted)(self.mesh, round_id)
        for stream in self.streams:
            await stream.outcome()


async def whole_run(mesh: Mesh, clients: Sequence[RawClient], model: str) -> list[str]:
    """Eight rounds; returns their ids."""
    run = Run(mesh, clients, model)
    run.streams = await all_in(list(clients), model)
    rounds: list[str] = []

    async def all_good() -> None:
        round_id, offers = await run.begin()
        await run.good(offers, 0, 1, 2, 3)
        await run.end(round_id)
        rounds.append(round_id)

    await all_good()

    round_id, offers = await run.begin()  # client 3 declines
    await run.streams[3].decline(offers[3])
    await run.good(offers, 0, 1, 2)
    await run.end(round_id)
    rounds.append(round_id)

    round_id, offers = await run.begin()  # client 3 is silent
    await run.good(offers, 0, 1, 2)
    await run.end(round_id)
    rounds.append(round_id)

    round_id, offers = await run.begin()  # client 2 sends more than the clip norm allows
    await run.good(offers, 0)
    big = seal(offers[2], constant(0.1), integers=lambda values: values.fill(1 << 22))
    with refused(NormExceeded):
        await submit(clients[2], big)
    await run.good(offers, 1, 3)
    await run.end(round_id)
    rounds.append(round_id)

    round_id, offers = await run.begin()  # client 1 announces two updates
    await run.good(offers, 1)
    with refused(SecondDigest):
        second = seal(offers[1], constant(0.2))
        await Upload(clients[1].stubs).announce(second.statement(clients[1]))
    await run.good(offers, 0, 2, 3)
    await run.end(round_id)
    rounds.append(round_id)

    round_id, offers = await run.begin()  # an operator stops it, when two have sent theirs
    await run.good(offers, 0, 1)
    await abort(mesh, round_id)
    await run.end(round_id, result=False)
    rounds.append(round_id)

    await all_good()
    await all_good()
    await leave(run.streams)
    return rounds


async def test_trust_and_weights_of_a_whole_run_follow_from_the_log_alone(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    """Every row of evidence, every roster and every signed configuration, bit by bit."""
    await declare(mesh, model, **FOUR)
    rounds = await whole_run(mesh, clients, model)
    names = [ClientId(client.client_id) for client in clients]
    plan = plan_from_toml(plan_toml(model, **FOUR))
    states = dict.fromkeys(names, NEWCOMER)
    expected: dict[ClientId, list[tuple[object, ...]]] = {name: [] for name in names}
    used: list[dict[str, int]] = []
    for ordinal, round_id in enumerate(rounds, start=1):
        used.append(await check_roster(mesh, round_id, plan, states))
        for name, evidence in (await evidence_in(mesh, round_id)).items():
            states[name] = apply(states[name], 1 if ordinal > 1 else 0, evidence)
            expected[name].append(
                (ordinal, round_id, evidence.reason, *numbers(evidence, states[name]))
            )

    for name in names:
        written = await rows_of(mesh, model, name)
        assert [
            (row.ordinal, row.round_id, row.reason, *numbers(row, row)) for row in written
        ] == expected[name]
        assert all(row.agrees for row in replay(written))
        answer = await told(mesh.operator, name, model)
        assert answer.trust[0].trust_256 == states[name].trust_256
        assert answer.trust[0].steps == len(answer.steps) == len(rounds)

    reasons = {name: [row[2] for row in expected[name]] for name in names}
    assert reasons[names[0]] == [*["counted"] * 5, "no-result", "counted", "counted"]
    assert reasons[names[1]][4] == "second-digest"
    assert reasons[names[2]][3] == "refused"
    assert reasons[names[3]][1:3] == ["declined", "late"]
    # Trust made a difference: who did all it should weighs most at last.
    last = used[-1]
    assert max(last, key=lambda name: last[name]) == names[0]
    assert last[names[1]] < last[names[3]] < last[names[0]]


def numbers(evidence: Evidence | Step, state: TrustState | Step) -> tuple[int, ...]:
    return (
        evidence.gain_256,
        evidence.loss_256,
        state.positive_256,
        state.negative_256,
        state.quarantine_rounds,
        state.trust_256,
    )


async def evidence_in(mesh: Mesh, round_id: str) -> dict[ClientId, Evidence]:
    """From the round's events, its outcome, and the security events that name it."""
    events = await mesh.fetch(
        "SELECT payload FROM round_events WHERE round_id = $1 ORDER BY seq", round_id
    )
    (ended,) = await mesh.fetch(
        "SELECT outcome FROM federated_aggregations WHERE round_id = $1", round_id
    )
    noted = await mesh.fetch(
        "SELECT kind, client_id FROM security_events WHERE round_id = $1", round_id
    )
    did = conduct_in(event_of(json.loads(row["payload"])) for row in events)
    return {
        ClientId(client): judge_conduct(
            conduct_inputs(
                ended["outcome"],
                conduct,
                [row["kind"] for row in noted if row["client_id"] == client],
            )
        )
        for client, conduct in did.items()
    }


async def check_roster(
    mesh: Mesh, round_id: str, plan: Any, states: Mapping[ClientId, TrustState]
) -> dict[str, int]:
    """Weights from trust and buckets, against the rows and the signed configuration."""
    rows = await mesh.fetch(
        "SELECT * FROM round_roster WHERE round_id = $1 ORDER BY position", round_id
    )
    (found,) = await mesh.fetch(
        "SELECT config_statement FROM federated_aggregations WHERE round_id = $1", round_id
    )
    trusts = {str(name): state.trust_256 for name, state in states.items()}
    seats = [
        check_ins.CheckIn(
            client_id=ClientId(row["client_id"]),
            model_id=ModelId(plan.model),
            session_id=row["session_id"],
            replica_id="",
            sample_bucket=row["sample_bucket"],
            quality_bucket=row["quality_bucket"],
            region="",
            protocol_min=1,
            protocol_max=1,
            statement=b"",
            at_ms=1,
        )
        for row in rows
    ]
    recomputed = roster_weights(seats, trusts, plan)
    assert [row["weight"] for row in rows] == list(recomputed)
    assert [row["trust_256"] for row in rows] == [trusts[row["client_id"]] for row in rows]
    statement = codec.parse_statement(found["config_statement"])
    configuration = codec.parse_round_configuration(statement.payload)
    entries = [codec.parse_roster_entry(row["entry"]) for row in rows]
    leaves = [
        weights.WeightLeaf(entry.index, entry.client_id, digest_of(row["entry"]), weight)
        for entry, row, weight in zip(entries, rows, recomputed, strict=True)
    ]
    assert weights.root(leaves) == weights.SumNode(
        configuration.roster_root, configuration.total_weight
    )
    assert configuration.max_weight == max(recomputed)
    for entry in entries:
        weights.check_weight(entry, configuration)
    return {row["client_id"]: row["weight"] for row in rows}


def digest_of(entry: bytes) -> bytes:
    return hashlib.sha256(entry).digest()


# --- quarantine ---------------------------------------------------------------------------------


async def put(mesh: Mesh, model: str, client_id: str, evidence: Evidence, ordinal: int) -> None:
    """Evidence that no round brought about."""

    async def body(connection: Connection) -> None:
        await trust.append_evidence(
            connection,
            ModelId(model),
            ClientId(client_id),
            evidence,
            round_id=None,
            attempt=None,
            ordinal=ordinal,
            at_ms=1,
        )

    await mesh.database.run_tx("test_put", body)


def quarantine(rounds: int) -> Evidence:
    return Evidence(EvidenceKind.QUARANTINE, "far-off", inputs={ROUNDS: rounds})


async def play(mesh: Mesh, model: str, clients: Sequence[RawClient], drawn: Sequence[int]) -> None:
    """A round for which all of `clients` check in, and exactly `drawn` are offered it."""
    streams = await all_in(list(clients), model)
    round_id = (await start_round(mesh, model)).round_id
    for number in drawn:
        await submit(clients[number], seal(await streams[number].offer(), constant(0.1)))
    await published(mesh, round_id)
    rows = await mesh.fetch("SELECT client_id FROM round_roster WHERE round_id = $1", round_id)
    assert {row["client_id"] for row in rows} == {clients[n].client_id for n in drawn}
    await leave(streams)


async def test_a_quarantined_client_is_not_drawn_and_comes_back(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model, target=3, max=3)
    await put(mesh, model, clients[0].client_id, quarantine(2), 0)
    standing = (await told(clients[0].stubs, clients[0].client_id, model)).trust[0]
    assert (standing.ordinal, standing.quarantined_until) == (0, 2)
    for _ in range(2):
        await play(mesh, model, clients, drawn=(1, 2, 3))
    # Two rounds have ended; with the fourth away, the first one is needed.
    back = (await told(clients[0].stubs, clients[0].client_id, model)).trust[0]
    assert (back.quarantined_until, back.trust_256) == (0, NEWCOMER.trust_256)
    await play(mesh, model, clients[:3], drawn=(0, 1, 2))
    entries = await mesh.fetch(
        "SELECT r.trust_256 FROM round_roster r JOIN federated_aggregations a USING (round_id)"
        " WHERE a.model_id = $1 AND r.client_id = $2",
        model,
        clients[0].client_id,
    )
    assert [row["trust_256"] for row in entries] == [NEWCOMER.trust_256]


async def test_an_operator_releases_a_client(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model, target=3, max=3)
    client = clients[0].client_id
    await put(mesh, model, client, Evidence(EvidenceKind.OUTCOME, "far-off", 0, 9000), 0)
    await put(mesh, model, client, quarantine(100), 0)
    request = reg.ReleaseClientRequest(client_id=client, model_id=model, reason="a new sector")
    released = (await answered(mesh.operator.registry.ReleaseClient(request))).trust
    assert (released.quarantined_until, released.trust_256) == (0, NEWCOMER.trust_256)
    assert (released.positive_256, released.negative_256, released.steps) == (0, 0, 3)
    step = (await told(mesh.operator, client, model)).steps[-1]
    assert step.kind == reg.TRUST_EVIDENCE_KIND_RELEASE
    assert json.loads(step.inputs_json) == {"by": "local", "because": "a new sector"}
    await play(mesh, model, clients[:3], drawn=(0, 1, 2))
    with refused(StateConflict):
        await answered(mesh.operator.registry.ReleaseClient(request))
    for wrong, error in (
        (reg.ReleaseClientRequest(client_id=new_client_id(), model_id=model), NotFound),
        (reg.ReleaseClientRequest(client_id="me", model_id=model), MalformedMessage),
        (reg.ReleaseClientRequest(client_id=client), MalformedMessage),
        (
            reg.ReleaseClientRequest(client_id=client, model_id=model, reason="x" * 500),
            MalformedMessage,
        ),
    ):
        with refused(error):
            await answered(mesh.operator.registry.ReleaseClient(wrong))


async def test_a_release_while_a_round_is_being_aggregated(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    """Evidence of an open round is ahead of the ended ones; a release stands behind it."""
    await declare(mesh, model)
    client = clients[0].client_id
    await put(mesh, model, client, quarantine(5), 1)
    request = reg.ReleaseClientRequest(client_id=client, model_id=model)
    await answered(mesh.operator.registry.ReleaseClient(request))
    steps = (await told(mesh.operator, client, model)).steps
    assert [step.ordinal for step in steps] == [1, 1]


# --- who may see it -----------------------------------------------------------------------------


async def test_who_may_see_a_clients_trust(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    await declare(mesh, model)
    mine, other = clients[0], clients[1]
    await put(mesh, model, mine.client_id, Evidence(EvidenceKind.OUTCOME, "fine", GAIN_256), 0)
    auditor = mesh.connect(
        Identity.of(mesh.authority().issue_auditor("bea", now=datetime.now(UTC)))
    )
    for stubs in (mesh.operator, auditor, mine.stubs):
        answer = await told(stubs, mine.client_id, model)
        assert answer.trust[0].positive_256 == GAIN_256
    with refused(PermissionDenied):
        await told(other.stubs, mine.client_id, model)
    for wrong, error in ((new_client_id(), NotFound), ("", MalformedMessage)):
        with refused(error):
            await told(mesh.operator, wrong, model)


async def test_every_model_with_evidence_or_one_that_has_none(
    mesh: Mesh, clients: list[RawClient], model: str
) -> None:
    client = clients[3].client_id
    for name in (model, f"{model}-b"):
        await put(mesh, name, client, Evidence(EvidenceKind.OUTCOME, "fine", GAIN_256), 0)
    answer = await told(mesh.operator, client)
    assert not answer.steps
    assert {model, f"{model}-b"} <= {one.model_id for one in answer.trust}
    unknown = await told(mesh.operator, client, f"{model}-c")
    assert unknown.trust[0].trust_256 == NEWCOMER.trust_256
    assert (unknown.trust[0].score_256, unknown.trust[0].steps) == (128, 0)


async def test_steps_come_in_pages(mesh: Mesh, clients: list[RawClient], model: str) -> None:
    client = clients[0].client_id
    for _ in range(5):
        await put(mesh, model, client, Evidence(EvidenceKind.OUTCOME, "fine", GAIN_256), 0)
    seen: list[int] = []
    token = ""
    while True:
        answer = await told(mesh.operator, client, model, size=2, token=token)
        seen.extend(step.seq for step in answer.steps)
        token = answer.next_page_token
        if not token:
            break
    assert seen == [1, 2, 3, 4, 5]
    for page, error in (
        ({"size": 5000}, LimitExceeded),
        ({"token": "?"}, MalformedMessage),
        ({"token": "YWJj"}, MalformedMessage),  # "abc"
    ):
        with refused(error):
            await told(mesh.operator, client, model, **page)
