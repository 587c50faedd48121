"""One attempt of a sealed round, both sides of it, on stop-watches; what `secagg` runs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from boltz_client.peer_checks import PeerChecks
from boltz_protocol import codec, codec_sealed, masked_update
from boltz_protocol import messages as m
from boltz_protocol.envelope import Opener, seal_update, unwrap_as_recipient
from boltz_protocol.noise import DiscreteGaussian
from boltz_protocol.packing import add_packed24, decode_sum
from boltz_protocol.sealing import update_context, update_layout
from boltz_protocol.secagg import server
from boltz_protocol.secagg.client import Floors, SecaggClient, VerifyPeer
from boltz_protocol.secagg.masks import MaskStream, UInt32Array, apply_masks
from boltz_protocol.statement import CLIENT_ALGORITHMS, Statement, digest, sign_rsa_pss, verify
from boltz_protocol.update import LocalDelta, chunk_count, chunk_slice, clip, encode, weigh
from tools.bench.secagg_world import MESH, NOW_MS, Int32Array, Peer, TimedNoise, Watch, World


def _verified(statement: Statement, key: RSAPublicKey) -> bytes:
    return verify(
        statement,
        expected_type=statement.type,
        public_key=key,
        allowed_algorithms=CLIENT_ALGORITHMS,
    )


def _delta(params: int, index: int) -> npt.NDArray[np.float32]:
    """About twice as long as the clip norm."""
    generator = np.random.Generator(np.random.PCG64(index))
    delta = generator.standard_normal(params, dtype=np.float32)
    delta *= np.float32(2 / np.sqrt(params))
    return delta


def _timed_masks(watch: Watch) -> Callable[[UInt32Array, int, Sequence[MaskStream]], None]:
    """Counts the masks within a masked update apart from its noise and packing."""

    def timed(values: UInt32Array, chunk: int, streams: Sequence[MaskStream]) -> None:
        with watch.step("masks"):
            apply_masks(values, chunk, streams)

    return timed


@dataclass(frozen=True)
class Received:
    """What the server has of one update: ciphertext as it arrived, and what opens it."""

    cipher: bytes
    opener: Opener


class Attempt:
    """One attempt: every step of both sides, in the order of the protocol."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.server = Watch(time.process_time)
        self.plain_sum = np.zeros(world.params, np.int64)
        self.peers = [
            Peer(entry, key, PeerChecks(MESH, world.root, lambda: NOW_MS))
            for entry, key in zip(world.entries, world.keys, strict=True)
        ]
        self.machines = [self._machine(peer) for peer in self.peers]

    def _machine(self, peer: Peer) -> SecaggClient:
        def sign(type: str, payload: bytes) -> Statement:
            with peer.watch.step("RSA signatures"):
                return sign_rsa_pss(type=type, payload=payload, private_key=peer.key)

        return SecaggClient(
            configuration=self.world.configuration,
            configuration_sha256=self.world.configuration_sha256,
            entry=peer.entry,
            sign=sign,
            floors=Floors(),
        )

    def _timed(self, peer: Peer, check: VerifyPeer) -> VerifyPeer:
        """What the client library checks of a neighbour, on the client's watch."""

        def timed(entry: m.RosterEntry, statement: Statement) -> bytes:
            with peer.watch.step("peers' certificates and signatures"):
                return check(entry, statement)

        return timed

    def run(self) -> tuple[Int32Array, server.Attempt]:
        """All of it; returns the noised sum."""
        everybody = range(len(self.peers))
        staying = [index for index in everybody if index >= self.world.dropouts]
        attempt, statements = self._agree()
        dealt = self._share(attempt, statements)
        uploads = {index: self._upload(index) for index in staying}
        received = self._receive(uploads)
        survivors, sharers = frozenset(received), frozenset(dealt)
        released = self._release(attempt, dealt, survivors)
        with self.server.step("Shamir"):
            recovered = server.recover(attempt, dealt, released, survivors, sharers)
        with self.server.step("mask keys"):
            streams = server.mask_streams_to_remove(attempt, recovered, survivors, sharers)[0]
        return self._fold(received, streams), attempt

    def _agree(self) -> tuple[server.Attempt, dict[int, Statement]]:
        world = self.world
        statements: dict[int, Statement] = {}
        for peer in self.peers:
            index = peer.entry.index
            with peer.watch.step("keys"):
                statement = self.machines[index].advertise()
            peer.bytes_up += len(codec.encode_statement(statement))
            with self.server.step("advertisements"):
                payload = _verified(statement, peer.key.public_key())
                server.check_advertisement(
                    codec_sealed.parse_key_advertisement(payload),
                    configuration=world.configuration,
                    configuration_sha256=world.configuration_sha256,
                    entry=peer.entry,
                )
            statements[index] = statement
        with self.server.step("key roster and graph"):
            roster = server.key_roster(
                configuration=world.configuration,
                configuration_sha256=world.configuration_sha256,
                advertisements=statements,
            )
            signed = world.sign(m.KEY_ROSTER, codec_sealed.encode_key_roster(roster))
            notice = server.key_roster_notice(signed, world.roster)
        nonces: dict[int, bytes] = {}
        for peer in self.peers:
            index = peer.entry.index
            with peer.watch.step("roster and graph"):
                reveal = self.machines[index].take_key_roster(notice, roster, digest(signed))
            if reveal is not None:
                peer.bytes_up += codec_sealed.nonce_reveal_to_proto(reveal).ByteSize()
                nonces[index] = reveal.nonce
        with self.server.step("key roster and graph"):
            attempt = server.Attempt.build(
                configuration=world.configuration,
                configuration_sha256=world.configuration_sha256,
                roster=world.roster,
                advertisements={index: s.payload for index, s in statements.items()},
                key_roster=signed,
                nonces=nonces,
            )
        return attempt, statements

    def _share(
        self, attempt: server.Attempt, statements: dict[int, Statement]
    ) -> dict[int, m.DealtShares]:
        world = self.world
        dealt: dict[int, tuple[m.DealtShares, Sequence[bytes]]] = {}
        for peer in self.peers:
            index = peer.entry.index
            with self.server.step("shares"):
                notice = server.peers_notice(attempt, index, statements)
            with peer.watch.step("shares and mask keys"):
                shares = self.machines[index].take_peers(
                    notice, self._timed(peer, peer.checks.advertisements(world.configuration))
                )
            peer.bytes_up += codec_sealed.shares_dealt_to_proto(shares).ByteSize()
            with self.server.step("shares"):
                payload = codec_sealed.parse_dealt_shares(
                    _verified(shares.dealt, peer.key.public_key())
                )
                server.check_dealt(attempt, index, payload, shares.sealed_shares)
            dealt[index] = (payload, shares.sealed_shares)
        for peer in self.peers:
            index = peer.entry.index
            with self.server.step("shares"):
                given = server.shares_notice(attempt, index, dealt)
            with peer.watch.step("shares and mask keys"):
                self.machines[index].take_shares(given)
        return {index: payload for index, (payload, _) in dealt.items()}

    # --- bulk -----------------------------------------------------------------------------------

    def _upload(self, index: int) -> tuple[Statement, bytes]:
        """From a delta to signed ciphertext, as `boltz_client.seal` does."""
        world, peer = self.world, self.peers[index]
        delta = _delta(world.params, index)
        watch, configuration = peer.watch, world.configuration
        with watch.step("clip, weigh, round"):
            clipped = clip(LocalDelta(delta), clip_norm_l2=configuration.clip_norm)
            weighted = weigh(clipped, weight=peer.entry.weight, max_weight=configuration.max_weight)
            encoded = encode(weighted, world.encoding, out=world.integers)
        self.plain_sum += encoded.values
        with watch.step("key wrap"):
            context = update_context(
                configuration,
                world.configuration_sha256,
                client_id=peer.entry.client_id,
                session_id=peer.entry.session_id,
                recipient_key_id=world.encryption_key_id,
            )
            layout = update_layout(configuration)
            sealer, wrapped = seal_update(context, world.server_key.public_key(), layout)
        update = masked_update.masked_update(
            encoded,
            self.machines[index].mask_streams(),
            cast(DiscreteGaussian, TimedNoise(world.sampler, watch)),
            noise_stream=peer.noise_stream,
        )
        spooled = memoryview(bytearray(layout.cipher_size_bytes))
        sha256 = hashlib.sha256()
        with patch.object(masked_update, "apply_masks", _timed_masks(watch)):
            for chunk in range(layout.count):
                with watch.step("pack"):
                    plain = update.chunk(chunk)
                place = layout.cipher_offset(chunk)
                part = spooled[place : place + layout.cipher_bytes(chunk)]
                with watch.step("encrypt"):
                    sealer.seal_into(chunk, plain, part)
                with watch.step("hash"):
                    sha256.update(part)
        manifest = m.UpdateManifest(
            round_id=configuration.round_id,
            attempt=configuration.attempt,
            client_id=peer.entry.client_id,
            session_id=peer.entry.session_id,
            configuration_sha256=world.configuration_sha256,
            encryption_key_id=world.encryption_key_id,
            wrapped_content_key=wrapped,
            key_commitment=sealer.commitment,
            sha256=sha256.digest(),
            size_bytes=layout.cipher_size_bytes,
            weight=peer.entry.weight,
            at_ms=NOW_MS,
        )
        with watch.step("RSA signatures"):
            statement = sign_rsa_pss(
                type=m.UPDATE_MANIFEST,
                payload=codec.encode_update_manifest(manifest),
                private_key=peer.key,
            )
        peer.bytes_up += len(codec.encode_statement(statement)) + len(spooled)
        return statement, bytes(spooled)

    def _receive(self, uploads: dict[int, tuple[Statement, bytes]]) -> dict[int, Received]:
        """Verify, hash, unwrap, sign a receipt: an upload a thread."""
        world = self.world

        def one(index: int) -> Received:
            statement, cipher = uploads[index]
            peer = self.peers[index]
            manifest = codec.parse_update_manifest(_verified(statement, peer.key.public_key()))
            sha256 = hashlib.sha256(cipher).digest()
            assert sha256 == manifest.sha256
            context = update_context(
                world.configuration,
                world.configuration_sha256,
                client_id=manifest.client_id,
                session_id=manifest.session_id,
                recipient_key_id=manifest.encryption_key_id,
            )
            key = unwrap_as_recipient(manifest.wrapped_content_key, world.server_key)
            layout = update_layout(world.configuration)
            receipt = m.UpdateReceipt(
                MESH, manifest.round_id, manifest.attempt, manifest.client_id, sha256, NOW_MS
            )
            world.sign(m.UPDATE_RECEIPT, codec.encode_update_receipt(receipt))
            return Received(cipher, Opener(key, context, layout, manifest.key_commitment))

        with self.server.step("receive updates"):
            return dict(zip(uploads, world.executor.map(one, uploads), strict=True))

    def _release(
        self,
        attempt: server.Attempt,
        dealt: dict[int, m.DealtShares],
        survivors: frozenset[int],
    ) -> dict[int, m.SharesReleased]:
        seen: dict[int, Statement] = {}
        with self.server.step("survivors and releases"):
            attempt.check_survivors(survivors)
            payload = server.survivors_payload(attempt, survivors)
            self.world.sign(m.SURVIVORS, codec_sealed.encode_survivors(payload))
        for index in sorted(survivors):
            peer = self.peers[index]
            with peer.watch.step("survivors"):
                statement = self.machines[index].take_survivors(payload)
            peer.bytes_up += len(codec.encode_statement(statement))
            with self.server.step("survivors and releases"):
                signed = _verified(statement, peer.key.public_key())
                parsed = codec_sealed.parse_survivors_seen(signed)
                server.check_seen(attempt, index, parsed, payload.survivors)
            seen[index] = statement
        released: dict[int, m.SharesReleased] = {}
        covered: dict[int, frozenset[int]] = {}
        for index in sorted(survivors):
            peer = self.peers[index]
            with self.server.step("survivors and releases"):
                notice = server.signatures_notice(attempt, index, seen)
            with peer.watch.step("survivors"):
                shares = self.machines[index].take_signatures(
                    notice, self._timed(peer, peer.checks.survivors_seen)
                )
            peer.bytes_up += codec_sealed.shares_released_to_proto(shares).ByteSize()
            with self.server.step("survivors and releases"):
                covered[index] = server.check_released(
                    attempt, index, shares, dealt, survivors, dealt.keys()
                )
            released[index] = shares
        with self.server.step("survivors and releases"):
            assert server.enough(attempt, dealt.keys(), covered, survivors)
        return released

    def _fold(self, received: dict[int, Received], streams: Sequence[MaskStream]) -> Int32Array:
        """As the coordinator: a chunk of all updates at a time, chunks on several threads."""
        world = self.world
        total = np.empty(world.params, np.int32)
        limit = world.encoding.sum_limit(len(received), noised=True)

        def one(chunk: int) -> None:
            part = chunk_slice(chunk, world.params)
            accumulator = np.zeros(part.stop - part.start, np.uint32)
            layout = update_layout(world.configuration)
            plain = memoryview(bytearray(layout.plain_bytes(chunk)))
            place = layout.cipher_offset(chunk)
            for update in received.values():
                cipher = memoryview(update.cipher)[place : place + layout.cipher_bytes(chunk)]
                update.opener.open_into(chunk, cipher, plain)
                add_packed24(accumulator, plain)
            apply_masks(accumulator, chunk, streams)
            total[part] = decode_sum(accumulator, limit)

        with self.server.step("open, add, unmask"):
            for _ in world.executor.map(one, range(chunk_count(world.params))):
                pass
        return total
