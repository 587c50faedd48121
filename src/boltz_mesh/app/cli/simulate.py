"""`boltz-mesh simulate`: attacks on the demo's federation, and what the mesh makes of them."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from boltz_mesh.app.cli.output import PIPED_WIDTH, Exit, print_error


def simulate(
    *,
    attack: Annotated[str | None, Parameter(help="Which attack; --list explains them.")] = None,
    attackers: Annotated[
        int, Parameter(help="f: clients that attack; the rule is set to withstand so many.")
    ] = 4,
    mode: Annotated[
        Literal["open", "grouped", "sealed"], Parameter(help="What the mesh can see.")
    ] = "open",
    rule: Annotated[
        Literal[
            "mixed-trimmed-mean",
            "trimmed-mean",
            "coordinate-median",
            "multi-krum",
            "geometric-median",
            "weighted-mean",
            "centered-clipping",
        ]
        | None,
        Parameter(help="mixed-trimmed-mean where the mode takes it, otherwise weighted-mean."),
    ] = None,
    model: Annotated[
        Literal["mlp", "linear"], Parameter(help="mlp: a network, without noise; or linear.")
    ] = "mlp",
    clients: Annotated[
        int | None,
        Parameter(help="Desks in all: 20 (mlp) or 60 (linear), in groups 60 or 300."),
    ] = None,
    groups: Annotated[
        int | None, Parameter(help="grouped: how many groups, of 5 to 50 clients; 12.")
    ] = None,
    epsilon: Annotated[
        float | None,
        Parameter(
            help="linear: noise for this epsilon, at delta 1e-5, for one desk, its contribution "
            "set to zero, over one training run. Without it there is no noise."
        ),
    ] = None,
    rounds: Annotated[int | None, Parameter(help="Of one training run; the demo's.")] = None,
    sample_bucket_cap: Annotated[
        int | None,
        Parameter(help="The plan's: samples beyond 2^cap add no weight; what a desk has."),
    ] = None,
    seed: Annotated[int, Parameter(help="Of the first repetition; it is printed.")] = 1,
    data: Annotated[
        Path | None,
        Parameter(help="Folder with index.csv and one CSV a stock (columns date, close)."),
    ] = None,
    matrix: Annotated[
        bool, Parameter(negative="", help="All attacks under all rules of the mode.")
    ] = False,
    list_attacks: Annotated[
        bool, Parameter(name="--list", negative="", help="The attacks, a line each.")
    ] = False,
    json: Annotated[
        bool, Parameter(negative="", help="Print JSON; progress on standard error.")
    ] = False,
) -> int:
    """Attack the demo's federation in one process, and see what clip, rule and trust leave of it.

    Trains on real prices with the product's own clipping, encoding, groups, noise, rules, trust and
    quarantine, without a network. Prints the error without attackers, with them, and under a plain
    mean. A matrix takes one to five minutes.
    """
    # Imported here: the other commands start without numpy.
    from boltz_mesh.app.demo.data import (  # noqa: PLC0415
        MarketDataInvalid,
        MarketDataMissing,
        load_prices,
    )
    from boltz_mesh.app.demo.task import market_of  # noqa: PLC0415
    from boltz_mesh.app.simulate.attacks.library import ATTACKS  # noqa: PLC0415
    from boltz_mesh.app.simulate.display import Display  # noqa: PLC0415
    from boltz_mesh.app.simulate.options import SimulateOptions, study_for  # noqa: PLC0415
    from boltz_mesh.app.simulate.report import to_json  # noqa: PLC0415
    from boltz_mesh.app.simulate.study import run_study  # noqa: PLC0415

    stream = sys.stderr if json else sys.stdout
    # A table that goes into a file or a pipe is not wrapped.
    width = None if stream.isatty() else PIPED_WIDTH
    display = Display(Console(file=stream, highlight=False, width=width))
    if list_attacks:
        display.show_attacks(ATTACKS)
        return Exit.OK
    options = SimulateOptions(
        attack=attack,
        attackers=attackers,
        mode=mode,
        rule=rule,
        model=model,
        clients=clients,
        groups=groups,
        epsilon=epsilon,
        rounds=rounds,
        sample_bucket_cap=sample_bucket_cap,
        seed=seed,
        data=data,
        matrix=matrix,
    )
    try:
        prices = load_prices(data)
        market = market_of(prices)
        study = study_for(options, prices.stocks, market.public.calendar)
        cells = (len(study.attacks) + matrix) * len(study.scenarios)
        today = f"{datetime.now(UTC):%Y-%m-%d}"
        with display.progress(cells) as tell:
            report = run_study(options, study, market, tell, source=prices.source, date=today)
    except (MarketDataMissing, MarketDataInvalid) as error:
        # Both speak of what was asked for.
        print_error(error)
        return Exit.USAGE
    if json:
        sys.stdout.write(to_json(report).decode())
    else:
        display.show(report)
    return Exit.OK
