"""The committed vectors of keys, masks and shares are what the second implementation writes."""

from __future__ import annotations

import json
import runpy

from tests.support.keys import VECTORS

TOOL = VECTORS.parents[1] / "tools" / "make_vectors_secagg.py"


def test_regeneration_changes_nothing() -> None:
    made = runpy.run_path(str(TOOL))["_masks"]()
    assert json.dumps(made, indent=2) + "\n" == (VECTORS / "secagg_masks.json").read_text()


def test_the_second_implementation_imports_nothing_of_the_first() -> None:
    assert "boltz_" not in "".join(
        line for line in TOOL.read_text().splitlines() if "import" in line
    )
