"""Planted bugs: in the same worlds and games all is well without them, and not with them."""

from __future__ import annotations

import pytest

from tests.simulation.protocol.mutants import MUTANTS
from tests.simulation.protocol.provocation import SEEDS, Mutant, survives


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_mutant_is_seen(mutant: Mutant) -> None:
    assert all(survives(None, mutant.provoked_by, seed) for seed in SEEDS)
    assert not all(survives(mutant, mutant.provoked_by, seed) for seed in SEEDS)
