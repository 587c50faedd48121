"""Whether a round still fits the budget of every client in it, and what would fit instead.

Pure: the caller brings each client's past. A hold (a round that has started and may still release)
is handed over as an event like any other, so that it counts as spent.

A budget's unit is a client, or a client's data of one period. The second is renewed with each
period that has no day in common with those before it (`periods`): by parallel composition, what was
released about other data takes nothing from it. That the rounds of a period train on data of that
period alone is the plan's promise, which nobody here can check. An event about a whole client
counts in every period, and a budget for whole clients counts every event.

A budget is a filter: plans may change their noise in view of what was published. For Gaussian
noise without sampling this costs nothing beyond the sum of 1 / z^2 that is checked here (Smith and
Thakurta 2022, "Fully Adaptive Composition for Gaussian Differential Privacy", theorem 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import ROUND_CEILING, Decimal
from typing import Final

from boltz_mesh.privacy import accountant
from boltz_mesh.privacy.mechanisms import RELATION_WORDS, UNIT_WORDS, PrivacyEvent, Unit
from boltz_mesh.privacy.periods import WHOLE_CLIENT, Period, sharing
from boltz_protocol import limits
from boltz_protocol.errors import BudgetExceeded, InvalidPlan
from boltz_protocol.gaussian_dp import mu_within

#: A search for the number of rounds that fit ends here: beyond it the answer is "plenty".
MAX_ROUNDS_COUNTED: Final = 10_000


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that may be spent on one unit.

    Args:
        epsilon: above 0, finite.
        delta: from `limits.MIN_DELTA`, below 1; keep it below one over the number of clients.
        unit: `client`: over the life of the model; `client-period`: for the data of `period`.
        start: first day (UTC) on which rounds may start; None for any before `end`.
        end: the day on which they may no longer; None for never. Both are needed for
            `client-period`, since they are its period.

    Raises:
        InvalidPlan: out of range; the message has a value that would do.
    """

    epsilon: float
    delta: float
    unit: Unit = "client"
    start: date | None = None
    end: date | None = None

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
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise InvalidPlan(
                f"budget.end {self.end} must be after budget.start {self.start}; "
                f"{_year_after(self.start)} would do",
                setting="budget.end",
            )
        if self.unit == "client-period":
            for name, day in (("start", self.start), ("end", self.end)):
                if day is None:
                    raise InvalidPlan(
                        f'budget.{name} is missing: unit = "client-period" needs the days whose '
                        "data it is about; start = 2026-10-01 and end = 2027-01-01 would do, or "
                        'unit = "client"',
                        setting=f"budget.{name}",
                    )

    @property
    def period(self) -> str:
        """The period that releases under this budget are about; empty for whole clients."""
        if self.unit == "client":
            return WHOLE_CLIENT
        assert self.start is not None
        assert self.end is not None
        return str(Period(self.start, self.end))

    def __str__(self) -> str:
        """The figure with what it is a figure of."""
        return (
            f"epsilon {self.epsilon:g} at delta {self.delta:g} (unit: {UNIT_WORDS[self.unit]}; "
            f"relation: {RELATION_WORDS['contribution-set-to-zero']})"
        )


def _year_after(day: date) -> date:
    return date(min(day.year + 1, date.max.year), day.month, min(day.day, 28))


def check_window(budget: Budget, today: date) -> None:
    """Refuse a round that starts outside the days of its budget.

    Raises: BudgetExceeded, with the day from which it would do, or the setting that would have to
        change.
    """
    if budget.start is not None and today < budget.start:
        raise BudgetExceeded(
            f"the budget is for rounds that start from {budget.start} on (UTC), and today is "
            f"{today}; wait, or set an earlier budget.start",
            setting="budget.start",
        )
    if budget.end is not None and today >= budget.end:
        raise BudgetExceeded(
            f"the budget ended before {budget.end} (UTC), and today is {today}; "
            f"budget.end = {_year_after(today)} would do"
            + ("" if budget.unit == "client" else f", with budget.start = {budget.end}"),
            setting="budget.end",
        )


def counted(budget: Budget, events: Sequence[PrivacyEvent]) -> Sequence[PrivacyEvent]:
    """Of one client's events, those that this budget pays for.

    Args:
        events: of the models that the budget covers.
    """
    if budget.period == WHOLE_CLIENT or not events:
        return events
    shared = sharing(budget.period, {event.period for event in events})
    return [event for event in events if event.period in shared]


def check_round(
    budget: Budget,
    past: Mapping[str, Sequence[PrivacyEvent]],
    new_events: Sequence[PrivacyEvent],
    *,
    of: str = "the model",
) -> None:
    """Refuse a round that could take any of its clients over the budget.

    Args:
        budget: of the model, or of the mesh.
        past: client id -> what was already charged or is held; a client that is missing has
            spent nothing.
        new_events: what the round would release, one event for each client and attempt.
        of: whose budget it is, for the message.

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
        f"a noise multiplier of at least {rounded_up(noise)} would fit"
        if noise is not None
        else "no amount of noise would fit"
    )
    clients = len({event.client for event in new_events})
    raise BudgetExceeded(
        f"this round would take {len(over)} of {clients} clients over the budget of {of}, "
        f"{budget}: client {client} would have spent {_words(over[client])}. At noise multiplier "
        f"{event.noise_multiplier:g} {fit} more {'round fits' if fit == 1 else 'rounds fit'} for "
        f"it; {would_do}.",
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
        client: accountant.epsilon_of(
            counted(budget, [*past.get(client, ()), *events]), budget.delta
        )
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
    """How many more releases like `event` fit after `already` (at most MAX_ROUNDS_COUNTED).

    Args:
        event: of the budget's period.
    """
    already = counted(budget, already)

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
    already = counted(budget, already)
    for past in already:
        if past.noise_multiplier == 0:
            return None
        used += 1 / past.noise_multiplier**2
    room = mu_within(budget.epsilon, budget.delta, len(already) + 1) ** 2 - used
    if room <= 1 / limits.MAX_NOISE_MULTIPLIER**2:
        return None
    return 1 / math.sqrt(room)


def noise_for_cohort(
    budgets: Sequence[tuple[Budget, Mapping[str, Sequence[PrivacyEvent]]]],
    clients: Sequence[str],
    cohort: int,
) -> float | None:
    """The least noise multiplier at which one more release fits `cohort` of the clients.

    Args:
        budgets: each with what its clients have spent of it.
        clients: at least `cohort`.

    Returns: None where no plan can have so much.
    """
    # Most clients have been in the same rounds, and the search for the noise is what takes time.
    known: dict[tuple[int, int, tuple[float, ...]], float | None] = {}
    needed: list[float] = []
    for client in clients:
        noises: list[float] = []
        for number, (budget, past) in enumerate(budgets):
            already = counted(budget, past.get(client, ()))
            spent = tuple(sorted(event.noise_multiplier for event in already))
            key = (number, len(already), spent)
            if key not in known:
                known[key] = noise_that_fits(budget, already)
            noises.append(math.inf if (noise := known[key]) is None else noise)
        needed.append(max(noises, default=0.0))
    least = sorted(needed)[cohort - 1]
    return None if math.isinf(least) else least


def rounded_up(value: float) -> str:
    """A noise multiplier for people: four significant digits, never below the value."""
    exact = Decimal(value)
    last = Decimal(1).scaleb(min(0, exact.adjusted() - 3))
    return f"{exact.quantize(last, ROUND_CEILING):f}"


def _words(epsilon: float) -> str:
    return (
        "an unbounded epsilon (not enough noise)"
        if math.isinf(epsilon)
        else f"epsilon {epsilon:.4g}"
    )
