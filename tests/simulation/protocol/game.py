"""A game against a hostile server, which colludes with corrupt clients and tells lies.

No clock and no network: the server decides what comes when. Honest clients are real; the server
makes its notices with the real code and changes what its lies are about. In the end everything that
it saw, and everything that corrupt clients hold, goes to `eye.Adversary`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import partial
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from boltz_client.owner import OwnerLimits
from boltz_protocol import codec, codec_sealed
from boltz_protocol import messages as m
from boltz_protocol.errors import MeshError, RoundRefused
from boltz_protocol.secagg import server
from boltz_protocol.secagg.attempt import Attempt
from boltz_protocol.secagg.bitmap import bitmap
from boltz_protocol.secagg.client import Floors, SecaggClient
from boltz_protocol.secagg.keys import KeyPair
from boltz_protocol.statement import Statement, digest, sign_ed25519
from tests.simulation.protocol.client import values_of
from tests.simulation.protocol.eye import Eye
from tests.simulation.protocol.game_verdict import judge
from tests.simulation.protocol.lies import Kind, Lie, random_lies, with_other_nonce
from tests.simulation.protocol.part import Answer, Notice, Part
from tests.simulation.protocol.settings import Misdeed, Setting
from tests.simulation.protocol.wire import Seen
from tests.support import secagg as support


class Game:
    """One attempt. `client_class` may be a mutant."""

    def __init__(
        self,
        seed: int,
        setting: Setting,
        lies: Iterable[Lie],
        client_class: type[SecaggClient] = SecaggClient,
    ) -> None:
        self.random = Random(seed)
        self.setting = setting
        self.lies = {lie.kind: lie for lie in lies}
        self.size = setting.clients
        self.corrupt = frozenset(setting.misdeeds)
        self.honest = tuple(i for i in range(self.size) if i not in self.corrupt)
        self.eye = Eye()
        self.log: list[str] = [f"{setting}", *(f"lie: {lie}" for lie in self.lies.values())]
        self.uploads: dict[int, bytes] = {}
        #: Bitmap -> position -> signature.
        self.seen: dict[bytes, dict[int, Statement]] = {}
        self.learnt: list[frozenset[int]] = []
        self._client_class = client_class
        self._key = Ed25519PrivateKey.from_private_bytes(self.random.randbytes(32))
        self._roster = support.make_roster(1 + index % 7 for index in range(self.size))
        self._configuration = support.make_configuration(
            self._roster,
            coordinates=setting.coordinates,
            min_survivors=setting.min_clients,
            corrupt_fraction=setting.corrupt_fraction,
            dropout_fraction=setting.dropout_fraction,
        )
        self.parts: dict[int, Part] = {}
        self.owner = OwnerLimits(largest_attempt=1)

    @classmethod
    def of(cls, seed: int, client_class: type[SecaggClient] = SecaggClient) -> Game:
        """The game of a seed."""
        random = Random(seed)
        clients = random.choice((6, 7, 8))
        setting = Setting(
            clients=clients,
            min_clients=random.choice((3, 4, 5)),
            sparse=random.random() < 0.4,
            floors={index: random.randint(1, 5) for index in range(clients)},
            misdeeds={random.randrange(clients): Misdeed.COLLUDES},
        )
        return cls(seed, setting, random_lies(random), client_class)

    # --- telling --------------------------------------------------------------------------------

    def play(self) -> None:
        """All of it, and the verdict."""
        with self.setting.in_force():
            self._offer()
            self._show_key_rosters()
            self._show_peers()
            self._show_shares()
            self._collect()
            self._show_survivors()
            self._show_signatures()
            self._ask_again()
            judge(self)

    def victim(self, kind: Kind) -> int | None:
        lie = self.lies.get(kind)
        return None if lie is None else self.honest[lie.victim % len(self.honest)]

    def _told(self, kind: Kind, index: int) -> Lie | None:
        """The lie, where it is told to this client."""
        return self.lies.get(kind) if self.victim(kind) == index else None

    def _sign(self, type: str, payload: bytes) -> Statement:
        return sign_ed25519(type=type, payload=payload, private_key=self._key)

    def _ask(self, index: int, notice: Notice) -> Answer:
        part = self.parts[index]
        try:
            answer = part.take(notice)
        except MeshError as error:
            self.log.append(f"{index} refuses {type(notice).__name__}: {error.message}")
            return None
        self.log.append(f"{index} takes {type(notice).__name__}")
        self._shown.append((index, notice, answer))
        return answer

    # --- configuration and keys -----------------------------------------------------------------

    def _offer(self) -> None:
        self._shown: list[tuple[int, Notice, Answer]] = []
        self._statements: dict[int, Statement] = {}
        self.advertisements: dict[int, Statement] = {}
        for index in range(self.size):
            configuration = self._configuration_for(index)
            statement = self._sign(
                m.ROUND_CONFIGURATION, codec.encode_round_configuration(configuration)
            )
            self._statements[index] = statement
            entry = codec.parse_roster_entry(self._roster[index])
            self.owner.check(configuration, entry.weight)
            secagg = self._client_class(
                configuration=configuration,
                configuration_sha256=digest(statement),
                entry=entry,
                sign=partial(support.cheap_sign, entry.client_id),
                floors=Floors(least_survivors=self.setting.floors.get(index, 1)),
                randomness=support.stream_of(self.random.getrandbits(30)),
            )
            eye = self.eye if index in self.honest else None
            self.parts[index] = Part(secagg, self._key.public_key(), eye)
            self.advertisements[index] = self.parts[index].advertise()

    def _configuration_for(self, index: int) -> m.RoundConfiguration:
        base = self._configuration
        if self._told(Kind.OTHER_MODEL, index):
            return replace(base, model_sha256=bytes(32))
        if lie := self._told(Kind.OTHER_CONFIGURATION, index):
            asked = m.SecureAggregation(0.0, 0.0, m.Adversary.SEMI_HONEST)
            others = (
                replace(base, deadline_ms=base.deadline_ms + 1),
                replace(base, hyperparameters={"rate": 0.2}),
                replace(base, min_survivors=2),
                replace(base, secure_aggregation=asked),
            )
            return others[lie.amount % len(others)]
        return base

    def _show_key_rosters(self) -> None:
        self._nonces: dict[int, bytes] = {}
        self._rosters: dict[int, tuple[Statement, dict[int, Statement]]] = {}
        for index in range(self.size):
            adverts = self._adverts_for(index)
            configuration = self.parts[index].member.configuration
            signed = server.key_roster(
                configuration=configuration,
                configuration_sha256=digest(self._statements[index]),
                advertisements=adverts,
            )
            statement = self._sign(m.KEY_ROSTER, codec_sealed.encode_key_roster(signed))
            self._rosters[index] = statement, adverts
            notice = server.key_roster_notice(statement, self._roster)
            if lie := self._told(Kind.OTHER_WEIGHTS, index):
                weights = list(notice.weights)
                weights[lie.amount % self.size] += 1
                notice = replace(notice, weights=tuple(weights))
            answer = self._ask(index, notice)
            if isinstance(answer, m.NonceReveal):
                self._nonces[index] = answer.nonce

    def _adverts_for(self, index: int) -> dict[int, Statement]:
        deceived = {self.victim(Kind.OTHER_MODEL), self.victim(Kind.OTHER_CONFIGURATION)}
        # Others would see at once that a client has signed for another configuration.
        adverts = {
            other: statement
            for other, statement in self.advertisements.items()
            if index in deceived or other not in deceived
        }
        if lie := self._told(Kind.FEWER_MEMBERS, index):
            others = [other for other in adverts if other != index]
            del adverts[others[lie.amount % len(others)]]
        elif self._told(Kind.OTHER_KEY_ROSTER, index):
            for corrupt in self.corrupt:
                adverts[corrupt] = self._other_advert(corrupt)
        return adverts

    def _other_advert(self, index: int) -> Statement:
        """A second advertisement, signed by a corrupt client; by an honest one it is forged."""
        said = codec_sealed.parse_key_advertisement(self.advertisements[index].payload)
        other = replace(said, mask_public_key=KeyPair(self.random.randbytes(32)).public)
        signer = said.client_id if index in self.corrupt else support.client_id(99)
        payload = codec_sealed.encode_key_advertisement(other)
        return support.cheap_sign(signer, m.KEY_ADVERTISEMENT, payload)

    # --- graph and shares -----------------------------------------------------------------------

    def _show_peers(self) -> None:
        self._attempts: dict[int, Attempt] = {}
        self._dealt: dict[int, tuple[m.DealtShares, tuple[bytes, ...]]] = {}
        for index in range(self.size):
            statement, adverts = self._rosters[index]
            nonces = {i: nonce for i, nonce in self._nonces.items() if i in adverts}
            if lie := self._told(Kind.OTHER_GRAPH, index):
                others = [other for other in nonces if other != index]
                if others:
                    del nonces[others[lie.amount % len(others)]]
            try:
                attempt = Attempt.build(
                    configuration=self.parts[index].member.configuration,
                    configuration_sha256=digest(self._statements[index]),
                    roster=self._roster,
                    advertisements={i: each.payload for i, each in adverts.items()},
                    key_roster=statement,
                    nonces=nonces,
                )
            except MeshError as error:
                self.log.append(f"no attempt for {index}: {error.message}")
                continue
            if lie := self._told(Kind.OTHER_NONCE, index):
                attempt = with_other_nonce(attempt, lie, index, self.random)
            self._attempts[index] = attempt
            if index not in attempt.agreement.graphs[0]:
                continue
            answer = self._ask(index, self._peers_for(index, attempt, adverts))
            if isinstance(answer, m.SharesDealt):
                dealt = codec_sealed.parse_dealt_shares(answer.dealt.payload)
                self._dealt[index] = dealt, answer.sealed_shares

    def _peers_for(
        self, index: int, attempt: Attempt, adverts: dict[int, Statement]
    ) -> m.PeersNotice:
        notice = server.peers_notice(attempt, index, adverts)
        peers = list(notice.peers)
        if self._told(Kind.MISSING_PEER, index):
            del peers[-1]
        if lie := self._told(Kind.OTHER_KEYS, index):
            place = lie.amount % len(peers)
            other = attempt.agreement.graphs[0].neighbours(index)[place]
            peers[place] = replace(peers[place], advertisement=self._other_advert(other))
        return replace(notice, peers=tuple(peers))

    def _show_shares(self) -> None:
        for index in self._attempts:
            if index in self._dealt:
                self._ask(index, self._shares_for(index))

    def _shares_for(self, index: int) -> m.SharesNotice:
        shares = []
        for dealer in self._attempts[index].dealers_of(index):
            if dealer == index or dealer not in self._dealt:
                continue
            dealt, sealed = self._dealt[dealer]
            if index in dealt.holders:
                place = dealt.holders.index(index)
                shares.append(m.DealtShare(dealer, sealed[place], *dealt.commitments[place]))
        for kind in (Kind.HIDDEN_SHARER, Kind.ALTERED_SHARE, Kind.SWAPPED_SHARES):
            lie = self._told(kind, index)
            if lie is None or not shares:
                continue
            place = lie.amount % len(shares)
            one, sealed_share = shares[place], bytearray(shares[place].sealed_share)
            if kind is Kind.HIDDEN_SHARER:
                del shares[place]
            elif kind is Kind.ALTERED_SHARE:
                sealed_share[lie.amount] ^= 1
                shares[place] = replace(one, sealed_share=bytes(sealed_share))
            else:
                swapped = shares[place - 1].sealed_share
                shares[place] = replace(one, sealed_share=swapped)
        base = self._configuration
        return m.SharesNotice(base.round_id, base.attempt, tuple(shares))

    # --- vectors and survivors ------------------------------------------------------------------

    def _collect(self) -> None:
        absent = self.victim(Kind.ABSENT)
        for index, part in self.parts.items():
            leaves = self.random.random() < 0.07
            if part.is_ready and index != absent and not leaves:
                self._upload(index, "first")
            if self._told(Kind.SHARES_TWICE, index) and index in self._dealt:
                again = self._shares_for(index)
                self._ask(index, replace(again, shares=again.shares[:-1]))
                self._upload(index, "second")

    def _upload(self, index: int, what: str) -> None:
        part = self.parts[index]
        part.uploading = True
        try:
            values = values_of(f"{what} of {index}", self.setting.coordinates)
            self.uploads[index] = part.mask(values)
        except MeshError as error:
            self.log.append(f"{index} masks nothing: {error.message}")

    def _show_survivors(self) -> None:
        everybody = frozenset(self.uploads)
        told = dict.fromkeys(self.parts, self._survivors_said(everybody))
        if lie := self.lies.get(Kind.SPLIT):
            other = self._without_one(everybody, lie)
            for index in self.random.sample(self.honest, len(self.honest) // 2):
                told[index] = other
        for index, survivors in told.items():
            self._ask_to_sign(index, survivors)
        lie = self.lies.get(Kind.TWICE)
        if lie is not None and lie.amount % 2:
            self._show_others(lie)

    def _show_others(self, lie: Lie) -> None:
        """A second set of survivors, to clients that have signed one."""
        for index in self.parts:
            self._ask_to_sign(index, self._without_one(frozenset(self.uploads), lie))

    def _survivors_said(self, uploaded: frozenset[int]) -> frozenset[int]:
        if lie := self.lies.get(Kind.FEW):
            count = max(1, max(self.setting.min_clients, 3) - 1 - lie.amount % 2)
            some = sorted(uploaded)
            self.random.shuffle(some)
            return frozenset(some[:count]) or uploaded
        victim = self.victim(Kind.CUT_OFF)
        if victim in self._attempts and victim in uploaded:
            assert victim is not None
            graph = self._attempts[victim].agreement.graphs[0]
            near = frozenset(graph.neighbours(victim))
            if self.lies[Kind.CUT_OFF].amount % 2:
                # All but its neighbours: none of its masks would be left.
                return uploaded - near
            nearest = sorted(near, key=lambda i: (i not in self.corrupt, i))
            return frozenset({victim, *nearest[: graph.threshold]}) & uploaded
        absent = self.victim(Kind.ABSENT)
        return uploaded if absent is None else uploaded | {absent}

    def _without_one(self, uploaded: frozenset[int], lie: Lie) -> frozenset[int]:
        some = sorted(uploaded)
        return uploaded - {some[lie.amount % len(some)]} if len(some) > 1 else uploaded

    def _ask_to_sign(self, index: int, survivors: Collection[int]) -> None:
        attempt = self._attempts.get(index)
        if attempt is None or not survivors:
            return
        payload = codec_sealed.encode_survivors(
            server.survivors_payload(attempt, frozenset(survivors))
        )
        answer = self._ask(index, m.SurvivorsNotice(self._sign(m.SURVIVORS, payload)))
        if isinstance(answer, Seen):
            said = codec_sealed.parse_survivors_seen(answer.statement.payload)
            self.seen.setdefault(said.survivors, {})[index] = answer.statement

    # --- signatures -----------------------------------------------------------------------------

    def _show_signatures(self) -> None:
        for index in self.parts:
            part, attempt = self.parts[index], self._attempts.get(index)
            if attempt is None or part.survivors is None or part.secagg is None:
                continue
            signatures = self._signatures_for(index, attempt, part.survivors)
            base = self._configuration
            self._ask(index, m.SignaturesNotice(base.round_id, base.attempt, tuple(signatures)))

    def _signatures_for(
        self, index: int, attempt: Attempt, survivors: frozenset[int]
    ) -> list[Statement]:
        """The best that the server has got, or what its lie is about."""
        wanted = bitmap(survivors, self.size)
        # Whoever was shown another key roster signed something else.
        signed = {
            other: statement
            for other, statement in self.seen.get(wanted, {}).items()
            if codec_sealed.parse_survivors_seen(statement.payload).key_roster_sha256
            == attempt.key_roster_sha256
        }
        found: list[Statement] = []
        for other in attempt.agreement.graphs[0].neighbours(index):
            if other in self.corrupt:
                found.append(self._seen_by(other, attempt, wanted, forged=False))
            elif other in signed:
                found.append(signed[other])
            elif Kind.FORGED in self.lies:
                found.append(self._seen_by(other, attempt, wanted, forged=True))
            elif Kind.MIXED in self.lies:
                elsewhere = [each[other] for each in self.seen.values() if other in each]
                found.extend(elsewhere[:1])
        if Kind.REPEATED in self.lies and found:
            found = [found[0]] * len(found)
        if Kind.TOO_FEW in self.lies:
            found = found[: max(0, attempt.agreement.graphs[0].threshold - 2)]
        return found

    def _seen_by(self, signer: int, attempt: Attempt, wanted: bytes, *, forged: bool) -> Statement:
        entry = attempt.entries[signer]
        payload = codec_sealed.encode_survivors_seen(
            m.SurvivorsSeen(
                round_id=self._configuration.round_id,
                attempt=self._configuration.attempt,
                client_id=entry.client_id,
                session_id=entry.session_id,
                key_roster_sha256=attempt.key_roster_sha256,
                survivors=wanted,
            )
        )
        name = support.client_id(99) if forged else entry.client_id
        return support.cheap_sign(name, m.SURVIVORS_SEEN, payload)

    def _ask_again(self) -> None:
        if Kind.AGAIN in self.lies:
            for index, notice, answer in list(self._shown):
                again = self._ask(index, notice)
                assert again is None or again == answer, "another answer to the same notice"
        lie = self.lies.get(Kind.TWICE)
        if lie is not None and not lie.amount % 2:
            # When all that the first set asks for is out.
            self._show_others(lie)
            self._show_signatures()
        if Kind.SECOND_ATTEMPT in self.lies:
            second = replace(self._configuration, attempt=2)
            try:
                self.owner.check(second, own_weight=1)
            except RoundRefused:
                return
            raise AssertionError("a second attempt where the owner allows one")
