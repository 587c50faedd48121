"""The attacks of the library, as deltas for one round of a real mesh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from boltz_mesh.app.simulate.attacks.library import ATTACKS
from boltz_mesh.app.simulate.attacks.sight import Sight, honestly
from tests.support.models import Vector

#: Attacks that make up what they send; the others spoil the attackers' own data or their claims.
CRAFTED: Final = tuple(
    attack.name
    for attack in ATTACKS
    if attack.craft is not honestly and attack.poison is None and attack.stated_rows is None
)


def crafted(name: str, honest: Sequence[Vector], attackers: int, *, seed: int = 0) -> list[Vector]:
    """What so many attackers send who know everything, in a run's last round.

    Their own training has given them what the honest clients have on average; so has the last
    round.
    """
    (attack,) = (each for each in ATTACKS if each.name == name)
    deltas = np.array(honest, np.float64)
    mean = deltas.mean(axis=0)
    sight = Sight(
        number=9,
        rounds=10,
        honest=deltas,
        own=np.tile(mean, (attackers, 1)),
        last=mean,
        chance=np.random.default_rng(seed),
    )
    return [row.astype(np.float32) for row in attack.craft(sight)]
