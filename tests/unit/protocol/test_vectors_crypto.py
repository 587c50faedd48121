"""The committed vectors are what the second implementation writes, byte for byte."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.keys import VECTORS

TOOL = VECTORS.parents[1] / "tools" / "make_vectors_crypto.py"
NAMES = ("crypto_statement", "crypto_envelope", "crypto_key_wrap", "crypto_join")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors")
    subprocess.run([sys.executable, str(TOOL), str(folder)], check=True)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_regeneration_changes_nothing(made: Path, name: str) -> None:
    file = f"{name}.json"
    assert (made / file).read_bytes() == (VECTORS / file).read_bytes()


def test_all_files_are_covered(made: Path) -> None:
    assert {path.stem for path in made.iterdir()} == set(NAMES)


def test_the_second_implementation_imports_nothing_of_the_first() -> None:
    assert "boltz_" not in "".join(
        line for line in TOOL.read_text().splitlines() if "import" in line
    )
