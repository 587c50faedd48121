"""Operations and faults of a simulated world, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from types import MappingProxyType
from typing import Final


class Kind(StrEnum):
    """What may happen next."""

    CHECK_IN = "check-in"
    CHECK_OUT = "check-out"
    UPLOAD = "upload"
    DROP = "drop"
    ABORT = "abort"
    WAIT = "wait"
    TURN = "turn"
    EFFECT = "effect"
    CRASH = "crash"
    CRASH_BEFORE_COMMIT = "crash-before-commit"
    CRASH_AFTER_COMMIT = "crash-after-commit"
    POOR = "poor"
    POISON = "poison"
    # Of sealed rounds alone: what may happen to messages and to clients.
    DELIVER = "deliver"
    LOSE = "lose"
    DUPLICATE = "duplicate"
    RECONNECT = "reconnect"
    RESTART = "restart"
    COPY = "copy"
    DIE = "die"
    OUTAGE = "outage"
    SLOW = "slow"


@dataclass(frozen=True, slots=True)
class Op:
    """One operation or fault; `number` picks a client, or a time."""

    kind: Kind
    number: int = 0


#: More check-ins, uploads and turns than faults.
OPEN_LIFE: Final[Mapping[Kind, float]] = MappingProxyType(
    {
        Kind.CHECK_IN: 6,
        Kind.CHECK_OUT: 1,
        Kind.UPLOAD: 6,
        Kind.DROP: 1,
        Kind.ABORT: 0.3,
        Kind.WAIT: 2,
        Kind.TURN: 4,
        Kind.EFFECT: 8,
        Kind.CRASH: 1,
        Kind.CRASH_BEFORE_COMMIT: 1,
        Kind.CRASH_AFTER_COMMIT: 1,
        Kind.POOR: 0.5,
        Kind.POISON: 0.3,
    }
)


def random_ops(random: Random, length: int, weights: Mapping[Kind, float] = OPEN_LIFE) -> list[Op]:
    """Operations as they come in life."""
    kinds = random.choices(list(weights), list(weights.values()), k=length)
    return [Op(kind, random.randrange(40)) for kind in kinds]


#: Sealed rounds: clients act by answering, so most of life is deliveries.
SEALED_LIFE: Final[Mapping[Kind, float]] = MappingProxyType(
    {
        Kind.CHECK_IN: 8,
        Kind.CHECK_OUT: 0.5,
        Kind.DROP: 0.3,
        Kind.ABORT: 0.03,
        Kind.WAIT: 0.5,
        Kind.TURN: 4,
        Kind.EFFECT: 10,
        Kind.CRASH: 0.5,
        Kind.CRASH_BEFORE_COMMIT: 0.5,
        Kind.CRASH_AFTER_COMMIT: 0.5,
        Kind.POOR: 0.2,
        Kind.POISON: 0.1,
        Kind.DELIVER: 40,
        Kind.LOSE: 0.5,
        Kind.DUPLICATE: 2,
        Kind.RECONNECT: 2,
        Kind.RESTART: 0.1,
        Kind.COPY: 0.1,
        Kind.DIE: 0.1,
        Kind.OUTAGE: 0.03,
        Kind.SLOW: 0.5,
    }
)
#: A while in which much goes wrong at once.
STORM: Final[Mapping[Kind, float]] = MappingProxyType(
    {
        **SEALED_LIFE,
        Kind.DROP: 2,
        Kind.ABORT: 0.5,
        Kind.WAIT: 3,
        Kind.CRASH: 2,
        Kind.CRASH_BEFORE_COMMIT: 2,
        Kind.CRASH_AFTER_COMMIT: 2,
        Kind.LOSE: 6,
        Kind.RESTART: 2,
        Kind.COPY: 1,
        Kind.DIE: 3,
        Kind.OUTAGE: 4,
        Kind.SLOW: 4,
    }
)


def sealed_ops(random: Random) -> list[Op]:
    """Life as it goes, until a storm meets whatever phase the round is in."""
    calm = random_ops(random, random.randrange(20, 300), SEALED_LIFE)
    return [*calm, *random_ops(random, 30, STORM)]
