"""Which blobs the tables refer to: the other side of the orphan sweep."""

from __future__ import annotations

from boltz_mesh.storage.postgres import Connection


async def referenced_blobs(connection: Connection) -> frozenset[bytes]:
    """The digests of every blob that a row names."""
    rows = await connection.fetch(
        "-- referenced_blobs\n"
        "SELECT blob_digest FROM federated_models"
        " UNION SELECT optimizer_blob_digest FROM federated_models"
        " WHERE optimizer_blob_digest IS NOT NULL"
        " UNION SELECT blob_digest FROM federated_updates WHERE blob_digest IS NOT NULL"
        " UNION SELECT aggregate_blob_digest FROM federated_aggregations"
        " WHERE aggregate_blob_digest IS NOT NULL"
    )
    return frozenset(bytes(row[0]) for row in rows)
