"""One attempt of a sealed or grouped round as the tables hold it, for handlers and coordinator."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from boltz_mesh.services.keyring import KeyRing
from boltz_mesh.storage import roster, round_messages, rounds
from boltz_mesh.storage.postgres import Connection
from boltz_mesh.storage.round_messages import MessageKind, StatementKind
from boltz_protocol import codec, codec_sealed
from boltz_protocol import messages as m
from boltz_protocol import messages_sealed as ms
from boltz_protocol.context import BlobContext
from boltz_protocol.key_wrap import unwrap_secret
from boltz_protocol.secagg.attempt import Attempt
from boltz_protocol.secagg.bitmap import indexes
from boltz_protocol.statement import Statement
from boltz_protocol.v1 import aggregator_pb2
from boltz_protocol.weights import WeightLeaf

T = TypeVar("T")
#: Attempts and dealt shares that a replica keeps parsed: rounds that run at the same time.
_KEPT: Final = 16


@dataclass(frozen=True, slots=True)
class SharedAttempt:
    """An attempt whose graph, or whose groups, are known.

    Attributes:
        key_roster: the mesh's statement.
        advertisements: statements by position, of its members.
    """

    attempt: Attempt
    key_roster: Statement
    advertisements: dict[int, Statement]

    def positions(self, clients: Collection[str]) -> frozenset[int]:
        """Where these clients of the roster sit."""
        wanted = frozenset(clients)
        return frozenset(entry.index for entry in self.attempt.entries if entry.client_id in wanted)


class Attempts:
    """Reads attempts, and keeps the last few: none of what it reads changes any more."""

    def __init__(self) -> None:
        self._shared: OrderedDict[tuple[str, int], SharedAttempt] = OrderedDict()
        self._dealt: OrderedDict[tuple[str, int], dict[int, ms.DealtShares]] = OrderedDict()

    async def shared(
        self, connection: Connection, found: rounds.Round, graph_members: Sequence[str]
    ) -> SharedAttempt:
        """The attempt of a round in SHARING_KEYS or beyond.

        Args:
            graph_members: client ids in roster order, as the round's state has them.
        """
        key = (found.round_id, found.attempt)
        known = self._shared.get(key)
        if known is None:
            known = await read_attempt(connection, found, graph_members)
            _keep(self._shared, key, known)
        return known

    async def dealt(
        self, connection: Connection, found: rounds.Round, sharers: Collection[int]
    ) -> dict[int, ms.DealtShares]:
        """What the sharers signed, by position, for a round in COLLECTING or beyond.

        Args:
            sharers: their positions.
        """
        key = (found.round_id, found.attempt)
        known = self._dealt.get(key)
        if known is None:
            rows = await round_messages.list_messages(
                connection, found.round_id, found.attempt, MessageKind.DEALT_SHARES, sharers
            )
            known = {
                row.position: codec_sealed.parse_dealt_shares(shares_dealt(row).dealt.payload)
                for row in rows
            }
            assert known.keys() == set(sharers), "a sharer has dealt"
            _keep(self._dealt, key, known)
        return known


def leaf_of(entry: roster.RosterEntry) -> WeightLeaf:
    """An entry's leaf in the Merkle sum tree."""
    return WeightLeaf(
        index=entry.position,
        client_id=entry.client_id,
        entry_digest=hashlib.sha256(entry.entry).digest(),
        weight=entry.weight,
    )


def configuration_of(found: rounds.Round) -> tuple[m.RoundConfiguration, bytes]:
    """A round's configuration and its digest, once it has one."""
    assert found.config_statement is not None
    assert found.config_digest is not None
    statement = codec.parse_statement(found.config_statement)
    return codec.parse_round_configuration(statement.payload), found.config_digest


def shares_dealt(row: round_messages.RoundMessage) -> ms.SharesDealt:
    """A stored SharesDealt; its statement's signature was checked when it came."""
    assert row.payload is not None, "shares are kept while the round runs"
    return codec_sealed.shares_dealt_from_proto(aggregator_pb2.SharesDealt.FromString(row.payload))


async def read_statement(
    connection: Connection, found: rounds.Round, kind: StatementKind
) -> Statement:
    """What the mesh signed for an attempt. Raises: StateConflict where it has not yet."""
    return codec.parse_statement(
        await round_messages.get_statement(connection, found.round_id, found.attempt, kind)
    )


async def read_advertisements(
    connection: Connection, found: rounds.Round, positions: Collection[int]
) -> dict[int, Statement]:
    """Advertisements by position."""
    rows = await round_messages.list_messages(
        connection, found.round_id, found.attempt, MessageKind.KEY_ADVERTISEMENT, positions
    )
    return {row.position: codec.parse_statement(row.payload or b"") for row in rows}


def released_context(
    mesh_id: str, row: roster.RosterEntry | round_messages.RoundMessage
) -> BlobContext:
    """What the stored shares of one client are bound to."""
    return BlobContext(mesh_id, "released-shares", (row.round_id, str(row.attempt), row.client_id))


async def read_released(
    connection: Connection, found: rounds.Round, keyring: KeyRing
) -> dict[int, ms.SharesReleased]:
    """What was released, by the holder's position; all of it was checked when it came."""
    rows = await round_messages.list_messages(
        connection, found.round_id, found.attempt, MessageKind.RELEASED_SHARES
    )
    released: dict[int, ms.SharesReleased] = {}
    for row in rows:
        assert row.payload is not None, "shares are kept while the round runs"
        content = unwrap_secret(row.payload, keyring.kek, released_context(keyring.mesh_id, row))
        released[row.position] = codec_sealed.shares_released_from_proto(
            aggregator_pb2.SharesReleased.FromString(content)
        )
    return released


async def read_attempt(
    connection: Connection, found: rounds.Round, graph_members: Sequence[str]
) -> SharedAttempt:
    """The attempt, read anew.

    Raises: InvalidPlan, MalformedMessage where too few are left for the graph that the
        configuration asks for; StateConflict where the key roster is not signed yet.
    """
    configuration, config_digest = configuration_of(found)
    entries = await roster.get_roster(connection, found.round_id, found.attempt)
    key_roster = await read_statement(connection, found, StatementKind.KEY_ROSTER)
    members = indexes(
        codec_sealed.parse_key_roster(key_roster.payload).members, configuration.roster_size
    )
    advertisements = await read_advertisements(connection, found, members)
    inside = frozenset(graph_members)
    nonces = await round_messages.list_messages(
        connection,
        found.round_id,
        found.attempt,
        MessageKind.NONCE,
        [entry.position for entry in entries if entry.client_id in inside],
    )
    attempt = Attempt.build(
        configuration=configuration,
        configuration_sha256=config_digest,
        roster=[entry.entry for entry in entries],
        advertisements={
            position: statement.payload for position, statement in advertisements.items()
        },
        key_roster=key_roster,
        nonces={row.position: row.payload or b"" for row in nonces},
    )
    assert len(attempt.graph_members) == len(inside), "the graph is over those in the round's state"
    return SharedAttempt(attempt, key_roster, advertisements)


def _keep(kept: OrderedDict[tuple[str, int], T], key: tuple[str, int], value: T) -> None:
    kept[key] = value
    while len(kept) > _KEPT:
        kept.popitem(last=False)
