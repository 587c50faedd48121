"""What docs/client.md shows of record-level privacy runs, and prints what it says."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltz_client import RoundContext, cli
from boltz_client.adapters.record_privacy import RecordLedger, RecordPrivacy
from boltz_client.adapters.torch import initial_model
from boltz_client.ledger import Ledger, LedgerEvent
from boltz_client.record_rdp import epsilon_of_steps
from boltz_protocol.errors import BudgetExceeded
from boltz_protocol.ids import ModelId, RoundId
from tests.support import samples
from tests.support.repository import ROOT

SECTION = (ROOT / "docs" / "client.md").read_text("utf-8").split("## Record-level privacy\n")[1]
TEXT = SECTION.split("\n## ")[0]
BLOCKS = dict(re.findall(r"^```python title=\"([^\"]+)\"\n(.*?)^```$", TEXT, re.M | re.S))
MODEL = ModelId("volatility")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a key store's folder in it."""
    (tmp_path / "store").mkdir(mode=0o700)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "store"


def shown(title: str) -> Any:
    """The trainer that a block makes, for a table of 4000 rows."""
    print("seed 11")
    features = np.random.default_rng(11).normal(size=(4000, 3))
    names: dict[str, Any] = {
        "features": features,
        "targets": features @ np.array([0.5, -0.5, 0.2]),
    }
    exec(BLOCKS[title], names)
    return names


def context() -> RoundContext:
    return RoundContext(samples.ROUND, 1, MODEL, 1, (), {"rate": 0.5}, (), 1.0, 2)


def test_the_linear_example_trains(folder: Path) -> None:
    trainer = shown("record-level, linear")["trainer"]
    model = {"coef": np.zeros(3, np.float32), "intercept": np.zeros(1, np.float32)}
    trained = trainer.train(model, context()).weights
    np.testing.assert_allclose(trained["coef"], [0.5, -0.5, 0.2], atol=0.35)
    (event,) = RecordLedger(folder).events("orders-2025")
    assert event.model_id == MODEL


def test_the_torch_example_trains(folder: Path) -> None:
    trainer = shown("record-level, torch")["trainer"]
    trainer.train(initial_model(trainer._module), context())
    assert len(RecordLedger(folder).events("orders-2025")) == 1


def test_both_examples_are_about_ten_lines_and_of_the_same_settings(folder: Path) -> None:
    for title, block in BLOCKS.items():
        calls = [line for line in block.splitlines() if line and "import" not in line]
        assert len(calls) <= 14, title
    settings = [shown(title)["trainer"]._table.privacy for title in BLOCKS]
    assert len(set(settings)) == 1


def test_the_settings_leave_room_for_as_many_trainings_as_it_says(folder: Path) -> None:
    (told,) = re.findall(r"room for (\d+) trainings", TEXT)
    privacy: RecordPrivacy = shown("record-level, linear")["trainer"]._table.privacy

    def after(trainings: int) -> float:
        return epsilon_of_steps([replace(privacy, epsilon_budget=1.0).run] * trainings, 1e-6)

    assert after(int(told)) <= privacy.epsilon_budget < after(int(told) + 1)
    trainer = shown("record-level, linear")["trainer"]
    model = {"coef": np.zeros(3, np.float32), "intercept": np.zeros(1, np.float32)}
    for _ in range(int(told)):
        trainer.train(model, context())
    with pytest.raises(BudgetExceeded):
        trainer.train(model, context())


def test_the_command_prints_what_the_page_shows(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test_the_linear_example_trains(folder)
    Ledger(folder).charge(
        LedgerEvent(
            model_id=MODEL,
            round_id=RoundId("ab" * 16),
            attempt=1,
            mechanism="discrete-gaussian",
            noise_multiplier=1.0,
            sensitivity=1000,
            relation="contribution-set-to-zero",
            unit="client",
            delta=1e-6,
            at_ms=samples.NOW_MS,
        )
    )
    capsys.readouterr()
    assert cli.main(["privacy", "--store", os.path.join(".", "store")]) == cli.OK
    (page,) = re.findall(r"^```text\n(.*?)^```$", TEXT, re.M | re.S)
    wanted, _, rest = page.partition("...")
    assert rest == "\n"
    assert capsys.readouterr().out.startswith(wanted)
