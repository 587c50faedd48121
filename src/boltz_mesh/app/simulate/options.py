"""What `boltz-mesh simulate` was asked for, checked before anything starts. Pure."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from boltz_mesh.app.demo.options import DemoOptions, task_for
from boltz_mesh.app.demo.settings import (
    DELTA,
    PRESET_MLP,
    TWO_YEARS,
    Calendar,
    DeskLayout,
    ModelKind,
    Preset,
)
from boltz_mesh.app.demo.task import HORIZON_DAYS
from boltz_mesh.app.simulate.attacks.library import ATTACKS
from boltz_mesh.app.simulate.attacks.sight import Attack
from boltz_mesh.app.simulate.scenario import ROBUST, Scenario
from boltz_mesh.privacy import accountant
from boltz_mesh.rounds.plan_types import Mode, Rule
from boltz_protocol import limits
from boltz_protocol.errors import ConfigurationError, InvalidPlan
from boltz_protocol.weights import sample_bucket

#: Repetitions, each with other attackers, rounding and noise; what is told is their median.
REPETITIONS: Final = 3
DEFAULT_ATTACKERS: Final = 4
DEFAULT_SEED: Final = 1
#: Groups of a grouped round: 4 liars in groups of their own leave 8 without one.
DEFAULT_GROUPS: Final = 12
#: Desks of a broker, in open and sealed rounds and in grouped ones.
DEFAULT_DESKS: Final = {"mlp": (1, 3), "linear": (3, 15)}
#: Parts of two years that still have more rows than one batch of the network's training.
MAX_PARTS: Final = 12
#: As many as the longest preset, ten times over.
MAX_ROUNDS: Final = 200
MAX_SEED: Final = 2**32 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions:
    """The command line; None where it is silent."""

    attack: str | None = None
    attackers: int = DEFAULT_ATTACKERS
    mode: Mode = "open"
    rule: Rule | None = None
    model: ModelKind = "mlp"
    clients: int | None = None
    groups: int | None = None
    epsilon: float | None = None
    rounds: int | None = None
    sample_bucket_cap: int | None = None
    seed: int = DEFAULT_SEED
    data: Path | None = None
    matrix: bool = False

    def command(self) -> str:
        """The command that asks for the same."""
        plain = SimulateOptions()
        words = ["boltz-mesh", "simulate"]
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if value != getattr(plain, name):
                words.append(f"--{name.replace('_', '-')}")
                words += [] if value is True else [str(value)]
        return shlex.join(words)


@dataclass(frozen=True, slots=True)
class Study:
    """Everything decided.

    Attributes:
        scenarios: one for each rule, the mode's default first.
        attacks: that are run.
        origins: tested years.
        seeds: of the repetitions.
    """

    scenarios: tuple[Scenario, ...]
    attacks: tuple[Attack, ...]
    origins: tuple[int, ...]
    seeds: tuple[int, ...]


def attack_named(name: str | None) -> Attack:
    """The attack. Raises: ConfigurationError naming those that there are."""
    for attack in ATTACKS:
        if attack.name == name:
            return attack
    known = ", ".join(attack.name for attack in ATTACKS)
    problem = "is missing" if name is None else f"{name!r} is none"
    raise ConfigurationError(
        f"--attack {problem}: give one of {known}; --list explains them, and --matrix runs all",
        setting="--attack",
    )


def rules_of(mode: Mode, noised: bool) -> tuple[Rule, ...]:
    """Rules that a plan of this mode takes, the default where liars are expected first."""
    if mode == "sealed":
        return ("weighted-mean",)
    if mode == "grouped":
        return (*ROBUST, "weighted-mean")
    if noised:
        return ("weighted-mean", "centered-clipping")
    return (*ROBUST, "weighted-mean", "centered-clipping")


def study_for(options: SimulateOptions, stocks: tuple[str, ...], calendar: Calendar) -> Study:
    """Settle every choice.

    Args:
        stocks, calendar: of the data.

    Raises: ConfigurationError, naming the option and what would do.
    """
    attacks = _attacks(options)
    _check_numbers(options)
    preset, clients = _preset(options, stocks, calendar)
    groups = _groups(options, clients)
    rules = _rules(options)
    first = Scenario(
        mode=options.mode,
        rule=rules[0],
        kind=options.model,
        layout=preset.layout,
        preset=preset,
        clients=clients,
        groups=groups,
        attackers=options.attackers,
        sample_bucket_cap=_cap(options, preset.layout),
    )
    scenarios = tuple(replace(first, rule=rule) for rule in rules)
    if options.matrix:
        # A rule that asks for more rows than the default does has no column.
        scenarios = (first, *(each for each in scenarios[1:] if _withstands(each)))
    for scenario in scenarios:
        _check_rows(scenario)
    _check_noise(first, options)
    return Study(
        scenarios=scenarios,
        attacks=attacks,
        origins=calendar.newest(),
        seeds=tuple(range(options.seed, options.seed + REPETITIONS)),
    )


def _attacks(options: SimulateOptions) -> tuple[Attack, ...]:
    if not options.matrix:
        return (attack_named(options.attack),)
    for name in ("attack", "rule"):
        if getattr(options, name) is not None:
            raise ConfigurationError(
                f"--{name} does not go with --matrix, which runs all of them: leave one of the two "
                "out",
                setting=f"--{name}",
            )
    return ATTACKS


def _check_numbers(options: SimulateOptions) -> None:
    for name, value, least, most in (
        ("--rounds", options.rounds, 1, MAX_ROUNDS),
        ("--seed", options.seed, 0, MAX_SEED - REPETITIONS),
        ("--sample-bucket-cap", options.sample_bucket_cap, 0, limits.MAX_SAMPLE_BUCKET),
    ):
        if value is not None and not least <= value <= most:
            raise ConfigurationError(f"{name} {value}: give {least} to {most}", setting=name)


def _preset(
    options: SimulateOptions, stocks: tuple[str, ...], calendar: Calendar
) -> tuple[Preset, int]:
    """Desks, training and noise, and how many clients that makes."""
    few, many = DEFAULT_DESKS[options.model]
    each = many if options.mode == "grouped" else few
    clients = each * len(stocks) if options.clients is None else options.clients
    if options.model == "mlp":
        preset = _network_preset(options, clients, len(stocks))
    else:
        # The demo's own choice, and its own refusals.
        asked = DemoOptions(clients=clients, epsilon=options.epsilon)
        preset = task_for(asked, stocks, calendar).preset
    rounds = preset.rounds if options.rounds is None else options.rounds
    if options.epsilon is None:
        return replace(preset, rounds=rounds, epsilon=None, noise_multiplier=0.0), clients
    noise = accountant.noise_multiplier_for(
        options.epsilon, rounds, DELTA, distributed=options.mode != "open"
    )
    return replace(preset, rounds=rounds, noise_multiplier=noise), clients


def _network_preset(options: SimulateOptions, clients: int, brokers: int) -> Preset:
    if options.epsilon is not None:
        raise ConfigurationError(
            "--epsilon does not go with --model mlp: the network is poor with noise and has none; "
            "--model linear would do",
            setting="--epsilon",
        )
    each, rest = divmod(clients, brokers)
    if rest or not 1 <= each <= MAX_PARTS:
        raise ConfigurationError(
            f"--clients {clients}: give a multiple of the {brokers} stocks, at most "
            f"{MAX_PARTS * brokers}, which cuts the two years of each into as many desks "
            f"({brokers} or {3 * brokers} would do)",
            setting="--clients",
        )
    return replace(PRESET_MLP, layout=layout_of(each))


def layout_of(parts: int) -> DeskLayout:
    """A broker's two years in so many desks; no label reaches from one into the next."""
    if parts == 1:
        return TWO_YEARS
    block = TWO_YEARS.block_rows // parts
    return DeskLayout(per_broker=parts, block_rows=block, kept_rows=block - HORIZON_DAYS)


def _groups(options: SimulateOptions, clients: int) -> int:
    if options.mode != "grouped":
        if options.groups is not None:
            raise ConfigurationError(
                f"--groups {options.groups}: in mode {options.mode} there are none; leave it out, "
                "or give --mode grouped",
                setting="--groups",
            )
        return 0
    groups = DEFAULT_GROUPS if options.groups is None else options.groups
    fewest, most = -(-clients // limits.MAX_COMPLETE_GRAPH), clients // limits.MIN_GROUP
    least = max(2, fewest)
    if not least <= groups <= most:
        would_do = f"{least} to {most} would do" if least <= most else "more clients would do"
        raise ConfigurationError(
            f"--groups {groups}: a group has {limits.MIN_GROUP} to {limits.MAX_COMPLETE_GRAPH} "
            f"clients, and there are {clients}; {would_do}",
            setting="--groups",
        )
    return groups


def _rules(options: SimulateOptions) -> tuple[Rule, ...]:
    rules = rules_of(options.mode, options.epsilon is not None)
    if options.matrix:
        return rules
    if options.rule is None:
        return rules[:1]
    if options.rule not in rules:
        noise = "" if options.epsilon is None else " with noise"
        raise ConfigurationError(
            f"--rule {options.rule}: mode {options.mode}{noise} does not take it; "
            f"{' or '.join(rules)} would do",
            setting="--rule",
        )
    return (options.rule,)


def _cap(options: SimulateOptions, layout: DeskLayout) -> int:
    """The plan's cap on sample counts: what an honest desk has, unless told otherwise."""
    if options.sample_bucket_cap is not None:
        return options.sample_bucket_cap
    return sample_bucket(layout.kept_rows)


def _least_rows(scenario: Scenario) -> int:
    """Rows with which the rule withstands the attackers, or more than half are honest."""
    choice = scenario.robust
    return 2 * scenario.attackers + 1 if choice is None else choice.fewest_rows


def _withstands(scenario: Scenario) -> bool:
    return scenario.attackers >= 1 and scenario.rows >= _least_rows(scenario)


def _check_rows(scenario: Scenario) -> None:
    """Fewer than half may attack, and the rule must be able to withstand as many."""
    if _withstands(scenario):
        return
    f, rows = scenario.attackers, scenario.rows
    what = "groups" if scenario.mode == "grouped" else "clients"
    # Each liar more asks for two rows more.
    most = max((rows - (_least_rows(scenario) - 2 * f)) // 2, 1)
    raise ConfigurationError(
        f"--attackers {f}: {rows} {what} under {scenario.rule} withstand 1 to {most}; "
        f"{min(most, DEFAULT_ATTACKERS)} would do, or more {what}",
        setting="--attackers",
    )


def _check_noise(scenario: Scenario, options: SimulateOptions) -> None:
    """Whether the plan's noise can be drawn at all."""
    assert options.epsilon is None or math.isfinite(options.epsilon), "checked with the preset"
    try:
        scenario.encoding()
        if scenario.mode == "open":
            scenario.calibration()
        else:
            scenario.share()
    except InvalidPlan as error:
        setting = "--groups" if scenario.mode == "grouped" else "--epsilon"
        raise ConfigurationError(
            f"{setting}: no plan is like that: {error.message}", setting=setting
        ) from error
