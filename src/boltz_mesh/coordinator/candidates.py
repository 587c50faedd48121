"""Who could take part in a round now, and the parameters that a plan gives it."""

from __future__ import annotations

from dataclasses import dataclass

from boltz_mesh.rounds.event import CandidatesSeen
from boltz_mesh.rounds.plan import Plan
from boltz_mesh.rounds.plan_robust import fewest_groups
from boltz_mesh.rounds.plan_types import SecureAggregationPlan
from boltz_mesh.rounds.selection import wanted_count
from boltz_mesh.rounds.state import RoundParameters
from boltz_mesh.services.budgets import Cost, clients_with_budget
from boltz_mesh.storage import check_ins, trust
from boltz_mesh.storage.check_ins import CheckIn
from boltz_mesh.storage.listen import replica_lock
from boltz_mesh.storage.postgres import REPLICA_LOCK_CLASS, Connection
from boltz_mesh.storage.rounds import Round
from boltz_protocol.ids import ModelId
from boltz_protocol.messages import PROTOCOL_VERSION
from boltz_protocol.secagg.graph import Adversary


@dataclass(frozen=True, slots=True)
class Candidates:
    """Checked-in clients that may be selected, and how many may not.

    Attributes:
        able: client id -> check-in.
        trust_256: client id -> trust in 1/256, of each of them.
        over_budget: how many have no budget left; who is in quarantine is not counted anywhere.
    """

    able: dict[str, CheckIn]
    trust_256: dict[str, int]
    over_budget: int

    def event(self, at_ms: int) -> CandidatesSeen:
        """What the round machine is told."""
        return CandidatesSeen(
            at_ms=at_ms, candidates=frozenset(self.able), over_budget=self.over_budget
        )


async def enough_checked_in(connection: Connection, model_id: ModelId, needed: int) -> bool:
    """Whether so many clients are checked in at all: asked first, since it is cheap."""
    counts = await check_ins.count_check_ins(connection)
    return counts.get(model_id, 0) >= needed


async def prune_dead_replicas(connection: Connection, own_replica: str) -> None:
    """Forget the check-ins of replicas that live no more, which nobody would answer for.

    Not while this replica's own lock is missing: after an outage of the database it may be that no
    replica has its lock back yet, and the streams live all the same.
    """
    held = await connection.fetchval(
        "-- prune_dead_replicas\n"
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND classid = $1::integer::oid AND objid = $2::integer::oid)",
        REPLICA_LOCK_CLASS,
        replica_lock(own_replica),
    )
    if held:
        await check_ins.prune_check_ins(connection)


async def read_candidates(
    connection: Connection, plan: Plan, cost: Cost, *, now_ms: int
) -> Candidates:
    """Active clients that are checked in, of the plan's regions, that speak our protocol and are in
    no quarantine.
    """
    fit = {
        check_in.client_id: check_in
        for check_in in await check_ins.list_check_ins(connection, cost.model_id)
        if (not plan.regions or check_in.region in plan.regions)
        and check_in.protocol_min <= PROTOCOL_VERSION <= check_in.protocol_max
    }
    standings = await trust.read_trust(connection, cost.model_id, list(fit))
    fit = {
        client: check_in
        for client, check_in in fit.items()
        if standings[client].quarantined_until is None
    }
    able = await clients_with_budget(connection, list(fit), cost, now_ms=now_ms)
    return Candidates(
        {client: check_in for client, check_in in fit.items() if client in able},
        {client: standings[client].trust_256 for client in fit if client in able},
        len(fit) - len(able),
    )


def parameters_of(found: Round, plan: Plan) -> RoundParameters:
    """What a round is fixed to when it starts."""
    cohort, deadlines = plan.cohort, plan.deadlines
    settings = plan.sealing if plan.is_masked else SecureAggregationPlan()
    grouping = plan.grouping
    return RoundParameters(
        round_id=found.round_id,
        model_id=found.model_id,
        attempt=found.attempt,
        base_version=found.base_version,
        plan_revision=found.plan_revision,
        min_clients=cohort.min,
        target_clients=cohort.target,
        max_clients=cohort.max,
        wanted_clients=wanted_count(cohort.target, cohort.max, cohort.over_selection),
        selecting_ms=deadlines.selecting_ms,
        collecting_ms=deadlines.collecting_ms,
        aggregating_ms=deadlines.aggregating_ms,
        releasing_ms=deadlines.releasing_ms,
        recovery_extension_ms=deadlines.recovery_extension_ms,
        mode=plan.mode,
        advertising_ms=deadlines.advertising_ms,
        sharing_ms=deadlines.sharing_ms,
        checking_ms=deadlines.checking_ms,
        unmasking_ms=deadlines.unmasking_ms,
        corrupt_fraction=settings.corrupt_fraction,
        dropout_fraction=settings.dropout_fraction,
        adversary=Adversary(settings.adversary),
        groups=0 if grouping is None else grouping.count,
        min_group_survivors=0 if grouping is None else grouping.min_survivors,
        least_groups=fewest_groups(plan),
    )
