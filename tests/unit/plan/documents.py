"""A small plan for the tests of this folder, with places to put other settings."""

SMALL = """\
model = "m"
mode = "{mode}"
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


def small(
    *, mode: str = "open", top: str = "", cohort: str = "", tensor: str = "", tables: str = ""
) -> str:
    return SMALL.format(mode=mode, top=top, cohort=cohort, tensor=tensor, tables=tables)


SEALED = """\
model = "m"
clip_norm = 1.0
privacy = "{privacy}"
{top}
[cohort]
min = {min}
target = {max}
max = {max}
[[tensors]]
name = "w"
shape = [{size}]
{tables}
"""


def sealed(**changes: object) -> str:
    """A plan that leaves the mode to the default."""
    settings = {"privacy": "none", "top": "", "min": 3, "max": 6, "size": 8, "tables": ""}
    return SEALED.format(**(settings | changes))


def private_sealed(noise: float = 4.0, **changes: object) -> str:
    """The same with noise, and a budget with room for it."""
    budget = "\n[budget]\nepsilon = 6.0\ndelta = 1e-6\n"
    tables = f"{changes.pop('tables', '')}{budget}"
    return sealed(
        privacy="client-dp", top=f"noise_multiplier = {noise!r}", tables=tables, **changes
    )
