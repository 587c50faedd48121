"""A robust rule over the rows of a round: a pass that measures them, then the rule chunk by chunk.

The first pass finds the rows' lengths, which of them are out of range and, where the rule asks for
them, their inner products; between the passes there are n x n numbers and nothing else. The second
applies the rule. Its result, a mean, is written as a sum is: in units of the ring over the weight
of all survivors, so that whoever publishes it need not know how it came about.
"""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np

from boltz_mesh.aggregation.robust import RobustRule, RuleState, gram_of
from boltz_mesh.aggregation.rows import ClientRows, Rows
from boltz_mesh.coordinator.ordered import in_order
from boltz_mesh.coordinator.range_check import AggregateOutOfRange
from boltz_mesh.coordinator.rows import ChunkRows, Float64Array, Int32Array, RowSource
from boltz_mesh.coordinator.stored import FoldCancelled
from boltz_mesh.rounds.plan_robust import RobustChoice

_INT32_MAX: Final = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class RobustSum:
    """What the first pass has decided on.

    Attributes:
        source: of the rows that the rule gets.
        left_out: names of the others, which are out of range.
    """

    source: RowSource
    rule: RobustRule
    state: RuleState
    factors: Float64Array
    left_out: tuple[str, ...] = field(default=())

    @classmethod
    def measured(
        cls,
        source: RowSource,
        choice: RobustChoice,
        chunks: int,
        executor: Executor,
        cancelled: threading.Event,
        *,
        ahead: int,
    ) -> Self:
        """The first pass. Blocks; call it from a thread that is not of `executor`.

        Raises: TooFewClients; NotFinite; FoldCancelled; NotFound, DecryptionFailed,
            MalformedMessage.
        """
        names = source.names
        measures = choice.of(len(names)).measures
        gram = np.zeros((len(names), len(names)))
        squares: list[int | None] = [0] * len(names)

        def one_chunk(index: int) -> tuple[Float64Array, list[int | None]]:
            if cancelled.is_set():
                raise FoldCancelled
            rows = source.chunk(index)
            part = np.zeros_like(gram)
            if measures:
                for _, block in rows.blocks():
                    part += gram_of(block)
            return part, rows.squares()

        with contextlib.closing(in_order(executor, one_chunk, chunks, ahead=ahead)) as measured:
            for part, found in measured:
                gram += part
                squares = [
                    None if so_far is None or more is None else so_far + more
                    for so_far, more in zip(squares, found, strict=True)
                ]
        admitted = source.admit(squares)
        places = list(admitted.places)
        factors = admitted.factors
        rule = choice.of(len(places))
        kept = gram[np.ix_(places, places)] * factors[:, None] * factors[None, :]
        return cls(
            source=admitted.source,
            rule=rule,
            state=rule.init(admitted.source.weights, kept if measures else None),
            factors=factors,
            left_out=tuple(
                name for place, name in enumerate(names) if place not in admitted.places
            ),
        )

    def chunk(self, rows: ChunkRows, size: int, unit: float) -> Int32Array:
        """The rule's result on one chunk, (k,) int32, in multiples of `unit`.

        Args:
            rows: the chunk, of `source`.
            size: k.
            unit: of a sum over the weight of all survivors, in the delta's unit.

        Raises: AggregateOutOfRange.
        """
        values = np.empty(size, np.float64)
        for part, block in rows.blocks():
            values[part] = self.rule.apply(self.state, self._clipped(block))
        values /= unit
        np.rint(values, out=values)
        largest = max(float(values.max()), -float(values.min()))
        if largest > _INT32_MAX:
            raise AggregateOutOfRange(
                f"a coordinate of the aggregate is {largest:.6g} units of a sum; {_INT32_MAX} fit"
            )
        return values.astype(np.int32)

    def _clipped(self, block: Rows) -> Rows:
        if not isinstance(block, ClientRows) or bool((self.factors == 1).all()):
            return block
        return ClientRows(block.values * self.factors[:, None], block.witness)
