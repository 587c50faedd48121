"""What finished work means for a round: events, the aggregate, the next version's row.

Decided under the round's lock: work that comes back to a round that has gone on is not used, and
its blobs go.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from boltz_mesh.coordinator.evidence import record_outcome
from boltz_mesh.coordinator.fold import NoisedSum
from boltz_mesh.coordinator.parts import Parts
from boltz_mesh.coordinator.work import Failed, Folded, Made, Outcome, manifest_of
from boltz_mesh.rounds.event import (
    AbortRequested,
    AggregateReady,
    AggregateRejected,
    Event,
    PublishRejected,
    VersionPublished,
)
from boltz_mesh.rounds.state import Aggregating, Releasing, RoundState
from boltz_mesh.storage import models, security_events
from boltz_mesh.storage.models import NewModelVersion
from boltz_mesh.storage.postgres import Connection
from boltz_mesh.storage.round_events import AggregateBlob
from boltz_mesh.storage.rounds import Round
from boltz_protocol import codec
from boltz_protocol import messages as m
from boltz_protocol.ids import RoundId

#: Who asked, where the coordinator itself ends a round.
BY_COORDINATOR = "coordinator"
#: Kind of the security event for a group whose sum its clients cannot have made together.
GROUP_OUT_OF_RANGE = "group_out_of_range"
#: Who promoted, where the plan's gate is "automatic".
BY_GATE = "automatic"


@dataclass(frozen=True, slots=True)
class Settled:
    """What the transaction does with finished work.

    Attributes:
        events: to be appended.
        aggregate: see `record.commit`.
        unused: blobs to delete once the transaction is through.
        again: the work has to be done again.
    """

    events: tuple[Event, ...] = ()
    aggregate: AggregateBlob | None = None
    unused: tuple[bytes, ...] = field(default=())
    again: bool = False


async def settle(
    connection: Connection,
    found: Round,
    state: RoundState,
    outcome: Outcome | None,
    parts: Parts,
    *,
    now_ms: int,
) -> Settled:
    """Turn an outcome into events and rows.

    Args:
        found: the round, locked.
        state: where it stands.
    """
    match state, outcome:
        case Aggregating(), Folded(noised=None, reason=reason):
            return Settled((AggregateRejected(at_ms=now_ms, reason=reason),))
        case Aggregating(), Folded(noised=noised) if noised is not None:
            event = AggregateReady(
                at_ms=now_ms,
                aggregate_digest=noised.stored.blob_digest.hex(),
                survivors=noised.survivors,
                total_weight=noised.total_weight,
                metrics=noised.metrics,
            )
            blob = AggregateBlob(noised.stored.blob_digest, noised.stored.wrapped_key)
            await _record_rows(connection, found, state, noised, now_ms)
            return Settled((event,), aggregate=blob)
        case Aggregating(), Failed(reason=reason):
            return Settled((AbortRequested(at_ms=now_ms, by=BY_COORDINATOR, reason=reason),))
        case Releasing(), Made():
            return await _publish(connection, state, outcome, parts, now_ms)
        case Releasing(), Failed(reason=reason):
            return Settled((PublishRejected(at_ms=now_ms, reason=reason),))
        case _, Folded(noised=noised) if noised is not None:
            return Settled(unused=(noised.stored.blob_digest,))
        case _, Made(files=files):
            return Settled(unused=files.blob_digests())
        case _:
            return Settled()


async def _record_rows(
    connection: Connection, found: Round, state: Aggregating, noised: NoisedSum, now_ms: int
) -> None:
    """What the aggregation has shown of its rows, in the transaction that counts it."""
    for name in noised.left_out:
        members = state.groups[int(name)].clients
        await security_events.record_security_event(
            connection,
            kind=GROUP_OUT_OF_RANGE,
            round_id=found.round_id,
            detail={
                "model": found.model_id,
                "attempt": found.attempt,
                "group": int(name),
                "clients": [client for client in state.survivors if client in members],
            },
            at_ms=now_ms,
        )
    if noised.observations is not None:
        await record_outcome(connection, found, state, noised.observations, now_ms)


async def _publish(
    connection: Connection, state: Releasing, made: Made, parts: Parts, now_ms: int
) -> Settled:
    """Insert the version, promoted where the plan's gate is automatic."""
    files, base = made.files, made.base
    if await models.next_model_version(connection, base.model_id) != files.version:
        # Somebody published a version meanwhile, and the files are bound to its number.
        return Settled(unused=files.blob_digests(), again=True)
    round_id = RoundId(state.parameters.round_id)
    manifest = manifest_of(made, round_id, parts.keyring.mesh_id, now_ms)
    statement = parts.keyring.sign_statement(
        m.MODEL_MANIFEST, codec.encode_model_manifest(manifest)
    )
    await models.insert_model_version(
        connection,
        NewModelVersion(
            model_id=base.model_id,
            version=files.version,
            parent_version=base.version,
            round_id=round_id,
            weights=files.weights,
            size_bytes=files.size_bytes,
            kek_id=parts.keyring.kek.key_id,
            manifest=codec.encode_statement(statement),
            optimizer=files.optimizer,
            metrics=state.metrics,
            created_at_ms=now_ms,
        ),
    )
    if made.plan.promotion == "automatic":
        # The gate is the range check of the noised sum, which this aggregate has passed.
        await models.promote_model(
            connection, base.model_id, files.version, by=BY_GATE, at_ms=now_ms
        )
    event = VersionPublished(
        at_ms=now_ms, version=files.version, model_digest=files.weights.digest.hex()
    )
    return Settled((event,))
