"""How an update of a round is encrypted, derived from the round's configuration by both ends."""

from __future__ import annotations

import math
from fractions import Fraction

from boltz_protocol import limits
from boltz_protocol.context import UpdateContext
from boltz_protocol.encoding import Encoding
from boltz_protocol.envelope import ChunkLayout
from boltz_protocol.ids import ClientId, KeyId, SessionId
from boltz_protocol.messages import RoundConfiguration
from boltz_protocol.noise_share import share_variance
from boltz_protocol.secagg.graph import colluders
from boltz_protocol.secagg.groups import colluders_of_group


def update_context(
    configuration: RoundConfiguration,
    configuration_sha256: bytes,
    *,
    client_id: ClientId,
    session_id: SessionId,
    recipient_key_id: KeyId,
) -> UpdateContext:
    """What the ciphertext of one client's update is bound to.

    Args:
        configuration_sha256: digest of the configuration's signed statement.
        session_id: as in the client's roster entry.
    """
    return UpdateContext(
        mesh=configuration.mesh_id,
        round_id=configuration.round_id,
        attempt=configuration.attempt,
        client_id=client_id,
        session_id=session_id,
        recipient_key_id=recipient_key_id,
        model_digest=configuration.model_sha256,
        config_digest=configuration_sha256,
    )


def update_layout(configuration: RoundConfiguration) -> ChunkLayout:
    """How an update falls into encrypted chunks. Raises: LimitExceeded."""
    return ChunkLayout(
        size_bytes=configuration.coordinates * limits.WIRE_BYTES,
        chunk_bytes=limits.CHUNK_PLAIN_BYTES,
    )


def round_encoding(configuration: RoundConfiguration) -> Encoding:
    """How reals become integers in a round; building it checks that the numbers agree.

    The room for sums is checked for the roster's size, the most updates that can be added up.

    Raises: MalformedMessage naming the number that does not fit the others.
    """
    return Encoding(
        clip_norm_l2=configuration.clip_norm,
        # A power of two, as RoundConfiguration has checked.
        scale_log2=math.frexp(configuration.scale)[1] - 1,
        bound_l2=configuration.bound_l2,
        coordinates=configuration.coordinates,
        cohort_max=configuration.roster_size,
        noise_multiplier=configuration.noise_multiplier,
    )


def round_share_variance(configuration: RoundConfiguration, encoding: Encoding) -> Fraction:
    """Variance of the noise that each client of a sealed or grouped round adds, in squared ring
    units. In a grouped round each group's sum carries the full noise, whoever is in it.

    Args:
        encoding: of `configuration`.

    Raises: InvalidPlan where the colluders of a sum could leave no noise, or too little to draw.
    """
    settings, grouping = configuration.secure_aggregation, configuration.grouping
    assert settings is not None, "in an open round the mesh adds the noise"
    size, corrupt = configuration.roster_size, settings.corrupt_fraction
    if grouping is None:
        return share_variance(
            encoding,
            least_survivors=configuration.min_survivors,
            colluders=colluders(size, corrupt),
        )
    return share_variance(
        encoding,
        least_survivors=grouping.min_group_survivors,
        colluders=colluders_of_group(size, grouping.groups, corrupt),
    )
