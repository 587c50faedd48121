"""Starting, aborting, showing and watching rounds."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence

from opentelemetry.propagate import inject

from boltz_mesh.rounds.fact import FactKind
from boltz_mesh.rounds.plan_policy import PrivacyPolicy, check_policy
from boltz_mesh.rounds.state import Phase
from boltz_mesh.services.attempts import configuration_of
from boltz_mesh.services.budgets import check_cohort, cost_of
from boltz_mesh.services.clip_norms import clip_norm_after, plan_in_force
from boltz_mesh.services.clock import Clock
from boltz_mesh.services.contributions import contributions_of
from boltz_mesh.services.ledger_checks import LedgerChecks
from boltz_mesh.services.paging import decode_token, encode_token, page_size
from boltz_mesh.services.plans import plan_of
from boltz_mesh.services.texts import check_text
from boltz_mesh.storage import clients, inbox, models, outcomes, plans, round_stats
from boltz_mesh.storage import rounds as rows
from boltz_mesh.storage.listen import Listener
from boltz_mesh.storage.postgres import Channel, Connection, Database
from boltz_protocol.errors import MalformedMessage, NotFound, StateConflict
from boltz_protocol.ids import ModelId, RoundId, new_round_id, parse_round_id
from boltz_protocol.v1 import aggregator_pb2 as pb
from boltz_protocol.v1 import common_pb2

_NOT_ABORTABLE = frozenset({Phase.RELEASING, Phase.PUBLISHED, Phase.ABORTED})
_MODES: Mapping[str, common_pb2.RoundMode.ValueType] = {
    "open": common_pb2.ROUND_MODE_OPEN,
    "sealed": common_pb2.ROUND_MODE_SEALED,
    "grouped": common_pb2.ROUND_MODE_GROUPED,
}


class Rounds:
    """One instance a server; `watch_changes` feeds everybody who watches."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        ledger: LedgerChecks,
        policy: PrivacyPolicy,
    ) -> None:
        self._database = database
        self._clock = clock
        self._ledger = ledger
        self._policy = policy
        #: Woken at each change: whoever watches reads the row again.
        self._watchers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    async def start(self, model_id: ModelId, *, by: str) -> pb.Round:
        """Start a round from the promoted version.

        Raises: NotFound (no plan), StateConflict (no promoted version, or one runs already),
        BudgetExceeded (so many clients have spent theirs that no cohort is left, or it is not the
        budget's time), InvalidPlan (this mesh no longer runs such plans), LedgerBroken (what was
        spent cannot be told, since somebody altered the ledger).
        """
        await self._ledger.check_new(model_id)
        carrier: dict[str, str] = {}
        inject(carrier)

        async def body(connection: Connection) -> rows.Round:
            row = await plans.get_plan(connection, model_id)
            base = await models.find_promoted(connection, model_id)
            if base is None:
                raise StateConflict(
                    f"{model_id} has no promoted version to start from; publish a first one: "
                    f"boltz-mesh models publish {model_id} FILE --promote"
                )
            plan = await plan_in_force(connection, row)
            check_policy(plan, self._policy)
            now_ms = self._clock()
            await check_cohort(
                connection,
                await clients.list_client_ids(connection, status=clients.ClientStatus.ACTIVE),
                cost_of(plan, self._policy),
                cohort=plan.cohort.min,
                now_ms=now_ms,
            )
            return await rows.create_round(
                connection,
                rows.NewRound(
                    round_id=new_round_id(),
                    model_id=model_id,
                    phase=Phase.SELECTING,
                    base_version=base.version,
                    plan_revision=row.revision,
                    started_by=by,
                    started_at_ms=now_ms,
                    deadline_at_ms=now_ms + plan.deadlines.selecting_ms,
                    trace_context=carrier.get("traceparent", ""),
                ),
            )

        created = await self._database.run_tx("start_round", body)
        return await self.get(created.round_id)

    async def abort(self, round_id: RoundId, *, reason: str, by: str) -> pb.Round:
        """Ask the coordinator to end a round.

        Raises: NotFound; StateConflict where it has ended or is already charged.
        """
        check_text("reason", reason, least=1)

        async def body(connection: Connection) -> None:
            held = await rows.share_round(connection, round_id)
            if held.outcome is not None or held.phase in _NOT_ABORTABLE:
                raise StateConflict(f"the round is {held.phase.lower()}: it cannot be aborted")
            await inbox.put(
                connection,
                round_id=round_id,
                attempt=held.attempt,
                kind=FactKind.ABORT_REQUESTED,
                client_id=None,
                payload={"by": by, "reason": reason},
                at_ms=self._clock(),
            )

        await self._database.run_tx("abort_round", body)
        return await self.get(round_id)

    async def get(self, round_id: RoundId) -> pb.Round:
        """One round. Raises: NotFound."""

        async def body(connection: Connection) -> pb.Round:
            found = await rows.get_round(connection, round_id)
            return (await _shown(connection, [found]))[0]

        return await self._database.read("get_round", body)

    async def contributions(self, round_id: RoundId) -> Sequence[pb.Contribution]:
        """What the rows of a round contributed, as far as its mode let the mesh see it."""

        async def body(connection: Connection) -> Sequence[outcomes.RoundOutcome]:
            return (await outcomes.round_outcomes(connection, [round_id])).get(round_id, ())

        return contributions_of(await self._database.read("get_contributions", body))

    async def list(
        self, model_id: ModelId | None, page: common_pb2.Page
    ) -> tuple[list[pb.Round], str]:
        """A page of rounds, newest first, and the token of the next."""
        size = page_size(page)
        after = decode_token(page)

        async def body(connection: Connection) -> list[pb.Round]:
            before = await _round_behind(connection, after) if after else None
            found = await rows.list_rounds(connection, model_id, limit=size, before=before)
            return await _shown(connection, found)

        shown = await self._database.read("list_rounds", body)
        return shown, encode_token(shown[-1].round_id) if len(shown) == size else ""

    async def watch(self, round_id: RoundId) -> AsyncGenerator[pb.Round, None]:
        """The round now and at each change, until it has ended. Raises: NotFound."""
        changed = asyncio.Event()
        self._watchers[round_id].add(changed)
        try:
            last: pb.Round | None = None
            while True:
                changed.clear()
                state = await self.get(round_id)
                if state != last:
                    yield state
                last = state
                if state.ended_at_ms:
                    return
                await changed.wait()
        finally:
            self._watchers[round_id].discard(changed)
            if not self._watchers[round_id]:
                del self._watchers[round_id]

    async def watch_changes(self, listener: Listener) -> None:
        """Wake the watchers from what changes in the database, for ever."""
        with listener.subscribe(Channel.ROUND_CHANGED) as wakeups:
            async for wakeup in wakeups:
                woken = list(self._watchers) if wakeup.resync else wakeup.payloads
                for round_id in woken:
                    for event in self._watchers.get(round_id, ()):
                        event.set()


async def _round_behind(connection: Connection, token: str) -> rows.Round:
    try:
        return await rows.get_round(connection, parse_round_id(token))
    except (NotFound, MalformedMessage) as error:
        raise MalformedMessage("this is not a page token", field="page.token") from error


async def _shown(connection: Connection, found: Sequence[rows.Round]) -> list[pb.Round]:
    """Rounds as the contract shows them."""
    stats = await round_stats.count_updates(connection, [row.round_id for row in found])
    shown: list[pb.Round] = []
    for row in found:
        plan = plan_of(await plans.get_plan(connection, row.model_id, row.plan_revision))
        counted = stats.get(row.round_id, round_stats.NONE)
        configuration = None if row.config_statement is None else configuration_of(row)[0]
        metrics: Mapping[str, float] = {}
        next_clip_norm = 0.0
        if row.new_version is not None:
            made = await models.get_model_version(connection, row.model_id, row.new_version)
            metrics = made.metrics
            if plan.adaptive_clipping is not None:
                assert configuration is not None, "a round that made a version had a roster"
                next_clip_norm = clip_norm_after(plan, configuration, made)
        state = pb.Round(
            round_id=row.round_id,
            model_id=row.model_id,
            attempt=row.attempt,
            phase=pb.Phase.Value(f"PHASE_{row.phase}"),
            reason=row.reason or "",
            base_version=row.base_version,
            new_version=row.new_version or 0,
            selected=counted.selected,
            received=counted.received,
            dropped=counted.dropped,
            min_survivors=plan.cohort.min,
            started_at_ms=row.started_at_ms,
            deadline_ms=row.deadline_at_ms or 0,
            ended_at_ms=row.ended_at_ms or 0,
            bytes_up=counted.bytes_up,
            metrics=metrics,
            mode=_MODES[plan.mode],
            started_by=row.started_by,
            noise_multiplier=plan.noise_multiplier,
            clip_norm=0.0 if configuration is None else configuration.clip_norm,
            next_clip_norm=next_clip_norm,
        )
        state.trace.traceparent = row.trace_context
        shown.append(state)
    return shown
