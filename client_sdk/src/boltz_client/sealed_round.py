"""One client's part in one attempt of a sealed round: notices in, answers out.

::

    advertise -> KeyRosterNotice -> PeersNotice -> SharesNotice -> (masks) -> SurvivorsNotice
        -> SignaturesNotice -> released

`SecaggClient` decides; this brings it what it cannot get by itself: statements of the mesh verified
under its certified key, peers verified by their certificates, and a thread, since RSA and X25519
take milliseconds. A notice that comes again, as after a reconnection, is answered with the very
same bytes; one that is out of its turn is passed over. Whatever is refused raises, once.

Secrets are in memory only, in the `SecaggClient`, and go when it has released its shares, is wiped,
or has heard nothing of the round's end for too long. Nothing of them is in an answer but what is
sealed for a peer, or asked for by a threshold of signatures.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, TypeVar

from boltz_client.connection import is_passing
from boltz_client.notices import Host
from boltz_client.offers import AcceptedRound
from boltz_client.peer_checks import PeerChecks
from boltz_client.tracing import tracer
from boltz_protocol import codec, codec_sealed, limits
from boltz_protocol import messages as m
from boltz_protocol.errors import MeshError, RoundClosed, RoundRefused, StateConflict
from boltz_protocol.secagg.bitmap import indexes
from boltz_protocol.secagg.client import SecaggClient, VerifyPeer
from boltz_protocol.secagg.masks import MaskStream
from boltz_protocol.statement import Statement, digest, sign_rsa_pss
from boltz_protocol.v1 import aggregator_pb2 as pb


class Step(enum.Enum):
    """What the server asks for, in this order; values are names of ParticipateResponse's fields."""

    KEY_ROSTER = "key_roster"
    PEERS = "peers"
    SHARES = "shares"
    SURVIVORS = "survivors"
    SIGNATURES = "signatures"


_Reply = TypeVar("_Reply")
_Error = TypeVar("_Error", bound=Exception)
#: Takes one step of the protocol, in a thread, and says what to answer.
_Act = Callable[[SecaggClient], pb.ParticipateRequest | None]
_ORDER: Final = tuple(Step)
#: Names of the messages that `SealedRound.take` takes.
NOTICES: Final = frozenset(step.value for step in Step)


class Verified(Protocol):
    """Gives the payload of a statement of the mesh, as `link.MeshLink.verified` does."""

    def __call__(self, statement: Statement, expected_type: str) -> Awaitable[bytes]:
        """Raises: UnknownKey, SignatureInvalid, MalformedMessage, Unavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of a notice.

    Attributes:
        answer: to be sent, if anything is.
        passed_over: why nothing was done, where the owner may want to know.
    """

    answer: pb.ParticipateRequest | None = None
    passed_over: MeshError | None = None


@dataclass(frozen=True, slots=True)
class _Done:
    """A step that was taken: the digest of what was asked, and what was answered."""

    sha256: bytes
    answer: pb.ParticipateRequest | None


class SealedRound:
    """See the head of this module. Belongs to one event loop.

    Args:
        accepted: the offer, with every check passed.
        secagg: fresh, for this attempt.
        verified: checks statements of the mesh.
        peers: checks the other clients.
        lifetime_s: after so many seconds the secrets are wiped, whatever is heard of the round.
    """

    def __init__(
        self,
        accepted: AcceptedRound,
        secagg: SecaggClient,
        verified: Verified,
        peers: PeerChecks,
        *,
        lifetime_s: float,
    ) -> None:
        self._configuration = accepted.configuration
        self._index = accepted.entry.index
        self._secagg: SecaggClient | None = secagg
        self._verified = verified
        self._peers = peers
        self._done: dict[Step, _Done] = {}
        self._advertisement: pb.ParticipateRequest | None = None
        self._ready = asyncio.Event()
        # A thread goes on when the task that waits for it is cancelled.
        self._turn = threading.Lock()
        self._survivors: frozenset[int] | None = None
        self._timer = asyncio.get_running_loop().call_later(lifetime_s, self.wipe)
        #: Whether anything was uploaded yet; the caller sets it before the first byte goes out.
        self.uploading = False

    def __repr__(self) -> str:
        done = ", ".join(step.value for step in self._done)
        return f"SealedRound({self._configuration.round_id}, done: [{done}])"

    # --- what the caller may ask ----------------------------------------------------------------

    @property
    def is_sharer(self) -> bool:
        """Whether the others count on this client: it signs and releases even without an upload."""
        return Step.SHARES in self._done

    @property
    def is_left_out(self) -> bool:
        """Whether the survivors are known, and this client is not one of them."""
        return self._survivors is not None and self._index not in self._survivors

    def wipe(self) -> None:
        """Forget every secret and answer nothing from here on."""
        self._timer.cancel()
        self._secagg = None
        self._advertisement = None
        self._done.clear()

    # --- steps ----------------------------------------------------------------------------------

    async def advertise(self) -> pb.ParticipateRequest:
        """Make keys, and what tells the server of them."""
        with tracer().start_as_current_span("boltz.client.key_agreement") as span:
            span.set_attribute("boltz.step", "advertise")
            statement = await asyncio.to_thread(self._alone, SecaggClient.advertise)
        self._advertisement = pb.ParticipateRequest(
            key_advertisement=codec.statement_to_proto(statement)
        )
        return self._advertisement

    def advertisement_again(self) -> pb.ParticipateRequest | None:
        """The same message, for an offer that comes again; None once the server has shown it."""
        return None if self._done else self._advertisement

    async def masks(self) -> tuple[MaskStream, ...]:
        """Wait for the masks of this client's one vector; to be called once.

        Raises: RoundClosed when the survivors were announced first, or this client has left.
        """
        await self._ready.wait()

        def work(secagg: SecaggClient) -> tuple[MaskStream, ...]:
            if self._survivors is not None:
                raise RoundClosed("the mesh has stopped collecting")
            return secagg.mask_streams()

        return await asyncio.to_thread(self._alone, work)

    async def take(self, message: pb.ParticipateResponse) -> Taken:
        """Check a notice and answer it.

        Args:
            message: one of `NOTICES`.

        Raises:
            Unavailable: the mesh's keys cannot be fetched; the same notice may come again.
            MeshError: refused. The secrets are gone.
        """
        name = message.WhichOneof("message")
        assert name in NOTICES, "not a notice of a sealed round"
        step = Step(name)
        sha256 = hashlib.sha256(message.SerializeToString(deterministic=True)).digest()
        done = self._done.get(step)
        # Later on the server may know of more signatures; what was released stays what it is.
        if done is not None and (done.sha256 == sha256 or step is Step.SIGNATURES):
            return Taken(done.answer)
        if self._secagg is None:
            return Taken(passed_over=StateConflict(f"{name}: this client's part is over"))
        if done is None and step is not _ORDER[len(self._done)]:
            return Taken(passed_over=StateConflict(f"{name} came out of its turn"))
        try:
            return await self._take(step, message, sha256)
        except MeshError as error:
            if is_passing(error):
                raise
            self.wipe()
            raise without_frames(error) from error.__cause__

    async def _take(self, step: Step, message: pb.ParticipateResponse, sha256: bytes) -> Taken:
        secagg = self._secagg
        unmasking = step in (Step.SURVIVORS, Step.SIGNATURES)
        name = "boltz.client.unmask" if unmasking else "boltz.client.key_agreement"
        with tracer().start_as_current_span(name) as span:
            span.set_attribute("boltz.step", step.value)
            act = await self._understood(step, message)
            if act is None:
                return Taken()
            answer = await asyncio.to_thread(self._alone, act)
        if self._secagg is not secagg:
            # Wiped meanwhile: nothing leaves any more.
            return Taken()
        self._done[step] = _Done(sha256, answer)
        if step is Step.SHARES:
            self._ready.set()
        if step is Step.SIGNATURES:
            # What may leave this machine is in the answer.
            self._secagg = None
        return Taken(answer)

    async def _understood(self, step: Step, message: pb.ParticipateResponse) -> _Act | None:
        """What a notice asks for; None where it belongs to another round.

        Raises: as `take`.
        """
        about: m.KeyRoster | m.PeersNotice | m.SharesNotice | m.Survivors | m.SignaturesNotice
        act: _Act
        match step:
            case Step.KEY_ROSTER:
                notice = codec_sealed.key_roster_notice_from_proto(message.key_roster)
                payload = await self._verified(notice.key_roster, m.KEY_ROSTER)
                about = codec_sealed.parse_key_roster(payload)
                act = partial(_take_key_roster, notice, about)
            case Step.PEERS:
                about = codec_sealed.peers_notice_from_proto(message.peers)
                act = partial(_take_peers, about, self._peers.advertisements(self._configuration))
            case Step.SHARES:
                about = codec_sealed.shares_notice_from_proto(message.shares)
                act = partial(_take_shares, about)
            case Step.SURVIVORS:
                said = codec_sealed.survivors_notice_from_proto(message.survivors)
                payload = await self._verified(said.survivors, m.SURVIVORS)
                about = codec_sealed.parse_survivors(payload)
                act = partial(self._take_survivors, about)
            case Step.SIGNATURES:
                about = codec_sealed.signatures_notice_from_proto(message.signatures)
                act = partial(_take_signatures, about, self._peers.survivors_seen)
        ours = (self._configuration.round_id, self._configuration.attempt)
        return act if (about.round_id, about.attempt) == ours else None

    def _take_survivors(self, payload: m.Survivors, secagg: SecaggClient) -> pb.ParticipateRequest:
        survivors = frozenset(indexes(payload.survivors, self._configuration.roster_size))
        # `SecaggClient` knows whether masks were given out, but not what became of them.
        if self._index in survivors and not self.uploading:
            raise RoundRefused("this client is counted, and has uploaded nothing")
        statement = secagg.take_survivors(payload)
        self._survivors = survivors
        return pb.ParticipateRequest(survivors_seen=codec.statement_to_proto(statement))

    def _alone(self, act: Callable[[SecaggClient], _Reply]) -> _Reply:
        """Runs in a thread, one at a time. Raises: RoundClosed after `wipe`."""
        with self._turn:
            secagg = self._secagg
            if secagg is None:
                raise RoundClosed("this client has left the round")
            return act(secagg)


def without_frames(error: _Error) -> _Error:
    """The same error without the frames that it came through: their variables hold secrets, and
    whoever keeps the error, or writes it down with them, would keep those.
    """
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def take_part(host: Host, accepted: AcceptedRound) -> SealedRound:
    """A client's part in a sealed round that it has accepted."""
    secagg = SecaggClient(
        configuration=accepted.configuration,
        configuration_sha256=accepted.configuration_sha256,
        entry=accepted.entry,
        sign=lambda type, payload: sign_rsa_pss(
            type=type, payload=payload, private_key=host.store.private_key
        ),
        floors=host.owner.floors,
    )
    until_ms = accepted.configuration.deadline_ms + limits.MAX_UNMASKING_MS
    lifetime_s = (until_ms - host.server_time_ms()) / 1000
    return SealedRound(accepted, secagg, host.verified, host.peers, lifetime_s=lifetime_s)


def _take_key_roster(
    notice: m.KeyRosterNotice, payload: m.KeyRoster, secagg: SecaggClient
) -> pb.ParticipateRequest | None:
    reveal = secagg.take_key_roster(notice, payload, digest(notice.key_roster))
    if reveal is None:
        return None
    return pb.ParticipateRequest(nonce_reveal=codec_sealed.nonce_reveal_to_proto(reveal))


def _take_peers(
    notice: m.PeersNotice, verify_peer: VerifyPeer, secagg: SecaggClient
) -> pb.ParticipateRequest:
    dealt = secagg.take_peers(notice, verify_peer)
    return pb.ParticipateRequest(shares_dealt=codec_sealed.shares_dealt_to_proto(dealt))


def _take_shares(notice: m.SharesNotice, secagg: SecaggClient) -> None:
    secagg.take_shares(notice)


def _take_signatures(
    notice: m.SignaturesNotice, verify_peer_statement: VerifyPeer, secagg: SecaggClient
) -> pb.ParticipateRequest:
    released = secagg.take_signatures(notice, verify_peer_statement)
    return pb.ParticipateRequest(shares_released=codec_sealed.shares_released_to_proto(released))
