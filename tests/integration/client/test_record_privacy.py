"""Record-level privacy in real rounds: charged apart from them, declined when it is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from boltz_client import NoticeKind
from boltz_client.adapters.record_privacy import RecordLedger, RecordPrivacy
from boltz_client.adapters.record_privacy.linear import LinearRecordTrainer
from boltz_client.record_rdp import epsilon_of_steps
from boltz_protocol import messages as m
from boltz_protocol.errors import BudgetExceeded, TrainingFailed
from tests.integration.client.conftest import Clients
from tests.integration.client.heard import Heard
from tests.integration.client.test_charges import noisy
from tests.integration.client.test_rounds import join_in
from tests.support.mini_mesh import MODEL
from tests.support.mini_mesh_server import running

TENSORS = (m.TensorSpec("coef", (7,)), m.TensorSpec("intercept", (1,)))
SETTINGS: dict[str, Any] = {
    "noise_multiplier": 1.0,
    "clip_norm": 1.0,
    "sampling_rate": 0.05,
    "steps": 80,
}


def trainer(store: Path, budget: float) -> LinearRecordTrainer:
    print("seed 2")
    features = np.random.default_rng(2).normal(size=(4096, 7))
    return LinearRecordTrainer(
        features,
        features @ np.full(7, 0.125) + 0.25,
        table="orders",
        privacy=RecordPrivacy(**SETTINGS, epsilon_budget=budget),
        ledger=RecordLedger(store),
    )


async def test_rounds_are_charged_in_both_units_until_one_is_spent(tmp_path: Path) -> None:
    once = epsilon_of_steps([RecordPrivacy(**SETTINGS, epsilon_budget=1.0).run], 1e-6)
    async with running(TENSORS) as mesh:
        clients = Clients(mesh, tmp_path)
        store = await clients.enrol()
        client = await clients.open(store)
        heard = Heard()
        task = join_in(client, trainer(store, 1.05 * once), rounds=2, notify=heard)
        first = await mesh.start_round(1, hyperparameters={"rate": 0.5}, change=noisy(4.0))
        await mesh.finish_round()
        await heard.until(NoticeKind.ENDED)
        np.testing.assert_allclose(mesh.vector, [*[0.125] * 7, 0.25], atol=0.3)
        second = await mesh.start_round(1, change=noisy(4.0))
        error = (await heard.until(NoticeKind.DECLINED)).error
        assert isinstance(error, BudgetExceeded)
        assert "record-level" in error.message
        await mesh.wait(lambda: bool(second.declined))
        # The mesh is told the reason, and nothing of the table.
        assert list(second.declined.values()) == ["BUDGET_EXCEEDED"]
        summary = await task
        assert (summary.counted, summary.declined, summary.refused) == (1, 1, 1)
        (training,) = RecordLedger(store).events("orders")
        assert (training.model_id, training.round_id) == (MODEL, first.configuration.round_id)
        # Each ledger holds its own unit, and neither counts for the other.
        (release,) = client.ledger.events()
        assert (release.unit, training.unit) == ("client", "record")
        assert client.ledger.spent(MODEL, 1e-6) != RecordLedger(store).spent("orders", 1e-6)
        await clients.stack.aclose()


async def test_a_round_that_wants_a_metric_of_the_rows_is_declined(tmp_path: Path) -> None:
    async with running(TENSORS) as mesh:
        clients = Clients(mesh, tmp_path)
        store = await clients.enrol()
        client = await clients.open(store)
        heard = Heard()
        task = join_in(client, trainer(store, 9.0), rounds=1, notify=heard)
        await mesh.start_round(1, lanes=(m.Lane("loss", 0.5),))
        error = (await heard.until(NoticeKind.DECLINED)).error
        assert isinstance(error, TrainingFailed)
        await task
        assert RecordLedger(store).events() == ()
        await clients.stack.aclose()
