"""A database of which single transactions fail, or are followed by something else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from boltz_mesh.storage.postgres import Connection, Database, Isolation

T = TypeVar("T")


class Crash(Exception):
    """Stands for the process ending there: whoever ran the transaction goes no further."""


Moment = Literal["before commit", "after commit"]


@dataclass(slots=True)
class Fault:
    """What happens to the `after`-th next transaction of a name (0: the next one)."""

    name: str
    moment: Moment
    act: Callable[[], Awaitable[None]]
    after: int = 0


class FaultyDatabase(Database):
    """A database of which single transactions fail, or are preceded by something else."""

    faults: list[Fault]

    async def run_tx(
        self,
        name: str,
        body: Callable[[Connection], Awaitable[T]],
        *,
        isolation: Isolation = "read_committed",
    ) -> T:
        before, after = self._fault(name, "before commit"), self._fault(name, "after commit")
        result = await super().run_tx(name, _followed_by(body, before), isolation=isolation)
        if after is not None:
            await after.act()
        return result

    async def read(self, name: str, body: Callable[[Connection], Awaitable[T]]) -> T:
        before, after = self._fault(name, "before commit"), self._fault(name, "after commit")
        result = await super().read(name, _followed_by(body, before))
        if after is not None:
            await after.act()
        return result

    def _fault(self, name: str, moment: Moment) -> Fault | None:
        for fault in self.faults:
            if (fault.name, fault.moment) == (name, moment):
                if fault.after == 0:
                    self.faults.remove(fault)
                    return fault
                fault.after -= 1
        return None


def _followed_by(
    body: Callable[[Connection], Awaitable[T]], fault: Fault | None
) -> Callable[[Connection], Awaitable[T]]:
    async def both(connection: Connection) -> T:
        result = await body(connection)
        if fault is not None:
            await fault.act()
        return result

    return both


def raising(error: Exception) -> Callable[[], Awaitable[None]]:
    """An action that raises."""

    async def act() -> None:
        raise error

    return act
