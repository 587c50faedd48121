"""The clip norm in force: what the last published round of a plan's revision led to.

Nothing is kept for it. A round's clip norm stands in its signed configuration, and what its clients
said of it, noised, among the metrics of the version that it made; the next clip norm is a function
of the two. So a round that was aborted or rejected moves nothing, and every replica gets the same.
"""

from __future__ import annotations

from boltz_mesh.privacy.adaptive_clip import next_clip_norm
from boltz_mesh.rounds.plan import Plan
from boltz_mesh.rounds.plan_clipping import at_clip_norm
from boltz_mesh.services.attempts import configuration_of
from boltz_mesh.services.plans import plan_of
from boltz_mesh.storage import models, rounds
from boltz_mesh.storage import plans as rows
from boltz_mesh.storage.models import ModelVersion
from boltz_mesh.storage.postgres import Connection
from boltz_protocol import messages as m


async def plan_in_force(connection: Connection, row: rows.Plan) -> Plan:
    """The plan of a stored revision at the clip norm of its next round, or of the one that runs."""
    plan = plan_of(row)
    if plan.adaptive_clipping is None:
        return plan
    last = await rounds.find_last_published(connection, row.model_id, row.revision)
    if last is None:
        return plan
    assert last.new_version is not None, "a published round made a version"
    made = await models.get_model_version(connection, row.model_id, last.new_version)
    return at_clip_norm(plan, clip_norm_after(plan, configuration_of(last)[0], made))


def clip_norm_after(plan: Plan, configuration: m.RoundConfiguration, made: ModelVersion) -> float:
    """The clip norm that follows from a published round.

    Args:
        plan: of the round, with adaptive clipping.
        configuration: of the round.
        made: the version that it made, with the noised means of its lanes.
    """
    assert plan.adaptive_clipping is not None, "asked of plans that adapt"
    mean_bit = float(made.metrics[configuration.clip_indicator])
    return next_clip_norm(plan.adaptive_clipping, configuration.clip_norm, mean_bit)
