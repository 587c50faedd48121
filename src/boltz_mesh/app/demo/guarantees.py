"""What a run's rounds promise: what they withstand, what they show to whom, and what epsilon holds.

Everything follows from the plan as the mesh reads it, so that the report cannot promise what the
rounds did not do.
"""

from __future__ import annotations

import math
from typing import Final

from boltz_mesh.app.demo.options import DemoTask, TrainingRun
from boltz_mesh.app.demo.plans import SEALING, least_survivors, plan_for
from boltz_mesh.app.demo.report import Privacy, Sealing
from boltz_mesh.app.demo.settings import DELTA
from boltz_mesh.privacy import accountant
from boltz_mesh.rounds.plan import validate_encoding
from boltz_mesh.rounds.plan_sealed import graph_of, release_terms
from boltz_protocol import limits
from boltz_protocol.secagg.graph import colluders

_OF_A_DESK: Final = (
    "Of one desk: when it took part and with which weight, public keys, sealed shares, and a "
    "vector under masks, which looks like random numbers. Never its delta."
)
_SUM_WITHOUT_NOISE: Final = (
    "In rounds without noise (row federated): the exact sum of the deltas, to the last step of the "
    "encoding. It is masked, and not differentially private."
)
_SUM_WITH_NOISE: Final = (
    "In rounds with noise (row federated_dp): the sum of the deltas with all the noise in it. No "
    "sum without noise is ever put together."
)


def sealing_of(task: DemoTask) -> Sealing:
    """What the run's rounds withstand, and what the server saw in them."""
    clients = task.clients
    graph = graph_of(SEALING, clients)
    noised = task.preset.epsilon is not None
    return Sealing(
        mode="sealed",
        adversary=SEALING.adversary,
        corrupt_fraction=SEALING.corrupt_fraction,
        dropout_fraction=SEALING.dropout_fraction,
        clients=clients,
        least_survivors=least_survivors(clients),
        tolerated_colluders=colluders(clients, SEALING.corrupt_fraction),
        graph="complete" if clients <= limits.MAX_COMPLETE_GRAPH else "sparse",
        neighbours=graph.neighbours,
        threshold=graph.threshold,
        server_saw=(_OF_A_DESK, _SUM_WITHOUT_NOISE, *((_SUM_WITH_NOISE,) if noised else ())),
    )


def privacy_of(task: DemoTask, sealing: Sealing) -> Privacy | None:
    """What the accountant says about one training run; None where none has noise."""
    preset = task.preset
    if preset.epsilon is None:
        return None
    plan = plan_for(task, TrainingRun(task.origins[0], task.seeds[0]))
    terms = release_terms(plan, validate_encoding(plan))
    assert terms.distributed, "every desk adds its share"
    z, rounds, desks = terms.noise_multiplier, preset.rounds, preset.layout.per_broker
    return Privacy(
        mechanism="distributed-discrete-gaussian",
        epsilon=accountant.epsilon(z, rounds, delta=DELTA),
        delta=DELTA,
        noise_multiplier=plan.noise_multiplier,
        noise_when_all_stay=noise_when_all_stay(sealing),
        rounds=rounds,
        epsilon_by_round=tuple(
            accountant.epsilon(z, number, delta=DELTA) for number in range(1, rounds + 1)
        ),
        two_retrains_epsilon=accountant.epsilon(z, 2 * rounds, delta=DELTA),
        # All desks of one broker at zero move the sum by as many sensitivities.
        broker_epsilon=accountant.epsilon(z / desks, rounds, delta=DELTA),
        desks_per_broker=desks,
        replace_one_epsilon=accountant.epsilon_replace_one(z, rounds, delta=DELTA),
        unit=preset.layout.unit,
        corrupt_fraction=sealing.corrupt_fraction,
        dropout_fraction=sealing.dropout_fraction,
        least_survivors=sealing.least_survivors,
        tolerated_colluders=sealing.tolerated_colluders,
        neighbours=sealing.neighbours,
        threshold=sealing.threshold,
        server_saw=sealing.server_saw,
        statements=_statements(task),
    )


def noise_when_all_stay(sealing: Sealing) -> float:
    """Standard deviation of the noise with every desk in the sum, over what epsilon counts on.

    A desk's share is what makes the fewest survivors enough without the colluders among them
    (`noise_share`); whoever stays beyond that adds more than was asked for.
    """
    counted_on = sealing.least_survivors - sealing.tolerated_colluders
    return math.sqrt(sealing.clients / counted_on)


def counted_on(privacy: Privacy) -> str:
    """Whose noise epsilon is computed from, in words."""
    colluders = privacy.tolerated_colluders
    collude = (
        f"without {colluders} that collude with the server"
        if colluders
        else "none of which colludes with the server"
    )
    more = privacy.noise_when_all_stay - 1
    surplus = (
        f"; with all desks in the sum there is {100 * more:.1f}% more of it" if more > 0 else ""
    )
    return f"the noise of {privacy.least_survivors} desks {collude}{surplus}"


def _statements(task: DemoTask) -> tuple[str, ...]:
    repetitions = len(task.seeds)
    return (
        "Each training run of the row federated_dp spends this on its own. The mesh's ledger "
        "charged it round by round before the sum was opened, and would have refused one more.",
        f"For the table, this demo trains each year {repetitions + 1} times on the same desks: "
        f"{repetitions} with noise, to show its spread, and once without, to show its price. "
        "The epsilon is that of one noised model alone; a product would train just that one, and "
        "never the row without noise.",
        "Desks are disjoint in rows, though features look back at earlier prices of the same "
        "stock.",
    )
