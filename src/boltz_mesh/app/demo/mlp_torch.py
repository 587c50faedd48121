"""The network's local step in torch: the same descent as `mlp.local_delta`, by autograd.

Only `--trainer torch` imports this module; torch is an extra of the client library. It computes
in float64, so that both trainers agree to rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from boltz_mesh.app.demo import mlp
from boltz_mesh.app.demo.linear import Float32Array
from boltz_mesh.app.demo.task import Rows


def network(parameters: npt.ArrayLike) -> _Network:
    """A `torch.nn.Module` whose `state_dict` has the names and shapes of `mlp.TENSORS`."""
    module = _Network().to(torch.float64)
    weights = mlp.unflatten(parameters)
    with torch.no_grad():
        module.hidden.weight.copy_(torch.from_numpy(weights.hidden_weight))
        module.hidden.bias.copy_(torch.from_numpy(weights.hidden_bias))
        module.output.weight.copy_(torch.from_numpy(weights.output_weight[None]))
        module.output.bias.copy_(torch.from_numpy(weights.output_bias))
    return module


def local_delta(parameters: npt.ArrayLike, rows: Rows) -> Float32Array:
    """A desk's delta (241,), float32, from the pulled model (241,) and its rows (m, 13)."""
    module = network(parameters)
    matrices: list[torch.Tensor] = [module.hidden.weight, module.output.weight]
    vectors: list[torch.Tensor] = [module.hidden.bias, module.output.bias]
    # SGD's decay adds decay * w to the gradient, which is what `mlp` does.
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": mlp.WEIGHT_DECAY},
        {"params": vectors},
    ]
    optimizer = torch.optim.SGD(
        groups,
        lr=mlp.LEARNING_RATE,
    )
    inputs, target = torch.from_numpy(rows.inputs), torch.from_numpy(rows.target)
    count = mlp.batches_of(len(rows.target))
    for _ in range(mlp.EPOCHS):
        for batch in range(count):
            optimizer.zero_grad()
            forecast = module(inputs[batch::count])[:, 0]
            loss = torch.mean((forecast - target[batch::count]) ** 2)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    after = dict(module.named_parameters())
    flat = np.concatenate([after[name].detach().numpy().ravel() for name, _ in mlp.TENSORS])
    return (flat - np.asarray(parameters, dtype=np.float64)).astype(np.float32)


class _Network(torch.nn.Module):
    """13-16-1 with tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(mlp.INPUTS, mlp.HIDDEN)
        self.output = torch.nn.Linear(mlp.HIDDEN, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(m, 13) to (m, 1)."""
        forecast: torch.Tensor = self.output(torch.tanh(self.hidden(inputs)))
        return forecast
