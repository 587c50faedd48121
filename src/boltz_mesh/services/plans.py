"""Applying and showing plans."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, Final

import tomli_w

from boltz_mesh.privacy.periods import day_of
from boltz_mesh.rounds.plan import (
    Plan,
    plan_from_json,
    plan_from_toml,
    plan_to_json,
    plan_to_toml_table,
    validate_encoding,
)
from boltz_mesh.rounds.plan_policy import PrivacyPolicy, check_not_past, check_policy
from boltz_mesh.services.budgets import Spending, cost_of
from boltz_mesh.services.clock import Clock
from boltz_mesh.storage import models
from boltz_mesh.storage import plans as rows
from boltz_mesh.storage.postgres import Connection, Database
from boltz_protocol.errors import InvalidPlan, NotFound, StateConflict
from boltz_protocol.ids import ModelId
from boltz_protocol.v1 import aggregator_pb2 as pb

#: As ApplyPlanRequest says. With the defaults filled in, what is stored may be larger.
_MAX_TOML_BYTES: Final = 256 << 10


def plan_of(row: rows.Plan) -> Plan:
    """The typed plan of a stored revision."""
    return _parsed(json.dumps(row.plan_json))


@lru_cache(maxsize=256)
def _parsed(text: str) -> Plan:
    """A revision never changes, and every round reads its plan many times."""
    return plan_from_json(text.encode())


def rounds_allowed(plan: Plan, policy: PrivacyPolicy) -> int:
    """Rounds that the budgets allow for a client that is in all of them; 0 for no limit."""
    if plan.budget is None:
        return 0
    return cost_of(plan, policy).rounds_left(Spending({}, {}), "")


class Plans:
    """One instance a server."""

    def __init__(self, database: Database, clock: Clock, policy: PrivacyPolicy) -> None:
        self._database = database
        self._clock = clock
        self._policy = policy

    async def apply(self, text: str, *, by: str, dry_run: bool) -> tuple[pb.Plan, bool]:
        """Check a plan and, unless it is a dry run, make it the newest revision.

        Raises: InvalidPlan; StateConflict where the model has versions of other tensors.
        """
        size_bytes = len(text.encode())
        if size_bytes > _MAX_TOML_BYTES:
            raise InvalidPlan(
                f"the plan has {size_bytes} bytes; at most {_MAX_TOML_BYTES} would do"
            )
        plan = plan_from_toml(text)
        validate_encoding(plan)
        check_policy(plan, self._policy)
        check_not_past(plan, day_of(self._clock()))
        if _holds_zero_byte(json.loads(plan_to_json(plan))):
            # PostgreSQL's jsonb cannot hold one.
            raise InvalidPlan("a text in the plan holds a zero byte; leave it out")
        model_id = ModelId(plan.model)

        async def body(connection: Connection) -> tuple[rows.Plan, bool]:
            await self._check_tensors(connection, plan, model_id)
            if dry_run:
                return await self._as_if_applied(connection, plan, model_id)
            return await rows.apply_plan(
                connection,
                model_id,
                json.loads(plan_to_json(plan)),
                applied_by=by,
                applied_at_ms=self._clock(),
            )

        row, changed = await self._database.run_tx("apply_plan", body)
        return self._shown(row), changed

    async def get(self, model_id: ModelId) -> pb.Plan:
        """The plan in force. Raises: NotFound."""

        async def body(connection: Connection) -> rows.Plan:
            return await rows.get_plan(connection, model_id)

        return self._shown(await self._database.read("get_plan", body))

    def _shown(self, row: rows.Plan) -> pb.Plan:
        """A stored plan as the contract shows it."""
        plan = plan_of(row)
        return pb.Plan(
            model_id=row.model_id,
            revision=row.revision,
            plan_toml=tomli_w.dumps(plan_to_toml_table(plan)),
            applied_by=row.applied_by,
            applied_at_ms=row.applied_at_ms,
            scale=2.0 ** validate_encoding(plan).scale_log2,
            rounds_allowed=rounds_allowed(plan, self._policy),
        )

    async def _check_tensors(self, connection: Connection, plan: Plan, model_id: ModelId) -> None:
        if await models.find_latest(connection, model_id) is None:
            return
        present = plan_of(await rows.get_plan(connection, model_id))
        if present.tensors != plan.tensors:
            raise StateConflict(
                f"{model_id} has versions with other tensors; a model's tensors do not change. "
                "Give the new shape a new model id"
            )

    async def _as_if_applied(
        self, connection: Connection, plan: Plan, model_id: ModelId
    ) -> tuple[rows.Plan, bool]:
        content = json.loads(plan_to_json(plan))
        try:
            present = await rows.get_plan(connection, model_id)
        except NotFound:
            return rows.Plan(model_id, 0, content, "", 0), True
        if present.plan_json == content:
            return present, False
        return rows.Plan(model_id, present.revision, content, "", 0), True


def _holds_zero_byte(value: Any) -> bool:
    match value:
        case str():
            return "\0" in value
        case dict():
            return any(_holds_zero_byte(part) for pair in value.items() for part in pair)
        case list():
            return any(_holds_zero_byte(part) for part in value)
        case _:
            return False
