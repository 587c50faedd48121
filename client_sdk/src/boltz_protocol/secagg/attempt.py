"""What a server knows of one attempt once its graphs are fixed, built from what it has stored.

An `Attempt` holds nothing secret: every replica builds the same one from the same rows, handlers
check messages against it, and the coordinator recovers with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from boltz_protocol.codec import parse_roster_entry
from boltz_protocol.codec_sealed import parse_key_advertisement, parse_key_roster
from boltz_protocol.errors import MalformedMessage, RoundRefused
from boltz_protocol.messages import RosterEntry, RoundConfiguration
from boltz_protocol.messages_sealed import KeyAdvertisement, KeyRoster
from boltz_protocol.secagg.agreement import Agreement, MaskEnd, agree, nonces_needed
from boltz_protocol.secagg.bitmap import bitmap, indexes
from boltz_protocol.secagg.graph import Graph
from boltz_protocol.statement import Statement, digest
from boltz_protocol.weights import SumNode, WeightLeaf


def key_roster(
    *,
    configuration: RoundConfiguration,
    configuration_sha256: bytes,
    advertisements: Mapping[int, Statement],
) -> KeyRoster:
    """What the mesh signs when advertising ends.

    Args:
        advertisements: roster position -> the member's statement, checked when it was stored.
    """
    members = sorted(advertisements)
    return KeyRoster(
        mesh_id=configuration.mesh_id,
        round_id=configuration.round_id,
        attempt=configuration.attempt,
        configuration_sha256=configuration_sha256,
        members=bitmap(members, configuration.roster_size),
        advertisement_sha256s=tuple(digest(advertisements[index]) for index in members),
        nonce_commitments=tuple(
            parse_key_advertisement(advertisements[index].payload).nonce_commitment
            for index in members
        ),
    )


def leaves_of(roster: Sequence[bytes]) -> tuple[SumNode, ...]:
    """Hash and weight of every leaf of the roster's tree, from serialised entries in order.

    Raises: MalformedMessage, LimitExceeded on an entry that does not parse.
    """
    leaves = []
    for raw in roster:
        entry = parse_roster_entry(raw)
        leaf = WeightLeaf(entry.index, entry.client_id, hashlib.sha256(raw).digest(), entry.weight)
        leaves.append(leaf.node())
    return tuple(leaves)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a sealed or grouped round, from the moment at which its graphs are fixed.

    Attributes:
        configuration, configuration_sha256: and the digest of its statement.
        roster: serialised entries, by position.
        entries: the same, parsed.
        advertisements: member -> its keys.
        key_roster, key_roster_sha256: and the digest of its statement.
        revealed: bitmap of the graph members.
        nonces: theirs, in roster order; none where nothing had to be drawn.
        agreement: members, graphs, and the mask context's digest.
    """

    configuration: RoundConfiguration
    configuration_sha256: bytes
    roster: tuple[bytes, ...] = field(repr=False)
    entries: tuple[RosterEntry, ...] = field(repr=False)
    advertisements: Mapping[int, KeyAdvertisement] = field(repr=False)
    key_roster: KeyRoster = field(repr=False)
    key_roster_sha256: bytes
    revealed: bytes
    nonces: tuple[bytes, ...] = field(repr=False)
    agreement: Agreement = field(repr=False)

    @classmethod
    def build(
        cls,
        *,
        configuration: RoundConfiguration,
        configuration_sha256: bytes,
        roster: Sequence[bytes],
        advertisements: Mapping[int, bytes],
        key_roster: Statement,
        nonces: Mapping[int, bytes],
    ) -> Attempt:
        """From stored rows, each of which was checked when it came in.

        Args:
            roster: serialised entries in roster order.
            advertisements: member -> payload of its KeyAdvertisement.
            key_roster: the mesh's own statement.
            nonces: position -> nonce of those that revealed it; none where nothing is drawn.

        Raises:
            MalformedMessage: the rows do not belong together.
            RoundRefused: a nonce that does not open its commitment, another attempt's key roster.
            InvalidPlan: too few members to withstand what the configuration says, or for groups.
        """
        payload = parse_key_roster(key_roster.payload)
        members = indexes(payload.members, configuration.roster_size)
        if len(roster) != configuration.roster_size or set(advertisements) != set(members):
            raise MalformedMessage("stored entries and advertisements are not those of the roster")
        inside = sorted(nonces) if nonces_needed(configuration, len(members)) else members
        revealed = bitmap(inside, configuration.roster_size)
        opened = tuple(nonces[index] for index in inside) if inside is not members else ()
        sha256 = digest(key_roster)
        return cls(
            configuration=configuration,
            configuration_sha256=configuration_sha256,
            roster=tuple(roster),
            entries=tuple(parse_roster_entry(raw) for raw in roster),
            advertisements={
                index: parse_key_advertisement(advertisements[index]) for index in members
            },
            key_roster=payload,
            key_roster_sha256=sha256,
            revealed=revealed,
            nonces=opened,
            agreement=agree(
                configuration=configuration,
                configuration_sha256=configuration_sha256,
                key_roster=payload,
                key_roster_sha256=sha256,
                revealed=revealed,
                nonces=opened,
            ),
        )

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Positions by group, ascending in each: all graph members in one in a sealed round."""
        return tuple(graph.members for graph in self.agreement.graphs)

    @property
    def graph_members(self) -> Set[int]:
        """Positions of all that take part in masking."""
        return self.agreement.graph_members

    def group_of(self, index: int) -> int:
        """Place in `groups` of the group that a graph member is in; 0 in a sealed round."""
        return self.agreement.group_of(index)

    def graph_of(self, index: int) -> Graph:
        """Who masks with whom in the group of a graph member, with its threshold: shares that give
        a secret back, and signatures that a client waits for."""
        return self.agreement.graph_of(index)

    def by_group(self, positions: Iterable[int]) -> dict[int, tuple[int, ...]]:
        """Place in `groups` -> those of the graph members given that are in it, ascending. Groups
        that have none of them are left out."""
        found: dict[int, list[int]] = {}
        for index in sorted(positions):
            found.setdefault(self.group_of(index), []).append(index)
        return {group: tuple(found[group]) for group in sorted(found)}

    def check_survivors(self, survivors: Collection[int]) -> None:
        """Refuse survivors whom their own clients would refuse, in any group that has some.

        See `Graph.check_survivors`. Whether they are enough for the plan is not asked here.

        Raises: MalformedMessage: one that is no graph member. RoundRefused.
        """
        if not survivors:
            raise RoundRefused("0 survivors", survivors=0)
        if not self.graph_members >= set(survivors):
            raise MalformedMessage("a survivor that dealt no shares", field="survivors")
        for group, of_group in self.by_group(survivors).items():
            self.agreement.graphs[group].check_survivors(of_group)

    @property
    def context(self) -> bytes:
        """The mask context's digest."""
        return self.agreement.context

    def holders_of(self, index: int) -> tuple[int, ...]:
        """Who holds shares of the client at `index`, ascending."""
        return self.graph_of(index).holders(index)

    def dealers_of(self, index: int) -> tuple[int, ...]:
        """Whose shares the client at `index` holds, ascending."""
        return self.graph_of(index).dealers(index)

    def mask_end(self, index: int) -> MaskEnd:
        """The client at `index` as an end of pair masks."""
        entry = self.entries[index]
        return MaskEnd(index, entry.client_id, self.advertisements[index].mask_public_key)

    def survivors_bitmap(self, survivors: frozenset[int]) -> bytes:
        """As it is signed."""
        return bitmap(sorted(survivors), self.configuration.roster_size)
