"""`boltz-mesh privacy ...`: attacks on the mesh's own privacy, on a mesh that is thrown away."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

from cyclopts import App, Parameter
from rich.console import Console

from boltz_mesh.app.cli.output import PIPED_WIDTH, Exit, print_error
from boltz_protocol.errors import MeshError

T = TypeVar("T")
app = App(name="privacy", help="Attack this software's own privacy, on a mesh of its own.")

Mode = Annotated[
    Literal["sealed", "open"], Parameter(help="Kind of round; sealed is what plans default to.")
]
Keep = Annotated[
    bool, Parameter(negative="", help="Keep the folder with logs, keys and the mesh's data.")
]
Json = Annotated[
    bool, Parameter(name="--json", negative="", help="Print JSON; progress on standard error.")
]


@app.command
def audit(
    *,
    mode: Mode = "sealed",
    epsilon: Annotated[
        float,
        Parameter(
            help="What the ledger is to show for one release: at delta 1e-5, for one client, its "
            "contribution set to zero."
        ),
    ] = 5.0,
    canaries: Annotated[int, Parameter(help="Clients, all of them in each round.")] = 8,
    trials: Annotated[int, Parameter(help="Rounds with noise, and as many without.")] = 200,
    keep: Keep = False,
    json: Json = False,
) -> int:
    """Guess who contributed, from what is published, and hold the ledger against it.

    Starts a mesh and clients of its own. In each round every client contributes a known vector or
    nothing, by a coin; the attacker sees the published versions only and guesses the coins. From
    the right guesses follows a lower bound on epsilon, with 95% confidence: above the ledger's
    figure it refutes the ledger (exit code 7). The same attack with the noise off shows that it can
    see.
    """
    # Imported here: the other commands start without numpy and the client library.
    from boltz_mesh.app.privacy_audit.display import Display  # noqa: PLC0415
    from boltz_mesh.app.privacy_audit.options import AuditOptions  # noqa: PLC0415
    from boltz_mesh.app.privacy_audit.report import to_json  # noqa: PLC0415
    from boltz_mesh.app.privacy_audit.run import run_audit  # noqa: PLC0415

    options = AuditOptions(mode=mode, epsilon=epsilon, canaries=canaries, trials=trials)
    display = Display(_console(json))
    with display.trials(options) as progress:
        report = _guarded(lambda: run_audit(options, os.environ, progress, keep=keep))
    if isinstance(report, Exit):
        return report
    if json:
        sys.stdout.write(to_json(report).decode())
    else:
        display.show(report)
    return {"holds": Exit.OK, "refuted": Exit.REFUTED, "blind": Exit.INTERNAL}[report.verdict]


@app.command
def inversion(*, keep: Keep = False, json: Json = False) -> int:
    """Recover a trading record from an update, then try the same on sealed sums.

    One record, one gradient step of a linear model: the update divided by its bias is the record.
    Starts a mesh of its own and shows what masks hide, and what only noise hides.
    """
    from boltz_mesh.app.privacy_audit.display import Display  # noqa: PLC0415
    from boltz_mesh.app.privacy_audit.inversion_run import (  # noqa: PLC0415
        run_inversion,
        to_json,
    )

    display = Display(_console(json))
    report = _guarded(lambda: run_inversion(os.environ, display.say, keep=keep))
    if isinstance(report, Exit):
        return report
    if json:
        sys.stdout.write(to_json(report).decode())
    else:
        display.show_inversion(report)
    return Exit.OK


def _console(json: bool) -> Console:
    stream = sys.stderr if json else sys.stdout
    # A table that goes into a file or a pipe is not wrapped.
    return Console(file=stream, highlight=False, width=None if stream.isatty() else PIPED_WIDTH)


def _guarded(run: Callable[[], T]) -> T | Exit:
    """The result, or the exit code of an error of this kind of command, told."""
    from boltz_mesh.app.demo.children import ChildEnded  # noqa: PLC0415
    from boltz_mesh.app.privacy_audit.trial import TrialAborted  # noqa: PLC0415

    try:
        return run()
    except ChildEnded as error:
        return _told(error, Exit.INTERNAL)
    except TrialAborted as error:
        return _told(error, Exit.ABORTED)


def _told(error: MeshError, code: Exit) -> Exit:
    print_error(error)
    return code
