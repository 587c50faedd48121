"""One training run with attackers in it, from the first model to the last.

`plain_mean` is what the table compares with: federated averaging as McMahan et al. 2017 have it,
algorithm 1, which takes every delta as long as it is and by the sample count that is stated.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from boltz_mesh.app.demo.data import FloatArray
from boltz_mesh.app.simulate.attacks.sight import Attack, Sight
from boltz_mesh.app.simulate.mesh import Sent, aggregate
from boltz_mesh.app.simulate.population import Population
from boltz_mesh.app.simulate.ring import Sending
from boltz_mesh.app.simulate.scenario import Scenario
from boltz_mesh.app.simulate.standing import Standing


@dataclass(frozen=True, slots=True)
class Trained:
    """What came out of one run.

    Attributes:
        model: (d,), the last one; not finite where the plain mean was driven out of range.
        shares: the attackers' share of the weight in each round, 0 to 1.
        attackers_out: attackers that were put in quarantine at any time.
        honest_out: honest clients that were.
        rounds: that took place; fewer than planned where quarantine left too few clients.
    """

    model: FloatArray
    shares: tuple[float, ...]
    attackers_out: int
    honest_out: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Hostile:
    """Who attacks and how.

    Attributes:
        attack: of the library.
        clients: f of them.
    """

    attack: Attack
    clients: frozenset[int]


def train(
    population: Population,
    scenario: Scenario,
    hostile: Hostile | None,
    chance: np.random.Generator,
) -> Trained:
    """All rounds through the product's own steps.

    Args:
        hostile: None for a run in which everybody is honest.
        chance: seeded; the run is the same for the same seed.

    Raises: TooFewClients, InvalidPlan where rule or groups do not fit what is left of the clients.
    """
    bad = frozenset[int]() if hostile is None else hostile.clients
    attack = None if hostile is None else hostile.attack
    step = population.training(bad, attack)
    encoding = scenario.encoding()
    standing = standing_of(population, scenario, bad, attack)
    model, last = population.start, np.zeros_like(population.start)
    shares: list[float] = []
    for number in range(scenario.rounds):
        members = standing.begin()
        if len(members) < scenario.fewest:
            break
        weights = standing.weights(members)
        shares.append(standing.share(bad, weights))
        sending = Sending(encoding, weights, chance)
        deltas = step(model)
        honest = {client: deltas[client] for client in members if client not in bad}
        wanted: dict[int, FloatArray] = {}
        attackers = [client for client in members if client in bad]
        if attackers:
            assert attack is not None
            sight = Sight(
                number=number,
                rounds=scenario.rounds,
                honest=np.stack([sending.clipped(delta) for delta in honest.values()]),
                own=deltas[attackers],
                last=last,
                chance=chance,
            )
            wanted = dict(zip(attackers, attack.craft(sight), strict=True))
        made = aggregate(scenario, sending, Sent(honest, wanted), last)
        last = made.mean
        model = (model + last).astype(np.float32).astype(np.float64)
        standing.end(made, weights)
    out = standing.ever_out
    return Trained(model, tuple(shares), len(out & bad), len(out - bad), len(shares))


def standing_of(
    population: Population, scenario: Scenario, bad: frozenset[int], attack: Attack | None
) -> Standing:
    """Everybody a newcomer, with the sample counts that are stated."""
    stated = [population.rows] * population.clients
    if attack is not None and attack.stated_rows is not None:
        for client in bad:
            stated[client] = attack.stated_rows
    return Standing(
        stated=stated,
        sample_bucket_cap=scenario.sample_bucket_cap,
        renewed_every=0 if attack is None else attack.renewed_every,
        attackers=bad,
    )


def plain_mean(
    population: Population,
    rounds: int,
    hostile: Hostile,
    chance: np.random.Generator,
) -> FloatArray:
    """The last model (d,) of a federation without clip, weights' caps, rule or trust."""
    attack, bad = hostile.attack, sorted(hostile.clients)
    good = [client for client in range(population.clients) if client not in hostile.clients]
    counts = np.full(population.clients, float(population.rows))
    if attack.stated_rows is not None:
        counts[bad] = attack.stated_rows
    step = population.training(hostile.clients, attack)
    model, last = population.start, np.zeros_like(population.start)
    # A model that is driven out of float64's range stays there, and counts as that.
    with np.errstate(over="ignore", invalid="ignore"):
        for number in range(rounds):
            deltas = step(model)
            if not np.isfinite(deltas).all():
                return np.full_like(model, np.inf)
            sight = Sight(number, rounds, deltas[good], deltas[bad], last, chance)
            deltas[bad] = attack.craft(sight)
            last = counts @ deltas / counts.sum()
            model = model + last
    return model


def drawn(clients: int, attackers: int, chance: np.random.Generator) -> frozenset[int]:
    """Which clients attack."""
    chosen: Collection[int] = chance.choice(clients, attackers, replace=False).tolist()
    return frozenset(chosen)
