"""The committed vectors of sealed and grouped rounds are what the second implementation writes."""

from __future__ import annotations

import json
import runpy

import pytest

from tests.support.keys import VECTORS

TOOLS = VECTORS.parents[1] / "tools"
MADE = {
    "make_vectors_graph.py": ("_graph", "secagg_graph.json"),
    "make_vectors_secagg.py": ("_masks", "secagg_masks.json"),
}


@pytest.mark.parametrize("tool", MADE)
def test_regeneration_changes_nothing(tool: str) -> None:
    function, name = MADE[tool]
    made = runpy.run_path(str(TOOLS / tool))[function]()
    assert json.dumps(made, indent=2) + "\n" == (VECTORS / name).read_text()


@pytest.mark.parametrize("tool", MADE)
def test_the_second_implementation_imports_nothing_of_the_first(tool: str) -> None:
    lines = (TOOLS / tool).read_text().splitlines()
    assert "boltz_" not in "".join(line for line in lines if "import" in line)
