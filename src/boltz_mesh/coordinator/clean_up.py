"""After a round: its updates, its shares and its aggregate are destroyed, keys first.

Keys go in a transaction, blobs after it. A crash between the two leaves ciphertext that nobody can
read; the orphan sweep takes it away.
"""

from __future__ import annotations

import asyncio

from boltz_mesh.storage import round_messages, updates
from boltz_mesh.storage.blobs import BlobStore
from boltz_mesh.storage.lease import assert_fencing
from boltz_mesh.storage.postgres import Connection, Database
from boltz_protocol.ids import RoundId


async def clean_up(
    database: Database, blobs: BlobStore, round_id: RoundId, *, fencing_token: int
) -> int:
    """Destroy what an ended round no longer needs; again: nothing. Returns the blobs deleted.

    Raises: StateConflict when the lease is another's; Unavailable.
    """

    async def body(connection: Connection) -> list[bytes]:
        await assert_fencing(connection, fencing_token)
        digests = await updates.forget_contents(connection, round_id)
        await round_messages.forget_secrets(connection, round_id)
        aggregate = await _forget_aggregate(connection, round_id)
        return digests if aggregate is None else [*digests, aggregate]

    digests = await database.run_tx("clean_up_round", body)
    return await asyncio.to_thread(lambda: sum(blobs.delete(digest) for digest in digests))


async def rounds_to_clean(connection: Connection) -> list[RoundId]:
    """Ended rounds of which a key or a share is left: a coordinator ended with them half done."""
    rows = await connection.fetch(
        "-- rounds_to_clean\n"
        "SELECT a.round_id FROM federated_aggregations a WHERE a.outcome IS NOT NULL"
        " AND (a.aggregate_wrapped_key IS NOT NULL OR EXISTS (SELECT FROM federated_updates u"
        " WHERE u.round_id = a.round_id AND u.wrapped_content_key IS NOT NULL)"
        " OR EXISTS (SELECT FROM round_messages m WHERE m.round_id = a.round_id"
        " AND m.kind = ANY($1::text[]) AND m.payload IS NOT NULL))",
        [kind.value for kind in round_messages.SECRET_KINDS],
    )
    return [RoundId(row["round_id"]) for row in rows]


async def _forget_aggregate(connection: Connection, round_id: RoundId) -> bytes | None:
    """Forget the aggregate's key. Returns the digest of its blob, once."""
    digest = await connection.fetchval(
        "-- forget_aggregate\n"
        "WITH held AS (SELECT round_id, aggregate_blob_digest FROM federated_aggregations"
        " WHERE round_id = $1 AND outcome IS NOT NULL FOR UPDATE)"
        " UPDATE federated_aggregations a"
        " SET aggregate_blob_digest = NULL, aggregate_wrapped_key = NULL FROM held"
        " WHERE a.round_id = held.round_id RETURNING held.aggregate_blob_digest",
        round_id,
    )
    return None if digest is None else bytes(digest)
