"""Runs a study: every attack under every rule, on every origin, with every seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from boltz_mesh.app.demo.data import FloatArray
from boltz_mesh.app.demo.evaluation import network_market
from boltz_mesh.app.demo.settings import SCOPE
from boltz_mesh.app.demo.task import Market
from boltz_mesh.app.simulate.attacks.sight import Attack
from boltz_mesh.app.simulate.options import SimulateOptions, Study
from boltz_mesh.app.simulate.population import Population, population_of
from boltz_mesh.app.simulate.report import (
    MOST_ERROR,
    NO_ATTACK,
    Cell,
    Repetition,
    Report,
    cell_of,
)
from boltz_mesh.app.simulate.run import Hostile, Trained, drawn, plain_mean, train
from boltz_mesh.app.simulate.scenario import Scenario

#: Told of each attack and rule before it is run.
Progress = Callable[[str, str], None]
#: By seed and origin, the plain mean's last model under one attack.
Plains = dict[tuple[int, int], FloatArray]

# What a generator is for, beside seed and origin: runs that are compared draw the same attackers.
_DRAW: Final = 0
_CLEAN: Final = 1
_RUN: Final = 2


@dataclass(frozen=True, slots=True)
class _Clean:
    """A run without attackers, and who attacks in the others.

    Attributes:
        attackers: of this seed and origin.
        stocks: on which models are scored: those of honest clients.
        model: without attackers.
    """

    attackers: frozenset[int]
    stocks: tuple[int, ...]
    model: FloatArray


@dataclass(frozen=True, slots=True)
class Bench:
    """Everything that the cells of a study share.

    Attributes:
        populations: by origin.
        clean: by seed and origin.
    """

    study: Study
    populations: dict[int, Population]
    clean: dict[tuple[int, int], _Clean]

    def plains(self, attack: Attack | None) -> Plains:
        """The plain mean's last model for each seed and origin; the clean one without attack."""
        if attack is None:
            return {key: clean.model for key, clean in self.clean.items()}
        rounds = self.study.scenarios[0].rounds
        return {
            (seed, origin): plain_mean(
                self.populations[origin],
                rounds,
                Hostile(attack, clean.attackers),
                generator(seed, origin, _RUN),
            )
            for (seed, origin), clean in self.clean.items()
        }

    def cell(self, attack: Attack | None, scenario: Scenario, plains: Plains) -> Cell:
        """One attack under one rule; None for no attack.

        Args:
            plains: of the attack.

        Raises: TooFewClients.
        """
        repetitions = []
        for seed in self.study.seeds:
            origins = [
                self._origin(attack, scenario, (seed, origin), plains[seed, origin])
                for origin in self.study.origins
            ]
            means = {
                name: float(np.mean([getattr(each, name) for each in origins]))
                for name in Repetition.__slots__
            }
            repetitions.append(Repetition(**means))
        return cell_of(NO_ATTACK if attack is None else attack.name, scenario.rule, repetitions)

    def _origin(
        self, attack: Attack | None, scenario: Scenario, key: tuple[int, int], plain: FloatArray
    ) -> Repetition:
        population, clean = self.populations[key[1]], self.clean[key]
        hostile = None if attack is None else Hostile(attack, clean.attackers)
        trained = train(population, scenario, hostile, generator(*key, _RUN))
        return Repetition(
            ewma=population.ewma_error(clean.stocks),
            clean=error_of(population, clean.model, clean.stocks),
            attacked=error_of(population, trained.model, clean.stocks),
            plain=error_of(population, plain, clean.stocks),
            marked=self._marked(attack, trained.model, key),
            plain_marked=self._marked(attack, plain, key),
            **_standing(trained),
        )

    def _marked(self, attack: Attack | None, model: FloatArray, key: tuple[int, int]) -> float:
        """Part of the way to what a backdoor wants, from what the clean model forecasts."""
        if attack is None or attack.trigger is None or not np.isfinite(model).all():
            return 0.0
        population, clean = self.populations[key[1]], self.clean[key]
        before = population.marked_forecast(clean.model, clean.stocks, attack.trigger)
        after = population.marked_forecast(model, clean.stocks, attack.trigger)
        return (after - before) / (attack.trigger.target - before)


def bench_of(study: Study, market: Market) -> Bench:
    """The clients of each origin, and the runs without attackers.

    Raises: MarketDataInvalid when the history is too short.
    """
    first = study.scenarios[0]
    seen = network_market(market) if first.kind == "mlp" else market
    populations = {
        origin: population_of(seen, origin, first.kind, first.layout, first.preset)
        for origin in study.origins
    }
    mean = replace(first, rule="weighted-mean")
    clean = {}
    for seed in study.seeds:
        for origin, population in populations.items():
            attackers = drawn(first.clients, first.attackers, generator(seed, origin, _DRAW))
            model = train(population, mean, None, generator(seed, origin, _CLEAN)).model
            stocks = population.honest_stocks(attackers)
            clean[seed, origin] = _Clean(attackers, stocks, model)
    return Bench(study, populations, clean)


def run_study(
    options: SimulateOptions,
    study: Study,
    market: Market,
    tell: Progress,
    *,
    source: str,
    date: str,
) -> Report:
    """All cells of a study.

    Args:
        source: of the prices, in words.
        date: today, YYYY-MM-DD.

    Raises: MarketDataInvalid, TooFewClients.
    """
    bench = bench_of(study, market)
    attacks: list[Attack | None] = list(study.attacks)
    if options.matrix:
        attacks.insert(0, None)
    cells = []
    for attack in attacks:
        plains = bench.plains(attack)
        for scenario in study.scenarios:
            tell(NO_ATTACK if attack is None else attack.name, scenario.rule)
            cells.append(bench.cell(attack, scenario, plains))
    first = study.scenarios[0]
    return Report(
        command=options.command(),
        date=date,
        mode=first.mode,
        model=first.kind,
        clients=first.clients,
        groups=first.groups,
        attackers=first.attackers,
        rounds=first.rounds,
        clip_norm=first.preset.clip_norm_l2,
        sample_bucket_cap=first.sample_bucket_cap,
        privacy=privacy_words(first),
        unit=unit_words(first),
        origins=study.origins,
        seeds=study.seeds,
        source=source,
        rules=tuple(scenario.rule for scenario in study.scenarios),
        attacks=tuple(NO_ATTACK if attack is None else attack.name for attack in attacks),
        cells=tuple(cells),
    )


def privacy_words(scenario: Scenario) -> str:
    """What is promised to one client."""
    preset = scenario.preset
    if preset.epsilon is None:
        return "none"
    return f"epsilon {preset.epsilon:g} {SCOPE}, noise multiplier {preset.noise_multiplier:.3g}"


def unit_words(scenario: Scenario) -> str:
    """What one client is."""
    layout = scenario.layout
    if layout.per_broker == 1 or scenario.kind == "linear":
        return layout.unit
    return (
        f"one desk: one of {layout.per_broker} parts of two years of one stock "
        f"({layout.kept_rows} days)"
    )


def generator(seed: int, origin: int, purpose: int) -> np.random.Generator:
    """For one purpose of one repetition."""
    return np.random.Generator(np.random.PCG64([seed, origin, purpose]))


def error_of(population: Population, model: FloatArray, stocks: tuple[int, ...]) -> float:
    """The model's error, cut at `MOST_ERROR`."""
    if not np.isfinite(model).all():
        return MOST_ERROR
    with np.errstate(over="ignore", invalid="ignore"):
        error = population.error(model, stocks)
    return min(error, MOST_ERROR) if np.isfinite(error) else MOST_ERROR


def _standing(trained: Trained) -> dict[str, float]:
    return {
        "share": trained.shares[-1],
        "most_share": max(trained.shares),
        "out": float(trained.attackers_out),
        "honest_out": float(trained.honest_out),
    }
