"""How a planted bug is played: the worlds or games in which it has something to spoil."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from boltz_protocol.errors import MeshError
from tests.simulation.protocol.faults import LENGTH, Fault
from tests.simulation.protocol.faults import Kind as F
from tests.simulation.protocol.game import Game
from tests.simulation.protocol.lies import Kind as L
from tests.simulation.protocol.lies import Lie
from tests.simulation.protocol.settings import Setting
from tests.simulation.protocol.world import World

Patch = Callable[[pytest.MonkeyPatch], None]
#: Worlds or games of so many seeds are played for each mutant.
SEEDS: Final = range(4)


@dataclass(frozen=True, slots=True)
class Provocation:
    """Worlds (with faults) or games (with lies) in which a bug has something to spoil."""

    setting: Setting = field(default_factory=Setting)
    faults: tuple[Fault, ...] = ()
    lies: tuple[L, ...] | None = None

    def play(self, seed: int, planted: Mapping[str, Any]) -> World | Game:
        """Raises: AssertionError where something does not hold."""
        if self.lies is None:
            world = World(seed, self.setting, self.faults, **planted)
            world.run()
            if not self.faults and not self.setting.misdeeds:
                assert world.deadlines_met == 0, "a healthy round waits for a deadline"
            return world
        lies = [Lie(kind, seed, seed + place) for place, kind in enumerate(self.lies)]
        game = Game(seed, self.setting, lies, **planted)
        game.play()
        return game


@dataclass(frozen=True, slots=True)
class Mutant:
    """A planted bug: a patch, or what worlds and games are made with instead."""

    name: str
    provoked_by: Provocation
    patch: Patch | None = None
    planted: Mapping[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            if self.patch is not None:
                self.patch(patch)
            yield


def every(kind: F, first: int, *, step: int = 5, who: int = 0) -> tuple[Fault, ...]:
    """A fault again and again, so that some of them strikes where it matters."""
    return tuple(Fault(at, kind, who, at) for at in range(first, LENGTH, step))


def survives(mutant: Mutant | None, provocation: Provocation, seed: int) -> bool:
    """Whether everything holds. An error of the mesh's own code counts as a failure, too."""
    planted = {} if mutant is None else mutant.planted
    try:
        with contextlib.nullcontext() if mutant is None else mutant.at_work():
            provocation.play(seed, planted)
    except (AssertionError, MeshError):
        return False
    return True
