"""The server and all other clients of a sealed round, in memory, for one `SealedRound`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, cast

from boltz_client.mesh_keys import Recipient
from boltz_client.offers import AcceptedRound
from boltz_client.peer_checks import PeerChecks
from boltz_client.sealed_round import SealedRound, Step, Taken
from boltz_protocol import codec, codec_sealed
from boltz_protocol import messages as m
from boltz_protocol.errors import (
    Unavailable,
)
from boltz_protocol.secagg import server
from boltz_protocol.secagg.client import VerifyPeer
from boltz_protocol.statement import MESH_ALGORITHMS, Statement, verify
from boltz_protocol.v1 import aggregator_pb2 as pb
from tests.support.keys import authority
from tests.support.secagg import World, cheap_verify

SIZE = 5
OTHERS = range(1, SIZE)


class CheapPeers(PeerChecks):
    """Checks the keyed hashes that the clients of a `World` sign with."""

    def __init__(self) -> None:
        super().__init__("mini", authority().root, lambda: 0)
        self.entered = threading.Event()
        self.leave = threading.Event()
        self.leave.set()

    def advertisements(self, configuration: m.RoundConfiguration) -> VerifyPeer:
        def verified(entry: m.RosterEntry, statement: Statement) -> bytes:
            self.entered.set()
            self.leave.wait(10)
            return cheap_verify(entry, statement)

        return verified

    def survivors_seen(self, entry: m.RosterEntry, statement: Statement) -> bytes:
        return cheap_verify(entry, statement)


@dataclass
class Mesh:
    """Plays the server and clients 1 and up; client 0 is the `SealedRound`."""

    world: World = field(default_factory=lambda: World.of(SIZE))
    unreachable: bool = False
    lifetime_s: float = 3600.0

    def __post_init__(self) -> None:
        world = self.world
        self.peers = CheapPeers()
        self.accepted = AcceptedRound(
            configuration=world.configuration,
            configuration_sha256=world.configuration_sha256,
            entry=world.entries[0],
            recipient=cast(Recipient, None),
            encoding=world.encoding,
            noise_share=Fraction(0),
            trace=m.TraceContext(""),
        )
        self.part = SealedRound(
            self.accepted, world.clients[0], self.verified, self.peers, lifetime_s=self.lifetime_s
        )
        self.played: set[Step] = set()
        self.sent: dict[Step, pb.ParticipateResponse] = {}
        #: Changes a notice on its way to client 0.
        self.change: dict[Step, Callable[[Any], Any]] = {}

    async def verified(self, statement: Statement, expected_type: str) -> bytes:
        if self.unreachable:
            raise Unavailable("the mesh's keys cannot be fetched")
        return verify(
            statement,
            expected_type=expected_type,
            public_key=self.world.mesh_key.public_key(),
            allowed_algorithms=MESH_ALGORITHMS,
        )

    async def show(self, step: Step) -> Taken:
        """Let everybody else do what comes before, and client 0 take the notice."""
        message = self.sent[step] = self.notice(step)
        taken = await self.part.take(message)
        return taken

    def notice(self, step: Step) -> pb.ParticipateResponse:
        if step not in self.played:
            self.played.add(step)
            self.play(step)
        return MAKERS[step](self, self.change.get(step, lambda notice: notice))

    def play(self, step: Step) -> None:
        """What the others and the server do before this notice can be made."""
        world = self.world
        match step:
            case Step.KEY_ROSTER:
                world.advertise(range(1, world.size))
                world.show_roster(range(1, world.size), world.fix_roster())
            case Step.PEERS:
                world.fix_graph()
                world.deal(OTHERS)
            case Step.SHARES:
                world.share(OTHERS)
                world.upload(OTHERS)
            case Step.SURVIVORS:
                world.show_survivors(OTHERS)
            case Step.SIGNATURES:
                pass

    def heard(self, answer: pb.ParticipateRequest | None) -> None:
        """The server takes what client 0 says, with all of its checks."""
        match answer.WhichOneof("message") if answer is not None else None:
            case "key_advertisement":
                assert answer is not None
                self.world.take_advertisement(
                    0, codec.statement_from_proto(answer.key_advertisement)
                )
            case "shares_dealt":
                assert answer is not None
                self.world.take_dealt(0, codec_sealed.shares_dealt_from_proto(answer.shares_dealt))
            case "survivors_seen":
                assert answer is not None
                self.world.seen[0] = codec.statement_from_proto(answer.survivors_seen)
            case "shares_released":
                assert answer is not None
                self.world.take_released(
                    0, codec_sealed.shares_released_from_proto(answer.shares_released)
                )
            case None:
                pass
            case other:
                raise AssertionError(other)

    async def until(self, last: Step) -> Mesh:
        """All steps up to and with `last`; client 0 uploads in between."""
        self.heard(await self.part.advertise())
        for step in Step:
            taken = await self.show(step)
            assert taken.passed_over is None
            self.heard(taken.answer)
            if step is Step.SHARES:
                streams = await self.part.masks()
                self.part.uploading = True
                self.world.uploads[0] = self.world.masked(0, streams)
            if step is last:
                break
        return self


def _key_roster(mesh: Mesh, change: Callable[[Any], Any]) -> pb.ParticipateResponse:
    notice = server.key_roster_notice(mesh.world.key_roster_statement, mesh.world.roster)
    return pb.ParticipateResponse(
        key_roster=codec_sealed.key_roster_notice_to_proto(change(notice))
    )


def _peers(mesh: Mesh, change: Callable[[Any], Any]) -> pb.ParticipateResponse:
    return pb.ParticipateResponse(
        peers=codec_sealed.peers_notice_to_proto(change(mesh.world.peers_of(0)))
    )


def _shares(mesh: Mesh, change: Callable[[Any], Any]) -> pb.ParticipateResponse:
    return pb.ParticipateResponse(
        shares=codec_sealed.shares_notice_to_proto(change(mesh.world.shares_for(0)))
    )


def _survivors(mesh: Mesh, change: Callable[[Any], Any]) -> pb.ParticipateResponse:
    payload = codec_sealed.encode_survivors(change(mesh.world.survivors_payload()))
    notice = m.SurvivorsNotice(mesh.world.sign(m.SURVIVORS, payload))
    return pb.ParticipateResponse(survivors=codec_sealed.survivors_notice_to_proto(notice))


def _signatures(mesh: Mesh, change: Callable[[Any], Any]) -> pb.ParticipateResponse:
    notice = change(mesh.world.signatures_for(0))
    return pb.ParticipateResponse(signatures=codec_sealed.signatures_notice_to_proto(notice))


MAKERS: dict[Step, Callable[[Mesh, Callable[[Any], Any]], pb.ParticipateResponse]] = {
    Step.KEY_ROSTER: _key_roster,
    Step.PEERS: _peers,
    Step.SHARES: _shares,
    Step.SURVIVORS: _survivors,
    Step.SIGNATURES: _signatures,
}


def is_wiped(part: SealedRound) -> bool:
    return part._secagg is None
