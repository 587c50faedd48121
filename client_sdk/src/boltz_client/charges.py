"""What rounds cost a client's privacy: its own ledger beside what the mesh counts.

An offer is held against the owner's budget before anything is trained, the charge is made when the
update's bytes are fixed, and an upload without a charge is refused. Between the two last ones a
process may die: what was sealed then is not sent, and nothing was charged for nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from boltz_client.ledger import Ledger, LedgerEvent, release_of
from boltz_client.offers import AcceptedRound
from boltz_client.owner import OwnerLimits
from boltz_protocol import messages as m
from boltz_protocol.errors import RoundRefused


@dataclass(frozen=True, slots=True)
class Budget:
    """Privacy that this client has spent on a model, as the mesh counts it.

    Attributes:
        epsilon_spent: of the rounds charged, at `delta`, for `unit`; with the unit `client-period`
            of those of `period` alone.
        epsilon_held: with the rounds that are running.
        period: days whose data the figures are about; empty with the unit `client`.
        epsilon_lifetime: of all rounds ever charged, unit one client: what the client's own ledger
            counts.
        chain_length, chain_head: of the model's ledger, all clients together. Whoever keeps them
            can tell later whether what was charged up to here was altered.
    """

    epsilon_spent: float
    epsilon_held: float
    epsilon_budget: float
    delta: float
    unit: str
    relation: str
    epsilon_replace_one: float
    rounds_charged: int
    rounds_left: int
    period: str
    epsilon_lifetime: float
    rounds_lifetime: int
    chain_length: int
    chain_head: bytes


class Charges:
    """Charges rounds to a ledger, within an owner's budget.

    Args:
        ledger: of this client.
        owner: whose limits hold.
        now_ms: Unix time in milliseconds.
    """

    __slots__ = ("_ledger", "_now_ms", "_owner")

    def __init__(self, ledger: Ledger, owner: OwnerLimits, now_ms: Callable[[], int]) -> None:
        self._ledger = ledger
        self._owner = owner
        self._now_ms = now_ms

    async def check(self, accepted: AcceptedRound) -> None:
        """See whether a round is new to this client, and the owner's budget has room for it.

        Raises:
            RoundRefused: the attempt is charged already; a second update for it would be a second
                release for one charge. What was sealed for the first is sent without asking.
            BudgetExceeded: there is no room.
            ConfigurationError: the ledger is damaged.
        """
        await asyncio.to_thread(self._check, self._event(accepted))

    def charge(self, accepted: AcceptedRound) -> None:
        """Write a round down for good. Blocks.

        Raises: as `check`.
        """
        event = self._event(accepted)
        self._check(event)
        if not self._ledger.charge(event):
            raise _charged_before(event)

    async def require(self, manifest: m.UpdateManifest) -> None:
        """Refuse to send an update that is not charged.

        Raises: RoundRefused; ConfigurationError where the ledger is damaged.
        """
        if not await asyncio.to_thread(self._ledger.has, manifest.round_id, manifest.attempt):
            raise RoundRefused("the update was never charged to this client's own ledger")

    def _check(self, event: LedgerEvent) -> None:
        if self._ledger.has(event.round_id, event.attempt):
            raise _charged_before(event)
        owner = self._owner
        owner.check_epsilon(self._ledger.spent(event.model_id, owner.delta, with_event=event))

    def _event(self, accepted: AcceptedRound) -> LedgerEvent:
        return release_of(accepted.configuration, accepted.encoding, self._now_ms())


def _charged_before(event: LedgerEvent) -> RoundRefused:
    return RoundRefused(
        f"attempt {event.attempt} of this round is charged to this client already: another update "
        "for it would be a second release"
    )
