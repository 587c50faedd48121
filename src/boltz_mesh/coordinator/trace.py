"""One OpenTelemetry trace a round: a span for each phase, and for the heavy work within it.

Whoever starts a round stores its trace context in the row, so that offers, and through them the
clients, and every coordinator that works on the round belong to the same trace. Spans carry sizes
and counts only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from boltz_mesh.rounds.state import (
    Aborted,
    AdvertisingKeys,
    Aggregating,
    CheckingConsistency,
    Collecting,
    Phase,
    Published,
    Releasing,
    RevealingNonces,
    RoundState,
    Selecting,
    SharingKeys,
    Unmasking,
)

_PROPAGATOR: Final = TraceContextTextMapPropagator()
_NAMES: Final = {
    Phase.SELECTING: "boltz.round.select",
    Phase.ADVERTISING_KEYS: "boltz.round.advertise",
    Phase.SHARING_KEYS: "boltz.round.share",
    Phase.COLLECTING: "boltz.round.collect",
    Phase.CHECKING_CONSISTENCY: "boltz.round.check",
    Phase.UNMASKING: "boltz.round.unmask",
    Phase.AGGREGATING: "boltz.round.aggregate",
    Phase.RELEASING: "boltz.round.release",
}


class RoundTrace:
    """The spans of one round in this process."""

    def __init__(self, tracer: Tracer, traceparent: str, round_id: str) -> None:
        self._tracer = tracer
        self._root: Context = _PROPAGATOR.extract({"traceparent": traceparent})
        self._round_id = round_id
        self._span: Span | None = None
        self._phase: Phase | None = None

    def move_to(self, state: RoundState, at_ms: int, *, recovered: bool = False) -> None:
        """End the phase's span and begin the next one's where the phase has changed."""
        if state.phase is self._phase:
            return
        self.close(at_ms, state)
        self._phase = state.phase
        name = _NAMES.get(state.phase)
        if name is None:
            return
        self._span = self._tracer.start_span(
            name,
            context=self._root,
            start_time=_nanoseconds(at_ms),
            attributes={"boltz.round_id": self._round_id, "boltz.recovered": recovered},
        )

    def close(self, at_ms: int, state: RoundState | None = None) -> None:
        """End the open span; `state` is what came after it, where it is known."""
        if self._span is None:
            return
        if state is not None:
            self._span.set_attributes(_counts(state))
            if isinstance(state, Aborted):
                self._span.set_status(Status(StatusCode.ERROR, state.reason))
        self._span.end(end_time=_nanoseconds(at_ms))
        self._span = None

    @contextmanager
    def work(self, name: str, **counts: int) -> Iterator[Span]:
        """A span for work within the phase; an exception that leaves it is its status."""
        context = self._root if self._span is None else trace.set_span_in_context(self._span)
        attributes = {f"boltz.{key}": value for key, value in counts.items()}
        with self._tracer.start_as_current_span(
            f"boltz.round.{name}", context=context, attributes=attributes
        ) as span:
            yield span


def _counts(state: RoundState) -> dict[str, int]:
    match state:
        case AdvertisingKeys(roster=roster):
            return {"boltz.selected": len(roster)}
        case RevealingNonces(members=members):
            return {"boltz.members": len(members)}
        case SharingKeys(graph_members=members):
            return {"boltz.members": len(members)}
        case Collecting(participants=participants):
            return {"boltz.selected": len(participants)}
        case CheckingConsistency(survivors=survivors) | Unmasking(survivors=survivors):
            return {"boltz.survivors": len(survivors)}
        case Aggregating(survivors=survivors):
            return {"boltz.survivors": len(survivors)}
        case Releasing(survivors=survivors, total_weight=weight):
            return {"boltz.survivors": len(survivors), "boltz.total_weight": weight}
        case Published(version=version):
            return {"boltz.version": version}
        case Selecting() | Aborted():
            return {}


def _nanoseconds(at_ms: int) -> int:
    return at_ms * 1_000_000
