"""Whether a round still fits the budget of every client in it, and what would fit instead.

Pure: the caller brings each client's past. A hold (a round that has started and may still release)
is handed over as an event like any other, so that it counts as spent.

A budget is a filter: plans may change their noise in view of what was published. For Gaussian
noise without sampling this costs nothing beyond the sum of 1 / z^2 that is checked here (Smith and
Thakurta 2022, "Fully Adaptive Composition for Gaussian Differential Privacy", theorem 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Final

from boltz_mesh.privacy import accountant
from boltz_mesh.privacy.mechanisms import PrivacyEvent
from boltz_protocol import limits
from boltz_protocol.errors import BudgetExceeded, InvalidPlan
from boltz_protocol.gaussian_dp import mu_within

#: A search for the number of rounds that fit ends here: beyond it the answer is "plenty".
MAX_ROUNDS_COUNTED: Final = 10_000


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that may be spent on one client's contribution over the life of a model.

    Args:
        epsilon: above 0, finite.
        delta: from `limits.MIN_DELTA`, below 1; keep it below one over the number of clients.

    Raises:
        InvalidPlan: out of range; the message has a value that would do.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        """Refuse a budget that could never be met or that promises nothing."""
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise InvalidPlan(
                f"budget.epsilon {self.epsilon} must be a positive number; 2.0 would do",
                setting="budget.epsilon",
            )
        if not limits.MIN_DELTA <= self.delta < 1:
            raise InvalidPlan(
                f"budget.delta {self.delta} must be at least {limits.MIN_DELTA:g} and below 1; "
                "1e-6 would do",
                setting="budget.delta",
            )


def check_round(
    budget: Budget,
    past: Mapping[str, Sequence[PrivacyEvent]],
    new_events: Sequence[PrivacyEvent],
) -> None:
    """Refuse a round that could take any of its clients over the budget.

    Args:
        budget: of the model.
        past: client id -> what was already charged or is held; a client that is missing has
            spent nothing.
        new_events: what the round would release, one event for each client and attempt.

    Raises:
        BudgetExceeded: the message names the client that is furthest over, how many such rounds
            would still fit for it, and the noise multiplier at which this one would.
    """
    over = {
        client: epsilon
        for client, epsilon in epsilons_after(budget, past, new_events).items()
        if epsilon > budget.epsilon
    }
    if not over:
        return
    client = min(over, key=lambda name: (-over[name], name))
    already = past.get(client, ())
    event = next(event for event in new_events if event.client == client)
    fit = rounds_that_fit(budget, already, event)
    noise = noise_that_fits(budget, already)
    would_do = (
        f"a noise multiplier of at least {_rounded_up(noise)} would fit"
        if noise is not None
        else "no amount of noise would fit"
    )
    clients = len({event.client for event in new_events})
    raise BudgetExceeded(
        f"this round would take {len(over)} of {clients} clients over the budget of epsilon "
        f"{budget.epsilon:g} at delta {budget.delta:g}: client {client} would have spent "
        f"{_words(over[client])}. At noise multiplier {event.noise_multiplier:g} "
        f"{fit} more {'round fits' if fit == 1 else 'rounds fit'} for it; {would_do}.",
        client=client,
        clients_over=len(over),
        rounds_that_fit=fit,
    )


def epsilons_after(
    budget: Budget,
    past: Mapping[str, Sequence[PrivacyEvent]],
    new_events: Sequence[PrivacyEvent],
) -> dict[str, float]:
    """What each client of a round would have spent after it: client id -> epsilon."""
    new: dict[str, list[PrivacyEvent]] = {}
    for event in new_events:
        new.setdefault(event.client, []).append(event)
    return {
        client: accountant.epsilon_of([*past.get(client, ()), *events], budget.delta)
        for client, events in new.items()
    }


def affordable(
    budget: Budget,
    past: Mapping[str, Sequence[PrivacyEvent]],
    new_events: Sequence[PrivacyEvent],
) -> frozenset[str]:
    """The clients whose budget allows these events: selection leaves the others out."""
    after = epsilons_after(budget, past, new_events)
    return frozenset(client for client, epsilon in after.items() if epsilon <= budget.epsilon)


def rounds_that_fit(budget: Budget, already: Sequence[PrivacyEvent], event: PrivacyEvent) -> int:
    """How many more releases like `event` fit after `already` (at most MAX_ROUNDS_COUNTED)."""

    def fits(rounds: int) -> bool:
        # Repeating one object keeps this cheap: the accountant only counts it.
        return (
            accountant.epsilon_of([*already, *([event] * rounds)], budget.delta) <= budget.epsilon
        )

    if not fits(1):
        return 0
    high = 2
    while high < MAX_ROUNDS_COUNTED and fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return min(low, MAX_ROUNDS_COUNTED)


def noise_that_fits(budget: Budget, already: Sequence[PrivacyEvent]) -> float | None:
    """The least noise multiplier at which one more release (no sampling) fits.

    None when a plan cannot have that much (limits.MAX_NOISE_MULTIPLIER).

    Past releases with sampling are counted as if they had none, which can only ask for more noise.
    """
    used = 0.0
    for past in already:
        if past.noise_multiplier == 0:
            return None
        used += 1 / past.noise_multiplier**2
    room = mu_within(budget.epsilon, budget.delta, len(already) + 1) ** 2 - used
    if room <= 1 / limits.MAX_NOISE_MULTIPLIER**2:
        return None
    return 1 / math.sqrt(room)


def _rounded_up(value: float) -> str:
    """Four significant digits, never below the value."""
    exact = Decimal(value)
    last = Decimal(1).scaleb(min(0, exact.adjusted() - 3))
    return f"{exact.quantize(last, ROUND_CEILING):f}"


def _words(epsilon: float) -> str:
    return (
        "an unbounded epsilon (not enough noise)"
        if math.isinf(epsilon)
        else f"epsilon {epsilon:.4g}"
    )
