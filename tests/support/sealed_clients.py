"""A raw client that takes part in sealed rounds step by step, on the generated stubs.

The protocol's client half is the real one; the stream, the order of things and every message are
the test's. Statements of the mesh are believed: what a client verifies is tested with the client.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from boltz_protocol import codec, codec_sealed
from boltz_protocol import messages as m
from boltz_protocol.certificates import load_certificate
from boltz_protocol.masked_update import masked_update
from boltz_protocol.noise import DiscreteGaussian, discrete_gaussian
from boltz_protocol.sealing import round_encoding, round_share_variance
from boltz_protocol.secagg.client import Floors, SecaggClient
from boltz_protocol.statement import CLIENT_ALGORITHMS, Statement, digest, verify
from boltz_protocol.v1 import aggregator_pb2 as agg
from tests.support.attacks.wire import Falsified
from tests.support.clients import ControlStream, Offer, RawClient, Sealed, seal
from tests.support.models import Vector

T = TypeVar("T")


def believed(entry: m.RosterEntry, statement: Statement) -> bytes:
    """A peer's payload, its signature checked under the certificate in its roster entry."""
    key = load_certificate(entry.certificate_chain_der[0]).public_key()
    return verify(
        statement,
        expected_type=statement.type,
        public_key=key,  # type: ignore[arg-type]
        allowed_algorithms=CLIENT_ALGORITHMS,
    )


@dataclass(slots=True)
class SealedClient:
    """One client in one sealed round.

    Every `step` waits for what the mesh pushes and returns the answer; `say` sends it.
    """

    client: RawClient
    stream: ControlStream
    offer: Offer
    secagg: SecaggClient = field(repr=False)

    @classmethod
    async def join(cls, client: RawClient, stream: ControlStream) -> SealedClient:
        """Wait for the offer."""
        offer = await stream.offer()
        return cls(client, stream, offer, cls.session(client, offer))

    @staticmethod
    def session(client: RawClient, offer: Offer) -> SecaggClient:
        """Fresh secrets for an offer."""
        return SecaggClient(
            configuration=offer.configuration,
            configuration_sha256=offer.digest,
            entry=offer.entry,
            sign=client.sign,
            floors=Floors(),
        )

    async def say(self, message: agg.ParticipateRequest) -> None:
        await self.stream.call.write(message)

    async def told(self, kind: str) -> agg.ParticipateResponse:
        response = await self.stream.next()
        assert response.WhichOneof("message") == kind, response
        return response

    def advertisement(self) -> agg.ParticipateRequest:
        statement = codec.statement_to_proto(self.secagg.advertise())
        return agg.ParticipateRequest(key_advertisement=statement)

    async def key_roster(self) -> agg.ParticipateRequest | None:
        """Take the key roster; what to reveal, where the graph is to be drawn."""
        response = await self.told("key_roster")
        notice = codec_sealed.key_roster_notice_from_proto(response.key_roster)
        payload = codec_sealed.parse_key_roster(notice.key_roster.payload)
        reveal = self.secagg.take_key_roster(notice, payload, digest(notice.key_roster))
        if reveal is None:
            return None
        return agg.ParticipateRequest(nonce_reveal=codec_sealed.nonce_reveal_to_proto(reveal))

    async def peers(self) -> agg.ParticipateRequest:
        """Take the peers; the shares for them."""
        notice = codec_sealed.peers_notice_from_proto((await self.told("peers")).peers)
        dealt = self.secagg.take_peers(notice, believed)
        return agg.ParticipateRequest(shares_dealt=codec_sealed.shares_dealt_to_proto(dealt))

    async def shares(self) -> None:
        """Take what was dealt; from here on the masks are known."""
        notice = codec_sealed.shares_notice_from_proto((await self.told("shares")).shares)
        self.secagg.take_shares(notice)

    async def survivors(self) -> agg.ParticipateRequest:
        """Take the survivors; the signature over them."""
        response = await self.told("survivors")
        notice = codec_sealed.survivors_notice_from_proto(response.survivors)
        payload = codec_sealed.parse_survivors(notice.survivors.payload)
        statement = codec.statement_to_proto(self.secagg.take_survivors(payload))
        return agg.ParticipateRequest(survivors_seen=statement)

    async def signatures(self) -> agg.ParticipateRequest:
        """Take the others' signatures; the shares to release."""
        response = await self.told("signatures")
        notice = codec_sealed.signatures_notice_from_proto(response.signatures)
        released = self.secagg.take_signatures(notice, believed)
        return agg.ParticipateRequest(
            shares_released=codec_sealed.shares_released_to_proto(released)
        )

    def masked(self, delta: Vector, integers: Falsified = lambda values: None) -> Sealed:
        """This round's one vector: noised, masked, encrypted; `integers` may falsify it first."""
        streams = self.secagg.mask_streams()
        noise = self._noise()
        return seal(
            self.offer,
            delta,
            integers=integers,
            wire=lambda encoded: masked_update(encoded, streams, noise),
        )

    def _noise(self) -> DiscreteGaussian | None:
        configuration = self.offer.configuration
        variance = round_share_variance(configuration, round_encoding(configuration))
        return discrete_gaussian(variance) if variance else None
