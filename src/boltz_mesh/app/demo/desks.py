"""What a broker process does with its prices: desks, each with its local step.

A broker holds a table of one stock (`PriceTable.only`) and makes everything else from that and
public constants. A desk is one client of the mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from boltz_mesh.app.demo import linear, mlp
from boltz_mesh.app.demo.data import PriceTable
from boltz_mesh.app.demo.linear import Float32Array
from boltz_mesh.app.demo.settings import ModelKind, Preset, TrainerKind
from boltz_mesh.app.demo.task import (
    PublicFacts,
    Rows,
    StockSeries,
    desk_rows,
    public_facts,
    stock_series,
    with_market,
)


@dataclass(frozen=True, slots=True)
class Broker:
    """One broker's own series, with the inputs that the model kind needs."""

    stock: StockSeries
    public: PublicFacts
    kind: ModelKind


@dataclass(frozen=True, slots=True)
class Desk:
    """One client's data and step for one origin.

    Attributes:
        rows: the desk's rows; `len(rows.target)` is its sample count.
        delta: from the pulled model's flat vector to the unclipped delta, float32, same length.
        kind: which model.
    """

    rows: Rows
    delta: Callable[[npt.ArrayLike], Float32Array]
    kind: ModelKind

    def loss(self, parameters: npt.ArrayLike) -> float:
        """Mean squared error of a model on the desk's own rows: a metric, if one is sent."""
        predict = linear.predict if self.kind == "linear" else mlp.predict
        return float(np.mean((predict(parameters, self.rows.inputs) - self.rows.target) ** 2))


def broker_of(table: PriceTable, kind: ModelKind) -> Broker:
    """A broker from a table that holds its stock and the index, nothing else.

    Raises:
        MarketDataInvalid: the history is too short.
    """
    assert len(table.stocks) == 1, "a broker holds its own stock only"
    public = public_facts(table.dates, table.index)
    stock = stock_series(table.stocks[0], table.prices[:, 0], public)
    return Broker(with_market(stock, public) if kind == "mlp" else stock, public, kind)


def desk_of(
    broker: Broker, origin: int, desk: int, preset: Preset, trainer: TrainerKind = "numpy"
) -> Desk:
    """One desk of a broker at an origin.

    Args:
        broker: from `broker_of`.
        origin: the year that will be tested.
        desk: 0 is the newest.
        preset: layout and ridge.
        trainer: torch for the network by autograd; the linear step is one solve either way.

    Raises:
        MarketDataInvalid: too little history for so many desks.
    """
    rows = desk_rows(broker.stock, broker.public, origin, preset.layout, desk)
    if broker.kind == "linear":
        return Desk(rows, linear.local_step(rows, preset.ridge).delta, broker.kind)
    if trainer == "torch":
        # Here and not at the top: torch takes a second to import and is an extra.
        from boltz_mesh.app.demo import mlp_torch  # noqa: PLC0415

        return Desk(rows, partial(mlp_torch.local_delta, rows=rows), broker.kind)
    return Desk(rows, partial(mlp.local_delta, rows=rows), broker.kind)


def start_of(public: PublicFacts, origin: int, kind: ModelKind) -> Float32Array:
    """The first model of an origin, as a flat vector: 12 or 241 parameters."""
    return linear.start(public, origin) if kind == "linear" else mlp.start(public, origin)


def tensors_of(kind: ModelKind) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and shapes of the model's tensors, in the order of the flat vector; all float32."""
    return linear.TENSORS if kind == "linear" else mlp.TENSORS


def split(vector: npt.ArrayLike, kind: ModelKind) -> dict[str, Float32Array]:
    """A flat vector as named tensors, in order."""
    flat = np.asarray(vector, dtype=np.float32)
    named: dict[str, Float32Array] = {}
    begin = 0
    for name, shape in tensors_of(kind):
        size = int(np.prod(shape))
        named[name] = flat[begin : begin + size].reshape(shape)
        begin += size
    assert begin == len(flat)
    return named


def join(tensors: dict[str, npt.NDArray[np.float32]], kind: ModelKind) -> Float32Array:
    """Named tensors as a flat vector, the inverse of `split`."""
    return np.concatenate(
        [np.asarray(tensors[name], dtype=np.float32).reshape(-1) for name, _ in tensors_of(kind)]
    )
