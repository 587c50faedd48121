"""A survivor's update at rest, opened chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass, field

from boltz_mesh.storage.blobs import BlobStore
from boltz_protocol import limits
from boltz_protocol.envelope import Opener
from boltz_protocol.update import chunk_slice


class FoldCancelled(Exception):
    """The round went on without this fold."""


@dataclass(frozen=True, slots=True)
class StoredUpdate:
    """One survivor's update at rest, ready to be opened.

    Attributes:
        client_id: whose.
        blob_digest: of the ciphertext.
        opener: for its chunks; holds the key.
        weight: as committed.
        group: place of the client's group in a grouped round; 0 in others.
    """

    client_id: str
    blob_digest: bytes
    opener: Opener = field(repr=False)
    weight: int
    group: int = 0


def chunk_room(index: int, coordinates: int) -> memoryview:
    """Memory for the ciphertext of a chunk, for one update after the other."""
    part = chunk_slice(index, coordinates)
    return memoryview(
        bytearray((part.stop - part.start) * limits.WIRE_BYTES + limits.GCM_TAG_BYTES)
    )


def read_chunk(blobs: BlobStore, update: StoredUpdate, index: int, room: memoryview) -> memoryview:
    """The packed plain bytes of one chunk, in `room`.

    Raises: NotFound, DecryptionFailed.
    """
    with blobs.open(update.blob_digest) as reader:
        # A blob that is too short leaves old bytes in the buffer: they do not authenticate.
        reader.pread_into(room, update.opener.layout.cipher_offset(index))
    return room[: update.opener.open_into(index, room, room)]
