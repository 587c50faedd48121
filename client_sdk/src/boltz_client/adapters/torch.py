"""A trainer for a torch module: the model's tensors are entries of its `state_dict`.

Import it where torch is installed (`boltz-mesh-client[torch]`); torch itself is imported when a
trainer is made. Entries that are not in the federated model (such as the counters of batch norm)
stay as they are in the module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from boltz_client.trainer import RoundContext, TrainResult
from boltz_protocol.errors import ConfigurationError, ShapeMismatch
from boltz_protocol.messages import TensorSpec
from boltz_protocol.model_file import Vector

if TYPE_CHECKING:
    import torch

#: Trains the module in place; may return metrics by name.
Fit = Callable[["torch.nn.Module", RoundContext], Mapping[str, float] | None]

_ADVICE: Final = "install it with: pip install 'boltz-mesh-client[torch]'"


def tensor_specs(module: torch.nn.Module) -> tuple[TensorSpec, ...]:
    """Names and shapes of a module's floating-point entries, for a plan's list of tensors."""
    return tuple(
        TensorSpec(name, tuple(entry.shape))
        for name, entry in module.state_dict().items()
        if entry.is_floating_point()
    )


def initial_model(module: torch.nn.Module) -> dict[str, Vector]:
    """A module's floating-point entries as float32 arrays, for the first version of a model."""
    return {
        name: entry.detach().cpu().numpy().astype(np.float32)
        for name, entry in module.state_dict().items()
        if entry.is_floating_point()
    }


class TorchTrainer:
    """Loads the round's model into a module, trains it, and reads it out again.

    Args:
        module: float32 parameters; it is changed by every round.
        fit: one round's training: sets up its optimizer (fresh, since the weights come from
            elsewhere), loops over the data, may look at `round.should_stop()`.
        samples: rows behind it.

    Raises: ConfigurationError where torch is not installed.
    """

    def __init__(self, module: torch.nn.Module, fit: Fit, samples: int) -> None:
        try:
            import torch  # noqa: PLC0415 - a light client must not need it
        except ImportError as error:
            raise ConfigurationError(f"torch is not installed; {_ADVICE}") from error
        self._torch = torch
        self._module = module
        self._fit = fit
        self._samples = samples

    def sample_count(self) -> int:
        """Rows that the next training would use."""
        return self._samples

    def train(self, model: dict[str, Vector], round: RoundContext) -> TrainResult:
        """One round. Raises: ShapeMismatch when module and model do not fit together."""
        torch = self._torch
        entries = self._module.state_dict()
        with torch.no_grad():
            for name, values in model.items():
                entry = entries.get(name)
                if entry is None:
                    raise ShapeMismatch(f"the module has no entry {name!r}", tensor=name)
                if tuple(entry.shape) != values.shape:
                    raise ShapeMismatch(
                        f"{name!r} has shape {tuple(entry.shape)} in the module, "
                        f"{values.shape} in the model",
                        tensor=name,
                    )
                # A copy: torch does not take read-only memory.
                entry.copy_(torch.from_numpy(values.copy()))
        metrics = self._fit(self._module, round) or {}
        trained = self._module.state_dict()
        weights = {
            # A copy: the state dict is a view that the next round's loading writes to.
            name: trained[name].detach().to("cpu", torch.float32).numpy().copy()
            for name in model
        }
        return TrainResult(weights=weights, metrics=metrics)
