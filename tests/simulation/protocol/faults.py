"""Faults as data: what goes wrong, to whom, and after how many events of the world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from types import MappingProxyType
from typing import Final

#: A round without faults takes about as many events.
LENGTH: Final = 110


class Kind(StrEnum):
    """What goes wrong."""

    #: On the way.
    LOSE = "lose"
    DELAY = "delay"
    REPEAT = "repeat"
    SHUFFLE = "shuffle"
    CUT = "cut"
    #: The mesh's process.
    CRASH = "crash"
    CRASH_BEFORE_COMMIT = "crash-before-commit"
    CRASH_AFTER_COMMIT = "crash-after-commit"
    TWO_COORDINATORS = "two-coordinators"
    #: A client's process.
    RESTART = "restart"
    DIE = "die"
    COPY = "copy"
    SLOW = "slow"
    CRASH_BEFORE_CHARGE = "crash-before-charge"
    CRASH_AFTER_CHARGE = "crash-after-charge"
    CRASH_AFTER_SENDING = "crash-after-sending"
    #: People.
    ABORT = "abort"
    STOP = "stop"


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One fault.

    Attributes:
        at: how many events the world has seen when it strikes.
        who: picks a client.
        amount: how long, or which message.
    """

    at: int
    kind: Kind
    who: int = 0
    amount: int = 0


LIFE: Final[Mapping[Kind, float]] = MappingProxyType(
    {
        Kind.LOSE: 4,
        Kind.DELAY: 3,
        Kind.REPEAT: 4,
        Kind.SHUFFLE: 2,
        Kind.CUT: 3,
        Kind.CRASH: 1.5,
        Kind.CRASH_BEFORE_COMMIT: 2,
        Kind.CRASH_AFTER_COMMIT: 2,
        Kind.TWO_COORDINATORS: 1,
        Kind.RESTART: 1.5,
        Kind.DIE: 1,
        Kind.COPY: 1,
        Kind.SLOW: 1,
        Kind.CRASH_BEFORE_CHARGE: 0.7,
        Kind.CRASH_AFTER_CHARGE: 0.7,
        Kind.CRASH_AFTER_SENDING: 0.7,
        Kind.ABORT: 0.15,
        Kind.STOP: 0.5,
    }
)


def random_faults(random: Random, most: int = 6) -> tuple[Fault, ...]:
    """Some, as they come in life, in order."""
    kinds = random.choices(list(LIFE), list(LIFE.values()), k=random.randint(0, most))
    return tuple(
        sorted(
            Fault(random.randrange(LENGTH), kind, random.randrange(8), random.randrange(40))
            for kind in kinds
        )
    )
