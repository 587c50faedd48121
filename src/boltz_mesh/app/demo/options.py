"""What `boltz-mesh demo` was asked for, and what follows from it: pure, checked before any start.

`DemoOptions` is the command line; `task_for` turns it into a `DemoTask`, in which every choice is
made: origins, desks, rounds, noise, and the training runs (one model each).
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from boltz_mesh.app.demo.settings import (
    DELTA,
    PRESET_60,
    PRESET_300,
    PRESET_MLP,
    Calendar,
    DeskLayout,
    ModelKind,
    Preset,
    TrainerKind,
    preset_for,
)
from boltz_mesh.privacy import accountant
from boltz_protocol import limits
from boltz_protocol.errors import ConfigurationError

#: Noise seeds of the default run.
DEFAULT_SEEDS: Final = 3
#: Noise seeds with `--full`: the spread over years is what it adds, so a few more do.
FULL_SEEDS: Final = 5
#: A seed is a training run; more tell nothing new about the spread.
MAX_SEEDS: Final = 20
#: Each client makes an RSA key (0.2 s) and holds a TLS connection on this one machine.
MAX_CLIENTS: Final = 1000
#: From so many desks a broker on, the settings of the 300-desk preset fit better.
MANY_DESKS: Final = 8
#: An epsilon beyond this promises nothing, so a run at it would mislead.
MAX_EPSILON: Final = 20.0
#: Desks a broker where `--clients` is silent.
DEFAULT_DESKS: Final = 3
#: Rounds of different models that run side by side: enough to fill two cores while one waits.
SIDE_BY_SIDE: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """The command line; None where it is silent."""

    clients: int | None = None
    model: ModelKind = "linear"
    trainer: TrainerKind = "numpy"
    data: Path | None = None
    epsilon: float | None = None
    seeds: int | None = None
    origins: str | None = None
    full: bool = False
    out: Path = Path("demo-report")
    keep: bool = False

    def command(self) -> str:
        """The command that asks for the same."""
        plain = DemoOptions()
        words = ["boltz-mesh", "demo"]
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if value != getattr(plain, name):
                words.append(f"--{name}")
                words += [] if value is True else [str(value)]
        return shlex.join(words)


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One model that the mesh trains: an origin, with noise (a seed) or without.

    The seed is a number of the repetition only: the mesh draws its noise from a cryptographic
    stream that nobody can set.
    """

    origin: int
    seed: int | None

    @property
    def row(self) -> str:
        """Name of the row in the table of results."""
        return "federated" if self.seed is None else "federated_dp"

    @property
    def model_id(self) -> str:
        """`vol-2019` without noise, `vol-2019-s1` with noise."""
        return f"vol-{self.origin}" + ("" if self.seed is None else f"-s{self.seed}")


@dataclass(frozen=True, slots=True)
class DemoTask:
    """Everything decided.

    Attributes:
        brokers: names of the stocks, one process each.
        preset: desks, rounds, clip norm, ridge, epsilon and noise multiplier of this run.
        origins: tested years, ascending.
        seeds: numbers of the noise repetitions; empty for the network.
        remark: what a reader should know about the settings; may be empty.
    """

    brokers: tuple[str, ...]
    kind: ModelKind
    trainer: TrainerKind
    preset: Preset
    origins: tuple[int, ...]
    seeds: tuple[int, ...]
    remark: str

    @property
    def clients(self) -> int:
        """Desks of all brokers."""
        return len(self.brokers) * self.preset.layout.per_broker

    def runs(self) -> tuple[TrainingRun, ...]:
        """Every training run, origin by origin, the one without noise first."""
        return tuple(
            TrainingRun(origin, seed) for origin in self.origins for seed in (None, *self.seeds)
        )

    @property
    def rounds(self) -> int:
        """Rounds of all runs."""
        return len(self.runs()) * self.preset.rounds


def task_for(options: DemoOptions, stocks: tuple[str, ...], calendar: Calendar) -> DemoTask:
    """Settle every choice.

    Args:
        options: the command line.
        stocks: names of the stocks in the data.
        calendar: of the data.

    Raises: ConfigurationError, naming the option and a value that would do.
    """
    preset, remark = _preset(options, len(stocks))
    if preset.epsilon is None:
        seeds = 0
    else:
        seeds = options.seeds or (FULL_SEEDS if options.full else DEFAULT_SEEDS)
    return DemoTask(
        brokers=stocks,
        kind=options.model,
        trainer=options.trainer,
        preset=preset,
        origins=_origins(options, calendar),
        seeds=tuple(range(1, seeds + 1)),
        remark=remark,
    )


def _preset(options: DemoOptions, brokers: int) -> tuple[Preset, str]:
    if options.model == "mlp":
        _refuse_for_network(options, brokers)
        return PRESET_MLP, ""
    if options.seeds is not None and not 1 <= options.seeds <= MAX_SEEDS:
        raise ConfigurationError(
            f"--seeds {options.seeds}: give 1 to {MAX_SEEDS}", setting="--seeds"
        )
    clients = DEFAULT_DESKS * brokers if options.clients is None else options.clients
    if not brokers <= clients <= MAX_CLIENTS or clients % brokers:
        examples = ", ".join(
            str(n * brokers) for n in (1, DEFAULT_DESKS, 15) if n * brokers <= MAX_CLIENTS
        )
        raise ConfigurationError(
            f"--clients {clients}: give a multiple of the {brokers} stocks, at most "
            f"{MAX_CLIENTS} (such as {examples})",
            setting="--clients",
        )
    preset, remark = preset_for(options.model, clients, brokers), ""
    if preset is None:
        each = clients // brokers
        nearest = PRESET_300 if each >= MANY_DESKS else PRESET_60
        preset = replace(nearest, layout=DeskLayout(each, 62, 57))
        known = nearest.layout.per_broker
        remark = (
            f"There is no preset for {each} desks a broker: rounds, clip norm and ridge are those "
            f"chosen for {known}."
        )
    epsilon = options.epsilon if options.epsilon is not None else preset.epsilon
    assert epsilon is not None, "a linear preset has an epsilon"
    return replace(preset, epsilon=epsilon, noise_multiplier=_noise(epsilon, preset)), remark


def _noise(epsilon: float, preset: Preset) -> float:
    """The least noise with which all rounds of a run stay within epsilon."""
    if not (math.isfinite(epsilon) and 0 < epsilon <= MAX_EPSILON):
        raise ConfigurationError(
            f"--epsilon {epsilon:g}: give a number above 0, at most {MAX_EPSILON:g} (a larger one "
            "would promise nothing); 2 is the default with three desks a broker",
            setting="--epsilon",
        )
    noise = accountant.noise_multiplier_for(epsilon, preset.rounds, DELTA, distributed=True)
    if noise > limits.MAX_NOISE_MULTIPLIER:
        raise ConfigurationError(
            f"--epsilon {epsilon:g} needs a noise multiplier of {noise:.0f}, above the mesh's cap "
            f"of {limits.MAX_NOISE_MULTIPLIER:g}: give a larger epsilon",
            setting="--epsilon",
        )
    return noise


def _refuse_for_network(options: DemoOptions, brokers: int) -> None:
    for name in ("epsilon", "seeds"):
        if getattr(options, name) is not None:
            raise ConfigurationError(
                f"--{name} does not go with --model mlp: the network is trained without noise, "
                "so no epsilon is claimed for it",
                setting=f"--{name}",
            )
    if options.clients not in {None, brokers}:
        raise ConfigurationError(
            f"--clients {options.clients} does not go with --model mlp, which has one desk a "
            f"broker: leave it out, or give {brokers}",
            setting="--clients",
        )


def _origins(options: DemoOptions, calendar: Calendar) -> tuple[int, ...]:
    if options.origins is None:
        return calendar.origins if options.full else calendar.newest()
    if options.full:
        raise ConfigurationError(
            "--full tests every year, --origins some of them: give one of the two",
            setting="--origins",
        )
    known = f"{calendar.origins[0]} to {calendar.origins[-1]}"
    try:
        chosen = sorted({int(word) for word in options.origins.split(",")})
    except ValueError:
        raise ConfigurationError(
            f"--origins {options.origins!r}: give years out of {known}, such as "
            f"{calendar.origins[-1]}, with commas between them",
            setting="--origins",
        ) from None
    if wrong := [year for year in chosen if year not in calendar.origins]:
        raise ConfigurationError(
            f"--origins: {wrong[0]} cannot be tested with these prices; {known} can",
            setting="--origins",
        )
    return tuple(chosen)
