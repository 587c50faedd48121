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
from boltz_mesh.aggregation.robust import gram_of
from boltz_mesh.aggregation.rows import ClientRows, GroupRows, NoisedGroupSum, Rows, Unprotected
from boltz_mesh.app.demo.data import FloatArray
from boltz_mesh.app.simulate.ring import Int64Array, Sending, groups_of, range_factor
from boltz_mesh.app.simulate.scenario import Scenario
from boltz_mesh.rounds.plan_robust import RobustChoice
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
        rows: what the mesh may look at; None where that is nothing.
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
        (total,) = _masked_sums(scenario, sending, sent, (members,))
        return Aggregated(sending.mean(total, members), None, (members,))
    return _grouped(scenario, sending, sent)


def _open(scenario: Scenario, sending: Sending, sent: Sent, last: FloatArray) -> Aggregated:
    members = tuple(sent.clients)
    rows: ClientRows | None = None
    choice = scenario.robust
    # The mesh measures each update against the bound of the largest weight, so attackers clip; a
    # rule that sees rows clips each to the share of its own weight besides, and sums do not.
    encoded = np.stack(
        [
            sending.encoded(client, sent.honest[client])
            if client in sent.honest
            else sending.encoded(client, sent.hostile[client], grasping=choice is None)
            for client in members
        ]
    )
    if not scenario.noised:
        weights = np.array([sending.weights[client] for client in members], np.int64)
        units = sending.max_weight / (2.0**sending.encoding.scale_log2 * weights)
        rows = ClientRows(encoded * units[:, None], Unprotected.of("open", "none"))
        if choice is not None:
            mean = _combined(choice, rows, weights)
            return Aggregated(mean, rows, tuple((client,) for client in members))
    assert choice is None, "a robust rule proves no sensitivity"
    summing = scenario.sum_rule()
    noise = sending.noise(scenario.calibration().sigma_squared)
    if isinstance(summing, CenteredClipping):
        total = _centred(summing, sending, members, encoded, last) + noise
    else:
        total = encoded.sum(axis=0) + noise
    each = (members,) if rows is None else tuple((client,) for client in members)
    return Aggregated(sending.mean(total, members), rows, each)


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
    choice = scenario.robust
    sums = _masked_sums(scenario, sending, sent, groups)
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
    if choice is None:
        mean = sending.mean(np.sum(sums, axis=0), clients)
    else:
        mean = _combined(choice, rows, np.array([each.weight for each in rows.sums], np.int64))
    return Aggregated(mean, rows, groups)


def _masked_sums(
    scenario: Scenario, sending: Sending, sent: Sent, sums: Sequence[Sequence[int]]
) -> list[Int64Array]:
    """The unmasked sums of some clients each, (d,), attackers' part and noise included.

    A robust rule's groups are held to their range one by one. Where sums are added up, the norm of
    the total is checked, and attackers in any group may use all of it.
    """
    honest = [
        np.sum(
            [
                sending.encoded(client, sent.honest[client])
                for client in members
                if client in sent.honest
            ]
            or [np.zeros(sending.encoding.coordinates, np.int64)],
            axis=0,
        )
        for members in sums
    ]
    hostile = [
        np.sum(
            [
                sending.unclipped(client, sent.hostile[client])
                for client in members
                if client in sent.hostile
            ]
            or [np.zeros(sending.encoding.coordinates)],
            axis=0,
        )
        for members in sums
    ]
    bound = sending.encoding.bound_l2
    if scenario.robust is None:
        limit = bound * sum(len(members) for members in sums)
        factors = [range_factor(np.sum(honest, axis=0), np.sum(hostile, axis=0), limit)] * len(sums)
    else:
        factors = [
            range_factor(own, wanted, len(members) * bound)
            for own, wanted, members in zip(honest, hostile, sums, strict=True)
        ]
    share = scenario.share()
    return [
        own + sending.rounded(wanted * factor) + sending.noise(len(members) * share)
        for own, wanted, factor, members in zip(honest, hostile, factors, sums, strict=True)
    ]


def _combined(choice: RobustChoice, rows: Rows, weights: Int64Array) -> FloatArray:
    rule = choice.of(len(weights))
    state = rule.init(weights, gram_of(rows) if rule.measures else None)
    return rule.apply(state, rows)
