"""Long files are handed to the disk while they grow; short ones are left to their flush."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from boltz_mesh.storage.writeback import Writeback, _found

STEP = 8 << 20


def test_the_kernel_is_asked_every_few_megabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def ask(fd: int, offset: int, size: int, flags: int) -> int:
        assert flags == 2
        asked.append((offset, size))
        return 0

    monkeypatch.setattr("boltz_mesh.storage.writeback._sync_file_range", ask)
    writeback = Writeback()
    for offset in (STEP - 1, STEP, STEP + 1, 2 * STEP - 1, 2 * STEP + 5, 2 * STEP + 6):
        writeback.advance(0, offset)
    assert asked == [(0, STEP), (STEP, STEP + 5)]


def test_the_system_takes_the_hint(tmp_path: Path) -> None:
    function = _found()
    assert (function is not None) == sys.platform.startswith("linux")
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(bytes(STEP))
        Writeback().advance(file.fileno(), STEP)
        if function is not None:
            assert function(file.fileno(), 0, STEP, 2) == 0
            closed = os.dup(file.fileno())
            os.close(closed)
            assert function(closed, 0, STEP, 2) == -1  # an error is no exception


def test_other_systems_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert _found() is None
    monkeypatch.setattr("boltz_mesh.storage.writeback._sync_file_range", None)
    Writeback().advance(-1, 10 * STEP)
