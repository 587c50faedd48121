"""CPU time and memory of one robust rule over many clients' updates, streamed as the fold does it.

    python tools/bench/rules.py --clients 20 --params 1000000
    python tools/bench/rules.py --clients 50 --params 25000000 --repeats 1 --json

Updates are never all in memory: blocks of 2^18 coordinates are drawn anew for each of the two
passes (inner products, then the rule), the same both times. Drawing them is not counted, and a
fifth of the clients lie: their rows are other ones, four times as long. `--rule` is the word in
`plan.toml`; the liars tolerated are the fifth that lies.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from boltz_mesh.aggregation.observations import Observer
from boltz_mesh.aggregation.robust import (
    CoordinateMedian,
    GeometricMedian,
    MixedTrimmedMean,
    MultiKrum,
    RobustRule,
    TrimmedMean,
    gram_of,
)
from boltz_mesh.aggregation.rows import ClientRows, Unprotected
from boltz_protocol import limits

RULES = (
    "coordinate-median",
    "trimmed-mean",
    "mixed-trimmed-mean",
    "multi-krum",
    "geometric-median",
)


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured; CPU times are medians over the repeats, of all threads.

    Attributes:
        rule_cpu_s: of the rule, both passes.
        observing_cpu_s: of observing the rows beside.
        peak_mib: the most memory that the process held, Python and numpy included.
    """

    rule: str
    clients: int
    byzantine: int
    params: int
    repeats: int
    rule_cpu_s: float
    observing_cpu_s: float
    peak_mib: int


def rule_of(name: str, clients: int) -> RobustRule:
    """A rule by its word in `plan.toml`, for a fifth of liars."""
    byzantine = clients // 5
    rules: tuple[RobustRule, ...] = (
        CoordinateMedian(),
        TrimmedMean(byzantine),
        MixedTrimmedMean(byzantine),
        MultiKrum(byzantine, clients - 2 * byzantine),
        GeometricMedian(),
    )
    return next(rule for rule in rules if rule.name == name)


def blocks(clients: int, params: int) -> Iterator[ClientRows]:
    """The updates, block by block: the same ones every time."""
    witness = Unprotected("open", "none")
    for start in range(0, params, limits.CHUNK_PARAMETERS):
        size = min(limits.CHUNK_PARAMETERS, params - start)
        rows = np.random.default_rng(start).standard_normal((clients, size), np.float32)
        rows += 0.5
        rows[: clients // 5] *= -4
        yield ClientRows(rows, witness)


def measure(name: str, clients: int, params: int, repeats: int) -> Figures:
    """Run the rule and tell what it took."""
    rule = rule_of(name, clients)
    weights = np.random.default_rng(0).integers(1, limits.MAX_WEIGHT, clients, endpoint=True)
    ruling, observing = [], []
    for _ in range(repeats):
        gram = np.zeros((clients, clients)) if rule.measures else None
        of_rule = 0.0
        if gram is not None:
            for rows in blocks(clients, params):
                start = time.process_time()
                gram += gram_of(rows)
                of_rule += time.process_time() - start
        start = time.process_time()
        state = rule.init(weights, gram)
        of_rule += time.process_time() - start
        names = tuple(str(place) for place in range(clients))
        observer, of_observing = Observer.init(names, tuple(weights.tolist())), 0.0
        for rows in blocks(clients, params):
            start = time.process_time()
            result = rule.apply(state, rows)
            between = time.process_time()
            observer.add(rows, result)
            of_rule += between - start
            of_observing += time.process_time() - between
        ruling.append(of_rule)
        observing.append(of_observing)
    return Figures(
        rule=name,
        clients=clients,
        byzantine=clients // 5,
        params=params,
        repeats=repeats,
        rule_cpu_s=round(statistics.median(ruling), 3),
        observing_cpu_s=round(statistics.median(observing), 3),
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    )


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--params", type=int, default=1_000_000)
    parser.add_argument("--rule", choices=RULES, default="mixed-trimmed-mean")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one object instead of text")
    arguments = parser.parse_args()
    figures = measure(arguments.rule, arguments.clients, arguments.params, arguments.repeats)
    if arguments.json:
        print(json.dumps(asdict(figures)))
        return
    print(
        f"{figures.rule}, {figures.clients} clients of which {figures.byzantine} lie, "
        f"{figures.params} parameters: {figures.rule_cpu_s:.3f} s of CPU (median of "
        f"{figures.repeats}), {figures.observing_cpu_s:.3f} s to observe, {figures.peak_mib} MiB"
    )


if __name__ == "__main__":
    main()
