"""Importing the library is quick and pulls in nothing of the server."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys, time
start = time.process_time()
import boltz_client, boltz_client.cli, boltz_client.blocking
took = time.process_time() - start
heavy = {"boltz_mesh", "torch", "sklearn", "scipy", "pandas", "asyncpg", "msgspec", "cyclopts",
         "opentelemetry.sdk", "safetensors", "matplotlib"}
print(took, sorted(heavy & set(sys.modules)))
"""


def test_import_is_light() -> None:
    # CPU seconds, and the best of three: the machine may be busy.
    outputs = [
        subprocess.run(
            [sys.executable, "-c", CODE], check=True, capture_output=True, text=True
        ).stdout.split(maxsplit=1)
        for _ in range(3)
    ]
    assert {heavy.strip() for _, heavy in outputs} == {"[]"}
    assert min(float(took) for took, _ in outputs) < 0.5
