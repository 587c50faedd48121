"""A plan whose settings a test may change."""

from __future__ import annotations

PLAN = """\
model = "{model}"
mode = "open"
clip_norm = 1.0
privacy = "{privacy}"
noise_multiplier = {noise}
promotion = "{promotion}"
{top}
[cohort]
min = {min}
target = {target}
max = {max}
over_selection = {over_selection}
[deadlines]
selecting = "{selecting}"
collecting = "{collecting}"
recovery_extension = "0ms"
[[tensors]]
name = "weights"
shape = [{size}]
[[tensors]]
name = "bias"
shape = []
[[lanes]]
name = "loss"
scale = 0.01
{tables}
"""


def plan_text(**changes: object) -> str:
    settings: dict[str, object] = {
        "model": "model",
        "privacy": "none",
        "noise": 0.0,
        "promotion": "automatic",
        "top": "",
        "min": 2,
        "target": 3,
        "max": 6,
        "over_selection": 1.0,
        "selecting": "30s",
        "collecting": "30s",
        "size": 7,
        "tables": "",
    }
    return PLAN.format(**(settings | changes))
