"""What was released about a client, stated completely: the privacy event.

An event says what happened (mechanism, noise, sensitivity, sampling, unit, relation, and to whom);
it holds no epsilon. The ledger stores events, and `accountant` computes epsilon from them, so that
a better accountant can be run over old ledgers (dp_accounting, `dp_event.py`, keeps the same line).

Relation, everywhere: two runs are neighbours when they have the same roster, weights and survivors
and one client's contribution is set to zero in one of them (the zero-out relation of Kairouz et
al. 2021, "Practical and Private (Deep) Learning Without Sampling or Shuffling", Definition 1.1;
`REPLACE_SPECIAL` in dp_accounting). It says nothing about hiding *that* a client took part: the
roster is public.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, get_args

from boltz_mesh.privacy.periods import WHOLE_CLIENT, parse_period
from boltz_protocol.errors import InvalidPlan

#: The mesh adds the noise; the clients add it in shares, each discrete Gaussian; nobody does.
Mechanism = Literal["discrete-gaussian", "distributed-discrete-gaussian", "none"]
#: Whose data an epsilon is about: everything of one client, or what one client has of one period.
Unit = Literal["client", "client-period"]
#: The relation for which an event states its sensitivity.
EventRelation = Literal["contribution-set-to-zero"]
#: The relations in which epsilon can be told.
Relation = Literal["contribution-set-to-zero", "contribution-replaced"]

#: How unit and relation read in a sentence for people.
UNIT_WORDS: Final[dict[Unit, str]] = {
    "client": "one client",
    "client-period": "one client's data of one period",
}
RELATION_WORDS: Final[dict[Relation, str]] = {
    "contribution-set-to-zero": "its contribution set to zero",
    "contribution-replaced": "its contribution replaced by any other",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyEvent:
    """One release that one client's contribution went into.

    Args:
        mechanism: `discrete-gaussian` (open rounds), `distributed-discrete-gaussian` (sealed
            rounds), or `none` when the sum was released without noise.
        noise_multiplier: standard deviation of the noise on the sum over `sensitivity`;
            0 exactly when the mechanism is `none`. Where the noise came in shares, what holds at
            the fewest survivors that were allowed, the tolerated colluders' shares left out, and
            lowered by what a sum of discrete Gaussians lacks (`boltz_protocol.noise_share`).
        sensitivity: L2 bound of the client's contribution to the sum, in integer units of the
            encoding; at least 1.
        sampling_rate: probability with which the client was Poisson-sampled by a coin that the
            adversary does not see, in (0, 1]. Clients that choose themselves when to take part,
            and rosters that are published, give no amplification: 1.
        unit: whose data one event is about.
        period: with the unit `client-period`, the days whose data went in, as `str(Period)`; empty
            with the unit `client`. That nothing else went in is the plan's promise.
        relation: what a neighbouring run differs in, for which `sensitivity` holds.
        model, round, attempt, client: which release and whose; a second attempt is a second
            release.

    Raises:
        InvalidPlan: a number is out of its range.
    """

    mechanism: Mechanism
    noise_multiplier: float
    sensitivity: int
    sampling_rate: float = 1.0
    unit: Unit = "client"
    relation: EventRelation = "contribution-set-to-zero"
    model: str
    round: str
    attempt: int
    client: str
    period: str = WHOLE_CLIENT

    def __post_init__(self) -> None:
        """Refuse an event whose mathematics would mean nothing, or would be misread."""
        for setting, value, known in (
            ("mechanism", self.mechanism, get_args(Mechanism)),
            ("unit", self.unit, get_args(Unit)),
            ("relation", self.relation, get_args(EventRelation)),
        ):
            if value not in known:
                raise InvalidPlan(
                    f"{setting} {value!r} is not known to this version; {known[0]!r} would do",
                    setting=setting,
                )
        require_noise_multiplier(self.noise_multiplier)
        require_sampling_rate(self.sampling_rate)
        if (self.unit == "client") != (self.period == WHOLE_CLIENT):
            raise InvalidPlan(
                f"unit {self.unit!r} with period {self.period!r}: use `client` with none, or "
                "`client-period` with one such as 2026-10-01/2027-01-01",
                setting="period",
            )
        if self.period != WHOLE_CLIENT:
            parse_period(self.period)
        if self.sensitivity < 1:
            raise InvalidPlan(
                f"sensitivity {self.sensitivity} must be a whole number of at least 1; "
                "use the encoding's bound_l2",
                setting="sensitivity",
            )
        if (self.mechanism == "none") != (self.noise_multiplier == 0):
            raise InvalidPlan(
                f"mechanism {self.mechanism!r} with noise_multiplier {self.noise_multiplier}: "
                "use `none` with 0, or a Gaussian with more than 0",
                setting="noise_multiplier",
            )

    @property
    def standard_deviation(self) -> float:
        """The noise on the sum, in integer units of the encoding."""
        return self.noise_multiplier * self.sensitivity


def release_event(
    *,
    noise_multiplier: float,
    sensitivity: int,
    model: str,
    round: str,
    attempt: int,
    client: str,
    distributed: bool = False,
    period: str = WHOLE_CLIENT,
) -> PrivacyEvent:
    """The event of one client in one release of a round's sum (no sampling: rate 1).

    Args:
        noise_multiplier: 0 for no noise; with `distributed` the effective one, from
            `noise_share.effective_noise_multiplier`, and not the plan's.
        distributed: the noise came in shares of the clients (a sealed round).
        period: whose data the release is about, where it is not all of the client's.

    Raises: InvalidPlan.
    """
    gaussian: Mechanism = "distributed-discrete-gaussian" if distributed else "discrete-gaussian"
    return PrivacyEvent(
        mechanism=gaussian if noise_multiplier > 0 else "none",
        noise_multiplier=noise_multiplier,
        sensitivity=sensitivity,
        model=model,
        round=round,
        attempt=attempt,
        client=client,
        unit="client-period" if period else "client",
        period=period,
    )


def require_noise_multiplier(value: float) -> None:
    """Refuse a noise multiplier that is negative or not finite. Raises: InvalidPlan."""
    if not (math.isfinite(value) and value >= 0):
        raise InvalidPlan(
            f"noise_multiplier {value} must be 0 (no noise) or a positive number; 1.0 would do",
            setting="noise_multiplier",
        )


def require_sampling_rate(value: float) -> None:
    """Refuse a sampling rate outside (0, 1]. Raises: InvalidPlan."""
    if not 0 < value <= 1:
        raise InvalidPlan(
            f"sampling_rate {value} must be above 0 and at most 1; 1 (no sampling) would do",
            setting="sampling_rate",
        )
