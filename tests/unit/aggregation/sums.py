"""Rounds in integers for the tests of sensitivity: committed weights, contributions, terms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from boltz_mesh.aggregation.centered_step import (
    CenteredClipping,
    centre_units,
    shortened,
    shrinking,
)
from boltz_mesh.coordinator.configure import capped_weights
from boltz_protocol import limits, weights
from boltz_protocol.encoding import Encoding, plan_encoding
from boltz_protocol.keystream import Keystream
from boltz_protocol.packing import norm_squared24
from boltz_protocol.update import LocalDelta, clip, encode, weigh

Int32Array = npt.NDArray[np.int32]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Round:
    """What a mesh holds before it adds up.

    Attributes:
        roster: committed weights of all that were selected.
        contributions: encoded updates of the survivors, who are the first of the roster.
        centre: what was published last, in the delta's unit.
    """

    encoding: Encoding
    roster: tuple[int, ...]
    contributions: tuple[Int32Array, ...]
    centre: Float64Array

    @property
    def survivors(self) -> tuple[int, ...]:
        return self.roster[: len(self.contributions)]

    @property
    def max_weight(self) -> int:
        return max(self.roster)


@st.composite
def rosters(draw: st.DrawFn, size: int) -> tuple[int, ...]:
    """Weights as the mesh commits to them, whatever sample counts clients claim.

    The claim is the bucket, up to 2^31 rows, where the plan counts up to `cap`; trust is any.
    """
    cap = draw(st.integers(0, limits.MAX_SAMPLE_BUCKET))
    claimed = [
        weights.weight(
            sample_bucket=draw(st.integers(0, limits.MAX_SAMPLE_BUCKET)),
            quality_bucket=draw(st.integers(0, limits.MAX_QUALITY_BUCKET)),
            trust_256=draw(st.integers(0, weights.TRUST_ONE)),
            sample_bucket_cap=cap,
        )
        for _ in range(size)
    ]
    return capped_weights(claimed, draw(st.sampled_from([1.0, 0.5, 0.2])))


@st.composite
def rounds(draw: st.DrawFn) -> Round:
    """Honest updates through the clients' own encoder, and hostile ones: any integers that the
    mesh takes, which are those within `bound_l2`, whatever the sender's weight.
    """
    size = draw(st.integers(1, 7))
    coordinates = draw(st.sampled_from([1, 2, 13, 300]))
    encoding = plan_encoding(
        clip_norm_l2=draw(st.sampled_from([0.01, 1.0, 30.0])),
        noise_multiplier=draw(st.sampled_from([0.0, 1.0, 8.0])),
        cohort_max=draw(st.sampled_from([size, 5000])),
        coordinates=coordinates,
    )
    roster = draw(rosters(size))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    centre = generator.normal(size=coordinates)
    centre *= draw(st.floats(0, 1)) * encoding.clip_norm_l2 / np.linalg.norm(centre)
    survivors = draw(st.integers(1, size))
    contributions = []
    for weight in roster[:survivors]:
        direction = generator.normal(size=coordinates)
        if draw(st.booleans()):
            direction = -centre + 1e-9 * direction  # as far from the centre as can be
        if draw(st.booleans()):
            length = draw(st.sampled_from([0.0, 0.3, 1.0, 50.0])) * encoding.clip_norm_l2
            delta = (direction / np.linalg.norm(direction) * length).astype(np.float32)
            clipped = clip(LocalDelta(delta), clip_norm_l2=encoding.clip_norm_l2)
            weighed = weigh(clipped, weight=weight, max_weight=max(roster))
            contributions.append(encode(weighed, encoding).values)
        else:
            scaled = direction / np.linalg.norm(direction) * encoding.bound_l2
            contributions.append(np.trunc(scaled).astype(np.int32))
        encoding.check_norm(norm_squared24(contributions[-1]))
    return Round(encoding, roster, tuple(contributions), centre)


def term_of(
    round: Round, place: int, rule: CenteredClipping, *, chunk: int = 97
) -> tuple[Int32Array, Int32Array]:
    """A client's term and its centre, in chunks of a size of one's own."""
    weight = round.roster[place]
    units = centre_units(round.centre, 2.0**round.encoding.scale_log2, weight, round.max_weight)
    difference = (round.contributions[place] - units).astype(np.int32)
    bound = rule.term_bound(weight, round.max_weight)
    if norm_squared24(difference) <= bound**2:
        return difference, units
    parts = [difference[start : start + chunk] for start in range(0, difference.size, chunk)]
    how = shrinking(
        np.array([norm_squared24(part) for part in parts], np.float64),
        np.array([part.size for part in parts], np.int64),
        bound,
    )
    term = [
        shortened(part, how.factor, int(allowance), Keystream.fresh())
        for part, allowance in zip(parts, how.allowances, strict=True)
    ]
    return np.concatenate(term), units
