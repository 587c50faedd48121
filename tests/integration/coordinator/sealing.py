"""A client's side of an update: clipped, encoded, encrypted for the round's key."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from boltz_mesh.storage import roster, updates
from boltz_protocol import codec
from boltz_protocol import messages as m
from boltz_protocol.envelope import seal_update
from boltz_protocol.keys import load_rsa_public_key
from boltz_protocol.sealing import round_encoding, update_context, update_layout
from boltz_protocol.update import LocalDelta, clip, encode, open_update, weigh

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sealed:
    """Ciphertext, and the row that announces it (its digest is the caller's)."""

    row: updates.NewUpdate
    content: bytes


def seal(
    configuration: m.RoundConfiguration,
    config_digest: bytes,
    entry: roster.RosterEntry,
    delta: Vector,
    loss: float,
    *,
    poison: bool,
) -> Sealed:
    lanes = tuple(loss * lane.scale for lane in configuration.lanes)
    clipped = clip(LocalDelta(delta, lanes), clip_norm_l2=configuration.clip_norm)
    weighted = weigh(clipped, weight=entry.weight, max_weight=configuration.max_weight)
    encoded = encode(weighted, round_encoding(configuration))
    if poison:
        encoded.values[:] = (1 << 22) - 1
    key = codec.parse_encryption_key(configuration.encryption_key.payload)
    context = update_context(
        configuration,
        config_digest,
        client_id=entry.client_id,
        session_id=entry.session_id,
        recipient_key_id=key.key_id,
    )
    layout = update_layout(configuration)
    sealer, wrapped = seal_update(context, load_rsa_public_key(key.public_key_spki), layout)
    update = open_update(encoded)
    pieces = []
    for index in range(layout.count):
        buffer = bytearray(layout.cipher_bytes(index))
        sealer.seal_into(index, update.chunk(index), buffer)
        pieces.append(bytes(buffer))
    row = updates.NewUpdate(
        round_id=entry.round_id,
        attempt=entry.attempt,
        client_id=entry.client_id,
        session_id=entry.session_id,
        position=entry.position,
        update_digest=bytes(32),
        manifest=b"a manifest",
        key_commitment=sealer.commitment,
        key_id=key.key_id,
        wrapped_content_key=wrapped,
        size_bytes=layout.cipher_size_bytes,
        chunk_count=layout.count,
    )
    return Sealed(row, b"".join(pieces))
