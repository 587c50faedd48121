"""Robust rules take rows that a round may look at, and noise takes proven rules: by type."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from boltz_mesh.aggregation.robust import MixedTrimmedMean, TrimmedMean, gram_of
from boltz_mesh.aggregation.rows import ClientRows, GroupRows, NoisedGroupSum, Unprotected
from boltz_mesh.aggregation.weighted_mean import block_mean
from boltz_protocol.errors import NotFinite, ShapeMismatch

ROOT = Path(__file__).parents[3]

# --- what mypy says ------------------------------------------------------------------------------

#: One function for each thing that somebody may try; "refused" marks the lines that must not pass.
SNIPPETS = """
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from boltz_mesh.aggregation.calibration import Calibration, calibrate
from boltz_mesh.aggregation.centered_step import CenteredClipping
from boltz_mesh.aggregation.observations import Observer
from boltz_mesh.aggregation.robust import (
    CoordinateMedian,
    GeometricMedian,
    MixedTrimmedMean,
    MultiKrum,
    RobustRule,
    RuleState,
    TrimmedMean,
    gram_of,
)
from boltz_mesh.aggregation.rows import ClientRows, GroupRows, NoisedGroupSum, Unprotected
from boltz_mesh.aggregation.rule import ProvenRule
from boltz_mesh.aggregation.weighted_mean import WEIGHTED_MEAN

Mode = Literal["sealed", "grouped", "open"]
Privacy = Literal["client-dp", "none"]


def witnesses(mode: Mode, privacy: Privacy) -> list[Unprotected]:
    if mode == "open" and privacy == "none":
        return [Unprotected(mode, privacy)]
    return [
        Unprotected(mode, privacy),  # refused
        Unprotected("grouped", "none"),  # refused
        Unprotected("sealed", "none"),  # refused
        Unprotected("open", "client-dp"),  # refused
    ]


def rows_of(values: NDArray[np.float32], witness: Unprotected, group: NoisedGroupSum) -> None:
    ClientRows(values, witness)
    ClientRows(values)  # refused
    ClientRows(values, None)  # refused
    ClientRows(values, True)  # refused
    GroupRows((group, group))
    GroupRows(values)  # refused
    GroupRows((values, values))  # refused
    GroupRows((ClientRows(values, witness),))  # refused


def applied(
    rule: RobustRule, state: RuleState, values: NDArray[np.float64], clients: ClientRows,
    groups: GroupRows, observer: Observer,
) -> None:
    rule.apply(state, clients)
    rule.apply(state, groups)
    rule.apply(state, values)  # refused
    gram_of(clients)
    gram_of(groups)
    gram_of(values)  # refused
    gram_of(clients.values)  # refused
    observer.add(clients, values)
    observer.add(values, values)  # refused


def calibrated(rule: ProvenRule, clipping: CenteredClipping, robust: RobustRule) -> None:
    calibrate(rule, noise_multiplier=1.0, clip=100, weights=(1, 1))
    calibrate(clipping, noise_multiplier=1.0, clip=100, weights=(1, 1))
    calibrate(WEIGHTED_MEAN, noise_multiplier=1.0, clip=100, weights=(1, 1))
    calibrate(robust, noise_multiplier=1.0, clip=100, weights=(1, 1))  # refused
    calibrate(CoordinateMedian(), noise_multiplier=1.0, clip=9, weights=(1,))  # refused
    calibrate(TrimmedMean(1), noise_multiplier=1.0, clip=9, weights=(1,))  # refused
    calibrate(MixedTrimmedMean(1), noise_multiplier=1.0, clip=9, weights=(1,))  # refused
    calibrate(MultiKrum(1, 1), noise_multiplier=1.0, clip=9, weights=(1,))  # refused
    calibrate(GeometricMedian(), noise_multiplier=1.0, clip=9, weights=(1,))  # refused
    Calibration(1.0, 9).check_covers(WEIGHTED_MEAN, clip=9, weights=(1,))
    Calibration(1.0, 9).check_covers(TrimmedMean(1), clip=9, weights=(1,))  # refused


every: list[RobustRule] = [
    CoordinateMedian(), TrimmedMean(1), MixedTrimmedMean(1), MultiKrum(1, 1), GeometricMedian(),
]
proven: list[ProvenRule] = [WEIGHTED_MEAN]
"""


@pytest.mark.timeout(300)
def test_types_refuse_what_a_round_may_not_do(tmp_path: Path) -> None:
    """mypy finds fault with each marked line, and with no other."""
    snippets = tmp_path / "snippets.py"
    snippets.write_text(SNIPPETS)
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")),
            *("--cache-dir", str(tmp_path / "cache"), "--no-error-summary", "--hide-error-context"),
            *("--no-pretty", "--follow-imports", "silent", str(snippets)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr, done.stderr
    found = {
        int(line.split(":")[1])
        for line in done.stdout.splitlines()
        if line.startswith(str(snippets)) and ": error: " in line
    }
    marked = {
        number
        for number, line in enumerate(SNIPPETS.splitlines(), start=1)
        if line.endswith("# refused")
    }
    assert found == marked, done.stdout
    assert len(marked) == 21


# --- what is left to run time --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "privacy"),
    [("open", "client-dp"), ("grouped", "none"), ("sealed", "none"), ("sealed", "client-dp")],
)
def test_there_is_no_witness_for_a_round_that_protects(mode: str, privacy: str) -> None:
    with pytest.raises(AssertionError, match="only the"):
        Unprotected(mode, privacy)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="only the"):
        Unprotected.of(mode, privacy)


def test_rows_of_clients_are_checked() -> None:
    witness = Unprotected.of("open", "none")
    assert witness == Unprotected("open", "none")
    values = np.ones((3, 4), np.float32)
    rows = ClientRows(values, witness)
    assert rows.values is values
    assert "1." not in repr(rows)
    with pytest.raises(ShapeMismatch):
        ClientRows(values[0], witness)
    values[1, 2] = np.nan
    with pytest.raises(NotFinite):
        ClientRows(values, witness)


def group_sum(group: int, values: list[int], weight: int) -> NoisedGroupSum:
    return NoisedGroupSum(group, np.array(values, np.int32), 1000.0, 255, weight)


def test_rows_of_groups_are_the_means_of_their_sums() -> None:
    sums = (group_sum(0, [5000, -70], 510), group_sum(2, [1, 0], 9), group_sum(7, [-8, 3], 255))
    rows = GroupRows(sums)
    assert rows.values.shape == (3, 2)
    assert rows.values.dtype == np.float32
    for row, each in zip(rows.values, sums, strict=True):
        assert row.tolist() == block_mean(each.values, 1000.0, 255, each.weight).tolist()
    assert rows.values[0].tolist() == [2.5, pytest.approx(-0.035)]
    assert "5000" not in repr(rows) + repr(sums[0])
    assert gram_of(rows).shape == (3, 3)
    state = TrimmedMean(1).init(np.array([510, 9, 255], np.int64), None)
    assert TrimmedMean(1).apply(state, rows)[1] == 0.0


@pytest.mark.parametrize("groups", [(1, 0), (1, 1), ()])
def test_a_group_has_one_row(groups: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        GroupRows(tuple(group_sum(group, [1], 1) for group in groups))


def test_a_state_is_of_as_many_rows_as_it_was_made_of() -> None:
    rows = ClientRows(np.ones((4, 3)), Unprotected("open", "none"))
    for rule in (TrimmedMean(1), MixedTrimmedMean(1)):
        gram = np.eye(3) if rule.measures else None
        state = rule.init(np.ones(3, np.int64), gram)
        with pytest.raises(AssertionError, match="other rows"):
            rule.apply(state, rows)
