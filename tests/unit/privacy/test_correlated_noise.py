"""The study of correlated noise: its matrices, its sensitivity, and the figures that are quoted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

from tools.bench.correlated_noise import banded_root, errors, gain, sensitivity, workload

ROOT = Path(__file__).parents[3]
RECORD = ROOT / "docs/decisions/0023-noise-is-not-correlated-over-rounds.md"


def test_the_root_is_the_square_root_of_the_running_sum() -> None:
    root = banded_root(12, 12)
    np.testing.assert_allclose(root @ root, workload(12, 1.0), atol=1e-12)
    assert np.count_nonzero(banded_root(12, 3)) == 12 + 11 + 10


@pytest.mark.parametrize("separation", [1, 2, 3, 5])
@pytest.mark.parametrize("bands", [1, 2, 3, 6, 9])
def test_no_choice_of_rounds_is_worse_than_the_densest(separation: int, bands: int) -> None:
    rounds = 9
    root = banded_root(rounds, bands)
    assert (root.T @ root).min() >= 0
    worst = max(
        float(np.linalg.norm(root[:, chosen].sum(axis=1)))
        for count in range(1, rounds + 1)
        for chosen in map(list, combinations(range(rounds), count))
        if all(b - a >= separation for a, b in pairwise(chosen))
    )
    assert sensitivity(root, separation) == pytest.approx(worst)


def test_independent_noise_is_what_the_mesh_adds() -> None:
    # Each of 16 versions has the noise of all rounds up to it; a client is in each of them.
    mean, last = errors(np.eye(16), workload(16, 1.0), 1)
    assert last == pytest.approx(np.sqrt(16) * np.sqrt(16))
    assert mean == pytest.approx(np.sqrt(16) * np.sqrt(np.mean(np.arange(1, 17))))
    # Nothing is gained where clients take part every time.
    assert (gain(16, 1, 1.0).bands, gain(16, 1, 1.0).error) == (1, 1.0)


def test_the_record_quotes_what_the_program_prints() -> None:
    command = [sys.executable, str(ROOT / "tools/bench/correlated_noise.py"), "--json"]
    printed = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    found = {
        (one["separation"], one["decay"]): (one["error"], one["last"]) for one in printed["gains"]
    }
    quoted = re.findall(
        r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", RECORD.read_text(), re.MULTILINE
    )
    assert len(quoted) == 8
    for separation, decay, error, last in quoted:
        exact = found[int(separation), float(decay)]
        assert (f"{exact[0]:.3f}", f"{exact[1]:.3f}") == (error, last)
