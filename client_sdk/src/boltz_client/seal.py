"""From a trainer's result to a spooled, signed, encrypted update. Blocking: runs in a thread.

clip -> weigh -> round -> (noise, masks,) pack, encrypt and hash chunk by chunk -> spool -> sign.
Noise and masks are of sealed rounds. Beside the model and what the trainer returned this takes 4
bytes a parameter for the delta (none where the trainer returned a vector) and 4 for the integers,
in a `Workspace` that is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from boltz_client.offers import AcceptedRound
from boltz_client.spool import SealedUpdate, Spool
from boltz_client.workspace import Workspace
from boltz_protocol import codec, limits
from boltz_protocol import messages as m
from boltz_protocol.envelope import seal_update
from boltz_protocol.masked_update import MaskedUpdate, masked_update
from boltz_protocol.noise import discrete_gaussian
from boltz_protocol.sealing import update_context, update_layout
from boltz_protocol.secagg.masks import MaskStream
from boltz_protocol.statement import sign_rsa_pss
from boltz_protocol.update import (
    EncodedDelta,
    LocalDelta,
    OpenUpdate,
    clip,
    encode,
    open_update,
    weigh,
)


def seal(
    accepted: AcceptedRound,
    delta: LocalDelta,
    *,
    private_key: RSAPrivateKey,
    spool: Spool,
    workspace: Workspace,
    masks: Sequence[MaskStream] | None,
    now_ms: int,
) -> SealedUpdate:
    """Encode, encrypt, spool and sign one update.

    Args:
        delta: lanes already multiplied by their scales; without the clip indicator's.
        private_key: the client's signing key.
        workspace: memory for the integers.
        masks: of this client's one vector in a sealed round; None in an open one.
        now_ms: Unix time by the server's clock.

    Raises:
        ShapeMismatch, NotFinite, NormExceeded: the delta cannot be encoded.
        OSError: the spool cannot be written.
    """
    configuration = accepted.configuration
    clipped = clip(
        delta,
        clip_norm_l2=configuration.clip_norm,
        indicator_scale=configuration.indicator_scale,
    )
    weighted = weigh(clipped, weight=accepted.entry.weight, max_weight=configuration.max_weight)
    with workspace.integers(configuration.coordinates) as out:
        update = _wire_form(accepted, encode(weighted, accepted.encoding, out=out), masks)
        return _written(accepted, update, private_key=private_key, spool=spool, now_ms=now_ms)


def _wire_form(
    accepted: AcceptedRound, encoded: EncodedDelta, masks: Sequence[MaskStream] | None
) -> OpenUpdate | MaskedUpdate:
    sealed = accepted.configuration.mode is not m.RoundMode.OPEN
    assert sealed == (masks is not None), "masks in a sealed round, and in no other"
    if masks is None:
        return open_update(encoded)
    share = accepted.noise_share
    return masked_update(encoded, masks, discrete_gaussian(share) if share else None)


def _written(
    accepted: AcceptedRound,
    update: OpenUpdate | MaskedUpdate,
    *,
    private_key: RSAPrivateKey,
    spool: Spool,
    now_ms: int,
) -> SealedUpdate:
    configuration = accepted.configuration
    entry = accepted.entry
    context = update_context(
        configuration,
        accepted.configuration_sha256,
        client_id=entry.client_id,
        session_id=entry.session_id,
        recipient_key_id=accepted.recipient.key.key_id,
    )
    layout = update_layout(configuration)
    sealer, wrapped = seal_update(context, accepted.recipient.public_key, layout)
    buffer = memoryview(bytearray(min(limits.CHUNK_CIPHER_BYTES, layout.cipher_size_bytes)))
    with spool.create(configuration.round_id, configuration.attempt) as writer:
        for index in range(layout.count):
            size = sealer.seal_into(index, update.chunk(index), buffer)
            writer.write(buffer[:size])
        manifest = m.UpdateManifest(
            round_id=configuration.round_id,
            attempt=configuration.attempt,
            client_id=entry.client_id,
            session_id=entry.session_id,
            configuration_sha256=accepted.configuration_sha256,
            encryption_key_id=accepted.recipient.key.key_id,
            wrapped_content_key=wrapped,
            key_commitment=sealer.commitment,
            sha256=writer.sha256,
            size_bytes=writer.size_bytes,
            weight=entry.weight,
            # Clocks differ; the server refuses a manifest from before the configuration.
            at_ms=max(now_ms, configuration.created_at_ms),
        )
        statement = sign_rsa_pss(
            type=m.UPDATE_MANIFEST,
            payload=codec.encode_update_manifest(manifest),
            private_key=private_key,
        )
        return writer.finish(statement, manifest)
