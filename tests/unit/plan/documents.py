"""A small plan for the tests of this folder, with places to put other settings."""

SMALL = """\
model = "m"
clip_norm = 1.0
privacy = "none"
{top}
[cohort]
min = 2
target = 4
max = 8
{cohort}
[[tensors]]
name = "w"
shape = [3, 2]
{tensor}
{tables}
"""


def small(*, top: str = "", cohort: str = "", tensor: str = "", tables: str = "") -> str:
    return SMALL.format(top=top, cohort=cohort, tensor=tensor, tables=tables)
