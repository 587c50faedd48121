"""`boltz-mesh demo`: brokers, a mesh and real prices on this machine, from nothing to a report."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from boltz_mesh.app.cli.output import PIPED_WIDTH, Exit, print_error
from boltz_protocol.errors import InvalidPlan, MeshError


def demo(
    *,
    clients: Annotated[
        int | None,
        Parameter(help="Desks in all: a multiple of the stocks; 60, 300 and 20 have presets."),
    ] = None,
    model: Annotated[
        Literal["linear", "mlp"], Parameter(help="linear, or mlp: a network, without noise.")
    ] = "linear",
    trainer: Annotated[
        Literal["numpy", "torch"], Parameter(help="What computes the network's local steps.")
    ] = "numpy",
    data: Annotated[
        Path | None,
        Parameter(help="Folder with index.csv and one CSV a stock (columns date, close)."),
    ] = None,
    epsilon: Annotated[
        float | None, Parameter(help="Privacy of one desk in one training run, at delta 1e-5.")
    ] = None,
    seeds: Annotated[
        int | None, Parameter(help="Repetitions with noise; 3 by default, 5 with --full.")
    ] = None,
    origins: Annotated[
        str | None, Parameter(help="Tested years, such as 2019,2020; the newest four by default.")
    ] = None,
    full: Annotated[
        bool, Parameter(negative="", help="Test every year that the prices allow.")
    ] = False,
    out: Annotated[Path, Parameter(help="Folder for report.json and report.html.")] = Path(
        "demo-report"
    ),
    keep: Annotated[
        bool, Parameter(negative="", help="Keep the folder with logs, keys and the mesh's data.")
    ] = False,
    json: Annotated[
        bool, Parameter(negative="", help="Print the report as JSON; progress on standard error.")
    ] = False,
) -> int:
    """Train on real prices with 20 brokers, each a process of its own, and report what came out.

    Starts a mesh of its own, enrols every desk, trains over mutual TLS with and without noise, and
    compares the models that came through the mesh with what brokers reach alone.
    """
    # Imported here: the other commands start without numpy and the client library.
    from boltz_mesh.app.demo.children import ChildEnded  # noqa: PLC0415
    from boltz_mesh.app.demo.data import MarketDataInvalid, MarketDataMissing  # noqa: PLC0415
    from boltz_mesh.app.demo.display import Display  # noqa: PLC0415
    from boltz_mesh.app.demo.options import DemoOptions  # noqa: PLC0415
    from boltz_mesh.app.demo.report import to_json  # noqa: PLC0415
    from boltz_mesh.app.demo.run import run_demo  # noqa: PLC0415
    from boltz_mesh.app.demo.training import RoundAborted  # noqa: PLC0415

    options = DemoOptions(
        clients=clients,
        model=model,
        trainer=trainer,
        data=data,
        epsilon=epsilon,
        seeds=seeds,
        origins=origins,
        full=full,
        out=out,
        keep=keep,
    )
    stream = sys.stderr if json else sys.stdout
    # A table that goes into a file or a pipe is not wrapped.
    width = None if stream.isatty() else PIPED_WIDTH
    display = Display(Console(file=stream, highlight=False, width=width))
    try:
        report = run_demo(options, os.environ, display)
    except (MarketDataMissing, MarketDataInvalid, InvalidPlan) as error:
        # All of them speak of what was asked for.
        return _told(error, Exit.USAGE)
    except ChildEnded as error:
        return _told(error, Exit.INTERNAL)
    except RoundAborted as error:
        return _told(error, Exit.ABORTED)
    if json:
        sys.stdout.write(to_json(report).decode())
    else:
        display.show(report)
    display.say(f"\nreport: {out / 'report.html'} and {out / 'report.json'}")
    return Exit.OK


def _told(error: MeshError, code: Exit) -> Exit:
    print_error(error)
    return code
