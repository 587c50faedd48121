#!/usr/bin/env python3
"""What secure aggregation costs: one attempt of a sealed round in one process, everything on.

    tools/bench/secagg.py --clients 100 --params 1000000 --dropout 0.1 --json

Real keys, certificates, RSA signatures, weights, noise, encryption of shares and updates; no
network, database or disk. Clients that drop out do so where it costs most: they have dealt their
shares and never upload. A client's figure is the median over those that stay. The server hashes
arriving updates and folds them chunk by chunk on two threads, as the coordinator does; its wall
time is the sum over its steps, since its waiting for clients is not its cost.

The sum is checked coordinate by coordinate. Each client's noise comes from a fresh stream whose key
the benchmark keeps, so that it can draw the same noise again when the clock has stopped: decoded
sum and plain sum of the encoded updates must differ by exactly the noise that was added, and the
variance of that difference is printed over the target at the fewest survivors.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from boltz_protocol.keystream import Keystream
from boltz_protocol.update import chunk_slice

# Started as a script: only this folder is on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tools.bench.secagg_attempt import Attempt
from tools.bench.secagg_world import THREADS, World


@dataclass(frozen=True)
class Result:
    """What is printed. Seconds; CPU seconds of the server are those of all its threads."""

    clients: int
    params: int
    dropouts: int
    neighbours: int
    threshold: int
    rounds: int
    client_cpu_s: float
    client_mask_cpu_s: float
    server_cpu_s: float
    server_wall_s: float
    shamir_cpu_s: float
    bytes_up_per_client: int
    bytes_up_per_param: float
    sum_is_exact: bool
    noise_variance_over_target: float
    client_steps_cpu_s: dict[str, float]
    server_steps_cpu_s: dict[str, float]
    server_steps_wall_s: dict[str, float]


def parsed_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--params", type=int, default=1_000_000)
    parser.add_argument("--dropout", type=float, default=0.0, help="fraction that never uploads")
    parser.add_argument("--rounds", type=int, default=3, help="counted attempts, after a small one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


@dataclass(frozen=True)
class Run:
    """What one attempt cost, and whether it was right."""

    client: dict[str, float]
    server_cpu: dict[str, float]
    server_wall: dict[str, float]
    client_cpu_s: float
    bytes_up: float
    neighbours: int
    threshold: int
    is_exact: bool
    variance: float


def one_run(world: World) -> Run:
    """Run an attempt and check its sum when the clocks have stopped."""
    attempt = Attempt(world)
    noised, agreed = attempt.run()
    staying = attempt.peers[world.dropouts :]
    graph = agreed.graph_of(staying[0].entry.index)
    noise = np.zeros(world.params, np.int64)
    for peer in staying:
        for chunk, key in enumerate(peer.noise_keys):
            block = np.empty(noise[chunk_slice(chunk, world.params)].size, np.int32)
            world.sampler.sample_into(block, Keystream(key))
            noise[chunk_slice(chunk, world.params)] += block
    added = noised - attempt.plain_sum
    steps = {step for peer in staying for step in peer.watch.cpu}
    return Run(
        client={s: statistics.median(peer.watch.cpu[s] for peer in staying) for s in steps},
        server_cpu=dict(attempt.server.cpu),
        server_wall=dict(attempt.server.wall),
        client_cpu_s=statistics.median(sum(peer.watch.cpu.values()) for peer in staying),
        bytes_up=statistics.median(peer.bytes_up for peer in staying),
        neighbours=len(graph.neighbours(staying[0].entry.index)),
        threshold=graph.threshold,
        is_exact=bool(np.array_equal(added, noise)),
        variance=float(np.mean(np.square(added, dtype=np.float64))),
    )


def median_of(runs: list[dict[str, float]]) -> dict[str, float]:
    """By step, the costliest first."""
    steps = {step: statistics.median(run[step] for run in runs) for step in runs[0]}
    return dict(sorted(steps.items(), key=lambda item: -item[1]))


def measure(options: argparse.Namespace) -> Result:
    """A small attempt to warm up, then the counted ones."""
    one_run(World(options.clients, min(options.params, 4096), options.dropout))
    world = World(options.clients, options.params, options.dropout)
    runs = [one_run(world) for _ in range(options.rounds)]
    if not all(run.is_exact for run in runs):
        raise SystemExit("the sum is not that of the survivors and their noise")
    client = median_of([run.client for run in runs])
    server_cpu = median_of([run.server_cpu for run in runs])
    bytes_up = round(statistics.median(run.bytes_up for run in runs))
    return Result(
        clients=options.clients,
        params=options.params,
        dropouts=world.dropouts,
        neighbours=runs[0].neighbours,
        threshold=runs[0].threshold,
        rounds=options.rounds,
        client_cpu_s=statistics.median(run.client_cpu_s for run in runs),
        client_mask_cpu_s=client["masks"],
        server_cpu_s=statistics.median(sum(run.server_cpu.values()) for run in runs),
        server_wall_s=statistics.median(sum(run.server_wall.values()) for run in runs),
        shamir_cpu_s=server_cpu["Shamir"],
        bytes_up_per_client=bytes_up,
        bytes_up_per_param=bytes_up / options.params,
        sum_is_exact=True,
        noise_variance_over_target=statistics.median(run.variance for run in runs)
        / float(world.encoding.sigma_squared),
        client_steps_cpu_s=client,
        server_steps_cpu_s=server_cpu,
        server_steps_wall_s=median_of([run.server_wall for run in runs]),
    )


def print_result(result: Result) -> None:
    """The figures for people."""
    print(
        f"{result.clients} clients x {result.params:,} parameters, {result.dropouts} drop out; "
        f"{result.neighbours} neighbours, threshold {result.threshold}; medians of "
        f"{result.rounds} attempts"
    )
    print(f"  client CPU   {1000 * result.client_cpu_s:8.1f} ms")
    for step, seconds in result.client_steps_cpu_s.items():
        print(f"    {step:<36} {1000 * seconds:8.2f} ms")
    print(
        f"  server CPU   {1000 * result.server_cpu_s:8.1f} ms, "
        f"wall {1000 * result.server_wall_s:.1f} ms on {THREADS} threads"
    )
    for step, seconds in result.server_steps_cpu_s.items():
        wall = result.server_steps_wall_s[step]
        print(f"    {step:<36} {1000 * seconds:8.2f} ms, wall {1000 * wall:.2f} ms")
    print(
        f"  up           {result.bytes_up_per_client:,} bytes a client, "
        f"{result.bytes_up_per_param:.4f} a parameter"
    )
    print(
        "  sum          exact; its noise has "
        f"{result.noise_variance_over_target:.3f} of the target variance"
    )


def main() -> None:
    """Parse, measure, print."""
    options = parsed_arguments()
    result = measure(options)
    if options.json:
        print(json.dumps(asdict(result), indent=2))
    else:
        print_result(result)


if __name__ == "__main__":
    main()
