"""Clients that misbehave: sessions that change what an honest one would send."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from boltz_client import participant as p
from boltz_protocol import codec_sealed
from boltz_protocol import messages as m
from boltz_protocol.limits import SHARE_BYTES
from boltz_protocol.messages import ShareKind
from boltz_protocol.secagg.bitmap import bitmap, indexes
from boltz_protocol.secagg.client import SecaggClient
from boltz_protocol.secagg.dealing import deal
from boltz_protocol.secagg.keys import KeyPair, share_key
from tests.simulation.protocol import wire
from tests.simulation.protocol.client import Device, Host, Session, session_of
from tests.simulation.protocol.part import Part
from tests.simulation.protocol.settings import Misdeed
from tests.support.secagg import cheap_sign


class HostileSession(Session):
    """One run of a client that does `misdeed`."""

    is_hostile = True

    def __init__(self, device: Device, number: int, host: Host, misdeed: Misdeed) -> None:
        super().__init__(device, number, host)
        self.misdeed = misdeed

    def take_part(self, secagg: SecaggClient) -> Part:
        return Part(secagg, self.host.mesh_key)

    def send(self, message: Any) -> None:
        for each in self._turned(message):
            super().send(each)

    def _uploaded(self, message: Any, told: p.RoundKey | None) -> None:
        super()._uploaded(message, told)
        if self.misdeed is Misdeed.SECOND_VECTOR and isinstance(message, wire.Receipt):
            stream = self._open(lambda *_: None, lambda _: None)
            sealed = self.part.masked if self.part is not None else None
            if sealed is not None:
                other = wire.Upload(self.session_id, bytes(len(sealed.vector)))
                self.host.network.send(stream, other, down=False)

    def _turned(self, message: Any) -> tuple[Any, ...]:
        match message:
            case wire.Advertisement():
                return self._advertisements(message)
            case m.NonceReveal() if self.misdeed is Misdeed.OTHER_NONCE:
                return (replace(message, nonce=bytes(32)),)
            case m.SharesDealt():
                return self._dealings(message)
            case wire.Seen() if self.misdeed is Misdeed.OTHER_SURVIVORS:
                return (self._other_survivors(message),)
            case m.SharesReleased():
                return self._releases(message)
        return (message,)

    def _signed(self, type: str, payload: bytes) -> Any:
        assert self.part is not None
        return cheap_sign(self.part.member.entry.client_id, type, payload)

    def _advertisements(self, message: wire.Advertisement) -> tuple[Any, ...]:
        said = codec_sealed.parse_key_advertisement(message.statement.payload)
        if self.misdeed is Misdeed.SECOND_ADVERTISEMENT:
            other = replace(said, mask_public_key=KeyPair.generate().public)
        elif self.misdeed is Misdeed.NOT_ITS_SESSION:
            other = replace(said, session_id=session_of(self.device.index, 99))
        else:
            return (message,)
        payload = codec_sealed.encode_key_advertisement(other)
        return message, wire.Advertisement(self._signed(m.KEY_ADVERTISEMENT, payload))

    def _dealings(self, message: m.SharesDealt) -> tuple[Any, ...]:
        dealt = codec_sealed.parse_dealt_shares(message.dealt.payload)
        match self.misdeed:
            case Misdeed.GARBAGE:
                # One holder gets its share, and the others what nobody can open.
                sealed = tuple(
                    bytes(len(each)) if place else each
                    for place, each in enumerate(message.sealed_shares)
                )
                return (replace(message, sealed_shares=sealed),)
            case Misdeed.WRONG_SECRET:
                return (self._dealt_of_something_else(message),)
            case Misdeed.OTHER_HOLDERS:
                fewer = replace(
                    dealt, holders=dealt.holders[:-1], commitments=dealt.commitments[:-1]
                )
                return (self._dealt(fewer, message.sealed_shares[:-1]),)
            case Misdeed.SECOND_DEALING:
                other = replace(dealt, seed_commitment=bytes(32))
                return message, self._dealt(other, message.sealed_shares)
        return (message,)

    def _dealt(self, dealt: m.DealtShares, sealed: tuple[bytes, ...]) -> m.SharesDealt:
        payload = codec_sealed.encode_dealt_shares(dealt)
        return m.SharesDealt(self._signed(m.DEALT_SHARES, payload), sealed)

    def _dealt_of_something_else(self, message: m.SharesDealt) -> m.SharesDealt:
        """Shares that open and fit their commitments, of other secrets than the dealer's."""
        part = self.part
        assert part is not None
        assert part.rostered is not None
        assert part.dealt is not None
        own, entry = part.rostered.share_keys, part.member.entry
        context, graph = part.dealt.context, part.dealt.graph
        index = entry.index
        seal_keys = {
            holder: share_key(
                own.exchange(peer.advertisement.share_public_key),
                context,
                (entry.client_id, own.public),
                (peer.entry.client_id, peer.advertisement.share_public_key),
            )
            for holder, peer in part.dealt.peers.items()
            if holder in graph.holders(index)
        }
        dealing = deal(
            context=context,
            dealer=index,
            holders=graph.holders(index),
            threshold=graph.threshold,
            mask_private_key=bytes(32),
            seed=bytes(32),
            seal_keys=seal_keys,
            randomness=part.member.randomness,
        )
        dealt = codec_sealed.parse_dealt_shares(message.dealt.payload)
        return self._dealt(replace(dealt, commitments=dealing.commitments), dealing.sealed)

    def _other_survivors(self, message: wire.Seen) -> wire.Seen:
        assert self.part is not None
        seen = codec_sealed.parse_survivors_seen(message.statement.payload)
        size = self.part.member.configuration.roster_size
        fewer = bitmap(indexes(seen.survivors, size)[1:], size)
        payload = codec_sealed.encode_survivors_seen(replace(seen, survivors=fewer))
        return wire.Seen(self._signed(m.SURVIVORS_SEEN, payload))

    def _releases(self, message: m.SharesReleased) -> tuple[Any, ...]:
        first, rest = message.shares[0], message.shares[1:]
        held = self.part.held.held[first.dealer] if self.part and self.part.held else None
        assert held is not None
        other = ShareKind.SEED if first.kind is ShareKind.MASK_KEY else ShareKind.MASK_KEY
        match self.misdeed:
            case Misdeed.NO_SHARE:
                return ()
            case Misdeed.ANOTHER_SHARE:
                wrong = replace(first, share=bytes(SHARE_BYTES))
                return (replace(message, shares=(wrong, *rest)),)
            case Misdeed.WRONG_KIND:
                turned = held.released(first.dealer, other)
                return (replace(message, shares=(turned, *rest)),)
            case Misdeed.BOTH_KINDS:
                turned = held.released(first.dealer, other)
                return message, replace(message, shares=(turned, *rest))
            case Misdeed.SHARE_OF_NOBODY:
                nobody = replace(first, dealer=first.dealer + 50)
                return (replace(message, shares=(*rest, nobody)),)
        return (message,)
