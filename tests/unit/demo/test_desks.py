from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from boltz_mesh.app.demo import data, desks, linear, mlp, references
from boltz_mesh.app.demo.data import MarketDataInvalid, MarketDataMissing, PriceTable
from boltz_mesh.app.demo.settings import PRESET_60, PRESET_MLP, ModelKind
from boltz_mesh.app.demo.task import Market


def test_a_broker_makes_the_same_rows_as_the_evaluation(table: PriceTable, market: Market) -> None:
    origin = market.public.calendar.origins[-1]
    expected = references.all_desks(market, origin, PRESET_60.layout)
    found = [
        desks.desk_of(desks.broker_of(table.only(stock), "linear"), origin, desk, PRESET_60).rows
        for stock in table.stocks
        for desk in range(3)
    ]
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours.inputs, theirs.inputs)
        assert np.array_equal(ours.target, theirs.target)


def test_a_broker_that_holds_two_stocks_crashes(table: PriceTable) -> None:
    with pytest.raises(AssertionError):
        desks.broker_of(table, "linear")


def test_the_federation_of_desks_is_the_reference(table: PriceTable, market: Market) -> None:
    origin = market.public.calendar.origins[-1]
    made = [
        desks.desk_of(desks.broker_of(table.only(stock), "linear"), origin, desk, PRESET_60)
        for stock in table.stocks
        for desk in range(3)
    ]
    w = desks.start_of(market.public, origin, "linear").astype(np.float64)
    for _ in range(PRESET_60.rounds):
        deltas = np.array([desk.delta(w) for desk in made], dtype=np.float64)
        norms = np.linalg.norm(deltas, axis=1, keepdims=True)
        w = w + (deltas * np.minimum(1, PRESET_60.clip_norm_l2 / norms)).mean(axis=0)
    assert references.federated(market, (origin,), PRESET_60)[origin] == pytest.approx(w, abs=1e-6)
    first = desks.start_of(market.public, origin, "linear")
    assert sum(desk.loss(w) for desk in made) < sum(desk.loss(first) for desk in made)


def test_both_trainers_of_the_network_agree(table: PriceTable) -> None:
    broker = desks.broker_of(table.only("S0"), "mlp")
    origin = broker.public.calendar.origins[-1]
    first = desks.start_of(broker.public, origin, "mlp")
    ours = desks.desk_of(broker, origin, 0, PRESET_MLP)
    theirs = desks.desk_of(broker, origin, 0, PRESET_MLP, "torch")
    assert theirs.delta(first) == pytest.approx(ours.delta(first), abs=1e-6)
    assert ours.loss(first + ours.delta(first)) < ours.loss(first)
    assert ours.rows.inputs.shape == (490, 13)


def test_numpy_training_does_not_import_torch() -> None:
    code = "import sys, boltz_mesh.app.demo.desks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("kind", "size"), [("linear", linear.PARAMETERS), ("mlp", mlp.PARAMETERS)])
def test_tensors_split_and_join(kind: ModelKind, size: int) -> None:
    flat = np.arange(size, dtype=np.float32)
    named = desks.split(flat, kind)
    assert {name: tensor.shape for name, tensor in named.items()} == dict(desks.tensors_of(kind))
    assert np.array_equal(desks.join(named, kind), flat)
    with pytest.raises(AssertionError):
        desks.split(np.zeros(size + 1), kind)


def test_a_saved_table_reads_back_and_is_private(tmp_path: Path, table: PriceTable) -> None:
    path = tmp_path / "S1.npz"
    data.save(table.only("S1"), path)
    assert path.stat().st_mode & 0o777 == 0o600
    read = data.load_saved(path)
    assert read.stocks == ("S1",)
    assert np.array_equal(read.dates, table.dates)
    assert np.array_equal(read.prices[:, 0], table.prices[:, 1])
    assert np.array_equal(read.index, table.index)
    with pytest.raises(FileExistsError):
        data.save(table, path)


def test_a_saved_table_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MarketDataMissing):
        data.load_saved(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("prices")
    with pytest.raises(MarketDataInvalid, match="not written by the demo"):
        data.load_saved(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", days=np.arange(3))
    with pytest.raises(MarketDataInvalid, match="not written by the demo"):
        data.load_saved(tmp_path / "other.npz")
    np.save(tmp_path / "array.npy", np.arange(3))
    with pytest.raises(MarketDataInvalid, match="not written by the demo"):
        data.load_saved(tmp_path / "array.npy")
