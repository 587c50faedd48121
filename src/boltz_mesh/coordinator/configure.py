"""What a round commits to: the roster's weights, its Merkle sum tree, the signed configuration.

Pure but for the signature: everything that is read comes in as arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from boltz_mesh.privacy.mechanisms import PrivacyEvent
from boltz_mesh.rounds.plan import Plan
from boltz_mesh.rounds.plan_checks import validate_encoding
from boltz_mesh.rounds.plan_sealed import release_terms
from boltz_mesh.rounds.state import RoundParameters
from boltz_mesh.services.attempts import leaf_of
from boltz_mesh.storage.check_ins import CheckIn
from boltz_mesh.storage.models import ModelVersion
from boltz_mesh.storage.roster import RosterEntry
from boltz_protocol import clip_indicator, codec, limits, weights
from boltz_protocol import messages as m
from boltz_protocol.certificates import der_chain, load_pem_chain
from boltz_protocol.ids import RoundId
from boltz_protocol.secagg.graph import Adversary
from boltz_protocol.statement import Statement, digest

#: Signs a payload of a type as the mesh.
Sign = Callable[[str, bytes], Statement]

_MODES: Final[Mapping[str, m.RoundMode]] = {
    "open": m.RoundMode.OPEN,
    "sealed": m.RoundMode.SEALED,
    "grouped": m.RoundMode.GROUPED,
}


@dataclass(frozen=True, slots=True)
class FixedRoster:
    """A roster and the configuration that commits to it.

    Attributes:
        configuration: the signed statement, the same bytes for every client.
        config_digest: SHA-256 of the statement's signed bytes.
        entries: rows of the roster by position.
        holds: what the round may spend, one event a client.
        deadline_ms: end of COLLECTING.
    """

    configuration: Statement
    config_digest: bytes
    entries: tuple[RosterEntry, ...]
    holds: tuple[PrivacyEvent, ...]
    deadline_ms: int


def capped_weights(values: Sequence[int], share_cap: float) -> tuple[int, ...]:
    """Lower the largest weights to one level, until none has more than its share of the total.

    Where not even equal weights keep the cap (a roster smaller than its inverse), they are equal.

    Args:
        values: 1 to 255 each.
        share_cap: of the total, in (0, 1].
    """
    cap = Fraction(repr(share_cap))
    for level in range(max(values), 0, -1):
        lowered = tuple(min(value, level) for value in values)
        if max(lowered) <= cap * sum(lowered):
            return lowered
    return (1,) * len(values)


def roster_weights(
    check_ins: Sequence[CheckIn], trust_256: Mapping[str, int], plan: Plan
) -> tuple[int, ...]:
    """The committed weight of each client: sample bucket x quality bucket x trust, capped.

    Trust counts relative to the largest in the roster (`weights.relative_trust`).

    Args:
        check_ins: in roster order.
        trust_256: client id -> trust in 1/256, 1 to 256, of each of them.
    """
    top = max(trust_256[check_in.client_id] for check_in in check_ins)
    return capped_weights(
        [
            weights.weight(
                sample_bucket=check_in.sample_bucket,
                quality_bucket=check_in.quality_bucket,
                trust_256=weights.relative_trust(trust_256[check_in.client_id], top),
                sample_bucket_cap=plan.sample_bucket_cap,
            )
            for check_in in check_ins
        ],
        plan.weight_share_cap,
    )


def fix_roster(
    roster: Sequence[CheckIn],
    *,
    trust_256: Mapping[str, int],
    parameters: RoundParameters,
    plan: Plan,
    base: ModelVersion,
    encryption_key: Statement,
    chains: Mapping[str, bytes],
    mesh_id: str,
    now_ms: int,
    sign: Sign,
) -> FixedRoster:
    """Commit to a roster.

    Args:
        roster: check-ins in roster order.
        trust_256: client id -> trust in 1/256, of each of them.
        plan: the revision that the round runs under, at the round's clip norm.
        base: the version the clients train from.
        encryption_key: announcement of the key to encrypt for.
        chains: client id -> certificate chain (PEM), in sealed rounds, where clients check peers.
        now_ms: Unix time in milliseconds.
        sign: the mesh's signature.
    """
    round_id = RoundId(parameters.round_id)
    committed = roster_weights(roster, trust_256, plan)
    entries = tuple(
        _entry(
            check_in,
            position,
            weight,
            trust_256[check_in.client_id],
            parameters,
            chains.get(check_in.client_id, b""),
        )
        for position, (check_in, weight) in enumerate(zip(roster, committed, strict=True))
    )
    root = weights.root([leaf_of(entry) for entry in entries])
    encoding = validate_encoding(plan)
    deadline_ms = now_ms + _until_collected_ms(parameters)
    configuration = m.RoundConfiguration(
        mesh_id=mesh_id,
        round_id=round_id,
        attempt=parameters.attempt,
        model_id=base.model_id,
        mode=_MODES[parameters.mode],
        base_version=base.version,
        model_sha256=base.weights.digest,
        parameters=plan.parameters,
        lanes=_lanes(plan),
        clip_norm=plan.clip_norm,
        scale=math.ldexp(1.0, encoding.scale_log2),
        bound_l2=encoding.bound_l2,
        noise_multiplier=plan.noise_multiplier,
        privacy=plan.privacy,
        epsilon_budget=0.0 if plan.budget is None else plan.budget.epsilon,
        delta=0.0 if plan.budget is None else plan.budget.delta,
        roster_root=root.hash,
        roster_size=len(entries),
        total_weight=root.total,
        max_weight=max(committed),
        min_survivors=parameters.min_clients,
        deadline_ms=deadline_ms,
        encryption_key=encryption_key,
        hyperparameters=plan.hyper_parameters,
        plan_revision=parameters.plan_revision,
        optimizer_state_sha256=b"" if base.optimizer is None else base.optimizer.digest,
        created_at_ms=now_ms,
        secure_aggregation=_secure_aggregation(plan) if parameters.is_sealed else None,
        grouping=_grouping(parameters) if parameters.is_grouped else None,
        clip_indicator="" if plan.adaptive_clipping is None else clip_indicator.LANE,
        weight_terms=m.WeightTerms(
            plan.sample_bucket_cap, max(entry.trust_256 for entry in entries)
        ),
    )
    terms = release_terms(plan, encoding)
    statement = sign(m.ROUND_CONFIGURATION, codec.encode_round_configuration(configuration))
    return FixedRoster(
        configuration=statement,
        config_digest=digest(statement),
        entries=entries,
        holds=tuple(
            terms.event(
                model=parameters.model_id,
                round=round_id,
                attempt=parameters.attempt,
                client=check_in.client_id,
            )
            for check_in in roster
        ),
        deadline_ms=deadline_ms,
    )


def _lanes(plan: Plan) -> tuple[m.Lane, ...]:
    lanes = tuple(m.Lane(lane.name, lane.scale) for lane in plan.lanes)
    if plan.adaptive_clipping is None:
        return lanes
    scale = plan.adaptive_clipping.indicator_scale(plan.clip_norm)
    return (*lanes, m.Lane(clip_indicator.LANE, scale))


def _until_collected_ms(parameters: RoundParameters) -> int:
    """The longest that a round may take from its roster to the end of COLLECTING."""
    if not parameters.is_sealed:
        return parameters.collecting_ms
    # Nonces are revealed within a deadline of their own, as long as that of the keys.
    return 2 * parameters.advertising_ms + parameters.sharing_ms + parameters.collecting_ms


def _secure_aggregation(plan: Plan) -> m.SecureAggregation:
    settings = plan.sealing
    return m.SecureAggregation(
        settings.corrupt_fraction, settings.dropout_fraction, Adversary(settings.adversary)
    )


def _grouping(parameters: RoundParameters) -> m.Grouping:
    return m.Grouping(parameters.groups, parameters.min_group_survivors)


def key_needed_until_ms(parameters: RoundParameters, now_ms: int) -> int:
    """Until when a round's encryption key must last: its updates are opened in AGGREGATING."""
    longest_ms = (
        _until_collected_ms(parameters)
        + 2 * parameters.recovery_extension_ms
        + parameters.aggregating_ms
    )
    if parameters.is_sealed:
        longest_ms += parameters.checking_ms + parameters.unmasking_ms
    return now_ms + min(longest_ms, limits.SERVER_KEY_LIFETIME_MS)


def _entry(  # noqa: PLR0917 - in the order of the row
    check_in: CheckIn,
    position: int,
    weight: int,
    trust_256: int,
    parameters: RoundParameters,
    chain_pem: bytes,
) -> RosterEntry:
    message = m.RosterEntry(
        index=position,
        client_id=check_in.client_id,
        session_id=check_in.session_id,
        weight=weight,
        sample_bucket=check_in.sample_bucket,
        quality_bucket=check_in.quality_bucket,
        check_in=codec.parse_statement(check_in.statement),
        certificate_chain_der=der_chain(load_pem_chain(chain_pem)) if chain_pem else (),
        trust_256=trust_256,
    )
    return RosterEntry(
        round_id=RoundId(parameters.round_id),
        attempt=parameters.attempt,
        position=position,
        client_id=check_in.client_id,
        session_id=check_in.session_id,
        weight=weight,
        sample_bucket=check_in.sample_bucket,
        quality_bucket=check_in.quality_bucket,
        trust_256=trust_256,
        group_id=message.group_id,
        entry=codec.encode_roster_entry(message),
    )
