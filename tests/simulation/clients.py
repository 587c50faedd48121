"""A simulated client of a sealed round: answers what it is asked, the same way every time.

It is honest, and checks what an honest mesh owes it: one set of members, of sharers, of survivors,
never fewer than its floor. What it says and hears are messages as data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from boltz_mesh.rounds.fact import FactKind


class Ask(StrEnum):
    """What the mesh pushes."""

    OFFER = "offer"
    KEY_ROSTER = "key-roster"
    PEERS = "peers"
    SHARES = "shares"
    SURVIVORS = "survivors"
    SIGNATURES = "signatures"


#: What is asked for in turn; a later notice brings along the sets of the earlier ones.
ANSWERS = {
    Ask.OFFER: FactKind.KEYS_ADVERTISED,
    Ask.KEY_ROSTER: FactKind.NONCE_REVEALED,
    Ask.PEERS: FactKind.SHARES_DEALT,
    Ask.SHARES: FactKind.UPDATE_STORED,
    Ask.SURVIVORS: FactKind.SURVIVORS_SIGNED,
    Ask.SIGNATURES: FactKind.SHARES_RELEASED,
}


@dataclass(frozen=True, slots=True)
class Notice:
    """Down, to one session. `sets`: which clients the mesh says are members, sharers and so on."""

    ask: Ask
    client: str
    session: int
    sets: dict[Ask, frozenset[str]]
    ready_ms: int


@dataclass(frozen=True, slots=True)
class Reply:
    """Up, from one session. `about`: the survivors that are signed, or whose sum is opened."""

    kind: FactKind
    client: str
    session: int
    about: frozenset[str]
    ready_ms: int


@dataclass(slots=True)
class Session:
    """One run of a client. Its secrets are in memory: a restart is another session."""

    client: str
    number: int
    floor: int
    slow_ms: int = 0
    known: dict[Ask, frozenset[str]] = field(default_factory=dict)
    advertised: bool = False

    def take(self, notice: Notice, now_ms: int) -> list[Reply]:
        """Answer a notice; one that it hears again it answers again."""
        assert (notice.client, notice.session) == (self.client, self.number)
        assert notice.ask is Ask.OFFER or self.advertised, "in a key roster without its keys"
        self.advertised = True
        for ask, clients in notice.sets.items():
            assert self.known.setdefault(ask, clients) == clients, f"two sets for {ask}"
            assert len(clients) >= self.floor, f"fewer than the floor in {ask}"
        members, sharers = self.known.get(Ask.PEERS), self.known.get(Ask.SHARES)
        survivors = self.known.get(Ask.SURVIVORS)
        if sharers is not None:
            assert members is not None
            assert sharers <= members, "a sharer outside the graph"
            assert self.client in sharers, "asked though its shares do not count"
        if survivors is not None:
            assert sharers is not None
            assert survivors <= sharers, "a survivor that shared no keys"
        kinds = [ANSWERS[notice.ask]]
        if notice.ask is Ask.SIGNATURES:
            # It may never have heard whom to sign; it does so before it releases.
            kinds.insert(0, FactKind.SURVIVORS_SIGNED)
        return [
            Reply(kind, self.client, self.number, survivors or frozenset(), now_ms + self.slow_ms)
            for kind in kinds
        ]
