#!/usr/bin/env python3
"""How long a round takes when nobody trains: the mesh's own cost, full stack, real processes.

    tools/bench/round.py --clients 4 --params 1000000 --rounds 7 --json

One server process (with its embedded database), one process a client: mutual TLS, signatures,
encryption, durable storage, publication of the new version. A round is timed from the call of
StartRound to the moment at which WatchRound says that the version exists.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boltz_mesh.app.cli.connection import Mesh, connected, read_credential
from boltz_protocol import limits
from boltz_protocol.messages import Dtype, TensorSpec
from boltz_protocol.model_file import encode_model
from boltz_protocol.v1 import aggregator_pb2 as agg
from boltz_protocol.v1 import model_store_pb2 as store
from boltz_protocol.v1 import registry_pb2 as reg

MODEL = "bench"
PLAN = """
model = "bench"
mode = "{mode}"
tensors = [{{ name = "w", shape = [{params}] }}]
cohort = {{ min = {clients}, target = {clients}, max = {clients}, over_selection = 1.0 }}
clip_norm = 1.0
privacy = "{privacy}"
{noise}
promotion = "automatic"
"""
#: So much noise that the budget does not end before the benchmark does.
NOISE = """noise_multiplier = 10.0
budget = { epsilon = 20.0, delta = 1e-6 }"""


@dataclass(frozen=True)
class Result:
    """What is printed. Seconds are wall-clock; CPU seconds are of all processes together."""

    clients: int
    params: int
    mode: str
    privacy: str
    rounds: int
    round_s: dict[str, float]
    cpu_s_per_round: float
    server_peak_rss_mb: float
    bytes_up_per_client: int
    bytes_down_per_client: int


def parsed_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--params", type=int, default=1_000_000)
    parser.add_argument("--mode", choices=["open", "sealed"], default="open")
    parser.add_argument("--privacy", choices=["client-dp", "none"], default="client-dp")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds, after one more")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


async def started_server(folder: Path) -> asyncio.subprocess.Process:
    """A server process that is ready."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("boltz-mesh")),
        *("up", "--data-dir", str(folder), "--port", "0", "--enroll-port", "0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=(folder.parent / "server.log").open("w"),
    )
    assert process.stdout is not None
    while line := await process.stdout.readline():
        if line.strip() == b"ready":
            return process
    raise SystemExit(f"the server did not start; see {folder.parent / 'server.log'}")


async def started_client(mesh: Mesh, folder: Path, index: int) -> asyncio.subprocess.Process:
    """A client process, enrolled but perhaps not yet checked in."""
    token = await mesh.registry.CreateEnrollmentToken(reg.CreateEnrollmentTokenRequest())
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("idle_client.py")),
        *(str(folder / f"client-{index}"), MODEL),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(token.join_string.encode() + b"\n")
    await process.stdin.drain()
    return process


async def is_ready(process: asyncio.subprocess.Process) -> None:
    """Wait until a client has checked in."""
    assert process.stdout is not None
    if await process.stdout.readline() != b"ready\n":
        raise SystemExit("a client ended before it checked in")


async def publish_start(mesh: Mesh, params: int) -> None:
    """The first version: zeros."""
    content = encode_model(
        (TensorSpec("w", (params,), Dtype.FLOAT32),), np.zeros(params, dtype=np.float32)
    )
    header = store.PublishHeader(
        model_id=MODEL,
        sha256=hashlib.sha256(content).digest(),
        size_bytes=len(content),
        promote=True,
    )

    async def requests() -> AsyncIterator[store.PublishRequest]:
        yield store.PublishRequest(header=header)
        for offset in range(0, len(content), limits.MODEL_CHUNK_BYTES):
            data = content[offset : offset + limits.MODEL_CHUNK_BYTES]
            yield store.PublishRequest(chunk=store.ModelChunk(offset=offset, data=data))

    await mesh.models.Publish(requests())


async def one_round(mesh: Mesh) -> tuple[float, agg.Round]:
    """Seconds that one round took, and the round."""
    started = time.perf_counter()
    begun = await mesh.aggregator.StartRound(agg.StartRoundRequest(model_id=MODEL))
    last = begun.round
    async for answer in mesh.aggregator.WatchRound(
        agg.WatchRoundRequest(round_id=begun.round.round_id)
    ):
        last = answer.round
    seconds = time.perf_counter() - started
    if last.phase != agg.PHASE_PUBLISHED:
        raise SystemExit(f"the round was aborted: {last.reason}")
    return seconds, last


async def measure(options: argparse.Namespace, folder: Path) -> Result:
    """Run the benchmark in a folder of its own."""
    server = await started_server(folder / "mesh")
    clients: list[asyncio.subprocess.Process] = []
    try:
        async with connected(read_credential(folder / "mesh" / "operator")) as mesh:
            plan = PLAN.format(
                mode=options.mode,
                params=options.params,
                clients=options.clients,
                privacy=options.privacy,
                noise=NOISE if options.privacy == "client-dp" else "",
            )
            await mesh.aggregator.ApplyPlan(agg.ApplyPlanRequest(plan_toml=plan))
            await publish_start(mesh, options.params)
            for index in range(options.clients):
                clients.append(await started_client(mesh, folder, index))
            await asyncio.gather(*(is_ready(client) for client in clients))
            await one_round(mesh)  # warms every process up
            pids = [server.pid, *(client.pid for client in clients)]
            cpu_before = cpu_seconds(pids)
            seconds = []
            last = agg.Round()
            for _ in range(options.rounds):
                took, last = await one_round(mesh)
                seconds.append(took)
            cpu_s = (cpu_seconds(pids) - cpu_before) / options.rounds
            manifest = (
                await mesh.models.GetManifest(store.GetManifestRequest(model_id=MODEL))
            ).version.manifest
            model_bytes = store.ModelManifest.FromString(manifest.payload).size_bytes
            return Result(
                clients=options.clients,
                params=options.params,
                mode=options.mode,
                privacy=options.privacy,
                rounds=options.rounds,
                round_s={
                    "median": statistics.median(seconds),
                    "min": min(seconds),
                    "max": max(seconds),
                },
                cpu_s_per_round=cpu_s,
                server_peak_rss_mb=peak_rss_mb(server.pid),
                bytes_up_per_client=last.bytes_up // options.clients,
                bytes_down_per_client=model_bytes,
            )
    finally:
        for process in clients:
            if process.returncode is None:
                process.terminate()
        await asyncio.gather(*(process.wait() for process in clients))
        server.terminate()
        await server.wait()


# --- processes, read from /proc ---

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    # The command name may hold spaces and parentheses: the fields start behind the last one.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def tree(roots: Iterable[int]) -> set[int]:
    """The processes and all that descends from them, now."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        found.add(pid)
        waiting.extend(children.get(pid, ()))
    return found


def cpu_seconds(roots: Iterable[int]) -> float:
    """CPU time of the processes, their descendants, and descendants that were waited for."""
    total = 0
    for pid in tree(roots):
        try:
            fields = _stat(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(field) for field in fields[11:15])  # utime stime cutime cstime
    return total / _TICKS_PER_S


def peak_rss_mb(pid: int) -> float:
    """Most memory that a process had at once, in MB (10^6 bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"no peak memory for process {pid}")


# --- the command ---


def print_result(result: Result) -> None:
    """The figures for people."""
    times = result.round_s
    print(
        f"{result.clients} clients x {result.params:,} parameters, {result.mode}, {result.privacy}"
    )
    print(
        f"  round        {times['median']:.3f} s"
        f" ({times['min']:.3f} to {times['max']:.3f}, {result.rounds} rounds)"
    )
    print(f"  CPU          {result.cpu_s_per_round:.3f} s a round, all processes")
    print(f"  server peak  {result.server_peak_rss_mb:.0f} MB")
    print(f"  up           {result.bytes_up_per_client:,} bytes a client and round")
    print(f"  down         {result.bytes_down_per_client:,} bytes a client and round")


def main() -> None:
    """Parse, measure, print."""
    options = parsed_arguments()
    with tempfile.TemporaryDirectory(prefix="boltz-bench-") as folder:
        result = asyncio.run(measure(options, Path(folder)))
    document: dict[str, Any] = asdict(result)
    if options.json:
        print(json.dumps(document, indent=2))
    else:
        print_result(result)


if __name__ == "__main__":
    main()
