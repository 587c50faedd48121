"""The answer of a privacy plan in words, and as a document for programs.

Every epsilon has its delta, its unit and its relation beside it; it is rounded up, never down.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from boltz_mesh.privacy.composition import Comparison
from boltz_mesh.privacy.mechanisms import RELATION_WORDS, UNIT_WORDS, Relation
from boltz_mesh.privacy.planning import Error, Outlook
from boltz_mesh.privacy.tradeoff import Tradeoff

#: How the ways of adding up are named for people, the reported one first.
COMPARED = (
    ("reported", "what the ledger reports"),
    ("loss_distribution", "privacy loss distributions (PLD)"),
    ("renyi", "Rényi divergences (RDP)"),
    ("optimal", "best from one round's pair (Kairouz, Oh, Viswanath 2015)"),
    ("advanced", "advanced composition (Dwork, Rothblum, Vadhan 2010)"),
    ("basic", "basic composition"),
)


def number(epsilon: float) -> str:
    """An epsilon to three decimals, rounded up."""
    return f"{math.ceil(epsilon * 1000) / 1000:.3f}" if math.isfinite(epsilon) else "unlimited"


def scope(outlook: Outlook, relation: Relation = "contribution-set-to-zero") -> str:
    """What an epsilon is about: delta, unit and relation."""
    return (
        f"at delta {outlook.federation.delta:g}, {UNIT_WORDS['client']}, {RELATION_WORDS[relation]}"
    )


def title(outlook: Outlook) -> str:
    """What was planned for."""
    federation = outlook.federation
    return f"privacy plan: {federation.mode} rounds of {federation.clients:,} clients"


def fields(outlook: Outlook) -> list[tuple[str, str]]:
    """Name and value of all that a person asked for."""
    federation, error = outlook.federation, outlook.error
    asked = "" if outlook.asked_epsilon is None else f" of {outlook.asked_epsilon:g} allowed"
    return [
        ("noise multiplier", f"{outlook.noise_multiplier:g}"),
        ("rounds", f"{outlook.rounds:,} with one client in all of them"),
        ("epsilon", f"{number(outlook.epsilon)}{asked} ({scope(outlook)})"),
        (
            "if replaced instead",
            f"{number(outlook.epsilon_replace_one)} ({scope(outlook, 'contribution-replaced')}: "
            "sensitivity 2C)",
        ),
        ("sampling", _sampling(outlook)),
        (
            "noise on the mean",
            f"standard deviation {error.coordinate_std:.4g} in each coordinate, expected L2 norm "
            f"{error.l2_expected:.4g} over {_many(federation.parameters)}",
        ),
        (
            "against one client",
            f"that norm is {error.l2_over_clip:.4g} times the clip norm of "
            f"{federation.clip_norm:g}, the most that one contribution is long",
        ),
        ("who adds the noise", _adds(outlook)),
    ]


def plan_toml(outlook: Outlook) -> str:
    """The lines of a `plan.toml` that the answer is about."""
    federation, budget = outlook.federation, outlook.asked_epsilon
    if budget is None:
        budget = float(number(outlook.epsilon))
    lines = [f'mode = "{federation.mode}"', f"clip_norm = {federation.clip_norm!r}"]
    lines += ['privacy = "client-dp"', f"noise_multiplier = {outlook.noise_multiplier!r}"]
    lines += ["[budget]  # one client's contribution set to zero"]
    lines += [f"epsilon = {budget!r}", f"delta = {federation.delta!r}", 'unit = "client"']
    lines += ["[cohort]", f"min = {federation.survivors}"]
    lines += [f"target = {federation.clients}", f"max = {federation.clients}"]
    return "\n".join(lines) + "\n"


def document(outlook: Outlook, tradeoff: Tradeoff, comparison: Comparison | None) -> dict[str, Any]:
    """Everything as one JSON document; an epsilon that cannot be told is null."""
    federation = outlook.federation
    one = {"delta": federation.delta, "unit": "client", "relation": "contribution-set-to-zero"}
    made: dict[str, Any] = {
        "noise_multiplier": outlook.noise_multiplier,
        "rounds": outlook.rounds,
        "epsilon_allowed": None
        if outlook.asked_epsilon is None
        else {"epsilon": outlook.asked_epsilon, **one},
        "epsilon": {"epsilon": outlook.epsilon, **one},
        "epsilon_replace_one": {
            "epsilon": _told(outlook.epsilon_replace_one),
            **one,
            "relation": "contribution-replaced",
        },
        "epsilon_charged": {"epsilon": _told(outlook.epsilon_charged), **one},
        "federation": {
            **asdict(federation),
            "least_survivors": federation.survivors if federation.mode == "sealed" else None,
            "corrupt_fraction": federation.corrupt_fraction
            if federation.mode == "sealed"
            else None,
            "noise_growth": federation.noise_growth,
        },
        "error_of_mean": asdict(outlook.error),
        "epsilon_by_rounds": {
            **one,
            "rounds": tradeoff.rounds,
            "by_noise_multiplier": [
                {"noise_multiplier": noise, "epsilon": [_told(value) for value in values]}
                for noise, values in tradeoff.epsilons.items()
            ],
        },
        "error_by_cohort": {
            "clients": tradeoff.cohorts,
            "by_noise_multiplier": [
                {"noise_multiplier": noise, "error_of_mean": [asdict(error) for error in errors]}
                for noise, errors in tradeoff.errors.items()
            ],
        },
        "comparison": None,
    }
    if comparison is not None:
        made["comparison"] = {
            **{name: _told(getattr(comparison, name)) for name, _ in COMPARED},
            **one,
        }
    return made


def epsilon_rows(outlook: Outlook, tradeoff: Tradeoff) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of epsilon by rounds; the answer's own figures are marked."""
    columns = [">rounds", *(f">z = {noise:g}" for noise in tradeoff.noise_multipliers)]
    rows = []
    for position, count in enumerate(tradeoff.rounds):
        cells = (number(tradeoff.epsilons[noise][position]) for noise in tradeoff.noise_multipliers)
        rows.append([_marked(f"{count:,}", count == outlook.rounds), *cells])
    return columns, rows


def error_rows(outlook: Outlook, tradeoff: Tradeoff) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the error by cohort: a coordinate's and the L2 norm, over C."""
    columns = [">clients", *(f">z = {noise:g}" for noise in tradeoff.noise_multipliers)]
    rows = []
    for position, size in enumerate(tradeoff.cohorts):
        cells = (
            _error(tradeoff.errors[noise][position], outlook.federation.clip_norm)
            for noise in tradeoff.noise_multipliers
        )
        rows.append([_marked(f"{size:,}", size == outlook.federation.clients), *cells])
    return columns, rows


def comparison_rows(comparison: Comparison) -> list[tuple[str, str]]:
    """The ways of adding up, and their epsilons."""
    return [(words, number(getattr(comparison, name))) for name, words in COMPARED]


def _error(error: Error, clip_norm: float) -> str:
    return f"{error.coordinate_std / clip_norm:.3g} / {error.l2_over_clip:.3g}"


def _marked(text: str, answer: bool) -> str:
    return f"* {text}" if answer else text


def _told(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def _many(parameters: int) -> str:
    return "1 parameter" if parameters == 1 else f"{parameters:,} parameters"


def _sampling(outlook: Outlook) -> str:
    rate = outlook.federation.sampling_rate
    if rate == 1:
        return (
            "counted as 1: selection that is not provably random, secret and uniform gains nothing"
        )
    return (
        f"supposed to be {rate:g}, Poisson and secret, which no round of the mesh is: its ledger "
        f"would charge epsilon {number(outlook.epsilon_charged)} ({scope(outlook)})"
    )


def _adds(outlook: Outlook) -> str:
    federation = outlook.federation
    if federation.mode == "open":
        return "the mesh, once, before anything is stored or published"
    dishonest = federation.survivors - federation.honest
    return (
        f"the clients, in shares made for {federation.survivors} survivors of whom {dishonest} may "
        f"collude; epsilon is theirs, and a full cohort of {federation.clients} has "
        f"{federation.noise_growth:.3g} times that noise, which is counted above"
    )
