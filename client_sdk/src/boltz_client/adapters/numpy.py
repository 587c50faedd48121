"""A trainer from a plain function on numpy arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from boltz_client.trainer import Arrays, RoundContext, TrainResult
from boltz_protocol.model_file import Vector

TrainFunction = Callable[[dict[str, Vector], RoundContext], TrainResult | Arrays]


@dataclass(frozen=True, slots=True)
class FunctionTrainer:
    """Calls `train(model, round)`, which returns a `TrainResult` or just the new weights.

    Attributes:
        train_function: gets read-only arrays by tensor name.
        samples: rows behind it, or a function that counts them.
    """

    train_function: TrainFunction = field(repr=False)
    samples: int | Callable[[], int]

    def sample_count(self) -> int:
        """Rows that the next training would use."""
        return self.samples if isinstance(self.samples, int) else self.samples()

    def train(self, model: dict[str, Vector], round: RoundContext) -> TrainResult:
        """Call the function."""
        result = self.train_function(model, round)
        return result if isinstance(result, TrainResult) else TrainResult(weights=result)
