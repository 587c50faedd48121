"""What a world is made of: sizes, times, the kind of graph, and who misbehaves how."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import Final

import pytest

from boltz_mesh.rounds.state import RoundParameters
from boltz_protocol import limits
from boltz_protocol.ids import ModelId, RoundId
from boltz_protocol.secagg import agreement, graph, tails

ROUND: Final = RoundId("5e" * 16)
MODEL: Final = ModelId("toy")
#: A sparse graph that is small enough to play: neighbours and threshold. 2 x 3 > 4 + 1, so that one
#: corrupt client is withstood (`tails`, E1).
SPARSE: Final = (4, 3)
#: The most members that are all neighbours of each other in worlds with sparse graphs.
SPARSE_BEYOND: Final = 4


class Misdeed(StrEnum):
    """What a hostile client does instead of what it should."""

    ANOTHER_SHARE = "releases another share than it was dealt"
    WRONG_KIND = "releases the share of the wrong kind"
    BOTH_KINDS = "releases the other kind as well, in a second message"
    SHARE_OF_NOBODY = "releases a share of a client that deals with others"
    NO_SHARE = "signs, and releases nothing"
    GARBAGE = "deals most holders what does not open"
    WRONG_SECRET = "deals and commits to shares of something else"
    OTHER_HOLDERS = "deals to others than the graph says"
    OTHER_SURVIVORS = "signs other survivors than announced"
    SECOND_ADVERTISEMENT = "advertises a second time, with other keys"
    SECOND_DEALING = "deals a second time, other shares"
    SECOND_VECTOR = "uploads a second, different vector"
    OTHER_NONCE = "reveals another nonce than it committed to"
    COLLUDES = "does as it should, and tells the server all it has"
    NOT_ITS_SESSION = "speaks for another session of its own"


@dataclass(frozen=True, slots=True)
class Setting:
    """A world's constants.

    Attributes:
        clients: devices, all of which are wanted in the round.
        target: uploads with which collecting ends.
        floors: index -> fewest survivors that this client's owner accepts.
        sparse: nonces are revealed, and the graph is sparse (`SPARSE`).
        misdeeds: index -> what the client's sessions do.
    """

    clients: int = 6
    min_clients: int = 3
    target: int = 6
    coordinates: int = 3
    corrupt_fraction: float = 0.17
    dropout_fraction: float = 0.17
    sparse: bool = False
    floors: Mapping[int, int] = field(default_factory=dict)
    misdeeds: Mapping[int, Misdeed] = field(default_factory=dict)

    @classmethod
    def of(cls, random: Random) -> Setting:
        """As they come in life: mostly honest, mostly complete."""
        clients = random.choice((4, 5, 6, 6, 7))
        floors = {random.randrange(clients): random.randint(3, clients)}
        misdeeds = {random.randrange(clients): random.choice(list(Misdeed))}
        return cls(
            clients=clients,
            target=random.choice((clients, clients, clients - 1)),
            sparse=random.random() < 0.3,
            floors=floors if random.random() < 0.3 else {},
            misdeeds=misdeeds if random.random() < 0.5 else {},
        )

    def parameters(self) -> RoundParameters:
        """The round's, for the machine."""
        return RoundParameters(
            round_id=ROUND,
            model_id=MODEL,
            attempt=1,
            base_version=2,
            plan_revision=4,
            min_clients=self.min_clients,
            target_clients=self.target,
            max_clients=self.clients,
            wanted_clients=self.clients,
            selecting_ms=300,
            collecting_ms=1_500,
            aggregating_ms=400,
            releasing_ms=400,
            recovery_extension_ms=300,
            mode="sealed",
            advertising_ms=400,
            sharing_ms=400,
            checking_ms=400,
            unmasking_ms=400,
            corrupt_fraction=self.corrupt_fraction,
            dropout_fraction=self.dropout_fraction,
        )

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """Where the protocol's own constants have to give way to a small world."""
        with pytest.MonkeyPatch.context() as patch:
            if self.sparse:
                for module in (agreement, graph, limits):
                    patch.setattr(module, "MAX_COMPLETE_GRAPH", SPARSE_BEYOND)
                patch.setattr(tails, "smallest", lambda *_, **__: SPARSE)
            yield
