"""Trust, weights and quarantine from round to round, by the product's own arithmetic.

It is what the mesh keeps in its database: states forget, evidence counts, weights follow from
sample bucket and trust. Every client of the simulation answers in time, so that its conduct is good
in every round; what it sent is looked at only where the mode allows it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from boltz_mesh.aggregation.observations import Observations, Observer
from boltz_mesh.app.simulate.mesh import Aggregated
from boltz_mesh.coordinator.configure import capped_weights
from boltz_mesh.trust.conduct import PUBLISHED, Conduct, conduct_inputs, judge_conduct
from boltz_mesh.trust.outcome import Outcome, evidence_of, next_outcome
from boltz_mesh.trust.outliers import ONE, Reading, read_rows
from boltz_mesh.trust.quarantine import HISTORY, History, judge, keep_minority
from boltz_mesh.trust.reputation import NEWCOMER, Evidence, TrustState, apply, forget
from boltz_protocol import limits, weights

#: Clients declare the best quality: none of the attacks is about it, and a liar would say the same.
_QUALITY: Final = limits.MAX_QUALITY_BUCKET
#: Of one client in a round's weight: a plan's default, which lowers nobody.
_SHARE_CAP: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Known:
    """What the mesh knows about one identity.

    Attributes:
        state: as its last evidence left it, at the end of round `ordinal`.
        outcomes: since its last quarantine, oldest first.
        quarantines: so far.
    """

    state: TrustState = NEWCOMER
    ordinal: int = 0
    outcomes: tuple[Outcome, ...] = ()
    quarantines: int = 0

    def at(self, ordinal: int) -> TrustState:
        """The state when so many rounds of the model have ended."""
        return forget(self.state, ordinal - self.ordinal)

    def counted(self, ordinal: int, evidence: Evidence) -> TrustState:
        """The state after one more evidence."""
        return apply(self.state, ordinal - self.ordinal, evidence)


@dataclass(slots=True)
class Standing:
    """All clients' standing during one training run.

    Attributes:
        stated: rows that each client says it has.
        sample_bucket_cap: of the plan.
        renewed_every: rounds after which attackers come back under other names; 0 for never.
        attackers: who they are; nothing but their coming back depends on it.
        ended: rounds of the model that have ended.
        known: by client.
        ever_out: clients that were put in quarantine.
    """

    stated: Sequence[int]
    sample_bucket_cap: int
    renewed_every: int
    attackers: frozenset[int]
    ended: int = 0
    known: dict[int, _Known] = field(default_factory=dict)
    ever_out: set[int] = field(default_factory=set)

    def begin(self) -> tuple[int, ...]:
        """Who may be selected for the next round, ascending."""
        if self.renewed_every and self.ended % self.renewed_every == 0:
            for client in self.attackers:
                self.known.pop(client, None)
        return tuple(
            client
            for client in range(len(self.stated))
            if not self._state(client).quarantine_rounds
        )

    def weights(self, members: Sequence[int]) -> dict[int, int]:
        """Committed weight of each selected client."""
        values = [
            weights.weight(
                sample_bucket=weights.sample_bucket(self.stated[client]),
                quality_bucket=_QUALITY,
                trust_256=self._state(client).trust_256,
                sample_bucket_cap=self.sample_bucket_cap,
            )
            for client in members
        ]
        return dict(zip(members, capped_weights(values, _SHARE_CAP), strict=True))

    def end(self, made: Aggregated, committed: Mapping[int, int]) -> None:
        """Count what the round showed: outcome and quarantines first, then everybody's conduct.

        Args:
            committed: weights of the round's clients.
        """
        self.ended += 1
        if made.rows is not None:
            self._count_outcomes(made, committed)
        inputs = conduct_inputs(PUBLISHED, Conduct.COUNTED)
        conduct = judge_conduct(inputs)
        for client in committed:
            self._count(client, conduct)

    def share(self, attackers: Collection[int], committed: Mapping[int, int]) -> float:
        """The attackers' part of the weight of a round."""
        total = sum(committed.values())
        return sum(committed.get(client, 0) for client in attackers) / total

    def _state(self, client: int) -> TrustState:
        return self.known.get(client, _Known(ordinal=self.ended)).at(self.ended)

    def _count(self, client: int, evidence: Evidence) -> _Known:
        before = self.known.get(client, _Known(ordinal=self.ended))
        state = before.counted(self.ended, evidence)
        self.known[client] = _Known(state, self.ended, before.outcomes, before.quarantines)
        return self.known[client]

    def _count_outcomes(self, made: Aggregated, committed: Mapping[int, int]) -> None:
        readings = _readings(made, committed)
        findings = {}
        for members, reading in zip(made.members, readings, strict=True) if readings else ():
            for client in members:
                share = max(1, ONE * committed[client] // reading.weight)
                before = self.known.get(client, _Known(ordinal=self.ended))
                outcome = next_outcome(before.outcomes, reading, share)
                counted = self._count(client, evidence_of(outcome))
                outcomes = (*before.outcomes, outcome)[-HISTORY:]
                self.known[client] = _Known(counted.state, self.ended, outcomes, before.quarantines)
                finding = judge(History(outcomes, before.quarantines))
                if finding is not None:
                    findings[str(client)] = finding
        present = len(committed)
        imposed, _ = keep_minority(findings, present=present, absent=len(self.stated) - present)
        for name, finding in imposed.items():
            client = int(name)
            counted = self._count(client, finding.evidence())
            self.known[client] = _Known(counted.state, self.ended, (), counted.quarantines + 1)
            self.ever_out.add(client)


def _readings(made: Aggregated, committed: Mapping[int, int]) -> tuple[Reading, ...]:
    """What the mesh reads off each row of a round."""
    assert made.rows is not None
    row_weights = tuple(sum(committed[client] for client in row) for row in made.members)
    names = tuple(str(number) for number in range(len(made.members)))
    observer = Observer.init(names, row_weights)
    observer.add(made.rows, made.mean)
    seen: Observations = observer.finish()
    return read_rows(
        seen.rows,
        [len(row) for row in made.members],
        seen.weights,
        norms=seen.norms,
        distances=seen.distances,
        cosines=seen.cosines,
        agreements=seen.gains,
    )
