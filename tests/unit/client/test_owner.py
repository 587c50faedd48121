"""The owner's limits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from boltz_client.owner import ALL_MODES, OwnerLimits, is_own_refusal
from boltz_protocol.errors import (
    BudgetExceeded,
    ConfigurationError,
    RoundRefused,
    WeightRefused,
)
from boltz_protocol.messages import (
    Adversary,
    Grouping,
    RoundConfiguration,
    RoundMode,
    SecureAggregation,
)
from boltz_protocol.secagg.floors import Floors
from tests.support import samples

OPEN = frozenset({RoundMode.OPEN})
FINGERPRINT = "ab" * 32


def sealed() -> RoundConfiguration:
    asked = SecureAggregation(0.05, 0.1, Adversary.SEMI_MALICIOUS)
    return replace(samples.configuration(), mode=RoundMode.SEALED, secure_aggregation=asked)


def test_the_defaults_allow_sealed_rounds_and_no_others() -> None:
    OwnerLimits().check(sealed(), 16)
    with pytest.raises(RoundRefused, match="mode is open; the owner allows sealed") as refused:
        OwnerLimits().check(samples.configuration(), 16)
    assert refused.value.metadata == {"limit": "modes"}
    OwnerLimits(modes=ALL_MODES).check(samples.configuration(), 16)


@pytest.mark.parametrize(
    ("limit", "match"),
    [
        ({"smallest_cohort": 3}, "2 clients.* at least 3"),
        ({"least_noise_multiplier": 1.6}, "noise multiplier is 1.5.* at least 1.6"),
        ({"largest_weight_share": 0.5}, "53.3%.* allows 50.0%"),
        ({"largest_clip_norm": 0.9}, "clip norm is 1; .* allows 0.9"),
        ({"largest_attempt": 1}, "attempt 2 of the round; the owner allows 1"),
        ({"models": ("vol-*", "to?s")}, r"trains toy; .* vol-\*, to\?s"),
        ({"models": ("TOY",)}, "trains toy"),
    ],
)
@pytest.mark.parametrize("mode", [RoundMode.OPEN, RoundMode.SEALED])
def test_what_is_outside_is_refused(limit: dict[str, Any], match: str, mode: RoundMode) -> None:
    configuration = sealed() if mode is RoundMode.SEALED else samples.configuration()
    with pytest.raises(RoundRefused, match=match) as refused:
        OwnerLimits(modes=ALL_MODES, **limit).check(replace(configuration, attempt=2), 16)
    assert [refused.value.metadata["limit"]] == list(limit)


def test_peers_that_no_open_round_shows() -> None:
    owner = OwnerLimits(modes=ALL_MODES, known_peers=frozenset({FINGERPRINT}), least_known_peers=1)
    owner.check(sealed(), 16)
    with pytest.raises(RoundRefused, match="shows no peers"):
        owner.check(samples.configuration(), 16)
    # Pins without a number are no demand.
    replace(owner, least_known_peers=0).check(samples.configuration(), 16)


def test_a_grouped_round_is_judged_by_its_groups() -> None:
    grouped = replace(
        sealed(),
        mode=RoundMode.GROUPED,
        grouping=Grouping(groups=2, min_group_survivors=5),
        roster_size=12,
        total_weight=120,
        min_survivors=10,
    )
    owner = OwnerLimits(
        modes=ALL_MODES,
        smallest_cohort=5,
        known_peers=frozenset({FINGERPRINT}),
        least_known_peers=1,
    )
    owner.check(grouped, 16)
    with pytest.raises(RoundRefused, match=r"a group of .* with 5 clients.* at least 6") as refused:
        replace(owner, smallest_cohort=6).check(grouped, 16)
    assert refused.value.metadata == {"limit": "smallest_cohort"}
    with pytest.raises(RoundRefused, match="mode is grouped; the owner allows sealed"):
        OwnerLimits().check(grouped, 16)


def test_what_is_asked_of_members_and_survivors() -> None:
    peers = frozenset({FINGERPRINT, "cd" * 32})
    owner = OwnerLimits(
        smallest_cohort=7, largest_weight_share=0.25, known_peers=peers, least_known_peers=2
    )
    assert owner.floors == Floors(7, 0.25, peers, 2)
    assert OwnerLimits().floors == Floors()


def test_the_budget() -> None:
    OwnerLimits().check_epsilon(math.inf)
    owner = OwnerLimits(epsilon_budget=2.0)
    owner.check_epsilon(2.0)
    for spent, told in ((2.001, "2.001 at delta 1e-06"), (math.inf, "no bound"), (math.nan, "nan")):
        with pytest.raises(BudgetExceeded, match=f"{told}.* the owner allows 2") as refused:
            owner.check_epsilon(spent)
        assert is_own_refusal(refused.value)


def test_whose_refusal_it_is() -> None:
    assert is_own_refusal(RoundRefused("x"))
    assert is_own_refusal(WeightRefused("x"))
    assert not is_own_refusal(BudgetExceeded("by the mesh", grpc_code="FAILED_PRECONDITION"))
    assert not is_own_refusal(ConfigurationError("x"))


def test_the_edges_are_allowed() -> None:
    configuration = replace(samples.configuration(), total_weight=32)
    OwnerLimits(
        OPEN, 2, 1.5, 0.5, largest_clip_norm=1.0, largest_attempt=1, models=("vol-*", "t[op]y")
    ).check(configuration, 16)


@pytest.mark.parametrize(
    "values",
    [
        {"modes": frozenset()},
        {"smallest_cohort": 0},
        {"least_noise_multiplier": -1.0},
        {"least_noise_multiplier": math.nan},
        {"largest_weight_share": 0.0},
        {"largest_weight_share": 1.1},
        {"largest_weight_share": math.nan},
        {"smallest_cohort": 10_001},
        {"largest_clip_norm": 0.0},
        {"largest_clip_norm": math.nan},
        {"largest_attempt": 0},
        {"largest_attempt": 4},
        {"epsilon_budget": 0.0},
        {"epsilon_budget": math.nan},
        {"delta": 0.0},
        {"delta": 1.0},
        {"delta": math.nan},
        {"models": ()},
        {"least_known_peers": 1},
        {"least_known_peers": -1},
        {"known_peers": frozenset({"AB" * 32})},
        {"known_peers": frozenset({"ab" * 31})},
    ],
)
def test_limits_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        OwnerLimits(**values)
