"""Files made elsewhere, places that cannot be written, and a mesh that goes away under a watch."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from boltz_protocol.v1 import aggregator_pb2 as agg
from tests.integration.cli.running import Cli, environment
from tests.integration.cli.test_commands import first_round
from tests.support.clients import reached, start_round
from tests.support.mesh import COMMAND, Mesh, MeshProcess, observed, opened
from tests.support.models import declare

TWO_TENSORS = """
model = "{model}"
mode = "open"
tensors = [{{ name = "weight", shape = [2, 3] }}, {{ name = "bias", shape = [2] }}]
cohort = {{ min = 1, target = 1, max = 1 }}
clip_norm = 1.0
privacy = "none"
"""


async def test_a_file_in_another_order(cli: Cli, mesh: Mesh, model: str, tmp_path: Path) -> None:
    """The safetensors library sorts by name; the plan says bias last."""
    await cli.on(mesh, "plan", "apply", "-", stdin=TWO_TENSORS.format(model=model))
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    bias = np.array([7, 8], np.float32)
    file = tmp_path / "torch.safetensors"
    safetensors.numpy.save_file({"weight": weight, "bias": bias}, file, metadata={"format": "pt"})
    published = await cli.on(mesh, "models", "publish", model, str(file), "--promote", "--json")
    assert published.document["version"] == 1
    out = tmp_path / "out.safetensors"
    await cli.on(mesh, "models", "pull", model, "--out", str(out))
    pulled = safetensors.numpy.load_file(out)
    np.testing.assert_array_equal(pulled["weight"], weight)
    np.testing.assert_array_equal(pulled["bias"], bias)
    listed = await cli.on(mesh, "models", "ls", model)
    assert "promoted" in listed.out


async def test_a_file_with_other_tensors(cli: Cli, mesh: Mesh, model: str, tmp_path: Path) -> None:
    await cli.on(mesh, "plan", "apply", "-", stdin=TWO_TENSORS.format(model=model))
    file = tmp_path / "wrong.safetensors"
    safetensors.numpy.save_file({"weight": np.zeros((2, 3), np.float32)}, file)
    refused = await cli.on(mesh, "models", "publish", model, str(file))
    assert (refused.code, refused.out) == (3, "")
    assert "no tensor 'bias'" in refused.err


async def test_a_place_that_is_not_there(cli: Cli, mesh: Mesh, model: str, tmp_path: Path) -> None:
    await declare(mesh, model)
    out = tmp_path / "nowhere" / "model.safetensors"
    result = await cli.on(mesh, "models", "pull", model, "--out", str(out))
    assert (result.code, "No such file or directory" in result.err) == (2, True)


async def test_ids_are_never_cut(cli: Cli, mesh: Mesh, model: str) -> None:
    await declare(mesh, model)
    started = asyncio.create_task(cli.on(mesh, "round", "start", model, "--wait"))
    round_id = await first_round(mesh, model)
    listed = await cli.on(mesh, "round", "ls")
    assert round_id in listed.out
    await cli.on(mesh, "round", "abort", round_id, "--reason", "seen enough")
    assert (await started).code == 5


async def test_a_port_that_is_taken(cli: Cli, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = await cli(
            "up", "--data-dir", str(tmp_path / "data"), "--port", str(port), "--enroll-port", "0"
        )
    assert result.code == 2
    assert f"cannot listen on 127.0.0.1:{port}" in result.err


async def test_a_data_folder_that_cannot_be_made(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = await cli("up", "--data-dir", str(tmp_path / "file" / "data"))
    assert (result.code, result.out) == (2, "")


@pytest.mark.timeout(90)
async def test_a_watch_survives_a_restart(cli: Cli, database_url: str, tmp_path: Path) -> None:
    """The server is killed under `round watch` and comes back at the same address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = MeshProcess(tmp_path / "data", database_url, port=port)
    async with observed(database_url) as (database, listener):
        try:
            async with opened(process, database, listener) as mesh:
                await declare(mesh, "model")
                started = await start_round(mesh, "model")
                watch = await asyncio.create_subprocess_exec(
                    COMMAND,
                    *("round", "watch", started.round_id),
                    *("--operator", str(mesh.operator_folder)),
                    stdout=asyncio.subprocess.PIPE,
                    env=environment(),
                )
                assert watch.stdout is not None
                assert await watch.stdout.readline() == b"selecting\n"
                await process.kill()
            async with opened(process, database, listener) as mesh:
                await reached(mesh, started.round_id, agg.PHASE_SELECTING)
                await cli.on(mesh, "round", "abort", started.round_id, "--reason", "enough")
                out, _ = await watch.communicate()
                assert (watch.returncode, out.splitlines()[-1]) == (5, b"aborted: enough")
        finally:
            await process.close()
