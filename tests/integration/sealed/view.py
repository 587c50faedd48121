"""What a transcript says, attempt by attempt, in the protocol's own terms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from boltz_protocol.messages import DealtShares, ReleasedShare
from boltz_protocol.secagg.attempt import Attempt
from tests.support.secagg import World

UInt32Array = npt.NDArray[np.uint32]
#: Round id, number of the attempt.
Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Deal:
    """What one client dealt: signed commitments, and by holder what only the holder can open."""

    dealer: int
    signed: DealtShares = field(repr=False)
    sealed: Mapping[int, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Upload:
    """One vector that arrived, whatever the server made of it; decrypted, masked as it is.

    Attributes:
        index: the client's position.
        vector: modulo 2^24; less than the whole where not all of it came.
    """

    index: int
    vector: UInt32Array = field(repr=False)


@dataclass(frozen=True, slots=True)
class Facts:
    """One attempt.

    Attributes:
        shown: position -> the dealers that this client was told of, with whom it masks.
        released: holder and what it released, of whatever kind.
        aggregate: what the server wrote down as the noised sum, where it did.
    """

    attempt: Attempt = field(repr=False)
    deals: tuple[Deal, ...]
    shown: Mapping[int, frozenset[int]]
    released: tuple[tuple[int, ReleasedShare], ...] = field(repr=False)
    uploads: tuple[Upload, ...]
    aggregate: npt.NDArray[np.int32] | None = field(default=None, repr=False)

    def masked_with(self, index: int) -> tuple[int, ...]:
        """The neighbours with whom a client masks its vector."""
        told = self.shown[index]
        return tuple(
            other for other in self.attempt.agreement.graphs[0].neighbours(index) if other in told
        )


@dataclass(frozen=True, slots=True)
class View:
    """A whole transcript.

    Attributes:
        loose: every 32 bytes that stand somewhere by themselves: each might be a secret.
    """

    attempts: Mapping[Key, Facts]
    loose: frozenset[bytes] = field(default=frozenset(), repr=False)

    def within(self, *round_ids: str) -> View:
        """Some rounds of it."""
        kept = {key: facts for key, facts in self.attempts.items() if key[0] in round_ids}
        assert len({round_id for round_id, _ in kept}) == len(round_ids), "all of them are there"
        return replace(self, attempts=kept)

    @property
    def only(self) -> Facts:
        """The attempt, where there is one."""
        (facts,) = self.attempts.values()
        return facts


def view_of_worlds(*worlds: World) -> View:
    """What the servers of in-memory attempts hold together, each attempt as it stands now."""
    views = map(_facts_of_world, worlds)
    nonces = (nonce for world in worlds for nonce in world.nonces.values())
    return View({_key(facts): facts for facts in views}, frozenset(nonces))


def _key(facts: Facts) -> Key:
    return facts.attempt.configuration.round_id, facts.attempt.configuration.attempt


def _facts_of_world(world: World) -> Facts:
    sharers = world.sharers
    deals = tuple(
        Deal(dealer, signed, dict(zip(signed.holders, sealed, strict=True)))
        for dealer, (signed, sealed) in world.dealt.items()
    )
    return Facts(
        attempt=world.attempt,
        deals=deals,
        shown=dict.fromkeys(world.attempt.agreement.graphs[0].members, sharers),
        released=tuple(
            (holder, share)
            for holder, released in world.released.items()
            for share in released.shares
        ),
        uploads=tuple(Upload(index, unpacked(chunks)) for index, chunks in world.uploads.items()),
    )


def unpacked(chunks: Iterable[bytes]) -> UInt32Array:
    """Packed coordinates, modulo 2^24."""
    raw = np.frombuffer(b"".join(chunks), np.uint8).reshape(-1, 3).astype(np.uint32)
    return raw @ np.array([1, 1 << 8, 1 << 16], np.uint32)
