"""Plays what a seed stands for and prints what happens: `SEED`, or `game SEED`."""

from __future__ import annotations

import sys

from tests.simulation.protocol.game import Game
from tests.simulation.protocol.world import World


def main(*arguments: str) -> None:
    seed = int(arguments[-1])
    if arguments[0] == "game":
        game = Game.of(seed)
        try:
            game.play()
        finally:
            print(*game.log, sep="\n")
        return
    world = World.of(seed)
    try:
        state = world.run()
    finally:
        print(world.setting, *world.engine.log, sep="\n")
    print(state)


if __name__ == "__main__":
    main(*sys.argv[1:])
