"""Attacks that are a way to behave over time rather than a vector."""

from __future__ import annotations

from dataclasses import dataclass

from boltz_mesh.app.demo.data import FloatArray
from boltz_mesh.app.simulate.attacks.sight import Craft, Sight


@dataclass(frozen=True, slots=True)
class OnOff:
    """Honest until trust is earned, then another attack to the end.

    Sun, Han and Liu 2008, "Defense of Trust Management Vulnerabilities in Distributed Networks",
    IEEE Communications Magazine 46(2) (on-off attack).

    Attributes:
        strike: what is sent from then on.
        honest_share: of the rounds, in (0, 1).
    """

    strike: Craft
    honest_share: float = 0.5

    def strikes(self, sight: Sight) -> bool:
        """Whether this round is one of the attack."""
        return sight.number >= self.honest_share * sight.rounds

    def __call__(self, sight: Sight) -> FloatArray:
        """What the attackers send: (f, d)."""
        return self.strike(sight) if self.strikes(sight) else sight.own
