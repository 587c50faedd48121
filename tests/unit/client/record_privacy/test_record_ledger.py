"""The record-level ledger: charged before anything else, never overdrawn, never silently wrong."""

from __future__ import annotations

import json
import math
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from boltz_client import record_ledger
from boltz_client.record_ledger import (
    RECORD_LEDGER_NAME,
    RecordEvent,
    RecordLedger,
    check_table,
    record_epsilon,
)
from boltz_client.record_rdp import SampledGaussian, epsilon_of_steps
from boltz_protocol.errors import BudgetExceeded, ConfigurationError
from boltz_protocol.ids import ModelId
from tests.support import samples


def event(**changes: Any) -> RecordEvent:
    made = RecordEvent(
        table="orders",
        model_id=samples.MODEL,
        round_id=samples.ROUND,
        attempt=1,
        noise_multiplier=1.5,
        sampling_rate=0.02,
        steps=50,
        sensitivity=1.0,
        delta=1e-6,
        at_ms=samples.NOW_MS,
    )
    return replace(made, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "store"
    made.mkdir(mode=0o700)
    return made


def test_what_is_charged_is_there_for_the_next_process(folder: Path) -> None:
    ledger = RecordLedger(folder)
    assert ledger.events() == ()
    assert ledger.spent("orders", 1e-6) == 0
    assert not ledger.path.exists()
    other = event(table="quotes", model_id=ModelId("other"), noise_multiplier=3.0)
    first = ledger.charge(event(), 3.0)
    ledger.charge(other, 3.0)
    again = RecordLedger(str(folder))
    assert again.events() == (event(), other)
    assert again.events("quotes") == (other,)
    assert again.spent("orders", 1e-6) == first == record_epsilon([event()], 1e-6)
    assert stat.S_IMODE((folder / RECORD_LEDGER_NAME).stat().st_mode) == 0o600
    assert RECORD_LEDGER_NAME in repr(again)


def test_lines_are_events_and_no_epsilons(folder: Path) -> None:
    RecordLedger(folder).charge(event(), 3.0)
    content = json.loads((folder / RECORD_LEDGER_NAME).read_bytes())
    assert content == {
        "table": "orders",
        "model_id": samples.MODEL,
        "round_id": samples.ROUND,
        "attempt": 1,
        "mechanism": "poisson-sampled-discrete-gaussian",
        "noise_multiplier": 1.5,
        "sampling_rate": 0.02,
        "steps": 50,
        "sensitivity": 1.0,
        "unit": "record",
        "relation": "add-or-remove-one-record",
        "delta": 1e-6,
        "at_ms": samples.NOW_MS,
    }


def test_the_same_round_trained_twice_is_charged_twice(folder: Path) -> None:
    ledger = RecordLedger(folder)
    once = ledger.charge(event(), 3.0)
    twice = ledger.charge(event(), 3.0)
    assert len(ledger.events()) == 2
    assert twice == epsilon_of_steps([SampledGaussian(1.5, 0.02, 100)], 1e-6) > once


def test_a_table_is_spent_by_all_models_and_by_no_other_table(folder: Path) -> None:
    ledger = RecordLedger(folder)
    budget = 1.0
    ledger.charge(event(), budget)
    ledger.charge(event(table="quotes"), budget)
    ledger.charge(event(model_id=ModelId("other"), steps=5), budget)
    with pytest.raises(BudgetExceeded):
        ledger.charge(event(model_id=ModelId("third"), steps=100), budget)
    assert len(ledger.events()) == 3


def test_what_would_overdraw_is_refused_with_what_would_fit(folder: Path) -> None:
    ledger = RecordLedger(folder)
    budget = 0.8
    ledger.charge(event(), budget)
    before = ledger.path.read_bytes()
    with pytest.raises(BudgetExceeded) as caught:
        ledger.charge(event(), budget)
    message = caught.value.message
    for part in (
        "record-level",
        "unit: record",
        "relation: add-or-remove-one-record",
        "at delta 1e-06",
    ):
        assert part in message
    assert caught.value.metadata == {"limit": "record_epsilon_budget"}
    assert ledger.path.read_bytes() == before
    # Both ways that it names are taken.
    steps = int(message.split(" steps instead of 50")[0].split()[-1])
    noise = float(message.split("a noise multiplier of ")[1].split()[0])
    copy = RecordLedger(folder)
    copy.charge(event(noise_multiplier=noise), budget)
    ledger.path.write_bytes(before)
    assert ledger.charge(event(steps=steps), budget) <= budget


def test_a_table_that_is_spent_is_said_to_be(folder: Path) -> None:
    ledger = RecordLedger(folder)
    ledger.charge(event(noise_multiplier=1.0, sampling_rate=1.0, steps=1), 6.0)
    with pytest.raises(BudgetExceeded, match="What would fit: nothing more on this table"):
        ledger.charge(event(), 3.0)


def test_threads_cannot_overdraw_it_together(folder: Path) -> None:
    budget = record_epsilon([event()] * 3, 1e-6)
    refused: list[BudgetExceeded] = []

    def run() -> None:
        try:
            RecordLedger(folder).charge(event(), budget)
        except BudgetExceeded as error:
            refused.append(error)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(RecordLedger(folder).events()), len(refused)) == (3, 5)


def test_processes_cannot_overdraw_it_together(folder: Path) -> None:
    budget = record_epsilon([event()] * 2, 1e-6)
    fields = {name: getattr(event(), name) for name in RecordEvent.__slots__}
    script = (
        "from boltz_client.record_ledger import *\n"
        "from boltz_protocol.errors import BudgetExceeded\n"
        f"event = RecordEvent(**{fields!r})\n"
        "try:\n"
        f"    RecordLedger({str(folder)!r}).charge(event, {budget!r})\n"
        "except BudgetExceeded:\n"
        "    raise SystemExit(3)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(3)]
    codes = sorted(process.wait(30) for process in running)
    assert codes == [0, 0, 3]
    assert len(RecordLedger(folder).events()) == 2


# --- what may be in the file --------------------------------------------------------------------


@pytest.mark.parametrize("kept", [1, 30, -2, -1])
def test_a_torn_last_line_was_never_charged(folder: Path, kept: int) -> None:
    ledger = RecordLedger(folder)
    ledger.charge(event(), 3.0)
    whole = ledger.path.read_bytes()
    ledger.charge(event(steps=7), 3.0)
    torn = ledger.path.read_bytes()[len(whole) :][:kept]
    ledger.path.write_bytes(whole + torn)
    assert ledger.events() == (event(),)
    assert ledger.path.read_bytes() == whole + torn  # reading changes nothing
    ledger.charge(event(steps=9), 3.0)
    assert ledger.events() == (event(), event(steps=9))


def line(**changes: Any) -> bytes:
    content = {name: getattr(event(), name) for name in RecordEvent.__slots__}
    return json.dumps(content | changes).encode()


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        line(more=1),
        line(table=""),
        line(table=4),
        line(table="a\nb"),
        line(table="x" * 201),
        line(model_id="No"),
        line(round_id="aa"),
        line(attempt=0),
        line(attempt=True),
        line(mechanism="gaussian"),
        line(noise_multiplier=0),
        line(noise_multiplier="1"),
        line(noise_multiplier=math.nan),
        line(sampling_rate=0),
        line(sampling_rate=2),
        line(steps=0),
        line(steps=1.5),
        line(sensitivity=0),
        line(sensitivity=math.inf),
        line(unit="client"),
        line(relation="contribution-set-to-zero"),
        line(delta=0),
        line(delta=1),
        line(delta=math.nan),
        line(at_ms=-1),
    ],
)
def test_damage_is_refused_and_nothing_is_charged(folder: Path, bad: bytes) -> None:
    ledger = RecordLedger(folder)
    ledger.charge(event(), 3.0)
    with ledger.path.open("ab") as file:
        file.write(bad + b"\n")
    before = ledger.path.read_bytes()
    with pytest.raises(ConfigurationError, match=r"line 2 .* is damaged"):
        ledger.events()
    with pytest.raises(ConfigurationError, match="restore the file"):
        ledger.charge(event(), 3.0)
    assert ledger.path.read_bytes() == before


def test_whole_numbers_may_stand_for_fractions(folder: Path) -> None:
    (folder / RECORD_LEDGER_NAME).touch(0o600)
    (folder / RECORD_LEDGER_NAME).write_bytes(line(noise_multiplier=2, sensitivity=1) + b"\n")
    assert RecordLedger(folder).events() == (event(noise_multiplier=2.0),)


def test_others_may_not_read_it(folder: Path) -> None:
    ledger = RecordLedger(folder)
    ledger.charge(event(), 3.0)
    ledger.path.chmod(0o644)
    for work in (ledger.events, lambda: ledger.charge(event(), 3.0)):
        with pytest.raises(ConfigurationError, match="chmod 600"):
            work()
    ledger.path.chmod(0o600)
    folder.chmod(0o755)
    for work in (ledger.events, lambda: ledger.charge(event(), 3.0)):
        with pytest.raises(ConfigurationError, match="chmod 700"):
            work()


def test_a_folder_that_is_not_there_and_a_file_that_is_none(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        RecordLedger(folder / "none").charge(event(), 3.0)
    (folder / RECORD_LEDGER_NAME).mkdir(mode=0o700)
    for work in (RecordLedger(folder).events, lambda: RecordLedger(folder).charge(event(), 3.0)):
        with pytest.raises(ConfigurationError, match="cannot be used"):
            work()


def test_it_has_a_largest_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = RecordLedger(folder)
    ledger.charge(event(), 3.0)
    size = ledger.path.stat().st_size
    monkeypatch.setattr(record_ledger, "MAX_RECORD_LEDGER_BYTES", size)
    with pytest.raises(ConfigurationError, match="has reached"):
        ledger.charge(event(), 3.0)
    assert ledger.path.stat().st_size == size
    monkeypatch.setattr(record_ledger, "MAX_RECORD_LEDGER_BYTES", size - 1)
    with pytest.raises(ConfigurationError, match="is larger than"):
        ledger.events()


def test_a_disk_that_is_full_charges_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = RecordLedger(folder)
    ledger.charge(event(), 3.0)
    monkeypatch.setattr("os.pwrite", lambda descriptor, data, offset: len(data) - 1)
    with pytest.raises(ConfigurationError, match="bytes written"):
        ledger.charge(event(), 3.0)


@pytest.mark.parametrize("name", ["", "a\tb", "x" * 201])
def test_a_table_has_a_name(name: str) -> None:
    with pytest.raises(ConfigurationError, match="such as 'orders-2025'"):
        check_table(name)
