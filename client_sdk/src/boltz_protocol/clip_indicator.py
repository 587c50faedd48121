"""The clip indicator: one lane that tells, for one client, whether its update was within the clip.

Adaptive clipping (Andrew, Thakkar, McMahan and Ramaswamy 2021, "Differentially Private Learning
with Adaptive Clipping", section 2) needs the share of clients whose update was not shortened. Each
client sends a bit, +1/2 for "within" and -1/2 for "shortened" (centred, which halves what one
client can move), as one more coordinate of its vector. So it is in the same sum, under the same
mask and the same noise, and in the same release: nothing is charged for it beside.

The room for it comes out of the delta's. The lane holds `s * bit`, s being the lane's scale, and
what goes before it is clipped to

    C' = sqrt(C^2 - (s / 2)^2),

so that the whole vector is no longer than C, the round's bound, and everything that is calibrated
to C stays as it is. This is the paper's theorem 1 in one vector: a noise multiplier z on the whole
is `z_delta = z C / C'` on the delta and a deviation of `sigma_b = z C / s` on the count of bits,
and `z^-2 = z_delta^-2 + (2 sigma_b)^-2`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from boltz_protocol.errors import MalformedMessage
from boltz_protocol.message_parts import Lane

#: The lane's name in rounds of this mesh; a client goes by `RoundConfiguration.clip_indicator`.
LANE: Final = "clip-indicator"
#: The two values of the bit.
WITHIN: Final = 0.5
SHORTENED: Final = -0.5

# C' is drawn in by more than the rounding errors of its own computation and of the lane's value,
# some 2^-51, so that the joint norm is at most C in reals.
_SLACK: Final = 2.0**-45


def check_indicator(name: str, lanes: Sequence[Lane], clip_norm_l2: float) -> None:
    """Refuse a lane that cannot be the indicator of a round. An empty name is that of none.

    Raises: MalformedMessage when `name` is not that of the last lane, or its scale is above C.
    """
    if not name:
        return
    if not lanes or lanes[-1].name != name:
        raise MalformedMessage(
            f"clip_indicator {name[:80]!r} is not the name of the last lane", field="clip_indicator"
        )
    # Above C its share would be above one, and less than sqrt(3/4) of C be left for the delta.
    if not lanes[-1].scale <= clip_norm_l2:
        raise MalformedMessage(
            f"the clip indicator's scale is {lanes[-1].scale}, above the clip norm {clip_norm_l2}",
            field="clip_indicator",
        )


def inner_clip_norm(clip_norm_l2: float, scale: float) -> float:
    """C', the L2 bound of all that goes before the indicator's lane.

    Args:
        clip_norm_l2: C.
        scale: of the indicator's lane, above 0, at most C.
    """
    assert 0 < scale <= clip_norm_l2, "checked when the configuration was read"
    half = scale / 2
    return math.sqrt((clip_norm_l2 - half) * (clip_norm_l2 + half)) * (1 - _SLACK)


def indicator(clip_factor: float) -> float:
    """The bit of an update that clipping to C' multiplied by this factor."""
    return WITHIN if clip_factor == 1.0 else SHORTENED
