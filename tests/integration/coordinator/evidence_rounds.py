"""Rounds that leave evidence of outcomes, without updates: rows are given, and tables are real."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np

from boltz_mesh.aggregation.observations import Observations, Observer
from boltz_mesh.aggregation.rows import ClientRows, Unprotected
from boltz_mesh.coordinator.evidence import (
    record_outcome,
)
from boltz_mesh.rounds.plan import plan_from_toml, plan_to_json
from boltz_mesh.rounds.state import Aggregating, Group, RoundParameters
from boltz_mesh.storage import (
    clients,
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
from boltz_mesh.trust.replay import Step, replay
from boltz_mesh.trust.reputation import Evidence, EvidenceKind
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


class Row:
    """A step, and the evidence in it."""

    def __init__(self, step: Step) -> None:
        self.round_id, self.attempt = step.round_id, step.attempt
        self.ordinal, self.at_ms = step.ordinal, step.at_ms
        self.evidence = Evidence(
            EvidenceKind(step.kind), step.reason, step.gain_256, step.loss_256, step.inputs
        )


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
                        round_id=round_id(number),
                        attempt=1,
                        position=place,
                        client_id=self.clients[n],
                        session_id=SessionId("ee" * 16),
                        weight=weights(n),
                        sample_bucket=0,
                        quality_bucket=0,
                        trust_256=128,
                        group_id=0,
                        entry=b"entry",
                    )
                    for place, n in enumerate(present)
                ],
            )
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

    async def rows(self, n: int, kind: EvidenceKind = EvidenceKind.OUTCOME) -> list[Row]:
        found = await tx(
            self.database,
            lambda c: trust.list_evidence(c, MODEL, self.clients[n], after=0, limit=1000),
        )
        return [Row(step) for step in found if step.kind == kind.value]

    async def recomputes(self, n: int) -> bool:
        """Whether all rows of a client follow from their inputs and the rows before them."""
        found = await tx(
            self.database,
            lambda c: trust.list_evidence(c, MODEL, self.clients[n], after=0, limit=1000),
        )
        return bool(found) and all(each.agrees for each in replay(found))

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
