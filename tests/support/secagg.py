"""Whole attempts of sealed and grouped rounds in memory: n clients, one server, no network.

A `World` keeps what the server would store and makes each notice with the server's own code; a test
runs phases one by one and changes what it is about, or lets `run` do all with dropouts. Clients
sign with a keyed hash, since what RSA does is tested elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from boltz_protocol import codec, codec_sealed
from boltz_protocol import messages as m
from boltz_protocol.encoding import Encoding
from boltz_protocol.errors import InvalidPlan, MalformedMessage, RoundRefused
from boltz_protocol.masked_update import masked_update
from boltz_protocol.noise import DiscreteGaussian, discrete_gaussian
from boltz_protocol.packing import WIRE_MAX, add_packed24, decode_sum
from boltz_protocol.sealing import round_encoding
from boltz_protocol.secagg import server
from boltz_protocol.secagg.client import Floors, SecaggClient
from boltz_protocol.secagg.masks import MaskStream, apply_masks
from boltz_protocol.statement import (
    Statement,
    digest,
    sign_ed25519,
)
from boltz_protocol.update import EncodedDelta, chunk_count, chunk_slice
from tests.support.secagg_parts import (
    MESH,
    NotEnough,
    Phase,
    certificate,
    cheap_sign,
    cheap_verify,
    client_id,
    fingerprint,
    make_configuration,
    make_roster,
    session_id,
    stream_of,
)

Int32Array = npt.NDArray[np.int32]
__all__ = [
    "MESH",
    "NotEnough",
    "Phase",
    "World",
    "certificate",
    "cheap_sign",
    "cheap_verify",
    "client_id",
    "fingerprint",
    "make_configuration",
    "make_roster",
    "session_id",
    "stream_of",
]


@dataclass
class World:
    """One attempt. Fill `values` for the vectors; `configurations` for what single clients see."""

    roster: list[bytes]
    configuration: m.RoundConfiguration
    floors: Mapping[int, Floors] = field(default_factory=dict)
    #: Index -> the configuration that this client is shown instead, with its digest.
    configurations: Mapping[int, tuple[m.RoundConfiguration, bytes]] = field(default_factory=dict)
    seed: int = 0
    mesh_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    def __post_init__(self) -> None:
        self.configuration_sha256 = self.sha256_of(self.configuration)
        self.entries = [codec.parse_roster_entry(raw) for raw in self.roster]
        self.size = len(self.roster)
        generator = np.random.default_rng(self.seed)
        most = max(1, self.encoding.bound_l2 // (1 + self.configuration.coordinates))
        self.values: list[Int32Array] = [
            generator.integers(-most, most + 1, self.configuration.coordinates, dtype=np.int32)
            for _ in range(self.size)
        ]
        self.clients = [self.new_client(index) for index in range(self.size)]
        self.advertisements: dict[int, Statement] = {}
        self.nonces: dict[int, bytes] = {}
        self.dealt: dict[int, tuple[m.DealtShares, tuple[bytes, ...]]] = {}
        self.uploads: dict[int, list[bytes]] = {}
        self.seen: dict[int, Statement] = {}
        self.released: dict[int, m.SharesReleased] = {}

    @classmethod
    def of(
        cls,
        size: int,
        *,
        coordinates: int = 5,
        min_survivors: int = 2,
        floors: Mapping[int, Floors] | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> World:
        roster = make_roster(1 + index % 7 for index in range(size))
        configuration = make_configuration(
            roster, coordinates=coordinates, min_survivors=min_survivors, **settings
        )
        return cls(roster, configuration, floors or {}, seed=seed)

    # --- what the mesh signs --------------------------------------------------------------------

    def sign(self, type: str, payload: bytes) -> Statement:
        return sign_ed25519(type=type, payload=payload, private_key=self.mesh_key)

    def sha256_of(self, configuration: m.RoundConfiguration) -> bytes:
        return digest(
            self.sign(m.ROUND_CONFIGURATION, codec.encode_round_configuration(configuration))
        )

    @property
    def encoding(self) -> Encoding:
        return round_encoding(self.configuration)

    def new_client(
        self, index: int, randomness: Callable[[int], bytes] | None = None
    ) -> SecaggClient:
        configuration, sha256 = self.configurations.get(
            index, (self.configuration, self.configuration_sha256)
        )
        entry = self.entries[index]
        return SecaggClient(
            configuration=configuration,
            configuration_sha256=sha256,
            entry=entry,
            sign=lambda type, payload: cheap_sign(entry.client_id, type, payload),
            floors=self.floors.get(index, Floors()),
            randomness=randomness or stream_of(1000 * self.seed + index),
        )

    # --- phases ---------------------------------------------------------------------------------

    def advertise(self, who: Collection[int]) -> None:
        for index in who:
            statement = self.clients[index].advertise()
            self.take_advertisement(index, statement)

    def take_advertisement(self, index: int, statement: Statement) -> None:
        cheap_verify(self.entries[index], statement)
        server.check_advertisement(
            codec_sealed.parse_key_advertisement(statement.payload),
            configuration=self.configuration,
            configuration_sha256=self.configuration_sha256,
            entry=self.entries[index],
        )
        self.advertisements[index] = statement

    def fix_roster(self) -> m.KeyRosterNotice:
        self.key_roster = server.key_roster(
            configuration=self.configuration,
            configuration_sha256=self.configuration_sha256,
            advertisements=self.advertisements,
        )
        self.key_roster_statement = self.sign(
            m.KEY_ROSTER, codec_sealed.encode_key_roster(self.key_roster)
        )
        return server.key_roster_notice(self.key_roster_statement, self.roster)

    def show_roster(self, who: Collection[int], notice: m.KeyRosterNotice) -> None:
        for index in who:
            self.show_roster_to(index, notice)

    def show_roster_to(self, index: int, notice: m.KeyRosterNotice) -> None:
        payload = codec_sealed.parse_key_roster(notice.key_roster.payload)
        reveal = self.clients[index].take_key_roster(notice, payload, digest(notice.key_roster))
        if reveal is not None:
            server.check_reveal(
                reveal,
                configuration=self.configuration,
                key_roster=self.key_roster,
                index=index,
            )
            self.nonces[index] = reveal.nonce

    def fix_graph(self) -> server.Attempt:
        self.attempt = server.Attempt.build(
            configuration=self.configuration,
            configuration_sha256=self.configuration_sha256,
            roster=self.roster,
            advertisements={i: s.payload for i, s in self.advertisements.items()},
            key_roster=self.key_roster_statement,
            nonces=self.nonces,
        )
        return self.attempt

    def peers_of(self, index: int) -> m.PeersNotice:
        return server.peers_notice(self.attempt, index, self.advertisements)

    def deal(self, who: Collection[int]) -> None:
        for index in who:
            self.take_dealt(
                index, self.clients[index].take_peers(self.peers_of(index), cheap_verify)
            )

    def take_dealt(self, index: int, shares: m.SharesDealt) -> None:
        cheap_verify(self.entries[index], shares.dealt)
        payload = codec_sealed.parse_dealt_shares(shares.dealt.payload)
        server.check_dealt(self.attempt, index, payload, shares.sealed_shares)
        self.dealt[index] = (payload, shares.sealed_shares)

    def shares_for(self, index: int) -> m.SharesNotice:
        return server.shares_notice(self.attempt, index, self.dealt)

    def share(self, who: Iterable[int]) -> None:
        for index in who:
            self.clients[index].take_shares(self.shares_for(index))

    def upload(self, who: Collection[int], noise: DiscreteGaussian | None = None) -> None:
        for index in who:
            self.uploads[index] = self.masked(index, self.clients[index].mask_streams(), noise)

    def masked(
        self, index: int, streams: Sequence[MaskStream], noise: DiscreteGaussian | None = None
    ) -> list[bytes]:
        encoded = EncodedDelta(values=self.values[index], lanes=0, encoding=self.encoding)
        return [bytes(chunk) for chunk in masked_update(encoded, streams, noise)]

    @property
    def survivors(self) -> frozenset[int]:
        return frozenset(self.uploads)

    @property
    def sharers(self) -> frozenset[int]:
        return frozenset(self.dealt)

    def survivors_payload(self) -> m.Survivors:
        return server.survivors_payload(self.attempt, self.survivors)

    def show_survivors(self, who: Collection[int]) -> None:
        payload = self.survivors_payload()
        for index in who:
            statement = self.clients[index].take_survivors(payload)
            cheap_verify(self.entries[index], statement)
            server.check_seen(
                self.attempt,
                index,
                codec_sealed.parse_survivors_seen(statement.payload),
                payload.survivors,
            )
            self.seen[index] = statement

    def signatures_for(self, index: int) -> m.SignaturesNotice:
        return server.signatures_notice(self.attempt, index, self.seen)

    def release(self, who: Collection[int]) -> None:
        for index in who:
            self.take_released(
                index,
                self.clients[index].take_signatures(self.signatures_for(index), cheap_verify),
            )

    def take_released(self, index: int, released: m.SharesReleased) -> frozenset[int]:
        covered = server.check_released(
            self.attempt, index, released, self.signed_deals, self.survivors, self.sharers
        )
        self.released[index] = released
        return covered

    @property
    def signed_deals(self) -> dict[int, m.DealtShares]:
        return {index: payload for index, (payload, _) in self.dealt.items()}

    def is_enough(self) -> bool:
        covered = {
            holder: frozenset(share.dealer for share in released.shares)
            for holder, released in self.released.items()
        }
        return server.enough(self.attempt, self.sharers, covered, self.survivors)

    def streams_to_remove(self) -> dict[int, tuple[MaskStream, ...]]:
        recovered = server.recover(
            self.attempt, self.signed_deals, self.released, self.survivors, self.sharers
        )
        return server.mask_streams_to_remove(self.attempt, recovered, self.survivors, self.sharers)

    # --- sums -----------------------------------------------------------------------------------

    def masked_sum(self, group: int = 0) -> npt.NDArray[np.uint32]:
        total = np.zeros(self.configuration.coordinates, np.uint32)
        for client in self.attempt.by_group(self.survivors)[group]:
            for index, chunk in enumerate(self.uploads[client]):
                add_packed24(total[chunk_slice(index, total.size)], chunk)
        return total

    def unmasked_sums(
        self, streams: Mapping[int, Sequence[MaskStream]] | None = None
    ) -> dict[int, Int32Array]:
        """Of each group that has survivors, opened by itself."""
        sums = {}
        for group, of_group in (self.streams_to_remove() if streams is None else streams).items():
            total = self.masked_sum(group)
            for index in range(chunk_count(total.size)):
                apply_masks(total[chunk_slice(index, total.size)], index, of_group)
            sums[group] = decode_sum(total, WIRE_MAX)
        return sums

    def unmasked_sum(self, streams: Mapping[int, Sequence[MaskStream]] | None = None) -> Int32Array:
        """Over all groups."""
        return self._added(self.unmasked_sums(streams).values())

    def plain_sums(self) -> dict[int, Int32Array]:
        groups = self.attempt.by_group(self.survivors)
        return {
            group: self._added(self.values[index] for index in of_group)
            for group, of_group in groups.items()
        }

    def plain_sum(self) -> Int32Array:
        return self._added(self.plain_sums().values())

    def _added(self, values: Iterable[Int32Array]) -> Int32Array:
        total = np.zeros(self.configuration.coordinates, np.int32)
        for each in values:
            total += each
        return total

    # --- all of it ------------------------------------------------------------------------------

    def run(
        self, left_after: Mapping[int, Phase] | None = None, noise: Fraction = Fraction(0)
    ) -> Int32Array:
        """One attempt to its end, as the coordinator would run it.

        Args:
            left_after: the last phase that a client takes part in; others stay to the end.
            noise: variance of each client's share.

        Raises: NotEnough where the server has to give up.
        """
        left = left_after or {}

        def there(phase: Phase, among: Iterable[int]) -> list[int]:
            return [index for index in among if left.get(index, Phase.RELEASED) >= phase]

        everybody = range(self.size)
        self.advertise(there(Phase.ADVERTISED, everybody))
        self._need(len(self.advertisements), max(3, self.configuration.min_survivors))
        notice = self.fix_roster()
        self.show_roster(there(Phase.REVEALED, self.advertisements), notice)
        inside = self.nonces or self.advertisements
        self._need(len(inside), self.configuration.min_survivors)
        try:
            attempt = self.fix_graph()
        except (InvalidPlan, MalformedMessage) as error:
            raise NotEnough(error.message) from error
        self.deal(there(Phase.DEALT, sorted(inside)))
        able = self._able()
        if attempt.configuration.grouping is None:
            self._need(len(able), len(self.sharers))
        self.share(able)
        sampler = discrete_gaussian(noise) if noise else None
        self.upload(there(Phase.UPLOADED, able), sampler)
        self.leave_out_small_groups()
        self._need(len(self.survivors), self.configuration.min_survivors)
        self._check_graph()
        summed = attempt.by_group(self.survivors)
        self.show_survivors(there(Phase.SIGNED, (i for i in able if attempt.group_of(i) in summed)))
        for index in self.seen:
            signers = self.seen.keys() & set(attempt.holders_of(index))
            self._need(len(signers), attempt.graph_of(index).threshold)
        self.release(there(Phase.RELEASED, self.seen))
        if not self.is_enough():
            raise NotEnough("too few shares were released")
        return self.unmasked_sum()

    def _able(self) -> list[int]:
        """Sharers whose secrets can be given back: the others' clients refuse to mask."""
        return [
            index
            for index in sorted(self.sharers)
            if len(self.sharers.intersection(self.attempt.holders_of(index)))
            >= self.attempt.graph_of(index).threshold
        ]

    def leave_out_small_groups(self) -> None:
        """Of a grouped round, those of too few survivors are not counted."""
        grouping = self.configuration.grouping
        if grouping is None:
            return
        for group, of_group in self.attempt.by_group(self.survivors).items():
            threshold = self.attempt.agreement.graphs[group].threshold
            if len(of_group) < max(threshold, grouping.min_group_survivors):
                for index in of_group:
                    del self.uploads[index]

    def _need(self, found: int, wanted: int) -> None:
        if found < wanted:
            raise NotEnough(f"{found} of {wanted}")

    def _check_graph(self) -> None:
        try:
            self.attempt.check_survivors(self.survivors)
        except RoundRefused as error:
            raise NotEnough(error.message) from error

    @classmethod
    def grouped(
        cls,
        size: int,
        groups: int,
        *,
        min_group_survivors: int = 3,
        min_survivors: int = 3,
        **settings: Any,
    ) -> World:
        """A world of a grouped round."""
        grouping = m.Grouping(groups, min_group_survivors)
        return cls.of(size, min_survivors=min_survivors, grouping=grouping, **settings)

    def until_dealt(self) -> World:
        """Everybody is there, and has dealt."""
        everybody = range(self.size)
        self.advertise(everybody)
        self.show_roster(everybody, self.fix_roster())
        self.fix_graph()
        self.deal(everybody)
        return self

    def until_uploaded(self, gone: Collection[int] = ()) -> World:
        """All but `gone` have uploaded."""
        self.until_dealt()
        self.share(range(self.size))
        self.upload([index for index in range(self.size) if index not in gone])
        return self

    def until_seen(self, gone: Collection[int] = ()) -> World:
        """And everybody has signed the survivors."""
        self.until_uploaded(gone)
        self.show_survivors(range(self.size))
        return self
