"""The C heap's settings, where there is a glibc and where there is none."""

from __future__ import annotations

import ctypes

import pytest

from boltz_client.heap import keep_heap
from boltz_protocol import limits


def test_the_thresholds_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []

    class Library:
        def mallopt(self, option: int, value: int) -> int:
            calls.append((option, value))
            return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library())
    keep_heap()
    assert calls == [(-3, limits.MAX_MESSAGE_BYTES), (-1, 32 << 20)]


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    keep_heap()
