"""The two heavy effects, Aggregate and Publish: what they read, and what they report.

Both leave nothing behind but blobs that no row refers to yet; the runner's transaction makes them
count or not. Both may run again after a crash.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from boltz_mesh.aggregation.server_optimizer import FedAvg
from boltz_mesh.coordinator.centre import Centre, PublishedStep
from boltz_mesh.coordinator.fold import Folder, NoisedSum, Summing
from boltz_mesh.coordinator.group_rows import Masks
from boltz_mesh.coordinator.parts import Parts
from boltz_mesh.coordinator.publish import (
    NewVersionFiles,
    Publisher,
    ReleasedAggregate,
    plan_tensors,
)
from boltz_mesh.coordinator.range_check import AggregateOutOfRange
from boltz_mesh.coordinator.stored import StoredUpdate
from boltz_mesh.coordinator.validation import gradient_of
from boltz_mesh.rounds.plan import Plan
from boltz_mesh.rounds.plan_robust import robust_choice
from boltz_mesh.rounds.plan_rule import calibration_of, sum_rule_of
from boltz_mesh.rounds.state import Aggregating, Releasing
from boltz_mesh.services.attempts import SharedAttempt, configuration_of, read_released
from boltz_mesh.services.plans import plan_of
from boltz_mesh.storage import models, plans, roster, rounds, security_events, updates
from boltz_mesh.storage.models import ModelVersion, StoredBlob
from boltz_mesh.storage.postgres import Connection
from boltz_mesh.storage.updates import Update
from boltz_protocol import codec
from boltz_protocol import messages as m
from boltz_protocol import messages_sealed as ms
from boltz_protocol.envelope import Opener
from boltz_protocol.errors import (
    DealerBlamed,
    DecryptionFailed,
    DigestMismatch,
    MalformedMessage,
    NotFinite,
    NotFound,
    ShapeMismatch,
    TooFewClients,
    UnknownKey,
)
from boltz_protocol.ids import ClientId, ModelId, RoundId
from boltz_protocol.model_file import canonical_layout
from boltz_protocol.sealing import round_encoding, update_context, update_layout
from boltz_protocol.secagg.recovery import mask_streams_to_remove, recover

T = TypeVar("T")

#: What a stored file that is gone or damaged raises: to try again would not help.
_DAMAGED: Final = (NotFound, DecryptionFailed, DigestMismatch, MalformedMessage, UnknownKey)
#: Content keys unwrapped at the same time: 2 ms of CPU each.
_UNWRAPPED_AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True)
class Folded:
    """A noised aggregate; or, without `noised`, one that was rejected."""

    noised: NoisedSum | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Made:
    """Files of the next version, and what its row and its manifest say."""

    files: NewVersionFiles
    plan: Plan
    plan_revision: int
    base: ModelVersion


@dataclass(frozen=True, slots=True)
class Failed:
    """The work cannot be done, however often it is tried."""

    reason: str


Outcome = Folded | Made | Failed


@dataclass(frozen=True, slots=True)
class _Start:
    """What a round starts from; `step` made its base version, under centered clipping."""

    plan: Plan
    base: ModelVersion
    step: PublishedStep | None


class Work:
    """One run of one effect, in a thread. `cancel` stops it at its next chunk."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """The round goes on without this."""
        self._cancelled.set()

    # --- Aggregate ------------------------------------------------------------------------------

    async def aggregate(self, state: Aggregating) -> Outcome:
        """Fold the survivors' updates. Raises: Unavailable, OSError; trying again may help."""
        round_id = RoundId(state.parameters.round_id)
        attempt = state.parameters.attempt

        async def body(
            connection: Connection,
        ) -> tuple[rounds.Round, list[roster.RosterEntry], list[Update], _Start]:
            found = await rounds.get_round(connection, round_id)
            plan = plan_of(await plans.get_plan(connection, found.model_id, found.plan_revision))
            return (
                found,
                await roster.get_roster(connection, round_id, attempt),
                await updates.list_updates(connection, round_id, attempt),
                _Start(
                    plan,
                    await models.get_model_version(connection, found.model_id, found.base_version),
                    await _published_step(connection, found, plan),
                ),
            )

        found, entries, rows, start = await self._parts.database.read("read_updates", body)
        configuration, config_digest = configuration_of(found)
        weights = {entry.client_id: entry.weight for entry in entries}
        by_client = {row.client_id: row for row in rows}
        try:
            opened = await self._open_all(
                [by_client[ClientId(survivor)] for survivor in state.survivors],
                configuration,
                config_digest,
                weights,
            )
            groups, masks = await self._masks_in_sums(found, state)
            opened = [replace(row, group=groups.get(row.client_id, 0)) for row in opened]
            noised = await self._in_thread(lambda: self._fold(opened, configuration, masks, start))
        except (AggregateOutOfRange, TooFewClients) as error:
            return Folded(None, error.message)
        except NotFinite as error:
            return Failed(error.message)
        except _DAMAGED as error:
            return Failed(f"UPDATE_UNREADABLE: {error.message}")
        except DealerBlamed as error:
            await self._report_dealers(found, entries, error)
            # The reason is shown to every client of the round: it names none of them.
            return Failed("DEALER_BLAMED: a client dealt shares of something else than its secrets")
        return Folded(noised)

    def _fold(
        self,
        opened: Sequence[StoredUpdate],
        configuration: m.RoundConfiguration,
        masks: Masks,
        start: _Start,
    ) -> NoisedSum:
        """In a thread."""
        plan, step = start.plan, start.step
        folder = Folder(self._parts.blobs, self._parts.keyring.kek, self._parts.chunks)
        encoding = round_encoding(configuration)
        with ExitStack() as stack:
            centre = (
                Centre.nothing(configuration)
                if step is None
                else Centre.of(stack, folder.blobs, folder.kek, configuration, step)
            )
            summing = Summing(
                sum_rule_of(plan, encoding),
                calibration_of(plan, encoding),
                centre,
                robust_choice(plan),
                gradient_of(self._parts, plan, start.base),
            )
            return folder.fold(opened, configuration, summing, masks, self._cancelled)

    async def _masks_in_sums(
        self, found: rounds.Round, state: Aggregating
    ) -> tuple[dict[str, int], Masks]:
        """The survivors' groups, and by group what is left of the clients' masks in their sum;
        nothing in an open round.

        The secrets live in this call and in the streams, and are never kept.

        Raises: DealerBlamed.
        """
        if not state.parameters.is_sealed:
            return {}, {}
        attempts, keyring = self._parts.attempts, self._parts.keyring

        async def body(
            connection: Connection,
        ) -> tuple[SharedAttempt, dict[int, ms.DealtShares], dict[int, ms.SharesReleased]]:
            shared = await attempts.shared(connection, found, state.graph_members)
            dealt = await attempts.dealt(connection, found, shared.positions(state.sharers))
            return shared, dealt, await read_released(connection, found, keyring)

        shared, dealt, released = await self._parts.database.read("read_shares", body)
        attempt = shared.attempt
        survivors = shared.positions(state.survivors)
        sharers = shared.positions(state.sharers)
        groups: dict[str, int] = {
            attempt.entries[index].client_id: attempt.group_of(index) for index in survivors
        }

        def recovered() -> Masks:
            secrets = recover(attempt, dealt, released, survivors, sharers)
            return mask_streams_to_remove(attempt, secrets, survivors, sharers)

        return groups, await self._in_thread(recovered)

    async def _report_dealers(
        self, found: rounds.Round, entries: Sequence[roster.RosterEntry], error: DealerBlamed
    ) -> None:
        async def body(connection: Connection) -> None:
            for position in error.dealers:
                await security_events.record_security_event(
                    connection,
                    kind=error.reason.lower(),
                    client_id=entries[position].client_id,
                    round_id=found.round_id,
                    detail={"attempt": found.attempt},
                    at_ms=self._parts.clock(),
                )

        await self._parts.database.run_tx("report_dealers", body)

    async def _open_all(
        self,
        rows: Sequence[Update],
        configuration: m.RoundConfiguration,
        config_digest: bytes,
        weights: dict[ClientId, int],
    ) -> list[StoredUpdate]:
        turn = asyncio.Semaphore(_UNWRAPPED_AT_ONCE)
        layout = update_layout(configuration)

        async def open_one(row: Update) -> StoredUpdate:
            if row.blob_digest is None or row.wrapped_content_key is None:
                # The reason is shown to every client of the round: it names none of them.
                raise NotFound("an update or its key is gone")
            async with turn:
                content_key = await self._parts.keyring.unwrap_content_key(
                    row.round_id, row.key_id, row.wrapped_content_key
                )
            context = update_context(
                configuration,
                config_digest,
                client_id=row.client_id,
                session_id=row.session_id,
                recipient_key_id=row.key_id,
            )
            return StoredUpdate(
                client_id=row.client_id,
                blob_digest=row.blob_digest,
                opener=Opener(content_key, context, layout, row.key_commitment),
                weight=weights[row.client_id],
            )

        return await asyncio.gather(*map(open_one, rows))

    # --- Publish --------------------------------------------------------------------------------

    async def publish(self, state: Releasing) -> Outcome:
        """Make the next version's files. Raises: Unavailable, OSError; trying again may help."""
        round_id = RoundId(state.parameters.round_id)
        model_id = ModelId(state.parameters.model_id)

        async def body(connection: Connection) -> tuple[rounds.Round, Plan, ModelVersion, int]:
            found = await rounds.get_round(connection, round_id)
            plan = await plans.get_plan(connection, model_id, found.plan_revision)
            base = await models.get_model_version(connection, model_id, found.base_version)
            newest = await models.find_latest(connection, model_id)
            assert newest is not None, "a round starts from a version"
            return found, plan_of(plan), base, newest.version + 1

        found, plan, base, version = await self._parts.database.read("read_release", body)
        keeps_moments = await self._keeps_moments(plan, base)
        configuration, _ = configuration_of(found)
        assert found.aggregate_blob_digest is not None
        assert found.aggregate_wrapped_key is not None
        aggregate = ReleasedAggregate(
            configuration,
            # The plain bytes' digest is not kept: every chunk authenticates by itself.
            StoredBlob(b"", found.aggregate_blob_digest, found.aggregate_wrapped_key),
            state.total_weight,
        )
        publisher = Publisher(self._parts.blobs, self._parts.keyring.kek)
        try:
            files = await self._in_thread(
                lambda: publisher.make_files(
                    aggregate,
                    plan=plan,
                    base=base,
                    keeps_moments=keeps_moments,
                    version=version,
                    cancelled=self._cancelled,
                )
            )
        except (NotFinite, ShapeMismatch, *_DAMAGED) as error:
            return Failed(error.message)
        return Made(files, plan, found.plan_revision, base)

    async def _keeps_moments(self, plan: Plan, base: ModelVersion) -> bool:
        """Whether the base's optimizer state was made by this plan's optimizer."""
        if base.optimizer is None:
            return False
        revision = codec.parse_model_manifest(
            codec.parse_statement(base.manifest).payload
        ).plan_revision

        async def body(connection: Connection) -> Plan:
            stored = await plans.get_plan(connection, base.model_id, revision)
            return plan_of(stored)

        then = await self._parts.database.read("read_base_plan", body)
        return then.server_optimizer.name == plan.server_optimizer.name

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._parts.heavy, call)


async def _published_step(
    connection: Connection, found: rounds.Round, plan: Plan
) -> PublishedStep | None:
    """What the round's base version adds to its parent, where centered clipping asks for it.

    None where no round made it, or one under another revision of the plan: learning rate and clip
    norm may have been others then.
    """
    if plan.rule != "centered-clipping":
        return None
    base = await models.get_model_version(connection, found.model_id, found.base_version)
    manifest = codec.parse_model_manifest(codec.parse_statement(base.manifest).payload)
    if (
        base.round_id is None
        or base.parent_version is None
        or manifest.plan_revision != found.plan_revision
    ):
        return None
    parent = await models.get_model_version(connection, found.model_id, base.parent_version)
    optimizer = plan.server_optimizer.build()
    assert isinstance(optimizer, FedAvg), "the plan's check"
    layout = canonical_layout(plan_tensors(plan))
    return PublishedStep(base, parent, optimizer.learning_rate, layout)


def manifest_of(made: Made, round_id: RoundId, mesh_id: str, at_ms: int) -> m.ModelManifest:
    """The manifest of a round's version."""
    files, base = made.files, made.base
    return m.ModelManifest(
        mesh_id=mesh_id,
        model_id=base.model_id,
        version=files.version,
        parent_version=base.version,
        parent_sha256=base.weights.digest,
        round_id=round_id,
        sha256=files.weights.digest,
        size_bytes=files.size_bytes,
        tensors=plan_tensors(made.plan),
        optimizer_state_sha256=b"" if files.optimizer is None else files.optimizer.digest,
        plan_revision=made.plan_revision,
        created_at_ms=at_ms,
    )
