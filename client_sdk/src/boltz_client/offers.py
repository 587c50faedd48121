"""What a client checks before it lets its data near a round. Pure: time and keys are handed in.

The server is not believed: a configuration counts only under the mesh's certified statement key,
the roster proof must lead from this client's own entry to the committed root, the numbers must
agree among themselves (a bound that the noise is not calibrated to, or a sum that wraps round,
would break the promise of the noise), and the owner's limits come last.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fractions import Fraction

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from boltz_client.mesh_keys import MeshKeys, Recipient
from boltz_client.owner import OwnerLimits
from boltz_protocol import codec, limits, weights
from boltz_protocol import messages as m
from boltz_protocol.encoding import Encoding
from boltz_protocol.errors import (
    InvalidPlan,
    MalformedMessage,
    MeshError,
    RoundClosed,
    RoundRefused,
)
from boltz_protocol.ids import ClientId, ModelId, SessionId
from boltz_protocol.sealing import round_encoding, round_share_variance
from boltz_protocol.statement import CLIENT_ALGORITHMS, digest, verify


@dataclass(frozen=True, slots=True)
class Self:
    """Who is asked: this client and the session that it checked in with."""

    mesh_id: str
    client_id: ClientId
    session_id: SessionId
    public_key: RSAPublicKey


@dataclass(frozen=True, slots=True)
class AcceptedRound:
    """An offer of which every part was verified and found acceptable.

    Attributes:
        configuration_sha256: digest of the configuration's statement.
        entry: this client's place in the roster.
        recipient: whom the update is encrypted for.
        encoding: how reals become integers, checked against the configuration.
        noise_share: variance of the noise that this client adds, in squared ring units; 0 in a
            round without noise, and in one whose server adds it.
    """

    configuration: m.RoundConfiguration
    configuration_sha256: bytes
    entry: m.RosterEntry
    recipient: Recipient
    encoding: Encoding
    noise_share: Fraction
    trace: m.TraceContext

    @property
    def label(self) -> str:
        """Round and attempt, for people."""
        return f"{self.configuration.round_id} attempt {self.configuration.attempt}"


def check_offer(
    offer: m.RoundOffer,
    *,
    me: Self,
    model_id: ModelId,
    keys: MeshKeys,
    owner: OwnerLimits,
    now_ms: int,
) -> AcceptedRound:
    """Verify an offer and hold it against the owner's limits.

    Args:
        model_id: the model that this client checked in for.
        now_ms: Unix time by the server's clock, as well as the client knows it.

    Raises:
        UnknownKey: signed with a key that is not certified (yet).
        SignatureInvalid, MalformedMessage, LimitExceeded, NotFinite: not what it claims to be.
        WeightRefused: the roster proof does not hold, or the weight is not what buckets and trust
            make it.
        RoundClosed: the deadline is over.
        RoundRefused: another mesh, model or session, an unknown protocol, numbers that do
            not agree, noise that cannot be shared, or the owner's limits.
    """
    payload = keys.verify(offer.configuration, m.ROUND_CONFIGURATION, now_ms)
    configuration = codec.parse_round_configuration(payload)
    if configuration.mesh_id != me.mesh_id:
        raise RoundRefused(f"the round belongs to the mesh {configuration.mesh_id!r}")
    if configuration.model_id != model_id:
        raise RoundRefused(f"the round trains {configuration.model_id!r}, not {model_id!r}")
    if configuration.protocol_version != m.PROTOCOL_VERSION:
        raise RoundRefused(
            f"the round speaks protocol version {configuration.protocol_version}; "
            f"this client speaks {m.PROTOCOL_VERSION}"
        )
    if now_ms >= configuration.deadline_ms:
        raise RoundClosed("the round's deadline is over")
    entry = _checked_entry(offer, configuration, me)
    recipient = keys.recipient(
        configuration.encryption_key, now_ms=now_ms, until_ms=configuration.deadline_ms
    )
    encoding = _checked_encoding(configuration)
    noise_share = _checked_noise_share(configuration, encoding)
    owner.check(configuration, entry.weight)
    return AcceptedRound(
        configuration=configuration,
        configuration_sha256=digest(offer.configuration),
        entry=entry,
        recipient=recipient,
        encoding=encoding,
        noise_share=noise_share,
        trace=offer.trace,
    )


def _checked_entry(
    offer: m.RoundOffer, configuration: m.RoundConfiguration, me: Self
) -> m.RosterEntry:
    entry = codec.parse_roster_entry(offer.roster_entry)
    if entry.client_id != me.client_id:
        raise RoundRefused("the roster entry is another client's")
    if entry.session_id != me.session_id:
        raise RoundRefused("the round was offered to an earlier run of this client, which is over")
    if entry.weight > configuration.max_weight:
        raise RoundRefused(
            f"weight {entry.weight} is above the round's largest, {configuration.max_weight}"
        )
    leaf = weights.WeightLeaf(
        index=entry.index,
        client_id=entry.client_id,
        entry_digest=hashlib.sha256(offer.roster_entry).digest(),
        weight=entry.weight,
    )
    weights.check_weight(entry, configuration)
    weights.verify(
        leaf,
        configuration.roster_size,
        [weights.SumNode(sibling.hash, sibling.sum) for sibling in offer.proof],
        weights.SumNode(configuration.roster_root, configuration.total_weight),
    )
    # The server may not put words into this client's mouth: the entry repeats what it signed.
    spoken = codec.parse_check_in(
        verify(
            entry.check_in,
            expected_type=m.CHECK_IN,
            public_key=me.public_key,
            allowed_algorithms=CLIENT_ALGORITHMS,
        )
    )
    if (
        (spoken.mesh_id, spoken.client_id, spoken.session_id, spoken.model_id)
        != (me.mesh_id, me.client_id, me.session_id, configuration.model_id)
    ) or (spoken.sample_bucket, spoken.quality_bucket) != (
        entry.sample_bucket,
        entry.quality_bucket,
    ):
        raise RoundRefused("the roster entry does not repeat this client's check-in")
    return entry


def _checked_encoding(configuration: m.RoundConfiguration) -> Encoding:
    try:
        return round_encoding(configuration)
    except MalformedMessage as error:
        raise RoundRefused(f"the round's numbers do not agree: {error.message}") from error


def _checked_noise_share(configuration: m.RoundConfiguration, encoding: Encoding) -> Fraction:
    """What this client adds to its own update, so that fewest survivors are noise enough."""
    if configuration.secure_aggregation is None:
        return Fraction(0)
    if configuration.min_survivors < limits.MIN_SEALED_COHORT:
        raise RoundRefused(
            f"a sealed round that may end with {configuration.min_survivors} clients shows each "
            f"of them the others; at least {limits.MIN_SEALED_COHORT} are needed"
        )
    if configuration.noise_multiplier == 0:
        return Fraction(0)
    try:
        return round_share_variance(configuration, encoding)
    except InvalidPlan as error:
        raise RoundRefused(f"the round's noise cannot be shared: {error.message}") from error


def check_base(configuration: m.RoundConfiguration, manifest: m.ModelManifest) -> None:
    """Hold the pulled model against the configuration. Raises: RoundRefused."""
    same = (
        manifest.model_id == configuration.model_id
        and manifest.version == configuration.base_version
        and manifest.sha256 == configuration.model_sha256
        and manifest.parameters == configuration.parameters
        and manifest.optimizer_state_sha256 == configuration.optimizer_state_sha256
    )
    if not same:
        raise RoundRefused(
            f"version {manifest.version} of {manifest.model_id} is not the model that the "
            "round's configuration commits to"
        )


def decline_reason(error: MeshError) -> str:
    """What to tell the server: the error's reason and nothing about the data."""
    return error.reason
