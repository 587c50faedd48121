"""The robust rules of byzfl, to compare with: its submodules without its package.

`import byzfl` would import its benchmarks and with them torchvision, which is not installed. The
rules themselves need numpy, scipy and torch only, so that the packages above them are replaced by
empty ones.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


@functools.cache
def _module(name: str) -> Any:
    root = Path(str(importlib.metadata.distribution("byzfl").locate_file("byzfl")))
    for package in ("byzfl", "byzfl.aggregators", "byzfl.utils"):
        if package not in sys.modules:
            empty = ModuleType(package)
            empty.__path__ = [str(root.joinpath(*package.split(".")[1:]))]
            sys.modules[package] = empty
    return importlib.import_module(f"byzfl.aggregators.{name}")


def _result(rule: Any, updates: Float64Array) -> Float64Array:
    with np.errstate(divide="ignore"):  # rows of zeros, which it clips by a factor of infinity
        return np.asarray(rule(updates.copy()), np.float64)


def median(updates: Float64Array) -> Float64Array:
    return _result(_module("aggregators").Median(), updates)


def trimmed_mean(updates: Float64Array, byzantine: int) -> Float64Array:
    return _result(_module("aggregators").TrMean(byzantine), updates)


def krum(updates: Float64Array, byzantine: int) -> Float64Array:
    """Of the n - f - 2 nearest others: byzfl sums n - f - 1 of them, and so is given f + 1."""
    return _result(_module("aggregators").Krum(byzantine + 1), updates)


def multi_krum(updates: Float64Array, byzantine: int) -> Float64Array:
    """The n - f - 1 rows of best score, as byzfl selects n - f of the f that it is given."""
    return _result(_module("aggregators").MultiKrum(byzantine + 1), updates)


def geometric_median(updates: Float64Array) -> Float64Array:
    """So many steps that it has converged; byzfl does three where it is not told."""
    return _result(_module("aggregators").GeometricMedian(1e-9, 1000), updates)


def centered_clipping(updates: Float64Array, radius: float, rounds: int) -> Float64Array:
    return _result(_module("aggregators").CenteredClipping(None, rounds, radius), updates)


def mixing(updates: Float64Array, byzantine: int) -> Float64Array:
    return _result(_module("preaggregators").NNM(byzantine), updates)
