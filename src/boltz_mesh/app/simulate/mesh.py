"""One round's aggregation in each mode, by the product's own rules on what `ring` made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from boltz_mesh.aggregation.centered_step import (
    CenteredClipping,
    centre_units,
    shortened,
    shrinking,
)
from boltz_mesh.aggregation.robust import RobustRule, gram_of
from boltz_mesh.aggregation.rows import ClientRows, GroupRows, NoisedGroupSum, Rows, Unprotected
from boltz_mesh.app.demo.data import FloatArray
from boltz_mesh.app.simulate.ring import Int64Array, Sending, groups_of, within_range
from boltz_mesh.app.simulate.scenario import ROBUST, Scenario, robust_rule
from boltz_protocol.clip import clip_factor
from boltz_protocol.packing import norm_squared24


@dataclass(frozen=True, slots=True)
class Sent:
    """What the clients of one round sent.

    Attributes:
        honest: client -> delta (d,), unclipped: the client's own steps follow.
        hostile: attacker -> what it would like to send, (d,), unclipped.
    """

    honest: Mapping[int, FloatArray]
    hostile: Mapping[int, FloatArray]

    @property
    def clients(self) -> list[int]:
        """Everybody, ascending."""
        return sorted([*self.honest, *self.hostile])


@dataclass(frozen=True, slots=True)
class Aggregated:
    """What a round made.

    Attributes:
        mean: (d,), the aggregate, noise included.
        rows: what the rule compared; None where it compared nothing.
        members: clients of each row, in the order of the rows; of the whole sum without rows.
    """

    mean: FloatArray
    rows: Rows | None
    members: tuple[tuple[int, ...], ...]


def aggregate(scenario: Scenario, sending: Sending, sent: Sent, last: FloatArray) -> Aggregated:
    """One round.

    Args:
        last: (d,), the mean that was published last.

    Raises: TooFewClients where the rule asks for more rows than there are; NotFinite.
    """
    if scenario.mode == "open":
        return _open(scenario, sending, sent, last)
    if scenario.mode == "sealed":
        members = tuple(sent.clients)
        total = _masked_sum(scenario, sending, sent, members)
        return Aggregated(sending.mean(total, members), None, (members,))
    return _grouped(scenario, sending, sent)


def _open(scenario: Scenario, sending: Sending, sent: Sent, last: FloatArray) -> Aggregated:
    members = tuple(sent.clients)
    everybody = {**sent.honest, **sent.hostile}
    # The mesh measures each update, so attackers clip as everybody does.
    encoded = np.stack([sending.encoded(client, everybody[client]) for client in members])
    if scenario.rule in ROBUST:
        weights = [sending.weights[client] for client in members]
        scale = 2.0**sending.encoding.scale_log2
        shares = np.array(weights, np.float64) / sending.max_weight
        rows = ClientRows(encoded / (shares * scale)[:, None], Unprotected.of("open", "none"))
        rule = robust_rule(scenario.rule, scenario.attackers, len(members))
        mean = _combined(rule, rows, weights)
        return Aggregated(mean, rows, tuple((client,) for client in members))
    summing = scenario.sum_rule()
    noise = sending.noise(scenario.calibration().sigma_squared)
    if isinstance(summing, CenteredClipping):
        total = _centred(summing, sending, members, encoded, last) + noise
    else:
        total = encoded.sum(axis=0) + noise
    return Aggregated(sending.mean(total, members), None, (members,))


def _centred(
    rule: CenteredClipping,
    sending: Sending,
    members: Sequence[int],
    encoded: Int64Array,
    last: FloatArray,
) -> Int64Array:
    """Terms around the last mean, each within its bound, and their centres: (d,), no noise."""
    encoding = sending.encoding
    centre = last * clip_factor(float(np.linalg.norm(last)), encoding.clip_norm_l2)
    scale = 2.0**encoding.scale_log2
    total = np.zeros(encoding.coordinates, np.int64)
    sizes = np.array([encoding.coordinates], np.int64)
    for client, values in zip(members, encoded, strict=True):
        weight = sending.weights[client]
        units = centre_units(centre, scale, weight, sending.max_weight)
        term = (values - units).astype(np.int32)
        square = norm_squared24(term)
        bound = rule.term_bound(weight, sending.max_weight)
        if square > bound**2:
            cut = shrinking(np.array([square], np.float64), sizes, bound)
            term = shortened(term, cut.factor, int(cut.allowances[0]), sending.stream())
        total += term.astype(np.int64) + units
    return total


def _grouped(scenario: Scenario, sending: Sending, sent: Sent) -> Aggregated:
    clients = sent.clients
    drawn = groups_of(len(clients), scenario.groups_for(len(clients)), sending.chance)
    groups = tuple(tuple(clients[place] for place in group) for group in drawn)
    sums = [_masked_sum(scenario, sending, sent, group) for group in groups]
    if scenario.rule not in ROBUST:
        total = np.sum(sums, axis=0)
        return Aggregated(sending.mean(total, clients), None, groups)
    rows = GroupRows(
        tuple(
            NoisedGroupSum(
                group=number,
                values=total.astype(np.int32),
                scale=2.0**sending.encoding.scale_log2,
                max_weight=sending.max_weight,
                weight=sum(sending.weights[client] for client in group),
            )
            for number, (group, total) in enumerate(zip(groups, sums, strict=True))
        )
    )
    rule = robust_rule(scenario.rule, scenario.attackers, len(groups))
    mean = _combined(rule, rows, [each.weight for each in rows.sums])
    return Aggregated(mean, rows, groups)


def _masked_sum(
    scenario: Scenario, sending: Sending, sent: Sent, members: Sequence[int]
) -> Int64Array:
    """The unmasked sum of some clients, (d,), attackers' part and noise included."""
    honest = np.zeros(sending.encoding.coordinates, np.int64)
    for client in members:
        if client in sent.honest:
            honest += sending.encoded(client, sent.honest[client])
    hostile = [
        sending.unclipped(client, sent.hostile[client])
        for client in members
        if client in sent.hostile
    ]
    if hostile:
        limit = len(members) * sending.encoding.bound_l2
        honest += within_range(honest, np.stack(hostile), limit)
    return honest + sending.noise(len(members) * scenario.share())


def _combined(rule: RobustRule, rows: Rows, weights: Sequence[int]) -> FloatArray:
    gram = gram_of(rows) if rule.measures else None
    state = rule.init(np.array(weights, np.int64), gram)
    return rule.apply(state, rows)
