"""What crashes leave behind: check-ins of the dead, keys of ended rounds, blobs without a row."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

from boltz_mesh.coordinator.candidates import prune_dead_replicas
from boltz_mesh.coordinator.clean_up import clean_up, rounds_to_clean
from boltz_mesh.coordinator.parts import Parts
from boltz_mesh.storage import inbox
from boltz_mesh.storage.lease import CoordinatorLease
from boltz_mesh.storage.postgres import Connection
from boltz_mesh.storage.references import referenced_blobs
from boltz_protocol import limits
from boltz_protocol.errors import Unavailable
from boltz_protocol.ids import RoundId

_log: Final = logging.getLogger(__name__)


async def keep_house(parts: Parts, lease: CoordinatorLease) -> None:
    """Clean up at once, and then now and again, until the lease is lost.

    Raises: StateConflict when it was lost already.
    """
    while not lease.lost.is_set():
        try:
            await clean_up_after_crashes(parts, fencing_token=lease.token)
        except (Unavailable, OSError) as error:
            _log.warning("housekeeping is put off: %s", error)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(lease.lost.wait(), limits.HOUSEKEEPING_MS / 1000)


async def clean_up_after_crashes(parts: Parts, *, fencing_token: int) -> None:
    """One turn of it. Idempotent. Raises: StateConflict, Unavailable, OSError."""
    now_ms = parts.clock()

    async def body(connection: Connection) -> tuple[list[RoundId], frozenset[bytes]]:
        await prune_dead_replicas(connection, parts.holder)
        await inbox.prune(connection, ended_before_ms=now_ms - limits.MAX_HANDLED_FACT_AGE_MS)
        return await rounds_to_clean(connection), await referenced_blobs(connection)

    ended, referenced = await parts.database.run_tx("keep_house", body)
    for round_id in ended:
        await clean_up(parts.database, parts.blobs, round_id, fencing_token=fencing_token)
    swept = await asyncio.to_thread(
        lambda: parts.blobs.sweep(referenced, older_than_ms=limits.MAX_ORPHAN_AGE_MS, now_ms=now_ms)
    )
    if swept:
        _log.info("%d orphaned blobs deleted", len(swept))
