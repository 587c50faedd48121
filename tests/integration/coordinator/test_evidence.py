"""Outcomes as evidence: what is written about clients and groups, when somebody is put in
quarantine, what is told as a security event, and what may not be looked at at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from boltz_mesh.aggregation.observations import Observations, Observer
from boltz_mesh.aggregation.rows import ClientRows, Unprotected
from boltz_mesh.coordinator.evidence import (
    COLLUSION_HINT,
    OUTLIER,
    QUARANTINE,
    SUSPICION,
    record_outcome,
)
from boltz_mesh.rounds.plan import plan_from_toml, plan_to_json
from boltz_mesh.rounds.state import Aggregating, Group, RoundParameters
from boltz_mesh.storage import (
    clients,
    outcomes,
    plans,
    roster,
    round_events,
    rounds,
    security_events,
    trust,
)
from boltz_mesh.storage.models import insert_model_version
from boltz_mesh.storage.postgres import Connection, Database
from boltz_mesh.storage.round_events import NewEvent, RoundEnd, RoundUpdate, SignedConfig
from boltz_mesh.storage.rounds import RoundOutcome
from boltz_mesh.storage.security_events import SecurityEvent
from boltz_mesh.storage.trust import TrustRow
from boltz_mesh.trust.outcome import judge_outcome
from boltz_mesh.trust.reputation import GAIN_256, Evidence, EvidenceKind
from boltz_protocol.ids import ClientId, SessionId
from tests.integration.coordinator.plan_text import plan_text
from tests.support.rows import (
    MODEL,
    client_id,
    digest,
    new_client,
    new_round,
    new_version,
    round_id,
    tx,
)

COORDINATES = 64
Array = np.ndarray
OPEN = plan_text(model=MODEL, min=5, target=20, max=60)
GROUPED = """\
model = "rates"
mode = "grouped"
clip_norm = 1.0
privacy = "client-dp"
noise_multiplier = 1.0
[budget]
epsilon = 100.0
delta = 1e-5
[cohort]
min = 60
target = 60
max = 60
[grouping]
count = 12
[[tensors]]
name = "weights"
shape = [4]
"""


class Rounds:
    """Rounds of one model with the same clients, each of which leaves evidence and ends."""

    def __init__(self, database: Database, count: int, mode: str) -> None:
        self.database = database
        self.clients = [client_id(n) for n in range(count)]
        self.mode = mode
        self.number = 0

    @classmethod
    async def of(cls, database: Database, count: int, text: str = OPEN) -> Rounds:
        plan = plan_from_toml(text)

        async def body(connection: Connection) -> None:
            for n in range(count):
                await clients.insert_client(connection, new_client(n))
            await plans.apply_plan(
                connection,
                MODEL,
                json.loads(plan_to_json(plan)),
                applied_by="ann",
                applied_at_ms=1,
            )
            await insert_model_version(connection, new_version(1))

        await tx(database, body)
        return cls(database, count, plan.mode)

    async def run(
        self,
        updates: Array,
        *,
        groups: Sequence[Sequence[int]] = (),
        direction: Array | None = None,
        absent: frozenset[int] = frozenset(),
        weights: Callable[[int], int] = lambda n: 10,
    ) -> None:
        """One round with these rows, (n, COORDINATES), whose median is the result."""
        self.number += 1
        number = self.number
        present = [n for n in range(len(self.clients)) if n not in absent]
        names = [str(n) for n in range(len(groups))] or [self.clients[n] for n in present]
        state = self._state(
            [self.clients[n] for n in present],
            tuple(
                Group(clients=tuple(self.clients[n] for n in group), threshold=3)
                for group in groups
            ),
        )
        row_weights = [sum(map(weights, group)) for group in groups] or list(map(weights, present))

        async def body(connection: Connection) -> None:
            found = await rounds.create_round(connection, new_round(number))
            await roster.insert_roster(
                connection,
                [
                    roster.RosterEntry(
                        round_id(number), 1, place, self.clients[n], SessionId("ee" * 16),
                        weights(n), 0, 0, 0, b"entry",
                    )
                    for place, n in enumerate(present)
                ],
            )  # fmt: skip
            seen = observed(names, row_weights, updates, direction)
            await record_outcome(connection, found, state, seen, 70 + number)
            await round_events.append_events(
                connection,
                round_id(number),
                [NewEvent(9, "Ended", {})],
                RoundUpdate(
                    "PUBLISHED",
                    1,
                    None,
                    config=SignedConfig(b"statement", digest("config")),
                    end=RoundEnd(RoundOutcome.ABORTED, "test", 9),
                ),
                fencing_token=0,
                expected_seq=0,
            )

        await tx(self.database, body)

    def _state(self, survivors: list[ClientId], groups: tuple[Group, ...]) -> Aggregating:
        parameters = RoundParameters(
            round_id=round_id(self.number),
            model_id=MODEL,
            attempt=1,
            base_version=1,
            plan_revision=1,
            min_clients=1,
            target_clients=60,
            max_clients=60,
            wanted_clients=60,
            selecting_ms=1,
            collecting_ms=1,
            aggregating_ms=1,
            releasing_ms=1,
            recovery_extension_ms=0,
            mode=self.mode,  # type: ignore[arg-type]  # of a checked plan
            groups=len(groups),
            min_group_survivors=5 if groups else 0,
        )
        return Aggregating(
            parameters=parameters, survivors=tuple(survivors), deadline_ms=9, groups=groups
        )

    async def rows(self, n: int, kind: EvidenceKind = EvidenceKind.OUTCOME) -> list[TrustRow]:
        found = await tx(
            self.database,
            lambda c: trust.list_evidence(c, MODEL, self.clients[n], after=0, limit=1000),
        )
        return [row for row in found if row.evidence.kind is kind]

    async def events(self, kind: str) -> list[SecurityEvent]:
        found = await tx(
            self.database, lambda c: security_events.list_security_events(c, limit=1000)
        )
        return [event for event in reversed(found) if event.kind == kind]

    async def standing(self, n: int) -> trust.Standing:
        found = await tx(self.database, lambda c: trust.read_trust(c, MODEL, [self.clients[n]]))
        return found[self.clients[n]]


def observed(
    names: Sequence[str], weights: Sequence[int], updates: Array, direction: Array | None = None
) -> Observations:
    observer = Observer.init(tuple(names), tuple(weights))
    rows = ClientRows(updates, Unprotected.of("open", "none"))
    observer.add(rows, np.median(updates, axis=0), direction)
    return observer.finish()


def honest(seed: int, count: int = 20) -> Array:
    rng = np.random.default_rng(seed)
    return 1 + rng.normal(size=(count, COORDINATES))


def with_liars(seed: int, *liars: int, count: int = 20) -> Array:
    updates = honest(seed, count)
    updates[list(liars)] *= -3
    return updates


async def test_each_survivor_has_a_row_that_its_inputs_explain(database: Database) -> None:
    mesh = await Rounds.of(database, 20)
    await mesh.run(with_liars(1, 19))
    await mesh.run(with_liars(2, 19))
    for n in range(20):
        first, second = await mesh.rows(n)
        assert (first.round_id, first.attempt, first.ordinal) == (round_id(1), 1, 1)
        assert (second.ordinal, second.at_ms) == (2, 72)
        assert judge_outcome(first.evidence.inputs) == first.evidence
        assert judge_outcome(second.evidence.inputs) == second.evidence
        assert first.evidence.inputs["row"] == client_id(n)
    losses = [row.evidence.loss_256 for row in await mesh.rows(19)]
    assert losses == [GAIN_256 // 4, GAIN_256 // 2]
    good = [row.evidence.gain_256 for row in await mesh.rows(3)]
    assert min(good) >= GAIN_256 // 2


async def test_a_liar_is_told_every_time_and_in_quarantine_after_six_rounds(
    database: Database,
) -> None:
    mesh = await Rounds.of(database, 20)
    for seed in range(5):
        await mesh.run(with_liars(seed, 19))
    assert (await mesh.standing(19)).quarantined_until is None
    await mesh.run(with_liars(5, 19))
    assert (await mesh.standing(19)).quarantined_until == 6 + 8
    (row,) = await mesh.rows(19, EvidenceKind.QUARANTINE)
    assert row.evidence.quarantine_rounds == 8
    assert row.ordinal == 6
    told = await mesh.events(OUTLIER)
    assert [event.client_id for event in told] == [client_id(19)] * 6
    assert told[0].round_id == round_id(1)
    assert told[0].detail["reason"] == "far-and-against-the-others"
    (event,) = await mesh.events(QUARANTINE)
    assert event.client_id == client_id(19)
    assert "6 of its last 6 rounds" in event.detail["reason"]
    assert event.detail["rounds"] == 8
    for n in range(19):
        assert (await mesh.standing(n)).quarantined_until is None


async def test_after_a_quarantine_history_starts_anew_and_the_next_is_longer(
    database: Database,
) -> None:
    mesh = await Rounds.of(database, 20)
    for seed in range(6):
        await mesh.run(with_liars(seed, 19))
    for seed in range(8):
        await mesh.run(honest(seed, 19), absent=frozenset({19}))
    assert (await mesh.standing(19)).quarantined_until is None
    for seed in range(5):
        await mesh.run(with_liars(seed, 19))
        assert (await mesh.standing(19)).quarantined_until is None
    await mesh.run(with_liars(7, 19))
    assert (await mesh.standing(19)).quarantined_until == 20 + 16
    losses = [row.evidence.loss_256 for row in await mesh.rows(19)]
    assert losses[6] == GAIN_256 // 4


async def test_an_operator_s_release_starts_anew_as_well(database: Database) -> None:
    mesh = await Rounds.of(database, 20)
    for seed in range(6):
        await mesh.run(with_liars(seed, 19))
    release = Evidence(EvidenceKind.RELEASE, "released", inputs={"by": "ann"})
    await tx(
        database,
        lambda c: trust.append_evidence(
            c, MODEL, client_id(19), release, round_id=None, attempt=None, ordinal=6, at_ms=80
        ),
    )
    past = await tx(database, lambda c: outcomes.past_outcomes(c, MODEL, [client_id(19)], limit=9))
    assert past[client_id(19)] == outcomes.PastOutcomes()
    for seed in range(6):
        await mesh.run(with_liars(seed, 19))
    _, second = await mesh.rows(19, EvidenceKind.QUARANTINE)
    assert second.evidence.quarantine_rounds == 8


async def test_those_in_quarantine_stay_a_minority(database: Database) -> None:
    """Three of seven rows are opposed; one client is in quarantine already. Of eight that makes
    four, so that one of the three is only told."""
    mesh = await Rounds.of(database, 8)
    locked = Evidence(EvidenceKind.QUARANTINE, "test", inputs={"rounds": 100})
    await tx(
        database,
        lambda c: trust.append_evidence(
            c, MODEL, client_id(7), locked, round_id=None, attempt=None, ordinal=0, at_ms=1
        ),
    )
    for seed in range(6):
        updates = 1 + 0.1 * honest(seed, 7)
        updates[4:7] *= -1
        updates[4:7] += np.random.default_rng(seed).normal(size=(3, COORDINATES))
        result = updates[:4].mean(axis=0)
        # The median of so few rows leans towards the liars; a robust rule's result would not.
        updates[4:7] -= 2 * result
        await mesh.run(updates, absent=frozenset({7}))
    imposed, told = await mesh.events(QUARANTINE), await mesh.events(SUSPICION)
    assert {event.client_id for event in [*imposed, *told]} <= {client_id(n) for n in (4, 5, 6)}
    assert len(imposed) == 2
    assert len(told) == 1
    assert (await mesh.standing(7)).quarantined_until is not None


async def test_copies_are_hinted_at(database: Database) -> None:
    mesh = await Rounds.of(database, 20)
    updates = honest(3)
    updates[11] = updates[2]
    await mesh.run(updates)
    (event,) = await mesh.events(COLLUSION_HINT)
    assert event.client_id is None
    assert event.detail["clients"] == [client_id(2), client_id(11)]
    assert await mesh.events(QUARANTINE) == []


async def test_influence_on_a_validation_set_is_recorded(database: Database) -> None:
    mesh = await Rounds.of(database, 20)
    updates = honest(4)
    downhill = -np.ones(COORDINATES)
    await mesh.run(updates, direction=downhill)
    total = 0.0
    for n in range(20):
        (row,) = await mesh.rows(n)
        influence = row.evidence.inputs["influence"]
        assert influence == pytest.approx(updates[n].sum() / 20)
        assert isinstance(influence, float)
        total += influence
        assert judge_outcome(row.evidence.inputs) == row.evidence
    assert total == pytest.approx(updates.sum(axis=1).mean())


async def test_few_rows_leave_no_evidence(database: Database) -> None:
    mesh = await Rounds.of(database, 4)
    await mesh.run(with_liars(1, 3, count=4))
    assert await mesh.rows(3) == []
    assert await mesh.events(OUTLIER) == []


async def test_a_group_s_outcome_is_divided_and_groups_narrow_a_liar_down(
    database: Database,
) -> None:
    mesh = await Rounds.of(database, 60, GROUPED)
    rng = np.random.default_rng(6)
    found_after = 0
    for number in range(1, 17):
        groups = rng.permutation(60).reshape(12, 5)
        sent = 1 + 0.25 * rng.normal(size=(60, COORDINATES)) + 0.25 * rng.normal(size=(60, 1))
        sent[59] -= 2
        await mesh.run(sent[groups].mean(axis=1), groups=groups.tolist())
        if not found_after and (await mesh.standing(59)).quarantined_until is not None:
            found_after = number
            break
    assert 8 <= found_after <= 16
    for n in range(59):
        assert (await mesh.standing(n)).quarantined_until is None
    (event,) = await mesh.events(QUARANTINE)
    assert event.client_id == client_id(59)
    assert "drawings of groups" in event.detail["reason"]
    told = await mesh.events(OUTLIER)
    assert told
    assert all(event.client_id is None for event in told)
    assert all(client_id(59) in event.detail["clients"] for event in told)
    (first, *_) = await mesh.rows(0)
    assert first.evidence.inputs["members"] == 5
    assert first.evidence.inputs["share_256"] == 51
    assert first.evidence.gain_256 <= GAIN_256 // 5
    assert judge_outcome(first.evidence.inputs) == first.evidence
    standings = [(await mesh.standing(n)).trust_256 for n in (0, 1, 2, 59)]
    assert standings[3] < min(standings[:3])


async def test_a_member_s_share_goes_by_its_weight(database: Database) -> None:
    mesh = await Rounds.of(database, 60, GROUPED)
    groups = np.arange(60).reshape(12, 5)
    await mesh.run(
        honest(1, 12), groups=groups.tolist(), weights=lambda n: 1 if n % 5 == 0 else 255
    )
    (light,), (heavy,) = await mesh.rows(0), await mesh.rows(1)
    assert light.evidence.inputs["share_256"] == 1
    assert heavy.evidence.inputs["share_256"] == 63


@pytest.mark.parametrize(
    "text",
    [
        plan_text(model=MODEL, min=5, target=20, max=60, privacy="client-dp", noise=1.0,
                  tables="[budget]\nepsilon = 10.0\ndelta = 1e-5\n"),
        GROUPED.replace("grouped", "sealed").replace("[grouping]\ncount = 12\n", ""),
    ],
)  # fmt: skip
async def test_under_other_plans_nothing_may_be_looked_at(database: Database, text: str) -> None:
    mesh = await Rounds.of(database, 60, text)
    with pytest.raises(AssertionError, match="nothing of this round may be looked at"):
        await mesh.run(honest(1, 60))


async def test_contributions_of_rounds_are_read_back(database: Database) -> None:
    mesh = await Rounds.of(database, 20)
    await mesh.run(honest(1))
    await mesh.run(honest(2))
    found = await tx(
        database, lambda c: outcomes.round_outcomes(c, [round_id(1), round_id(2), round_id(3)])
    )
    assert set(found) == {round_id(1), round_id(2)}
    assert [each.client_id for each in found[round_id(1)]] == mesh.clients
    assert all(each.inputs["rows"] == 20 for each in found[round_id(2)])
