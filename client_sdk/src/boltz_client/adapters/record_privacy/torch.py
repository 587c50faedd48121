"""DP-SGD for a torch module: opacus computes the gradient of every record.

Needs `boltz-mesh-client[dp]`; torch and opacus are imported when a trainer is made. From opacus
come the gradients of single records and the check that no layer mixes the records of a batch (batch
norm does). Rows and noise are drawn here: opacus draws both from torch's generator, which is not
cryptographic, unless a package is there (`torchcsprng`) that is no longer built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from boltz_client.adapters.record_privacy.settings import (
    ProtectedTable,
    RecordPrivacy,
    WeightMetrics,
)
from boltz_client.adapters.record_privacy.sums import Reals, RecordSum, block_rows, sample_rows
from boltz_client.adapters.torch import TorchTrainer
from boltz_client.backoff import Clock, system_clock
from boltz_client.record_ledger import RecordLedger
from boltz_client.trainer import RoundContext, TrainResult
from boltz_protocol.errors import ConfigurationError, TrainingFailed
from boltz_protocol.keystream import Keystream
from boltz_protocol.model_file import Vector

if TYPE_CHECKING:
    import torch

#: (outputs, targets) -> one loss a record, shape (records,), each from its own output alone.
RecordLoss = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
#: From the trainable parameters and the learning rate to an optimizer.
MakeOptimizer = Callable[[Iterable["torch.nn.Parameter"], float], "torch.optim.Optimizer"]

_ADVICE: Final = "install it with: pip install 'boltz-mesh-client[dp]'"


class TorchRecordTrainer:
    """Trains a torch module so that no single row shows in it (record-level privacy).

    Args:
        module: on the CPU, float32 parameters; opacus puts hooks on it, and every round changes it.
        loss: one loss a record (`reduction="none"`).
        features: first dimension rows.
        targets: first dimension rows.
        table: the owner's name for these rows in the ledger.
        privacy: the owner's settings and the budget of the table.
        ledger: of this client's key store.
        rate: learning rate; the plan's hyper-parameter `rate` takes precedence.
        optimizer: makes a fresh one for every round; plain SGD unless given. It sees noised
            gradients only, so any will do.
        metrics: from the trained weights, for rounds with lanes.

    Raises: ConfigurationError that names what does not fit, or what is not installed.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        loss: RecordLoss,
        features: torch.Tensor,
        targets: torch.Tensor,
        *,
        table: str,
        privacy: RecordPrivacy,
        ledger: RecordLedger,
        rate: float = 0.1,
        optimizer: MakeOptimizer | None = None,
        metrics: WeightMetrics | None = None,
        clock: Clock = system_clock,
    ) -> None:
        try:
            import torch  # noqa: PLC0415 - a light client must not need it
            from opacus import GradSampleModule  # noqa: PLC0415
            from opacus.validators import ModuleValidator  # noqa: PLC0415
        except ImportError as error:
            raise ConfigurationError(f"opacus is not installed; {_ADVICE}") from error
        if len(features) != len(targets):
            raise ConfigurationError(f"{len(features)} rows of features, {len(targets)} of targets")
        self._table = ProtectedTable(table, len(features), privacy, ledger, clock)
        module.train()
        faults = list(map(str, ModuleValidator.validate(module, strict=False)))
        # opacus looks at layers that are trained; one that is not mixes records just the same.
        batch_norm = torch.nn.modules.batchnorm._BatchNorm
        if any(isinstance(layer, batch_norm) for layer in module.modules()):
            faults = ["batch norm does; torch.nn.GroupNorm does not"]
        if faults:
            raise ConfigurationError(f"the module mixes the records of a batch: {faults[0]}")
        try:
            self._per_record: Any = GradSampleModule(module, loss_reduction="sum")
        except (RuntimeError, ValueError) as error:
            raise ConfigurationError(
                f"opacus cannot compute the gradients of single records in this module: {error}"
            ) from error
        self._torch = torch
        self._module = module
        self._trained = [p for p in module.parameters() if p.requires_grad]
        if not self._trained:
            raise ConfigurationError("the module has no parameters that are trained")
        self._loss = loss
        self._features = features
        self._targets = targets
        self._rate = rate
        self._optimizer = optimizer or torch.optim.SGD
        self._metrics = metrics
        self._whole = TorchTrainer(module, self._descend, len(features))

    def sample_count(self) -> int:
        """Rows of the table; the mesh is told floor(log2) of it, which no epsilon here covers."""
        return self._table.rows

    def train(self, model: dict[str, Vector], round: RoundContext) -> TrainResult:
        """One training, charged before it begins.

        Raises:
            ShapeMismatch: module and model do not fit together.
            TrainingFailed: the loss is not one a record, or as `ProtectedTable.charge`.
            BudgetExceeded, ConfigurationError: as `ProtectedTable.charge`.
        """
        return self._whole.train(model, round)

    def _descend(self, module: torch.nn.Module, round: RoundContext) -> Mapping[str, float]:
        """Charge, and take the steps on the loaded module."""
        torch, privacy = self._torch, self._table.privacy
        rate = round.number("rate", self._rate)
        self._table.charge(round, self._metrics)
        module.train()
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        sizes = [parameter.numel() for parameter in self._trained]
        total = RecordSum(sum(sizes), privacy.clip_norm, privacy.noise_multiplier)
        block = block_rows(sum(sizes))
        optimizer = self._optimizer(self._trained, rate)
        stream = Keystream.fresh()
        for _ in range(privacy.steps):
            if round.should_stop():
                break
            drawn = sample_rows(self._table.rows, privacy.sampling_rate, stream)
            for start in range(0, drawn.size, block):
                total.add(self._gradients(drawn[start : start + block]))
            mean = torch.from_numpy(total.release(stream) / self._table.divisor)
            for parameter, part in zip(self._trained, mean.split(sizes), strict=True):
                parameter.grad = part.to(parameter.dtype).reshape(parameter.shape)
            optimizer.step()
            optimizer.zero_grad()
        for name, buffer in module.named_buffers():
            if not torch.equal(buffer, buffers[name]):
                raise TrainingFailed(
                    f"the module changed its buffer {name!r} while it was trained: what it "
                    "gathered from the records has no noise"
                )
        if self._metrics is None:
            return {}
        entries = module.state_dict()
        return self._metrics({name: values.numpy().copy() for name, values in entries.items()})

    def _gradients(self, drawn: npt.NDArray[np.intp]) -> Reals:
        """One record's gradient a row, shape (drawn, trained numbers)."""
        torch = self._torch
        rows = torch.from_numpy(drawn)
        inputs = self._features[rows]
        if inputs.is_floating_point():
            # Of no use, but torch warns of hooks on a first layer without it.
            inputs.requires_grad_()
        try:
            losses = self._loss(self._per_record(inputs), self._targets[rows])
            if losses.shape != rows.shape:
                raise TrainingFailed(
                    f"the loss gave {tuple(losses.shape)} for {drawn.size} records; it must give "
                    'one number for each: reduction="none", and a mean over several outputs'
                )
            torch.autograd.backward(losses.sum())
            parts = [self._of(parameter, drawn.size) for parameter in self._trained]
        finally:
            self._forget()
        gradients: Reals = torch.cat(parts, dim=1).to(torch.float64).numpy()
        return gradients

    def _of(self, parameter: Any, records: int) -> torch.Tensor:
        if parameter.grad_sample is None:
            # The output did not depend on it.
            return self._torch.zeros(records, parameter.numel())
        gradients: torch.Tensor = parameter.grad_sample.detach().reshape(records, -1)
        return gradients

    def _forget(self) -> None:
        """Leave nothing in the module that single records gave, nor opacus amidst a batch.

        opacus counts passes and keeps activations until each has come back; where one does not (a
        loss that raised, an output that was not used), it would wait for it in every later batch.
        """
        for parameter in self._trained:
            parameter.grad = None
            vars(parameter).update(grad_sample=None, _forward_counter=0)
            vars(parameter).pop("_current_grad_sample", None)
        for layer in self._module.modules():
            vars(layer).pop("activations", None)
            vars(layer).pop("max_batch_len", None)
