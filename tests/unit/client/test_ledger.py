"""The client's own ledger: durable, once for each attempt, never silently wrong."""

from __future__ import annotations

import json
import math
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_client.ledger import LEDGER_NAME, Ledger, LedgerEvent, release_of
from boltz_protocol import limits
from boltz_protocol import messages as m
from boltz_protocol.encoding import Encoding, plan_encoding
from boltz_protocol.errors import ConfigurationError, StateConflict
from boltz_protocol.gaussian_dp import epsilon_of_releases
from boltz_protocol.ids import ModelId, RoundId
from tests.support import samples


def event(number: int = 1, **changes: Any) -> LedgerEvent:
    made = LedgerEvent(
        model_id=samples.MODEL,
        round_id=RoundId(f"{number:032x}"),
        attempt=1,
        mechanism="discrete-gaussian",
        noise_multiplier=4.0,
        sensitivity=2000,
        relation="contribution-set-to-zero",
        unit="client",
        delta=1e-5,
        at_ms=samples.NOW_MS,
    )
    return replace(made, **changes)


def test_what_is_charged_is_there_for_the_next_process(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.events() == ()
    assert not ledger.path.exists()
    assert ledger.charge(event(1))
    assert ledger.charge(event(2, attempt=2))
    assert ledger.charge(event(3, model_id=ModelId("other")))
    again = Ledger(tmp_path)
    assert again.events() == (event(1), event(2, attempt=2), event(3, model_id=ModelId("other")))
    assert again.events(samples.MODEL) == again.events()[:2]
    assert again.has(event(2).round_id, 2)
    assert not again.has(event(2).round_id, 1)
    assert stat.S_IMODE((tmp_path / LEDGER_NAME).stat().st_mode) == 0o600
    assert LEDGER_NAME in repr(again)


def test_an_attempt_is_charged_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.charge(event())
    assert not ledger.charge(event(at_ms=samples.NOW_MS + 5))
    assert not Ledger(tmp_path).charge(event())
    assert len(Ledger(tmp_path).events()) == 1
    for other in ({"noise_multiplier": 3.0}, {"model_id": ModelId("other")}, {"sensitivity": 1}):
        with pytest.raises(StateConflict, match="two configurations"):
            ledger.charge(event(**other))
    assert ledger.charge(event(attempt=2))


@settings(max_examples=30, deadline=None)
@given(noises=st.lists(st.floats(1.0, 50.0), max_size=6), delta=st.floats(1e-9, 1e-3))
def test_epsilon_is_that_of_the_releases(
    tmp_path_factory: pytest.TempPathFactory, noises: list[float], delta: float
) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("store"))
    for number, noise in enumerate(noises):
        ledger.charge(event(number, noise_multiplier=noise))
        ledger.charge(event(1000 + number, model_id=ModelId("other")))
    mu = math.sqrt(math.fsum(1 / noise**2 for noise in noises))
    largest = max((1 / noise for noise in noises), default=0.0)
    wanted = epsilon_of_releases(mu, delta, len(noises), largest)
    assert ledger.spent(samples.MODEL, delta) == pytest.approx(wanted, rel=1e-9)


def test_many_rounds_with_enough_noise_each_are_told(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for number in range(36):
        ledger.charge(event(number, noise_multiplier=1.0))
    assert ledger.spent(samples.MODEL, 1e-6) == epsilon_of_releases(6.0, 1e-6, 36, 1.0) > 40


def test_a_round_without_noise_leaves_no_bound(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.charge(event(1))
    bare = event(2, mechanism="none", noise_multiplier=0.0, delta=0.0)
    assert ledger.spent(samples.MODEL, 1e-5, with_event=bare) == math.inf
    # What is only asked about is not charged, and what is charged counts once.
    assert math.isfinite(ledger.spent(samples.MODEL, 1e-5))
    assert ledger.spent(samples.MODEL, 1e-5, with_event=event(1)) == ledger.spent(
        samples.MODEL, 1e-5
    )
    ledger.charge(bare)
    assert ledger.spent(samples.MODEL, 1e-5) == math.inf


# --- what may be in the file --------------------------------------------------------------------


@pytest.mark.parametrize("kept", [1, 20, -2, -1])
def test_a_torn_last_line_was_never_charged(tmp_path: Path, kept: int) -> None:
    ledger = Ledger(tmp_path)
    ledger.charge(event(1))
    whole = ledger.path.read_bytes()
    ledger.charge(event(2))
    torn = ledger.path.read_bytes()[len(whole) :][:kept]
    ledger.path.write_bytes(whole + torn)
    again = Ledger(tmp_path)
    assert again.events() == (event(1),)
    assert ledger.path.read_bytes() == whole + torn  # reading changes nothing
    assert again.charge(event(3))
    assert Ledger(tmp_path).events() == (event(1), event(3))


def line(**changes: Any) -> bytes:
    content = {name: getattr(event(), name) for name in LedgerEvent.__slots__}
    return json.dumps(content | changes).encode()


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"\0" * 40,
        b"[" * 100_000,
        line(more=1),
        line(noise_multiplier="4"),
        line(noise_multiplier=math.nan),
        line(noise_multiplier=-1),
        line(noise_multiplier=0),
        line(mechanism="laplace"),
        line(mechanism="none"),
        line(relation="contribution-replaced"),
        line(unit="trade"),
        line(attempt=True),
        line(attempt=0),
        line(attempt=1.0),
        line(sensitivity=0),
        line(delta=1),
        line(at_ms=-1),
        line(round_id="x"),
        line(model_id="A B"),
    ],
)
def test_any_other_damage_is_refused(tmp_path: Path, bad: bytes) -> None:
    ledger = Ledger(tmp_path)
    ledger.charge(event(7))
    with ledger.path.open("ab") as file:
        file.write(bad + b"\n" + line() + b"\n")
    again = Ledger(tmp_path)
    for use in (
        again.events,
        lambda: again.charge(event(9)),
        lambda: again.spent(samples.MODEL, 1e-5),
    ):
        with pytest.raises(ConfigurationError, match=r"line 2 of .*damaged"):
            use()


def test_an_attempt_that_stands_there_twice_is_damage(tmp_path: Path) -> None:
    (tmp_path / LEDGER_NAME).touch(0o600)
    (tmp_path / LEDGER_NAME).write_bytes(2 * (line() + b"\n"))
    with pytest.raises(ConfigurationError, match=r"line 2 .*charged twice"):
        Ledger(tmp_path).events()


def test_whole_numbers_by_another_hand_are_read(tmp_path: Path) -> None:
    (tmp_path / LEDGER_NAME).touch(0o600)
    (tmp_path / LEDGER_NAME).write_bytes(line(noise_multiplier=4) + b"\n")
    ledger = Ledger(tmp_path)
    assert ledger.events() == (event(),)
    assert not ledger.charge(event())


def test_a_ledger_that_others_can_read_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.charge(event())
    ledger.path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        Ledger(tmp_path).events()


def test_a_ledger_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path)
    ledger.charge(event(1))
    size = ledger.path.stat().st_size
    monkeypatch.setattr(limits, "MAX_LEDGER_BYTES", size + 10)
    with pytest.raises(ConfigurationError, match="has reached"):
        ledger.charge(event(2))
    assert ledger.events() == (event(1),)
    monkeypatch.setattr(limits, "MAX_LEDGER_BYTES", size - 1)
    with pytest.raises(ConfigurationError, match="larger than"):
        Ledger(tmp_path).events()


def test_a_charge_that_cannot_be_written_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    ledger = Ledger(folder)
    assert ledger.events() == ()
    folder.rmdir()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        ledger.charge(event())
    assert ledger.events() == ()


def test_a_ledger_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / LEDGER_NAME).mkdir(0o700)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Ledger(tmp_path).events()


# --- what a round costs -------------------------------------------------------------------------


def configuration(**changes: Any) -> tuple[m.RoundConfiguration, Encoding]:
    encoding = plan_encoding(clip_norm_l2=1.0, noise_multiplier=1.5, cohort_max=100, coordinates=8)
    known = replace(
        samples.configuration(),
        scale=2.0**encoding.scale_log2,
        bound_l2=encoding.bound_l2,
        roster_size=40,
        total_weight=60,
        min_survivors=10,
    )
    return replace(known, **changes), encoding


def test_an_open_round_costs_what_it_says() -> None:
    made = release_of(*configuration(), 7)
    assert (made.mechanism, made.noise_multiplier) == ("discrete-gaussian", 1.5)
    assert (made.delta, made.at_ms) == (1e-5, 7)
    assert made.sensitivity == configuration()[1].bound_l2


def test_a_sealed_round_costs_what_the_fewest_survivors_leave() -> None:
    asked = m.SecureAggregation(0.1, 0.1, m.Adversary.SEMI_MALICIOUS)
    made = release_of(*configuration(mode=m.RoundMode.SEALED, secure_aggregation=asked), 7)
    assert made.mechanism == "distributed-discrete-gaussian"
    assert made.noise_multiplier <= 1.5
    assert made.noise_multiplier == pytest.approx(1.5, rel=1e-10)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_round_without_noise_says_so(sealed: bool) -> None:
    asked = m.SecureAggregation(0.1, 0.1, m.Adversary.SEMI_MALICIOUS)
    changes: dict[str, Any] = (
        {"mode": m.RoundMode.SEALED, "secure_aggregation": asked} if sealed else {}
    )
    bare, encoding = configuration(
        privacy=m.PRIVACY_NONE, noise_multiplier=0.0, epsilon_budget=0.0, delta=0.0, **changes
    )
    made = release_of(bare, encoding, 7)
    assert (made.mechanism, made.noise_multiplier, made.delta) == ("none", 0.0, 0.0)
