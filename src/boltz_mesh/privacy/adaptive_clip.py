"""The clip norm that follows from a round: geometric steps towards a quantile of the norms.

Andrew, Thakkar, McMahan and Ramaswamy 2021, "Differentially Private Learning with Adaptive
Clipping", section 2 and algorithm 1. Each client tells, as one lane of its vector
(`boltz_protocol.clip_indicator`), whether its update was within the clip norm, and the mesh learns
the noised mean of these bits. With b the share within,

    C_next = C * exp(-learning_rate * (b - quantile)).

Too many within, and the norm shrinks; too few, and it grows, by the same factor whatever its size.
A release is post-processed here and nothing else is read, so that no step costs any privacy: what
the noised mean costs is part of its round's one charge.

The noise on b has the deviation z / (n * bit_share) for n clients of equal weight, and can carry b
far out of [0, 1]. What is bounded is therefore the step, and on both sides alike: b - quantile is
cut off at -1 and 1, which without noise it never leaves. To cut b itself off at 0 and 1 would move
the resting point: near a quantile of 0.9, noise of deviation 0.5 is cut off above far more often
than below, the mean of what is left stays under 0.9 even where all are within, and the norm would
grow without end.
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
from msgspec import Meta

from boltz_protocol import limits

#: A bound that the plan leaves out lies this factor from the clip norm where rounds start.
DEFAULT_RANGE = 1000.0
_Norm = Annotated[float, Meta(ge=limits.MIN_CLIP_NORM, le=limits.MAX_CLIP_NORM)]


class AdaptiveClipping(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the clip norm moves from round to round."""

    quantile: Annotated[
        float,
        Meta(
            description="share of the weight whose updates are to be within the clip norm",
            gt=0,
            lt=1,
            examples=[0.5],
        ),
    ] = 0.5
    learning_rate: Annotated[
        float,
        Meta(
            description="most that the logarithm of the clip norm moves in a round",
            gt=0,
            le=4,
            examples=[0.2],
        ),
    ] = 0.2
    bit_share: Annotated[
        float,
        Meta(
            description="scale of the indicator's lane over the clip norm",
            gt=0,
            le=1,
            examples=[0.2],
        ),
    ] = 0.2
    min: Annotated[
        _Norm | None,
        Meta(
            description="the clip norm never falls below; at most `clip_norm`",
            examples=[0.001],
        ),
    ] = None
    max: Annotated[
        _Norm | None,
        Meta(
            description="the clip norm never rises above; at least `clip_norm`",
            examples=[10.0],
        ),
    ] = None

    def resolved(self, clip_norm: float) -> AdaptiveClipping:
        """With both bounds: what is stored must not change with a default."""
        least = max(clip_norm / DEFAULT_RANGE, limits.MIN_CLIP_NORM)
        most = min(clip_norm * DEFAULT_RANGE, limits.MAX_CLIP_NORM)
        return msgspec.structs.replace(
            self,
            min=least if self.min is None else self.min,
            max=most if self.max is None else self.max,
        )

    def indicator_scale(self, clip_norm: float) -> float:
        """Scale of the indicator's lane at a clip norm, at most that norm."""
        return self.bit_share * clip_norm


def next_clip_norm(settings: AdaptiveClipping, clip_norm: float, mean_bit: float) -> float:
    """The clip norm after a published round.

    Args:
        settings: of a plan that was read, both bounds given.
        clip_norm: of that round, C.
        mean_bit: noised mean of the bits, -1/2 to 1/2 but for the noise; finite.
    """
    assert settings.min is not None, "filled in when the plan was read"
    assert settings.max is not None, "filled in when the plan was read"
    assert math.isfinite(mean_bit), "a sum of integers over a weight"
    off = mean_bit + 0.5 - settings.quantile
    moved = clip_norm * math.exp(-settings.learning_rate * max(-1.0, min(1.0, off)))
    return max(settings.min, min(settings.max, moved))
