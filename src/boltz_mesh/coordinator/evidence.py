"""What an aggregation showed becomes evidence about clients, in the transaction that counts it.

Only what the round's mode leaves to see: single clients' rows in an open round whose plan says
`privacy = "none"`, and in a grouped round the groups' means, whose noise is in them already. Under
any other plan there are no observations, and calling this is a defect.

A round of few rows gives no evidence (`outliers.MIN_ROWS`). What looks like an attack is told as a
security event as well; events of a group name the group's members, not a culprit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from boltz_mesh.aggregation.observations import Observations
from boltz_mesh.rounds.plan import Plan
from boltz_mesh.rounds.state import Aggregating
from boltz_mesh.services.plans import plan_of
from boltz_mesh.storage import outcomes, plans, roster, security_events, trust
from boltz_mesh.storage.postgres import Connection
from boltz_mesh.storage.rounds import Round
from boltz_mesh.trust.contribution import influences
from boltz_mesh.trust.outcome import Outcome, evidence_of, inputs_of, next_outcome, outcome_of
from boltz_mesh.trust.outliers import ONE, Reading, close_sets, read_rows
from boltz_mesh.trust.quarantine import HISTORY, Finding, History, judge, keep_minority
from boltz_mesh.trust.reputation import Evidence
from boltz_protocol.ids import ClientId

#: Kinds of security events.
OUTLIER: Final = "outlier"
QUARANTINE: Final = "quarantine"
SUSPICION: Final = "quarantine_not_imposed"
COLLUSION_HINT: Final = "collusion_hint"


@dataclass(frozen=True, slots=True)
class _Row:
    """Who is behind a row: clients and their weights, in roster order."""

    weights: Mapping[ClientId, int]

    @property
    def weight(self) -> int:
        return sum(self.weights.values())

    def share_256(self, client_id: ClientId) -> int:
        """A member's share of the row's weight, at least 1."""
        return max(1, ONE * self.weights[client_id] // self.weight)


@dataclass(frozen=True, slots=True)
class _Scribe:
    """Writes about one round."""

    connection: Connection
    found: Round
    at_ms: int

    async def evidence(self, ordinal: int, evidence: Mapping[ClientId, Evidence]) -> None:
        await trust.append_all(
            self.connection,
            self.found.model_id,
            evidence,
            round_id=self.found.round_id,
            attempt=self.found.attempt,
            ordinal=ordinal,
            at_ms=self.at_ms,
        )

    async def event(
        self, kind: str, detail: Mapping[str, Any], client_id: ClientId | None = None
    ) -> None:
        await security_events.record_security_event(
            self.connection,
            kind=kind,
            client_id=client_id,
            round_id=self.found.round_id,
            detail={"model": self.found.model_id, "attempt": self.found.attempt, **detail},
            at_ms=self.at_ms,
        )


async def record_outcome(
    connection: Connection,
    found: Round,
    state: Aggregating,
    observations: Observations,
    at_ms: int,
) -> None:
    """Write what a round's rows say about its survivors, and put in quarantine whom it is time for.

    Args:
        connection: in the transaction of AggregateReady, under the round's lock.
        found: the round's row.
        state: what the round leaves by AggregateReady: its survivors and groups.
        observations: of the rows that were aggregated, named by client or by place in the groups.
        at_ms: of the event.
    """
    model_id = found.model_id
    plan = plan_of(await plans.get_plan(connection, model_id, found.plan_revision))
    allowed = plan.mode == "grouped" or (plan.mode == "open" and plan.privacy == "none")
    assert allowed, "nothing of this round may be looked at"
    assert plan.mode == state.parameters.mode
    rows = await _who(connection, found, state, observations)
    # In a thread, here and below: of a thousand rows it takes tenths of a second.
    readings = await asyncio.to_thread(_readings, rows, observations, plan)
    if not readings:
        return
    clients = [client_id for row in rows for client_id in row.weights]
    past = await outcomes.past_outcomes(connection, model_id, clients, limit=HISTORY - 1)
    histories = await asyncio.to_thread(_histories, rows, readings, past)
    scribe = _Scribe(connection, found, at_ms)
    ordinal = await trust.ended_rounds(connection, model_id) + 1
    evidence = {client: evidence_of(history.outcomes[-1]) for client, history in histories.items()}
    await scribe.evidence(ordinal, evidence)
    await _report_rows(scribe, rows, readings)
    await _report_close(scribe, rows, observations)
    findings: dict[ClientId, Finding] = {}
    for client_id, history in histories.items():
        finding = judge(history)
        if finding is not None:
            findings[client_id] = finding
    if findings:
        absent = await outcomes.count_quarantined(connection, model_id, clients)
        await _quarantine(scribe, ordinal, findings, present=len(clients), absent=absent)


async def _who(
    connection: Connection, found: Round, state: Aggregating, observations: Observations
) -> list[_Row]:
    """Who is behind each observed row."""
    entries = await roster.get_roster(connection, found.round_id, found.attempt)
    weights = {entry.client_id: entry.weight for entry in entries}
    alive = frozenset(map(ClientId, state.survivors))
    rows = []
    for name in observations.rows:
        members = state.groups[int(name)].clients if state.groups else (name,)
        clients = [client for client in map(ClientId, members) if client in alive]
        assert clients, "a row has survivors behind it"
        rows.append(_Row({client: weights[client] for client in clients}))
    return rows


def _readings(rows: Sequence[_Row], observations: Observations, plan: Plan) -> tuple[Reading, ...]:
    known = None
    if observations.slopes is not None:
        rate = plan.server_optimizer.resolved().learning_rate
        assert rate is not None, "each optimizer has one"
        known = influences(observations.slopes, observations.weights, learning_rate=rate)
    return read_rows(
        observations.rows,
        [len(row.weights) for row in rows],
        observations.weights,
        norms=observations.norms,
        distances=observations.distances,
        cosines=observations.cosines,
        agreements=observations.gains,
        influences=known,
    )


def _histories(
    rows: Sequence[_Row],
    readings: Sequence[Reading],
    past: Mapping[ClientId, outcomes.PastOutcomes],
) -> dict[ClientId, History]:
    return {
        client_id: _history(past[client_id], reading, row.share_256(client_id))
        for row, reading in zip(rows, readings, strict=True)
        for client_id in row.weights
    }


def _history(past: outcomes.PastOutcomes, reading: Reading, share_256: int) -> History:
    """What came before, and this round."""
    before = tuple(map(outcome_of, past.inputs))
    now = next_outcome(before, reading, share_256)
    return History((*before, now), past.quarantines)


async def _quarantine(
    scribe: _Scribe,
    ordinal: int,
    findings: Mapping[ClientId, Finding],
    *,
    present: int,
    absent: int,
) -> None:
    """Put in quarantine whom a minority has room for; tell about all."""
    imposed, told = keep_minority(findings, present=present, absent=absent)
    if imposed:
        await scribe.evidence(
            ordinal, {client: each.evidence() for client, each in imposed.items()}
        )
    for kind, some in ((QUARANTINE, imposed), (SUSPICION, told)):
        for client_id, finding in some.items():
            detail = {"reason": finding.words, "rounds": finding.rounds, **finding.inputs}
            await scribe.event(kind, detail, client_id)


async def _report_rows(scribe: _Scribe, rows: Sequence[_Row], readings: Sequence[Reading]) -> None:
    """An event for each row that pulls against the others."""
    for row, reading in zip(rows, readings, strict=True):
        outcome = Outcome(reading)
        if not outcome.bad:
            continue
        detail = {"reason": reading.verdict.value, **inputs_of(outcome)}
        if reading.members > 1:
            await scribe.event(OUTLIER, {**detail, "clients": list(row.weights)})
        else:
            await scribe.event(OUTLIER, detail, next(iter(row.weights)))


async def _report_close(scribe: _Scribe, rows: Sequence[_Row], observations: Observations) -> None:
    """An event for each set of rows that are suspiciously alike."""
    for together in await asyncio.to_thread(close_sets, observations.closeness):
        detail = {
            "rows": [observations.rows[index] for index in together],
            "clients": [client for index in together for client in rows[index].weights],
        }
        await scribe.event(COLLUSION_HINT, detail)
