"""The client's machine: what should happen, and what should not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_client import participant as p
from boltz_client.participant import Link, RoundKey, Stage, Work, step
from boltz_protocol import limits
from boltz_protocol.ids import RoundId

ONE = RoundKey(RoundId("11" * 16), 1)
TWO = RoundKey(RoundId("22" * 16), 1)


def run(*events: p.Event, state: p.Participant | None = None) -> p.Step:
    state = state or p.Participant()
    effects: tuple[p.Effect, ...] = ()
    for event in events:
        state, effects = step(state, event)
    return state, effects


ONLINE = run(p.StreamOpened(), p.Welcomed())[0]


def test_a_round_from_offer_to_outcome() -> None:
    state, effects = run(p.StreamOpened())
    assert (state.link, effects) == (Link.CHECKING_IN, (p.SendCheckIn(),))
    state, effects = run(p.Welcomed(), state=state)
    assert (state.link, effects) == (Link.ONLINE, ())
    state, effects = run(p.Offered(ONE), state=state)
    assert (state.work, effects) == (Work(ONE, Stage.EXAMINING), (p.Examine(ONE),))
    state, effects = run(p.Accepted(ONE), state=state)
    assert (state.work, effects) == (Work(ONE, Stage.TRAINING), (p.Train(ONE),))
    state, effects = run(p.Sealed(ONE), state=state)
    assert (state.work, effects) == (Work(ONE, Stage.UPLOADING), (p.Upload(ONE),))
    state, effects = run(p.Receipted(ONE), state=state)
    assert (state.work, effects) == (Work(ONE, Stage.WAITING), ())
    state, effects = run(p.Ended(ONE), state=state)
    assert (state.work, effects) == (None, (p.Forget(ONE),))
    assert run(p.Offered(ONE), state=state) == (state, ())
    assert run(p.Ended(ONE), state=state) == (state, ())


def test_a_sealed_update_is_not_trained_again() -> None:
    _, effects = run(p.Offered(ONE), p.Accepted(ONE, sealed=True), state=ONLINE)
    assert effects == (p.Upload(ONE),)


@pytest.mark.parametrize(
    "before",
    [
        [],
        [p.Accepted(ONE)],
        [p.Accepted(ONE), p.Sealed(ONE)],
        [p.Accepted(ONE), p.Sealed(ONE), p.Receipted(ONE)],
    ],
)
def test_a_repeated_offer_starts_nothing(before: list[p.Event]) -> None:
    state, _ = run(p.Offered(ONE), *before, state=ONLINE)
    state, effects = run(p.StreamLost(), state=state)
    assert effects == (p.Reconnect(),)
    state, _ = run(p.StreamOpened(), p.Welcomed(), state=state)
    assert run(p.Offered(ONE), state=state) == (state, ())


@pytest.mark.parametrize(
    "before", [[], [p.Accepted(ONE)], [p.Accepted(ONE), p.Sealed(ONE)]], ids=str
)
def test_a_failure_is_declined_and_declined_again(before: list[p.Event]) -> None:
    state, effects = run(p.Offered(ONE), *before, p.Failed(ONE, "NO"), state=ONLINE)
    assert effects == (p.Abandon(ONE), p.SendDecline(ONE, "NO"), p.Forget(ONE))
    assert state.work is None
    assert run(p.Offered(ONE), state=state)[1] == (p.SendDecline(ONE, "NO"),)
    assert run(p.Ended(ONE), state=state)[1] == ()


def test_a_failure_without_a_stream_waits_for_the_offer() -> None:
    state, effects = run(p.Offered(ONE), p.StreamLost(), p.Failed(ONE, "NO"), state=ONLINE)
    assert effects == (p.Abandon(ONE), p.Forget(ONE))
    state, effects = run(p.StreamOpened(), p.Welcomed(), p.Offered(ONE), state=state)
    assert effects == (p.SendDecline(ONE, "NO"),)


def test_another_round_ends_the_one_in_work() -> None:
    state, effects = run(p.Offered(ONE), p.Accepted(ONE), p.Offered(TWO), state=ONLINE)
    assert effects == (p.Abandon(ONE), p.Forget(ONE), p.Examine(TWO))
    # What the abandoned work still says is nobody's business.
    for late in (p.Sealed(ONE), p.Receipted(ONE), p.Accepted(ONE), p.Failed(ONE, "NO")):
        assert run(late, state=state) == (state, ())


def test_an_outcome_before_the_receipt_abandons_the_upload() -> None:
    _, effects = run(p.Offered(ONE), p.Accepted(ONE), p.Sealed(ONE), p.Ended(ONE), state=ONLINE)
    assert effects == (p.Abandon(ONE), p.Forget(ONE))


def test_after_the_receipt_a_failure_is_told_and_the_outcome_waited_for() -> None:
    state, _ = run(p.Offered(ONE), p.Accepted(ONE), p.Sealed(ONE), p.Receipted(ONE), state=ONLINE)
    assert run(p.Failed(ONE, "NO"), state=state) == (state, (p.SendDecline(ONE, "NO"),))
    offline, _ = run(p.StreamLost(), state=state)
    assert run(p.Failed(ONE, "NO"), state=offline) == (offline, ())


@pytest.mark.parametrize("before", [[], [p.Sealed(ONE)]], ids=["training", "uploading"])
def test_a_client_that_is_late_stops_and_waits_for_the_outcome(before: list[p.Event]) -> None:
    state, _ = run(p.Offered(ONE), p.Accepted(ONE), *before, state=ONLINE)
    state, effects = run(p.Late(ONE), state=state)
    assert (state.work, effects) == (Work(ONE, Stage.WAITING), (p.Abandon(ONE),))
    # The deadline and the server may both say so; the others may still count on its shares.
    assert run(p.Late(ONE), state=state) == (state, ())
    assert run(p.Failed(ONE, "NO"), state=state) == (state, (p.SendDecline(ONE, "NO"),))
    assert run(p.Offered(ONE), state=state) == (state, ())
    state, effects = run(p.Ended(ONE), state=state)
    assert (state.work, effects) == (None, (p.Forget(ONE),))
    assert run(p.Late(ONE), state=state) == (state, ())


def test_nothing_happens_after_the_stop() -> None:
    state, effects = run(p.Offered(ONE), p.StopRequested(), state=ONLINE)
    assert effects == (p.SendDecline(ONE, p.CLIENT_LEFT), p.Abandon(ONE), p.Close())
    for event in (p.StreamOpened(), p.Offered(TWO), p.Accepted(ONE), p.StopRequested()):
        assert run(event, state=state) == (state, ())
    assert run(p.StopRequested(), state=ONLINE)[1] == (p.Close(),)


def test_what_is_sealed_is_not_declined_on_leaving() -> None:
    sealed, _ = run(p.Offered(ONE), p.Accepted(ONE), p.Sealed(ONE), state=ONLINE)
    assert run(p.StopRequested(), state=sealed)[1] == (p.Abandon(ONE), p.Close())
    offline, _ = run(p.Offered(ONE), p.StreamLost(), state=ONLINE)
    assert run(p.StopRequested(), state=offline)[1] == (p.Abandon(ONE), p.Close())


@pytest.mark.parametrize(
    "events",
    [
        [p.StreamOpened(), p.StreamOpened()],
        [p.Welcomed()],
        [p.StreamOpened(), p.Welcomed(), p.Offered(ONE), p.Sealed(ONE)],
        [p.StreamOpened(), p.Welcomed(), p.Offered(ONE), p.Receipted(ONE)],
        [p.StreamOpened(), p.Welcomed(), p.Offered(ONE), p.Late(ONE)],
    ],
)
def test_moves_that_cannot_happen_crash(events: list[p.Event]) -> None:
    with pytest.raises(AssertionError):
        run(*events)


_KEYS = st.sampled_from([RoundKey(RoundId(f"{i:02x}" * 16), 1 + i % 2) for i in range(100)])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), _KEYS), max_size=400))
def test_no_round_is_trained_twice_and_memory_is_bounded(moves: list[tuple[int, RoundKey]]) -> None:
    state = ONLINE
    trained: list[RoundKey] = []
    for move, key in moves:
        work = state.work
        event: p.Event = p.Offered(key)
        if work is not None and move > 1:
            steps: dict[Stage, p.Event] = {
                Stage.EXAMINING: p.Accepted(work.key),
                Stage.TRAINING: p.Sealed(work.key),
                Stage.UPLOADING: p.Receipted(work.key),
                Stage.WAITING: p.Ended(work.key),
            }
            event = steps[work.stage]
            if move == 2:
                event = p.Failed(work.key, "NO")
            if move == 3 and work.stage is not Stage.EXAMINING:
                event = p.Late(work.key)
        recent = state.finished
        state, effects = step(state, event)
        for effect in effects:
            if isinstance(effect, p.Train):
                assert effect.key not in recent
                trained.append(effect.key)
        assert len(state.finished) <= limits.MAX_REMEMBERED_ROUNDS
        assert len(state.declined) <= limits.MAX_REMEMBERED_ROUNDS
