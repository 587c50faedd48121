"""`boltz-mesh budget`: what was spent on a model, and what a plan would cost before it runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from cyclopts import App, Parameter

from boltz_mesh.app.cli.connection import Connect, Mesh, on_mesh
from boltz_mesh.app.cli.output import (
    Exit,
    as_dict,
    print_error,
    print_fields,
    print_json,
    print_table,
    say,
    when,
)
from boltz_protocol.errors import ConfigurationError, InvalidPlan
from boltz_protocol.v1 import aggregator_pb2 as pb

app = App(name="budget", help="Privacy: what was spent on a model, and what a plan would cost.")

#: What `--out` may end with.
_KINDS: Final = frozenset({".html", ".svg"})


@app.default
@app.command
def show(
    model_id: str,
    /,
    *,
    client: Annotated[
        str, Parameter(help="Which client; without it, the one that has spent most.")
    ] = "",
    verify: Annotated[
        bool,
        Parameter(negative="", help="Check the model's whole ledger against its chain of hashes."),
    ] = False,
    connect: Connect = Connect(),
) -> None:
    """Show the privacy spent on a model and what is left."""

    async def call(mesh: Mesh) -> pb.GetPrivacyBudgetResponse:
        return await mesh.aggregator.GetPrivacyBudget(
            pb.GetPrivacyBudgetRequest(model_id=model_id, client_id=client, verify_chain=verify)
        )

    answer = on_mesh(connect, call)
    if connect.json:
        print_json(as_dict(answer))
        return
    if not answer.epsilon_budget:
        say(
            f'{model_id} runs without noise (privacy = "none"): '
            f"{answer.rounds_charged} rounds gave no guarantee, and no epsilon is printed."
        )
        say(f"ledger: {_ledger(answer)}")
        return
    print_fields(f"privacy budget of {model_id}", _fields(answer))


def _fields(answer: pb.GetPrivacyBudgetResponse) -> list[tuple[str, object]]:
    one = f"at delta {answer.delta:g}, one {answer.unit}, {answer.relation}"
    life = f"at delta {answer.delta:g}, one client, {answer.relation}"
    replaced = f"at delta {answer.delta:g}, one {answer.unit}, contribution-replaced"
    made: list[tuple[str, object]] = [
        ("client", answer.client_id or "(nobody has spent anything)"),
        ("epsilon spent", f"{_number(answer.epsilon_spent)} ({one})"),
        ("with running rounds", f"{_number(answer.epsilon_held)} ({one})"),
        ("epsilon allowed", f"{_number(answer.epsilon_budget)} ({one})"),
        ("rounds charged", answer.rounds_charged),
        ("rounds left", answer.rounds_left),
    ]
    if answer.period:
        made.append(("period", answer.period))
    if answer.starts_at_ms or answer.ends_at_ms:
        made.append(
            ("rounds may start", f"{when(answer.starts_at_ms)} to {when(answer.ends_at_ms)}")
        )
    made += [
        (
            "if replaced instead",
            f"{_number(answer.epsilon_replace_one)} ({replaced}: sensitivity 2C)",
        ),
        (
            "over its lifetime",
            f"{_number(answer.epsilon_lifetime)} ({life}; {answer.rounds_lifetime} rounds)",
        ),
    ]
    if answer.delta_all_models:
        allowed = answer.epsilon_all_models_budget
        of_all = f" of {_number(allowed)} allowed" if allowed else ""
        scope = f"at delta {answer.delta_all_models:g}, one client, {answer.relation}"
        made.append(("over all models", f"{_number(answer.epsilon_all_models)}{of_all} ({scope})"))
    return [*made, ("ledger", _ledger(answer))]


def _ledger(answer: pb.GetPrivacyBudgetResponse) -> str:
    head = answer.chain_head.hex() or "none"
    checked = "checked just now" if answer.chain_verified else "not checked; --verify does"
    return f"{answer.chain_length} events, head {head} ({checked})"


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """Options about who trains."""

    clients: Annotated[
        int, Parameter(help="n: contributions to one sum, of equal weight; the plan's cohort.")
    ]
    delta: Annotated[
        float,
        Parameter(
            help="Chance that the epsilon is not kept; at most 1/n, since giving away one client "
            "at random costs that much."
        ),
    ] = 1e-6
    mode: Annotated[
        Literal["sealed", "open"],
        Parameter(
            help="sealed: clients add the noise in shares, and epsilon is that of the fewest "
            "survivors. open: the mesh adds it once. For grouped rounds plan as sealed, and take "
            "the error times the square root of the number of groups."
        ),
    ] = "sealed"
    clip_norm: Annotated[
        float, Parameter(help="C: L2 bound of one contribution; errors are in its unit.")
    ] = 1.0
    parameters: Annotated[
        int, Parameter(help="d: coordinates of the model, lanes included; for the L2 norm.")
    ] = 1
    least_survivors: Annotated[
        int | None,
        Parameter(
            help="sealed: the plan's cohort.min; all n by default. A full cohort then has "
            "sqrt(n / (min - colluders)) times the noise that epsilon counts on."
        ),
    ] = None
    corrupt_fraction: Annotated[
        float,
        Parameter(help="sealed: share of a roster that may pool its own noise with the server."),
    ] = 0.05
    sampling_rate: Annotated[
        float,
        Parameter(
            help="1: nobody's epsilon is made smaller by the chance of not being selected, since "
            "selection that is not provably random, secret and uniform counts as 1."
        ),
    ] = 1.0
    supposed_sampling: Annotated[
        bool,
        Parameter(
            negative="",
            help="Take --sampling-rate below 1 as a what-if (Poisson, secret). No round of the "
            "mesh is like that; what its ledger would charge is shown beside it.",
        ),
    ] = False


@app.command
def plan(
    *,
    cohort: Cohort,
    epsilon: Annotated[
        float | None, Parameter(help="The most that one client may spend, all rounds together.")
    ] = None,
    rounds: Annotated[int | None, Parameter(help="R: rounds that one client is in.")] = None,
    noise_multiplier: Annotated[
        float | None,
        Parameter(help="z: standard deviation of the noise on the sum over the clip norm."),
    ] = None,
    compare: Annotated[
        bool,
        Parameter(
            negative="",
            help="Also say what PLD, RDP, optimal, advanced and basic composition make of it.",
        ),
    ] = False,
    out: Annotated[
        Path | None, Parameter(help="Write the trade-off as a page (.html) or a figure (.svg).")
    ] = None,
    json: Annotated[
        bool, Parameter(negative="", help="Print JSON for programs; epsilon null: cannot be told.")
    ] = False,
) -> int:
    """Plan noise, rounds and epsilon before anything runs; no mesh is asked.

    Give two of --epsilon, --rounds and --noise-multiplier, and read the third: how much noise for
    an epsilon over R rounds, what epsilon R rounds cost, or how many rounds an epsilon pays for.

    R Gaussian releases compose to one of parameter mu = sqrt(R) / z, whose epsilon is exact (Balle
    and Wang 2018): twice the noise pays for about four times the rounds. On the mean of n clients
    the noise is z * C / n in each coordinate, and about sqrt(d) times that in L2 norm: twice the
    clients halve the error at the same epsilon. Unit: one client; relation: its contribution set
    to zero. The figure for a contribution replaced by any other (sensitivity 2C) stands beside it.
    """
    # Imported here: the other commands start without numpy.
    from boltz_mesh.app.budget_plan import page, words  # noqa: PLC0415
    from boltz_mesh.privacy.composition import compare as compare_ways  # noqa: PLC0415
    from boltz_mesh.privacy.federation import Federation  # noqa: PLC0415
    from boltz_mesh.privacy.planning import outlook  # noqa: PLC0415
    from boltz_mesh.privacy.tradeoff import tradeoff  # noqa: PLC0415

    if out is not None and out.suffix not in _KINDS:
        raise ConfigurationError(
            f"--out {out} must end with .html or .svg; {out.with_suffix('.html')} would do",
            setting="--out",
        )
    try:
        federation = Federation(
            clients=cohort.clients,
            delta=cohort.delta,
            mode=cohort.mode,
            clip_norm=cohort.clip_norm,
            parameters=cohort.parameters,
            least_survivors=cohort.least_survivors,
            corrupt_fraction=cohort.corrupt_fraction,
            sampling_rate=cohort.sampling_rate,
            supposed_sampling=cohort.supposed_sampling,
        )
        answer = outlook(
            federation, epsilon=epsilon, noise_multiplier=noise_multiplier, rounds=rounds
        )
        around = tradeoff(answer)
        comparison = None
        if compare:
            accounted = federation.accounted(answer.noise_multiplier)
            comparison = compare_ways(
                accounted, answer.rounds, federation.sampling_rate, federation.delta
            )
    except InvalidPlan as error:
        # All of them speak of what was asked for, and no mesh refused it.
        print_error(ConfigurationError(error.message, setting=error.metadata["setting"]))
        return Exit.USAGE
    if out is not None:
        made = page.svg(answer) if out.suffix == ".svg" else page.html(answer, around, comparison)
        out.write_text(made, encoding="utf-8")
    if json:
        print_json(words.document(answer, around, comparison))
        return Exit.OK
    print_fields(words.title(answer), words.fields(answer))
    say(f"\nepsilon after R rounds at noise multiplier z ({words.scope(answer)}); * the answer's")
    print_table("", *words.epsilon_rows(answer, around))
    say("\nnoise on the mean of n clients: standard deviation of a coordinate / expected L2 norm,")
    say("both over the clip norm")
    print_table("", *words.error_rows(answer, around))
    if comparison is not None:
        say(f"\nother ways of adding up the same rounds ({words.scope(answer)})")
        print_table("", ["way", ">epsilon"], words.comparison_rows(comparison))
    if federation.sampling_rate == 1:
        say("\nfor plan.toml:")
        print(words.plan_toml(answer), end="")
    if out is not None:
        say(f"\nwritten: {out}")
    return Exit.OK


def _number(epsilon: float) -> str:
    return f"{epsilon:.3f}" if math.isfinite(epsilon) else "unlimited"
