"""What an owner asks of a sealed or grouped round once its members and survivors are known.

The configuration promises a fewest number of survivors, and each client's share of the noise is
made for it; an owner may ask for more. Both are held against what the server shows: at the key
roster, at the graph, and before anything is released. In a grouped round the survivors are those of
the client's own group, whose sum its update is part of.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from boltz_protocol.errors import ConfigurationError, RoundRefused


@dataclass(frozen=True, slots=True)
class Floors:
    """Below these a client releases nothing. The defaults ask for no more than the configuration.

    Attributes:
        least_survivors: fewest clients in a sum that this client's update is part of.
        largest_weight_share: this client's weight over the total of the survivors, above 0, at
            most 1.
        known_peers: SHA-256 of certificates (DER, 64 lower-case hex digits) that the owner was
            given by their holders, not by the mesh.
        least_known_peers: how many of them must be neighbours of this client and survive: the
            mesh's own authority could invent all others. Above 0, the others that hold shares of
            this client must moreover be fewer than the threshold.

    Raises: ConfigurationError for values outside.
    """

    least_survivors: int = 1
    largest_weight_share: float = 1.0
    known_peers: frozenset[str] = frozenset()
    least_known_peers: int = 0

    def __post_init__(self) -> None:
        if self.least_survivors < 1:
            raise ConfigurationError(f"least_survivors is {self.least_survivors}, below 1")
        if not 0 < self.largest_weight_share <= 1:
            raise ConfigurationError(
                f"largest_weight_share is {self.largest_weight_share}; above 0, at most 1"
            )
        if not 0 <= self.least_known_peers <= len(self.known_peers):
            raise ConfigurationError(
                f"least_known_peers is {self.least_known_peers} of {len(self.known_peers)} pinned"
            )

    def check_count(self, what: str, count: int, min_survivors: int) -> None:
        """Refuse fewer clients than the owner or the configuration asks for.

        Raises: RoundRefused.
        """
        least = max(self.least_survivors, min_survivors)
        if count < least:
            raise RoundRefused(f"{count} {what}; at least {least} are needed", count=count)

    def check_weight(self, own_weight: int, total: int) -> None:
        """Refuse a sum in which this client weighs too much. Raises: RoundRefused."""
        share = own_weight / total
        if share > self.largest_weight_share:
            raise RoundRefused(
                f"this client would have {share:.1%} of the survivors' weight; "
                f"the owner allows {self.largest_weight_share:.1%}"
            )

    def check_known(self, what: str, fingerprints: Iterable[str]) -> None:
        """Refuse too few of the pinned peers. Raises: RoundRefused."""
        known = len(self.known_peers.intersection(fingerprints))
        if known < self.least_known_peers:
            raise RoundRefused(
                f"{known} of the {what} are known to the owner; "
                f"{self.least_known_peers} are needed",
                known=known,
            )

    def check_strangers(self, strangers: int, threshold: int) -> None:
        """Where peers are pinned, refuse to deal secrets that the others could put together.

        Raises: RoundRefused.
        """
        if self.least_known_peers and strangers >= threshold:
            raise RoundRefused(
                f"{strangers} of the holders of this client's shares are unknown to the owner, and "
                f"{threshold} could put its secrets together; pin more peers",
                strangers=strangers,
            )
