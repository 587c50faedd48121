"""Outcomes as evidence: what is written about clients and groups, when somebody is put in
quarantine, what is told as a security event, and what may not be looked at at all."""

from __future__ import annotations

import numpy as np
import pytest

from boltz_mesh.coordinator.evidence import (
    COLLUSION_HINT,
    OUTLIER,
    QUARANTINE,
    SUSPICION,
)
from boltz_mesh.storage import (
    outcomes,
    trust,
)
from boltz_mesh.storage.postgres import Database
from boltz_mesh.trust.outcome import judge_outcome
from boltz_mesh.trust.reputation import GAIN_256, Evidence, EvidenceKind
from tests.integration.coordinator.evidence_rounds import (
    COORDINATES,
    GROUPED,
    Rounds,
    honest,
    with_liars,
)
from tests.integration.coordinator.plan_text import plan_text
from tests.support.rows import (
    MODEL,
    client_id,
    round_id,
    tx,
)


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
        assert await mesh.recomputes(n)
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
    assert await mesh.recomputes(19)
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
