"""What the server and every client of an attempt must compute alike: who is in, the graph or the
graphs of the groups, the context of all keys.

`agree` is a function of nothing but the signed configuration, the signed key roster, and the
nonces that open the commitments in it. Whoever was shown other bytes of any of these computes
another context, and so masks that do not cancel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from boltz_protocol.errors import MalformedMessage, RoundRefused
from boltz_protocol.limits import MAX_COMPLETE_GRAPH
from boltz_protocol.messages import RoundConfiguration
from boltz_protocol.messages_sealed import KeyRoster
from boltz_protocol.secagg.bitmap import indexes
from boltz_protocol.secagg.context import MaskContext
from boltz_protocol.secagg.graph import Graph, graph_seed, parameters_among
from boltz_protocol.secagg.groups import colluders_of_group, draw_groups, group_parameters
from boltz_protocol.secagg.keys import KeyPair, commit_nonce, pair_mask_key, self_mask_key
from boltz_protocol.secagg.masks import MaskStream, pair_sign


@dataclass(frozen=True, slots=True)
class Agreement:
    """The outcome of the key phases before any share is dealt.

    Attributes:
        members: positions in the signed key roster, ascending.
        graphs: over the graph members, who are in one each: one graph in a sealed round, one a
            group in a grouped round. Nothing is masked, shared or signed between two of them.
        context: digest (32 bytes) of the mask context; salt of every derived key.
    """

    members: tuple[int, ...]
    graphs: tuple[Graph, ...]
    context: bytes
    _group: Mapping[int, int] = field(repr=False, compare=False)

    @classmethod
    def of(cls, members: tuple[int, ...], graphs: tuple[Graph, ...], context: bytes) -> Agreement:
        """Of graphs that have no member in common."""
        group = {index: place for place, graph in enumerate(graphs) for index in graph.members}
        assert len(group) == sum(len(graph.members) for graph in graphs), "a member of one graph"
        return cls(members, graphs, context, group)

    def __contains__(self, index: int) -> bool:
        """Whether a position is a graph member."""
        return index in self._group

    @property
    def graph_members(self) -> Set[int]:
        """Roster positions of the members of all graphs."""
        return self._group.keys()

    def group_of(self, index: int) -> int:
        """Place in `graphs` of the graph that a graph member is in; always 0 in a sealed round."""
        assert index in self._group, "not a graph member"
        return self._group[index]

    def graph_of(self, index: int) -> Graph:
        """The graph that a graph member is in."""
        return self.graphs[self.group_of(index)]


def nonces_needed(configuration: RoundConfiguration, members: int) -> bool:
    """Whether a graph or groups have to be drawn, so that members reveal their nonces first."""
    return configuration.grouping is not None or members > MAX_COMPLETE_GRAPH


def check_key_roster(
    key_roster: KeyRoster, configuration: RoundConfiguration, configuration_sha256: bytes
) -> tuple[int, ...]:
    """The members, ascending, of a key roster that belongs to this attempt.

    Raises: MalformedMessage on a bitmap of another roster's size; RoundRefused where the key roster
        is another mesh's, round's, attempt's or configuration's.
    """
    if (
        key_roster.mesh_id != configuration.mesh_id
        or key_roster.round_id != configuration.round_id
        or key_roster.attempt != configuration.attempt
        or key_roster.configuration_sha256 != configuration_sha256
    ):
        raise RoundRefused("the key roster belongs to another round, attempt or configuration")
    members = indexes(key_roster.members, configuration.roster_size)
    assert len(members) == len(key_roster.advertisement_sha256s), "one digest a member"
    return members


def agree(
    *,
    configuration: RoundConfiguration,
    configuration_sha256: bytes,
    key_roster: KeyRoster,
    key_roster_sha256: bytes,
    revealed: bytes,
    nonces: Sequence[bytes],
) -> Agreement:
    """Check the nonces, draw the graph or the groups, and fix the context.

    In a sealed round neighbours and threshold are those of the number of members, with the
    colluders of the whole roster among them; a member who does not reveal its nonce counts as a
    dropout. In a grouped round they are those of the group that was drawn.

    Args:
        revealed: bitmap of the graph members.
        nonces: theirs, in roster order; none where nothing has to be drawn.

    Raises:
        MalformedMessage: a bitmap or a number of nonces that does not fit.
        RoundRefused: not this attempt's key roster, graph members that are no members, a nonce that
            does not open its commitment.
        InvalidPlan: so few members cannot withstand what the configuration says, or make no groups.
    """
    assert configuration.secure_aggregation is not None, "a sealed or grouped round"
    members = check_key_roster(key_roster, configuration, configuration_sha256)
    inside = indexes(revealed, configuration.roster_size)
    if nonces_needed(configuration, len(members)):
        _check_nonces(inside, nonces, dict(zip(members, key_roster.nonce_commitments, strict=True)))
    elif nonces or inside != members:
        raise RoundRefused("in a complete graph all members take part, and no nonce is used")
    context = MaskContext(
        configuration_sha256=configuration_sha256,
        model_sha256=configuration.model_sha256,
        key_roster_sha256=key_roster_sha256,
        graph_members_bitmap=revealed,
        nonces=tuple(nonces),
    ).digest
    seed = graph_seed(context, nonces)
    return Agreement.of(members, _graphs(configuration, members, inside, seed), context)


def _graphs(
    configuration: RoundConfiguration, members: Sequence[int], inside: Sequence[int], seed: bytes
) -> tuple[Graph, ...]:
    setting, grouping = configuration.secure_aggregation, configuration.grouping
    assert setting is not None, "a sealed or grouped round"
    roster_size = configuration.roster_size
    if grouping is None:
        chosen = parameters_among(
            len(members),
            roster_size=roster_size,
            corrupt_fraction=setting.corrupt_fraction,
            dropout_fraction=setting.dropout_fraction,
            adversary=setting.adversary,
        )
        return (Graph.build(inside, chosen, seed=seed),)
    colluding = colluders_of_group(roster_size, grouping.groups, setting.corrupt_fraction)
    dropout, against = setting.dropout_fraction, setting.adversary
    return tuple(
        Graph.build(group, group_parameters(len(group), colluding, dropout, against), seed=seed)
        for group in draw_groups(inside, grouping.groups, seed=seed)
    )


def _check_nonces(
    inside: Sequence[int], nonces: Sequence[bytes], commitments: Mapping[int, bytes]
) -> None:
    if len(nonces) != len(inside):
        raise MalformedMessage(f"{len(nonces)} nonces of {len(inside)} graph members")
    for index, nonce in zip(inside, nonces, strict=True):
        if index not in commitments:
            raise RoundRefused(f"position {index} revealed a nonce but is no member")
        if commit_nonce(nonce) != commitments[index]:
            raise RoundRefused(f"the nonce of position {index} does not open its commitment")


@dataclass(frozen=True, slots=True)
class MaskEnd:
    """One end of a pair mask.

    Attributes:
        index: position in the roster.
        mask_public_key: 32 bytes, as advertised.
    """

    index: int
    client_id: str
    mask_public_key: bytes


def pair_stream_of(own: MaskEnd, own_keys: KeyPair, other: MaskEnd, context: bytes) -> MaskStream:
    """The mask that `own` applies for `other`, with the sign that `own` applies it with.

    Raises: MalformedMessage where the other's key is a point of low order.
    """
    low, high = sorted((own, other), key=lambda end: end.index)
    key = pair_mask_key(
        own_keys.exchange(other.mask_public_key),
        context,
        (low.client_id, low.mask_public_key),
        (high.client_id, high.mask_public_key),
    )
    return MaskStream(key, pair_sign(own.index, other.index))


def self_stream_of(client_id: str, seed: bytes, context: bytes) -> MaskStream:
    """A client's own mask, which it adds."""
    return MaskStream(self_mask_key(seed, context, client_id), 1)
