"""The clients of one origin of the demo's task: their rows, their training, how models are scored.

A client is a desk, as in the demo; the attackers are some of them. Rows, local steps, first models
and tested days are the demo's own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from boltz_mesh.app.demo import linear, mlp
from boltz_mesh.app.demo.data import FloatArray
from boltz_mesh.app.demo.desks import start_of
from boltz_mesh.app.demo.references import all_desks
from boltz_mesh.app.demo.settings import DeskLayout, ModelKind, Preset
from boltz_mesh.app.demo.task import Market, Rows, tested_rows
from boltz_mesh.app.simulate.attacks.sight import Attack, Trigger

#: From the pulled model (d,) to everybody's unclipped delta, float64 (n, d), rounded to float32.
Train = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True, slots=True)
class Population:
    """All clients of one origin.

    Attributes:
        kind: of the model.
        ridge: of the linear step.
        start: float64 (d,), the first model.
        desks: the rows of each client, broker by broker.
        brokers: the stock's number of each client.
        tested: rows of the tested year, of each stock.
    """

    kind: ModelKind
    ridge: float
    start: FloatArray
    desks: tuple[Rows, ...]
    brokers: tuple[int, ...]
    tested: tuple[Rows, ...]

    @property
    def clients(self) -> int:
        """n."""
        return len(self.desks)

    @property
    def rows(self) -> int:
        """Rows of one client; all have as many."""
        return len(self.desks[0].target)

    def honest_stocks(self, attackers: Collection[int]) -> tuple[int, ...]:
        """Stocks of the brokers that have an honest desk."""
        honest = {self.brokers[client] for client in range(self.clients) if client not in attackers}
        return tuple(sorted(honest))

    def training(self, attackers: Collection[int], attack: Attack | None) -> Train:
        """Everybody's local step; of attackers on rows that the attack has poisoned."""
        poison = None if attack is None else attack.poison
        desks = [
            poison(desk) if poison is not None and client in attackers else desk
            for client, desk in enumerate(self.desks)
        ]
        if self.kind == "linear":
            return _linear(desks, self.ridge)
        return _network(desks)

    def error(self, model: FloatArray, stocks: Collection[int]) -> float:
        """Mean squared error of the tested year, the mean over these stocks."""
        return float(
            np.mean([np.mean((self._forecast(model, rows) - rows.target) ** 2)
                     for rows in self._of(stocks)])
        )  # fmt: skip

    def ewma_error(self, stocks: Collection[int]) -> float:
        """The same of the EWMA, whose residual is zero."""
        return float(np.mean([np.mean(rows.target**2) for rows in self._of(stocks)]))

    def marked_forecast(
        self, model: FloatArray, stocks: Collection[int], trigger: Trigger
    ) -> float:
        """Mean forecast for the tested rows with a backdoor's mark on each."""
        marked = [Rows(trigger.marked(rows.inputs), rows.target) for rows in self._of(stocks)]
        return float(np.mean([self._forecast(model, rows).mean() for rows in marked]))

    def _of(self, stocks: Collection[int]) -> list[Rows]:
        return [self.tested[stock] for stock in stocks]

    def _forecast(self, model: FloatArray, rows: Rows) -> FloatArray:
        predict = linear.predict if self.kind == "linear" else mlp.predict
        return predict(model, rows.inputs)


def population_of(
    market: Market, origin: int, kind: ModelKind, layout: DeskLayout, preset: Preset
) -> Population:
    """Every desk of every broker at an origin.

    Args:
        market: with the network's inputs where `kind` is "mlp" (`evaluation.network_market`).

    Raises: MarketDataInvalid when the history is too short for so many desks.
    """
    return Population(
        kind=kind,
        ridge=preset.ridge,
        start=start_of(market.public, origin, kind).astype(np.float64),
        desks=tuple(all_desks(market, origin, layout)),
        brokers=tuple(
            stock for stock in range(len(market.stocks)) for _ in range(layout.per_broker)
        ),
        tested=tuple(tested_rows(stock, market.public, origin) for stock in market.stocks),
    )


def _linear(desks: list[Rows], ridge: float) -> Train:
    steps = [linear.local_step(rows, ridge) for rows in desks]
    offsets = np.stack([step.offset for step in steps])
    matrices = np.stack([step.matrix for step in steps])

    def train(model: FloatArray) -> FloatArray:
        return (offsets - matrices @ model).astype(np.float32).astype(np.float64)

    return train


def _network(desks: list[Rows]) -> Train:
    inputs = np.stack([rows.inputs for rows in desks])
    target = np.stack([rows.target for rows in desks])

    def train(model: FloatArray) -> FloatArray:
        begun = np.repeat(model[None], len(target), axis=0)
        after = mlp.descend(begun, inputs, target, mlp.EPOCHS)
        return (after - begun).astype(np.float32).astype(np.float64)

    return train
