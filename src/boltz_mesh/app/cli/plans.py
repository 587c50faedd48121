"""`boltz-mesh plan ...`: what a model is and how it is trained."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from boltz_mesh.app.cli.connection import Connect, Mesh, on_mesh
from boltz_mesh.app.cli.output import as_dict, print_json, say, when
from boltz_mesh.rounds.plan import MAX_PLAN_BYTES, example_plan
from boltz_mesh.rounds.plan_robust import defence
from boltz_protocol.errors import ConfigurationError
from boltz_protocol.v1 import aggregator_pb2 as pb

app = App(name="plan", help="Declare a model and how it is trained.")


@app.command
def apply(
    file: Annotated[
        Path,
        # The one hyphen is a name like any other here.
        Parameter(help="A plan.toml, or - for standard input.", allow_leading_hyphen=True),
    ],
    /,
    *,
    dry_run: Annotated[bool, Parameter(negative="", help="Check only, change nothing.")] = False,
    connect: Connect = Connect(),
) -> None:
    """Apply a plan: declare a model or change how it is trained."""
    request = pb.ApplyPlanRequest(plan_toml=_read(file), dry_run=dry_run)

    async def call(mesh: Mesh) -> pb.ApplyPlanResponse:
        return await mesh.aggregator.ApplyPlan(request)

    answer = on_mesh(connect, call)
    if connect.json:
        print_json(as_dict(answer))
        return
    plan = answer.plan
    rounds = f"{plan.rounds_allowed} rounds" if plan.rounds_allowed else "rounds without limit"
    if dry_run:
        say(f"{plan.model_id}: the plan is sound; it allows {rounds}. Nothing was changed.")
    elif answer.changed:
        say(f"{plan.model_id}: revision {plan.revision} applied; it allows {rounds}.")
    else:
        say(f"{plan.model_id}: revision {plan.revision} says the same already.")
    say(f"Liars: {_defence(plan)}.")


@app.command
def show(model_id: str, /, *, connect: Connect = Connect()) -> None:
    """Show a model's plan in full, defaults filled in."""

    async def call(mesh: Mesh) -> pb.Plan:
        return (await mesh.aggregator.GetPlan(pb.GetPlanRequest(model_id=model_id))).plan

    plan = on_mesh(connect, call)
    if connect.json:
        print_json(as_dict(plan))
        return
    print(f"# revision {plan.revision}, applied {when(plan.applied_at_ms)} by {plan.applied_by}")
    print(f"# liars: {_defence(plan)}")
    print(plan.plan_toml, end="")


@app.command
def example() -> None:
    """Print an annotated plan to start from."""
    print(example_plan(), end="")


def _defence(plan: pb.Plan) -> str:
    """What stands against clients that lie, by the plan as the mesh has filled it in."""
    table = tomllib.loads(plan.plan_toml)
    return defence(table["mode"], table["rule"])


def _read(file: Path) -> str:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
    except OSError as error:
        raise ConfigurationError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file} is not text in UTF-8") from error
    if len(text) > MAX_PLAN_BYTES:
        raise ConfigurationError(f"{file} is longer than {MAX_PLAN_BYTES} characters")
    return text
