"""The committed vectors are what their script writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]


def test_numerics_vectors_are_what_the_script_makes(tmp_path: Path) -> None:
    script = REPOSITORY / "tools" / "make_vectors_numerics.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, timeout=60)
    made = sorted(tmp_path.iterdir())
    assert len(made) == 6
    for path in made:
        committed = REPOSITORY / "proto" / "vectors" / path.name
        assert path.read_bytes() == committed.read_bytes(), path.name
