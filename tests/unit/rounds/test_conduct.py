"""What clients did in a round, read off its events."""

from __future__ import annotations

import pytest

from boltz_mesh.rounds import event as events
from boltz_mesh.rounds.conduct import conduct_in
from boltz_mesh.rounds.event import Event, Recovered
from boltz_mesh.trust.conduct import Conduct
from tests.unit.rounds.rounds import (
    LATER,
    START_MS,
    deadline,
    dealt,
    dropped,
    fixed,
    keys,
    parameters,
    ready,
    released,
    sealed_started,
    seen,
    signed,
    started,
    stored,
)

PUBLISHED = events.VersionPublished(at_ms=START_MS + 500, version=2, model_digest="ab" * 32)
OPEN = (started(), seen(4), fixed())
SEALED = (sealed_started(), seen(4), fixed())
AT_COLLECTING_MS = START_MS + 20_500


def did(*life: Event) -> list[Conduct]:
    """Of the clients 0 to 3."""
    found = conduct_in(life)
    return [found[f"client-{index}"] for index in range(4)]


def test_nobody_before_a_roster_is_fixed() -> None:
    assert conduct_in([started(), seen(1), deadline()]) == {}
    assert conduct_in([]) == {}


def test_whose_update_is_in_the_sum_counts_and_the_rest_was_not_needed() -> None:
    assert did(*OPEN, stored(0, 1, 2), ready(), PUBLISHED) == [*[Conduct.COUNTED] * 3, "not-needed"]


def test_who_misses_the_deadline_is_late() -> None:
    life = (*OPEN, stored(0, 1), deadline(AT_COLLECTING_MS + 500), ready(2, LATER), PUBLISHED)
    assert did(*life) == ["counted", "counted", "late", "late"]


def test_a_timer_that_rings_too_early_makes_nobody_late() -> None:
    life = (*OPEN, stored(0), deadline(START_MS + 300), stored(1, 2), ready(), PUBLISHED)
    assert did(*life) == ["counted", "counted", "counted", "not-needed"]


def test_nobody_is_late_where_the_mesh_was_away() -> None:
    away = Recovered(at_ms=START_MS + 350, down_ms=100)
    life = (*OPEN, stored(0, 1), away, deadline(LATER), ready(2, LATER + 1), PUBLISHED)
    assert did(*life) == ["counted", "counted", "excused", "excused"]


@pytest.mark.parametrize(
    ("reason", "conduct"),
    [
        ("declined: ROUND_REFUSED", Conduct.DECLINED),
        ("superseded", Conduct.LEFT),
        ("norm_exceeded", Conduct.REFUSED),
        ("digest_mismatch", Conduct.REFUSED),
    ],
)
def test_why_a_client_was_dropped(reason: str, conduct: Conduct) -> None:
    life = (*OPEN, dropped(3, reason=reason), stored(0, 1, 2), ready(), PUBLISHED)
    assert did(*life) == ["counted", "counted", "counted", conduct]


def test_the_first_reason_stands_but_for_a_refused_update() -> None:
    first = (dropped(2, 3, reason="declined: "), dropped(2, reason="superseded"))
    then = dropped(3, reason="norm_exceeded")
    assert did(*OPEN, *first, then, stored(0, 1), ready(2), PUBLISHED) == [
        "counted",
        "counted",
        "declined",
        "refused",
    ]


def test_who_declines_and_uploads_all_the_same_counts() -> None:
    life = (*OPEN, dropped(0, reason="declined: "), stored(0, 1, 2), ready(), PUBLISHED)
    assert did(*life) == ["counted", "counted", "counted", "not-needed"]


def test_who_has_uploaded_in_an_open_round_may_leave() -> None:
    life = (*OPEN, stored(0), dropped(0, reason="superseded"), stored(1, 2), ready(), PUBLISHED)
    assert did(*life) == ["counted", "counted", "counted", "not-needed"]


def test_who_leaves_when_all_is_over_has_done_its_part() -> None:
    life = (*OPEN, stored(0, 1, 2), dropped(3, reason="superseded"), ready(), PUBLISHED)
    assert did(*life)[3] == "not-needed"


def test_in_a_round_without_a_result_nobody_counts() -> None:
    life = (*OPEN, stored(0), deadline())
    assert did(*life) == ["not-needed", "late", "late", "late"]
    abort = events.AbortRequested(at_ms=LATER, by="ann", reason="")
    assert did(*OPEN, stored(0), abort) == ["not-needed"] * 4


def test_a_sealed_round_to_its_end() -> None:
    life: tuple[Event, ...] = (*SEALED, keys(0, 1, 2, 3), dealt(0, 1, 2, 3), stored(0, 1, 2, 3))
    life += (signed(0, 1, 2, 3), released(0, 1, 2, enough=True), ready(4), PUBLISHED)
    assert did(*life) == ["counted"] * 4


def test_who_advertises_no_keys_in_time_is_late() -> None:
    life: tuple[Event, ...] = (*SEALED, keys(0, 1, 2), deadline(), dealt(0, 1, 2, at_ms=LATER))
    assert did(*life) == ["not-needed", "not-needed", "not-needed", "late"]


def test_who_deals_no_shares_in_time_is_late() -> None:
    life: tuple[Event, ...] = (*SEALED, keys(0, 1, 2, 3), dealt(0, 1, 2), deadline())
    assert did(*life) == ["not-needed", "not-needed", "not-needed", "late"]


def test_who_uploads_and_does_not_sign_is_late_though_its_update_counts() -> None:
    life: tuple[Event, ...] = (
        *SEALED,
        keys(0, 1, 2, 3),
        dealt(0, 1, 2, 3),
        stored(0, 1, 2, 3),
        signed(0, 1, 2),
    )
    life += (deadline(), released(0, 1, 2, enough=True, at_ms=LATER + 1))
    life += (ready(4, LATER + 2), PUBLISHED)
    assert did(*life) == ["counted", "counted", "counted", "late"]


def test_who_uploads_in_a_sealed_round_may_not_leave() -> None:
    life: tuple[Event, ...] = (*SEALED, keys(0, 1, 2, 3), dealt(0, 1, 2, 3), stored(3))
    life += (dropped(3, reason="superseded"), stored(0, 1, 2), signed(0, 1, 2))
    life += (released(0, 1, 2, enough=True), ready(4), PUBLISHED)
    assert did(*life) == ["counted", "counted", "counted", "left"]


def test_who_has_released_may_leave() -> None:
    life: tuple[Event, ...] = (
        *SEALED,
        keys(0, 1, 2, 3),
        dealt(0, 1, 2, 3),
        stored(0, 1, 2, 3),
        signed(0, 1, 2, 3),
    )
    life += (released(0), dropped(0, 1, reason="superseded"), released(2, 3, enough=True))
    life += (ready(4), PUBLISHED)
    assert did(*life) == ["counted", "left", "counted", "counted"]


def test_parameters_of_these_rounds() -> None:
    """The deadlines above lie behind the rounds' own."""
    assert START_MS + 200 + parameters().collecting_ms < AT_COLLECTING_MS
