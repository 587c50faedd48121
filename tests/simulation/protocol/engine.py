"""The virtual clock, and the network: what is sent arrives later, once, twice or never."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

#: How long a message is on its way where nothing is wrong.
LEAST_MS: Final = 1
MOST_MS: Final = 4
#: After so long an end notices that the other is gone.
KEEPALIVE_MS: Final = 60


class Engine:
    """Runs what is due, in the order of its times. Nothing happens outside of it."""

    def __init__(self, started_ms: int) -> None:
        self.now_ms = started_ms
        self.log: list[str] = []
        self.events = 0
        self._started_ms = started_ms
        self._due: list[tuple[int, int, str, Callable[[], None]]] = []
        self._made = 0

    def after(self, delay_ms: int, label: str, action: Callable[[], None]) -> None:
        """Do something in `delay_ms`."""
        self._made += 1
        heapq.heappush(self._due, (self.now_ms + max(0, delay_ms), self._made, label, action))

    def at(self, at_ms: int, label: str, action: Callable[[], None]) -> None:
        """Do something at a time."""
        self.after(at_ms - self.now_ms, label, action)

    def next(self) -> bool:
        """Let one thing happen; False when there is nothing left."""
        if not self._due:
            return False
        at_ms, _, label, action = heapq.heappop(self._due)
        self.now_ms = max(self.now_ms, at_ms)
        self.events += 1
        self.tell(label)
        action()
        return True

    def tell(self, line: str) -> None:
        """A line for whoever reads the world's log."""
        self.log.append(f"{self.events:5} {self.now_ms - self._started_ms:6} ms  {line}")


@dataclass(eq=False, slots=True)
class Stream:
    """One connection. `to_mesh` and `to_client` take what arrives; `cut` tells the client."""

    client: int
    session: str
    to_mesh: Callable[[Stream, Any], None]
    to_client: Callable[[Stream, Any], None]
    cut: Callable[[Stream], None]
    is_open: bool = True
    #: When the last message arrives, downwards (True) and upwards: streams keep their order.
    last_ms: dict[bool, int] = field(default_factory=dict)
    slower_ms: int = 0
    shuffled: bool = False


@dataclass(eq=False, slots=True)
class Flight:
    """One message on its way."""

    stream: Stream
    down: bool
    message: Any
    lost: bool = False


class Network:
    """Carries messages; what goes wrong is asked for."""

    def __init__(self, engine: Engine, random: Random) -> None:
        self.engine = engine
        self._random = random
        self.flying: list[Flight] = []
        self.streams: list[Stream] = []
        #: Connections that were lost; what a world without faults has none of.
        self.cuts = 0

    def open(self, stream: Stream) -> Stream:
        """A new connection."""
        self.streams.append(stream)
        return stream

    def send(self, stream: Stream, message: Any, *, down: bool) -> None:
        """Send, in order. On a stream that is closed nothing arrives."""
        if not stream.is_open:
            return
        arrives_ms = self.engine.now_ms + self._random.randint(LEAST_MS, MOST_MS) + stream.slower_ms
        if stream.shuffled:
            arrives_ms += self._random.randint(0, 40)
        else:
            arrives_ms = max(arrives_ms, stream.last_ms.get(down, 0))
            stream.last_ms[down] = arrives_ms
        self._carry(Flight(stream, down, message), arrives_ms)

    def lose(self, number: int) -> None:
        """One message never arrives, and its stream is found broken a little later."""
        if flight := self._one(number):
            flight.lost = True
            self.engine.after(KEEPALIVE_MS, "keepalive", lambda: self.cut(flight.stream))

    def repeat(self, number: int, delay_ms: int) -> None:
        """One message arrives twice."""
        if flight := self._one(number):
            again = Flight(flight.stream, flight.down, flight.message)
            self._carry(again, self.engine.now_ms + LEAST_MS + delay_ms)

    def cut(self, stream: Stream) -> None:
        """The connection ends; all that is on its way is lost, and the client comes back."""
        if stream.is_open:
            self.cuts += 1
            self.close(stream)
            self.engine.after(
                LEAST_MS, f"client {stream.client} is cut", lambda: stream.cut(stream)
            )

    def close(self, stream: Stream) -> None:
        """The connection ends, and nobody is told."""
        stream.is_open = False
        self.streams = [each for each in self.streams if each is not stream]

    def cut_all(self) -> None:
        """The mesh's process is gone."""
        for stream in list(self.streams):
            self.cut(stream)

    def _one(self, number: int) -> Flight | None:
        return self.flying[number % len(self.flying)] if self.flying else None

    def _carry(self, flight: Flight, arrives_ms: int) -> None:
        self.flying.append(flight)
        way = "->" if not flight.down else "<-"
        label = f"client {flight.stream.client} {way} mesh  {_name(flight.message)}"
        self.engine.at(arrives_ms, label, lambda: self._arrive(flight))

    def _arrive(self, flight: Flight) -> None:
        self.flying.remove(flight)
        stream = flight.stream
        if flight.lost or not stream.is_open:
            self.engine.tell("  ... is lost")
        elif flight.down:
            stream.to_client(stream, flight.message)
        else:
            stream.to_mesh(stream, flight.message)


def _name(message: Any) -> str:
    return type(message).__name__
