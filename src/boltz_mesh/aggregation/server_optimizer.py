"""Server optimizers: from the mean delta to the next model, block by block.

The mean delta stands in for minus the gradient (Reddi et al. 2021, "Adaptive Federated
Optimization", algorithm 1). All four work coordinate by coordinate, so a model is updated in
blocks, and any split of it into blocks gives the same bits. What they read is already noised:
moments and models are post-processing and cost no privacy.

    FedAvg     x += eta * delta                              (McMahan et al. 2017; eta = 1)
    FedAvgM    m  = beta * m + delta;  x += eta * m          (Hsu et al. 2019, section 4.2)
    FedAdam    m  = b1 * m + (1 - b1) * delta
               v  = b2 * v + (1 - b2) * delta^2
               x += eta * m / (sqrt(v) + tau)                (Reddi et al. 2021, algorithm 2)
    FedYogi    v  = v - (1 - b2) * delta^2 * sign(v - delta^2), the rest as FedAdam

There is no bias correction, as in the paper. Moments start at m = 0 and v = tau^2, the least that
algorithm 2 allows. They are float32 arrays of the model's coordinates, named, so that they go into
a safetensors file as they are; arithmetic is float64 within a block, rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from boltz_protocol.errors import NotFinite

Block = NDArray[np.float32]
#: Moment name -> (k,) float32: of a whole model or of one block of it.
Moments = Mapping[str, Block]

_Wide = NDArray[np.float64]


class ServerOptimizer(Protocol):
    """An `init`/`apply` pair without state of its own."""

    @property
    def name(self) -> str:
        """The word for it in `plan.toml`."""
        ...

    @property
    def moment_names(self) -> tuple[str, ...]:
        """The moments it keeps between rounds; empty for FedAvg."""
        ...

    def init(self, coordinates: int) -> dict[str, Block]:
        """The moments before the first round, each (coordinates,) float32."""
        ...

    def apply(
        self, parameters: Block, mean_delta: Block, moments: Moments
    ) -> tuple[Block, dict[str, Block]]:
        """The next parameters and moments of one block.

        Args:
            parameters: (k,) float32, of the model the clients trained from; left unchanged.
            mean_delta: (k,) float32.
            moments: `moment_names` -> (k,) float32; left unchanged.

        Raises:
            NotFinite: a result is outside float32.
        """
        ...


@dataclass(frozen=True, slots=True)
class FedAvg:
    """x += learning_rate * delta."""

    learning_rate: float = 1.0

    name: ClassVar[str] = "fedavg"
    moment_names: ClassVar[tuple[str, ...]] = ()

    def init(self, coordinates: int) -> dict[str, Block]:
        """No moments."""
        assert coordinates >= 0
        return {}

    def apply(
        self, parameters: Block, mean_delta: Block, moments: Moments
    ) -> tuple[Block, dict[str, Block]]:
        """See `ServerOptimizer.apply`."""
        delta = _checked(self, parameters, mean_delta, moments)
        return _narrow(parameters + self.learning_rate * delta), {}


@dataclass(frozen=True, slots=True)
class FedAvgM:
    """Momentum on the server."""

    learning_rate: float = 1.0
    momentum: float = 0.9

    name: ClassVar[str] = "fedavgm"
    moment_names: ClassVar[tuple[str, ...]] = ("momentum",)

    def init(self, coordinates: int) -> dict[str, Block]:
        """Momentum 0."""
        return {"momentum": np.zeros(coordinates, np.float32)}

    def apply(
        self, parameters: Block, mean_delta: Block, moments: Moments
    ) -> tuple[Block, dict[str, Block]]:
        """See `ServerOptimizer.apply`."""
        delta = _checked(self, parameters, mean_delta, moments)
        momentum = self.momentum * moments["momentum"].astype(np.float64) + delta
        following = parameters + self.learning_rate * momentum
        return _narrow(following), {"momentum": _narrow(momentum)}


@dataclass(frozen=True, slots=True)
class FedAdam:
    """Adam on the server."""

    learning_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    name: ClassVar[str] = "fedadam"
    moment_names: ClassVar[tuple[str, ...]] = ("first_moment", "second_moment")

    def init(self, coordinates: int) -> dict[str, Block]:
        """First moment 0, second moment tau^2."""
        return _adaptive_init(coordinates, self.tau)

    def apply(
        self, parameters: Block, mean_delta: Block, moments: Moments
    ) -> tuple[Block, dict[str, Block]]:
        """See `ServerOptimizer.apply`."""
        delta = _checked(self, parameters, mean_delta, moments)
        second = moments["second_moment"].astype(np.float64)
        second = self.beta2 * second + (1 - self.beta2) * delta * delta
        return _adaptive_step(self, parameters, delta, moments, second)


@dataclass(frozen=True, slots=True)
class FedYogi:
    """Yogi on the server: the second moment moves by no more than (1 - beta2) * delta^2 a round."""

    learning_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    name: ClassVar[str] = "fedyogi"
    moment_names: ClassVar[tuple[str, ...]] = ("first_moment", "second_moment")

    def init(self, coordinates: int) -> dict[str, Block]:
        """First moment 0, second moment tau^2."""
        return _adaptive_init(coordinates, self.tau)

    def apply(
        self, parameters: Block, mean_delta: Block, moments: Moments
    ) -> tuple[Block, dict[str, Block]]:
        """See `ServerOptimizer.apply`."""
        delta = _checked(self, parameters, mean_delta, moments)
        square = delta * delta
        second = moments["second_moment"].astype(np.float64)
        second = second - (1 - self.beta2) * square * np.sign(second - square)
        return _adaptive_step(self, parameters, delta, moments, second)


def _adaptive_init(coordinates: int, tau: float) -> dict[str, Block]:
    return {
        "first_moment": np.zeros(coordinates, np.float32),
        "second_moment": np.full(coordinates, tau**2, np.float32),
    }


def _adaptive_step(
    optimizer: FedAdam | FedYogi,
    parameters: Block,
    delta: _Wide,
    moments: Moments,
    second: _Wide,
) -> tuple[Block, dict[str, Block]]:
    first = moments["first_moment"].astype(np.float64)
    first = optimizer.beta1 * first + (1 - optimizer.beta1) * delta
    following = parameters + optimizer.learning_rate * first / (np.sqrt(second) + optimizer.tau)
    return _narrow(following), {"first_moment": _narrow(first), "second_moment": _narrow(second)}


def _checked(
    optimizer: ServerOptimizer, parameters: Block, mean_delta: Block, moments: Moments
) -> _Wide:
    """Assert that shapes, dtypes and names belong together; the delta in float64."""
    assert tuple(sorted(moments)) == tuple(sorted(optimizer.moment_names))
    for block in (parameters, mean_delta, *moments.values()):
        assert block.dtype == np.float32
        assert block.shape == parameters.shape
    return mean_delta.astype(np.float64)


def _narrow(values: _Wide) -> Block:
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise NotFinite("the server optimizer left the range of float32; lower its learning rate")
    return narrow
