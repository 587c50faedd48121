"""Readings and simulated rounds for tests of trust."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from boltz_mesh.trust.outcome import Outcome, next_outcome
from boltz_mesh.trust.outliers import Float64Array, Reading, read_rows

#: A row that goes with the others.
GOOD: Final[dict[str, Any]] = {}
#: A row that pulls against them from far away.
OPPOSED: Final[dict[str, Any]] = {
    "distance_z_256": 2000,
    "direction_z_256": 2000,
    "agreement_z_256": 2000,
    "cosine_256": -200,
    "agreement_256": -256,
}
#: The same from within their distances.
AGAINST: Final[dict[str, Any]] = {**OPPOSED, "distance_z_256": 500}


def reading(**changed: Any) -> Reading:
    """An ordinary row of 20 that agree, with some attributes changed."""
    known: dict[str, Any] = {
        "row": "a",
        "rows": 20,
        "members": 1,
        "weight": 10,
        "rank_256": 0,
        "norm_z_256": 0,
        "distance_z_256": 0,
        "direction_z_256": 0,
        "agreement_z_256": 0,
        "cosine_256": 200,
        "typical_cosine_256": 200,
        "agreement_256": 256,
        "typical_256": 256,
        "silent": False,
    }
    return Reading(**{**known, **changed})


def outcomes(*changes: dict[str, Any], share_256: int = 256) -> tuple[Outcome, ...]:
    """Rounds in a row, each a reading with what is changed."""
    past: list[Outcome] = []
    for changed in changes:
        past.append(next_outcome(past, reading(**changed), share_256))
    return tuple(past)


def readings_of(updates: Float64Array, result: Float64Array, members: int = 1) -> list[Reading]:
    """Readings of (n, k) updates against the (k,) result."""
    norms = np.linalg.norm(updates, axis=1)
    inner = updates @ result
    square = float(result @ result)
    count = len(updates)
    return list(
        read_rows(
            [str(place) for place in range(count)],
            [members] * count,
            [members] * count,
            norms=norms,
            distances=np.linalg.norm(updates - result, axis=1),
            cosines=np.clip(inner / (norms * np.sqrt(square)), -1, 1),
            agreements=inner / square,
        )
    )
