"""Clients of whole rounds over gRPC that remember what they draw and what they send."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from boltz_protocol import codec
from boltz_protocol import messages as m
from boltz_protocol.masked_update import masked_update
from boltz_protocol.noise import discrete_gaussian
from boltz_protocol.sealing import round_encoding, round_share_variance
from boltz_protocol.secagg.client import Floors, SecaggClient
from boltz_protocol.statement import Statement
from tests.integration.sealed.algebra import Row, centred
from tests.integration.sealed.extractor import Combination, Label
from tests.integration.sealed.transcript import Tap
from tests.support.clients import ControlStream, Offer, RawClient, Sealed, seal, start_round, submit
from tests.support.mesh import Mesh
from tests.support.models import Vector, declare
from tests.support.sealed_clients import SealedClient

#: Enough to tell a sum from noise, and a variance to a few per cent.
SIZE = 4096
BUDGET = "[budget]\nepsilon = 50\ndelta = 1e-5\n"


@dataclass(frozen=True, slots=True)
class Tapped:
    """A mesh of these tests' own, what it handles, and who is enrolled."""

    mesh: Mesh
    tap: Tap
    clients: list[RawClient]


@dataclass(slots=True)
class Tape:
    """Random bytes, remembered; those given beforehand come first."""

    given: list[bytes] = field(default_factory=list, repr=False)
    source: Callable[[int], bytes] = field(default=secrets.token_bytes, repr=False)
    drawn: list[bytes] = field(default_factory=list, repr=False)

    def __call__(self, size: int) -> bytes:
        value = self.given.pop(0) if self.given else self.source(size)
        assert len(value) == size, "what is given fits what is asked for"
        self.drawn.append(value)
        return value


@dataclass(slots=True)
class Player:
    """One client of one round.

    Attributes:
        sent: the integers of each vector that it masked, before noise.
    """

    sealed: SealedClient
    tape: Tape = field(repr=False)
    sent: list[npt.NDArray[np.int32]] = field(default_factory=list, repr=False)

    @classmethod
    async def join(
        cls, client: RawClient, stream: ControlStream, given: Sequence[bytes] = ()
    ) -> Player:
        response = await stream.next()
        while response.WhichOneof("message") == "outcome":  # of the round before, told again
            response = await stream.next()
        offer = Offer.of(codec.offer_from_proto(response.offer))
        tape = Tape(list(given))
        secagg = SecaggClient(
            configuration=offer.configuration,
            configuration_sha256=offer.digest,
            entry=offer.entry,
            sign=client.sign,
            floors=Floors(),
            randomness=tape,
        )
        return cls(SealedClient(client, stream, offer, secagg), tape)

    @property
    def offer(self) -> Offer:
        return self.sealed.offer

    @property
    def position(self) -> int:
        return self.offer.entry.index

    def label(self, number: int = 0) -> Label:
        configuration = self.offer.configuration
        return Label(configuration.round_id, configuration.attempt, self.position, number)

    # --- steps ----------------------------------------------------------------------------------

    async def advertise(self) -> None:
        await self.sealed.say(self.sealed.advertisement())

    async def deal(self) -> None:
        await self.sealed.key_roster()
        await self.sealed.say(await self.sealed.peers())

    async def take_shares(self) -> None:
        await self.sealed.shares()

    async def upload(self) -> None:
        await submit(self.sealed.client, self.masked())

    async def sign(self) -> None:
        await self.sealed.say(await self.sealed.survivors())

    async def release(self) -> None:
        await self.sealed.say(await self.sealed.signatures())

    async def leave(self) -> None:
        """Nobody waits for it any more."""
        await self.sealed.stream.decline(self.offer, "CLIENT_LEFT")

    def masked(self) -> Sealed:
        """A vector of its own, noised, masked, encrypted."""
        streams = self.sealed.secagg.mask_streams()
        variance = share_variance(self.offer.configuration)
        noise = discrete_gaussian(variance) if variance else None
        generator = np.random.default_rng([self.position, len(self.sent)])
        delta: Vector = generator.normal(size=SIZE).astype(np.float32)

        def kept(values: npt.NDArray[np.int32]) -> None:
            self.sent.append(values.copy())

        return seal(
            self.offer,
            delta,
            integers=kept,
            wire=lambda encoded: masked_update(encoded, streams, noise),
        )

    def announced(self, sealed: Sealed, **changes: Any) -> Statement:
        return sealed.statement(self.sealed.client, **changes)


async def each(players: Collection[Player], step: Callable[[Player], Awaitable[None]]) -> None:
    await asyncio.gather(*map(step, players))


async def begin(
    tapped: Tapped,
    clients: Sequence[RawClient],
    model: str,
    given: Sequence[Sequence[bytes]] = (),
    *,
    declared: bool = False,
    **plan: object,
) -> list[Player]:
    """A sealed round of these clients; players by their position.

    Args:
        given: for the first clients, what they draw first.
        declared: whether the model is there already.
    """
    if not declared:
        count = len(clients)
        sealed = {"mode": "sealed", "min": 3, "target": count, "max": count, "size": SIZE}
        await declare(tapped.mesh, model, np.zeros(SIZE, np.float32), **(sealed | plan))
    streams = [await client.participate(model) for client in clients]
    await start_round(tapped.mesh, model)
    drawn = [*given, *([()] * (len(clients) - len(given)))]
    players = [
        await Player.join(client, stream, first)
        for client, stream, first in zip(clients, streams, drawn, strict=True)
    ]
    return sorted(players, key=lambda player: player.position)


def secrets_of(players: Collection[Player]) -> list[bytes]:
    """All that these clients have and the server has not: the rest of their state follows."""
    return [value for player in players for value in player.tape.drawn]


def end(players: Collection[Player]) -> None:
    """The streams end."""
    for player in players:
        player.sealed.stream.cancel()


def noise_in(combination: Combination, players: Collection[Player]) -> Row:
    """What a combination differs by from the same combination of the true vectors."""
    truth = np.zeros(SIZE, np.int64)
    for player in players:
        for number, values in enumerate(player.sent):
            truth += combination.weights.get(player.label(number), 0) * values.astype(np.int64)
    return centred(combination.values - truth)


# --- noise --------------------------------------------------------------------------------------


def share_variance(configuration: m.RoundConfiguration) -> Fraction:
    """Of one client's noise."""
    return round_share_variance(configuration, round_encoding(configuration))


def check_noise(
    configuration: m.RoundConfiguration, residue: Row, *, clients: int, protects: bool
) -> None:
    """That a residue is the noise of so many clients, no less and no more.

    Args:
        protects: whether it has to be the plan's noise at least.
    """
    variance = clients * share_variance(configuration)
    if protects:
        assert variance >= round_encoding(configuration).sigma_squared > 0
    ratio = float(np.mean(np.square(residue.astype(np.float64)))) / float(variance)
    # A sample variance spreads by sqrt(2 / size) about the true one.
    assert abs(ratio - 1) < 5 * np.sqrt(2 / residue.size)
