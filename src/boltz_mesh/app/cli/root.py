"""The command's root: sub-commands, help, exit codes."""

from __future__ import annotations

import sys
from importlib.metadata import version

from cyclopts import App
from cyclopts.exceptions import CycloptsError

from boltz_mesh.app.cli import (
    budget,
    clients,
    demo,
    models,
    plans,
    privacy,
    rounds,
    server,
    simulate,
)
from boltz_mesh.app.cli.output import EXIT_CODES_HELP, Exit, exit_code, print_error
from boltz_protocol.errors import ConfigurationError, MeshError

app = App(
    name="boltz-mesh",
    help="A privacy-preserving federated-learning mesh: server and operator's tools.",
    help_epilogue=EXIT_CODES_HELP,
    version=lambda: version("boltz-mesh"),
    # Exit codes are ours: see `main`.
    result_action="return_value",
)
app.command(server.up)
app.command(demo.demo)
app.command(server.credential)
app.command(server.status)
app.command(plans.app)
app.command(budget.app)
app.command(clients.app)
app.command(rounds.app)
app.command(privacy.app)
app.command(simulate.simulate)
app.command(models.app)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command; errors become a sentence, advice and an exit code."""
    try:
        result = app(arguments, exit_on_error=False, print_error=True)
    except (KeyboardInterrupt, BrokenPipeError):
        return Exit.INTERRUPTED
    except CycloptsError:
        return Exit.USAGE  # the message is printed already
    except MeshError as error:
        print_error(error)
        return exit_code(error)
    except OSError as error:
        what = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        print_error(ConfigurationError(what))
        return Exit.USAGE
    except ValueError as error:
        print_error(ConfigurationError(str(error)))
        return Exit.USAGE
    return result if isinstance(result, int) else Exit.OK
