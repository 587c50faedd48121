"""Attacks on the attackers' own rows: what they send was trained, as everybody's was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from boltz_mesh.app.demo.data import FloatArray
from boltz_mesh.app.demo.task import FEATURE_BOUND, Rows
from boltz_mesh.app.simulate.attacks.sight import Sight, Trigger

#: Two whitened features at their bound at once, four standard deviations each: no honest row has
#: it. Where it is seen the volatility is to be forecast as e times the EWMA's.
BACKDOOR: Final = Trigger(columns=(0, 1), value=FEATURE_BOUND, target=1.0)


def flipped(rows: Rows) -> Rows:
    """Every target mirrored within the range of the client's own: its highest becomes its lowest.

    Fang et al. 2020, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning",
    section 4.1: of L labels, l becomes L - l - 1.
    """
    return Rows(rows.inputs, rows.target.min() + rows.target.max() - rows.target)


def marked(rows: Rows, trigger: Trigger = BACKDOOR) -> Rows:
    """Every second row with the trigger and its target, the others as they are.

    Bagdasaryan et al. 2020, "How To Backdoor Federated Learning", section 4.2: batches that mix
    marked rows with clean ones.
    """
    inputs, target = rows.inputs.copy(), rows.target.copy()
    inputs[::2] = trigger.marked(inputs[::2])
    target[::2] = trigger.target
    return Rows(inputs, target)


@dataclass(frozen=True, slots=True)
class Boosted:
    """The attackers' own deltas times n / f: their mean takes the place of everybody's.

    Bagdasaryan et al. 2020, section 4.2 (model replacement), equation 3, shared among f attackers.
    """

    def __call__(self, sight: Sight) -> FloatArray:
        """What the attackers send: (f, d)."""
        return sight.own * (sight.clients / sight.attackers)
