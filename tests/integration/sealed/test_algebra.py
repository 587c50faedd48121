from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.integration.sealed.algebra import Module, centred, kernel

BITS = 3
RING = 1 << BITS


def matrices(rows: int, columns: int) -> st.SearchStrategy[list[list[int]]]:
    row = st.lists(st.integers(0, RING - 1), min_size=columns, max_size=columns)
    return st.lists(row, min_size=rows, max_size=rows)


def combinations(rows: list[list[int]], width: int) -> set[tuple[int, ...]]:
    """All of them, counted out."""
    return {
        tuple(
            sum(c * row[at] for c, row in zip(chosen, rows, strict=True)) % RING
            for at in range(width)
        )
        for chosen in product(range(RING), repeat=len(rows))
    }


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 3).flatmap(lambda rows: matrices(rows, 3)))
def test_a_span_holds_every_combination_and_nothing_else(rows: list[list[int]]) -> None:
    module = Module.spanned(rows, 3, BITS)
    every = combinations(rows, 3)
    assert {vector for vector in product(range(RING), repeat=3) if vector in module} == every
    # The form is small: one row a column at most.
    assert len(module.generators) <= 3


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3).flatmap(lambda columns: matrices(3, columns)))
def test_a_kernel_is_all_that_vanishes(matrix: list[list[int]]) -> None:
    found = kernel(matrix, BITS)
    for vector in product(range(RING), repeat=3):
        vanishes = not (np.array(vector) @ np.array(matrix) % RING).any()
        assert (vector in found) == vanishes


@settings(max_examples=50, deadline=None)
@given(matrices(2, 3), matrices(2, 3))
def test_modules_are_compared_by_what_they_hold(
    one: list[list[int]], other: list[list[int]]
) -> None:
    same = combinations(one, 3) == combinations(other, 3)
    assert Module.spanned(one, 3, BITS).same_as(Module.spanned(other, 3, BITS)) == same


def test_a_matrix_without_columns_lets_everything_through() -> None:
    assert kernel([[], []], 24).same_as(Module.spanned(np.eye(2, dtype=np.int64), 2, 24))


def test_zero_divisors_count() -> None:
    # Twice a mask is known to its lowest bit: 2^23 of it vanishes.
    assert [list(row) for row in kernel([[2]], 24).generators] == [[1 << 23]]


def test_centred() -> None:
    ring = np.array([0, 1, (1 << 23) - 1, 1 << 23, (1 << 24) - 1, -1, 1 << 24])
    assert centred(ring).tolist() == [0, 1, (1 << 23) - 1, -(1 << 23), -1, -1, 0]
