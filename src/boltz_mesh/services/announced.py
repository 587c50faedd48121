"""What an upload announces, held against the round that it is for. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from boltz_mesh.storage import roster, rounds
from boltz_protocol import codec, limits
from boltz_protocol import messages as m
from boltz_protocol.context import UpdateContext
from boltz_protocol.encoding import Encoding
from boltz_protocol.envelope import ChunkLayout
from boltz_protocol.errors import (
    ReplayRefused,
    RoundClosed,
    ShapeMismatch,
    UnknownKey,
    WeightRefused,
)
from boltz_protocol.sealing import round_encoding, update_context, update_layout
from boltz_protocol.statement import Statement


@dataclass(frozen=True, slots=True)
class Announced:
    """A manifest that passed every check, and what follows from its round.

    Attributes:
        norm_bound: holds the bound that the vector is checked against; None where it is masked.
    """

    manifest: m.UpdateManifest
    statement: Statement
    position: int
    context: UpdateContext
    layout: ChunkLayout
    norm_bound: Encoding | None

    @property
    def key(self) -> str:
        """Name of the partial blob: one for each (round, attempt, client)."""
        manifest = self.manifest
        return f"{manifest.round_id}.{manifest.attempt}.{manifest.client_id}"


def checked_manifest(
    manifest: m.UpdateManifest,
    statement: Statement,
    found: rounds.Round,
    entry: roster.RosterEntry,
    now_ms: int,
) -> Announced:
    """Hold a manifest against its round's configuration.

    Args:
        statement: the manifest as the client signed it, verified.
        found: the round; it has a configuration.
        entry: the client's place in the roster.

    Raises: RoundClosed, WeightRefused, ReplayRefused, UnknownKey, ShapeMismatch.
    """
    assert found.config_statement is not None
    assert found.config_digest is not None
    terms = _terms(found.config_statement)
    configuration, key, layout = terms.configuration, terms.key, terms.layout
    if manifest.attempt != configuration.attempt:
        raise RoundClosed(f"attempt {manifest.attempt} of this round is over")
    if manifest.configuration_sha256 != found.config_digest:
        raise RoundClosed("the manifest answers another configuration than this round's")
    if manifest.weight != entry.weight:
        raise WeightRefused(
            f"the manifest claims weight {manifest.weight}; {entry.weight} is committed",
            weight=entry.weight,
        )
    if not configuration.created_at_ms <= manifest.at_ms <= now_ms + limits.MAX_CLOCK_SKEW_MS:
        raise ReplayRefused("the manifest was not signed during this round")
    if manifest.encryption_key_id != key.key_id:
        raise UnknownKey(
            f"the update is encrypted for key {manifest.encryption_key_id}; "
            f"this round's is {key.key_id}",
            key_id=key.key_id,
        )
    if manifest.size_bytes != layout.cipher_size_bytes:
        raise ShapeMismatch(
            f"an update of this model has {layout.cipher_size_bytes} bytes when encrypted, "
            f"not {manifest.size_bytes}",
            size_bytes=layout.cipher_size_bytes,
        )
    context = update_context(
        configuration,
        found.config_digest,
        client_id=manifest.client_id,
        session_id=manifest.session_id,
        recipient_key_id=key.key_id,
    )
    masked = configuration.mode is not m.RoundMode.OPEN
    bound = None if masked else terms.encoding
    return Announced(manifest, statement, entry.position, context, layout, bound)


@dataclass(frozen=True, slots=True)
class _Terms:
    """What follows from a round's configuration, the same for all of its updates."""

    configuration: m.RoundConfiguration
    key: m.EncryptionKey
    layout: ChunkLayout
    encoding: Encoding


@lru_cache(maxsize=64)
def _terms(config_statement: bytes) -> _Terms:
    """Parse a stored configuration once for all of its uploads."""
    payload = codec.parse_statement(config_statement).payload
    configuration = codec.parse_round_configuration(payload)
    return _Terms(
        configuration,
        codec.parse_encryption_key(configuration.encryption_key.payload),
        update_layout(configuration),
        round_encoding(configuration),
    )
