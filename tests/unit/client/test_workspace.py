"""Memory that is kept from round to round."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from boltz_client import workspace
from boltz_client.workspace import Workspace


def _address(values: workspace.Int32Array) -> int:
    return int(values.__array_interface__["data"][0])


def test_the_same_memory_serves_the_next_round() -> None:
    space = Workspace()
    with space.integers(100_000) as first:
        first[:] = 7
        where = _address(first)
    with space.integers(100_000) as second:
        assert second.dtype == np.int32
        assert second.shape == (100_000,)
        assert _address(second) == where
        second[:] = np.arange(100_000)
        assert second[-1] == 99_999


def test_another_size_gets_memory_of_its_own() -> None:
    space = Workspace()
    with space.integers(10) as small:
        small[:] = 1
    with space.integers(1 << 20) as large:
        large[:] = 2
        assert large.shape == (1 << 20,)


def test_two_at_a_time_do_not_share() -> None:
    space = Workspace()
    with space.integers(1000) as one, space.integers(1000) as two:
        one[:], two[:] = 1, 2
        assert not np.shares_memory(one, two)
        assert int(one.sum()) == 1000


def test_memory_is_kept_after_an_error() -> None:
    space = Workspace()
    with pytest.raises(ZeroDivisionError), space.integers(1000):
        raise ZeroDivisionError
    assert space._kept is not None


def test_a_system_without_advice_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "_LAZILY_FREE", None)
    monkeypatch.setattr(workspace, "_HUGE_PAGES", -1)  # unknown to any kernel: refused
    monkeypatch.delattr(mmap, "MAP_ANONYMOUS")
    with Workspace().integers(1000) as values:
        values[:] = 3
        assert int(values.sum()) == 3000
