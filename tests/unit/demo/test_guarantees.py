from __future__ import annotations

import math

import pytest

from boltz_mesh.app.demo.guarantees import counted_on, privacy_of, sealing_of
from boltz_mesh.app.demo.options import DemoOptions, DemoTask, task_for
from boltz_mesh.app.demo.settings import Calendar
from boltz_mesh.privacy import accountant

STOCKS = tuple(f"S{i}" for i in range(20))
CALENDAR = Calendar((1991, 1998), tuple(range(1999, 2023)), tuple(range(1999, 2009)))


def task(options: DemoOptions) -> DemoTask:
    return task_for(options, STOCKS, CALENDAR)


@pytest.mark.parametrize(
    ("clients", "graph", "pair", "survivors"),
    [
        (60, "sparse", (10, 7), (57, 3)),
        (300, "sparse", (38, 27), (285, 15)),
        (20, "complete", (19, 11), (19, 1)),
    ],
)
def test_a_run_says_what_its_rounds_withstand(
    clients: int, graph: str, pair: tuple[int, int], survivors: tuple[int, int]
) -> None:
    made = sealing_of(task(DemoOptions(clients=clients)))
    assert (made.mode, made.adversary, made.graph) == ("sealed", "semi-malicious", graph)
    assert (made.neighbours, made.threshold) == pair
    assert (made.least_survivors, made.tolerated_colluders) == survivors
    assert made.corrupt_fraction == made.dropout_fraction == 0.05


def test_epsilon_is_that_of_noise_in_shares() -> None:
    run = task(DemoOptions())
    made = privacy_of(run, sealing_of(run))
    assert made is not None
    assert made.mechanism == "distributed-discrete-gaussian"
    assert made.epsilon <= 2.0
    assert made.epsilon == pytest.approx(2.0)
    # A sum of shares is worth a little less than one Gaussian: never the other way round.
    assert made.epsilon >= accountant.epsilon(made.noise_multiplier, 4, delta=1e-5)
    assert made.epsilon_by_round[-1] == made.epsilon
    assert made.noise_when_all_stay == pytest.approx(math.sqrt(60 / 54))
    assert made.two_retrains_epsilon == pytest.approx(3.0, abs=0.05)
    assert made.broker_epsilon == pytest.approx(7.1, abs=0.05)
    assert made.replace_one_epsilon == pytest.approx(4.4, abs=0.05)
    assert any("with all the noise in it" in words for words in made.server_saw)


def test_a_small_mesh_counts_on_everybody() -> None:
    run = task_for(DemoOptions(clients=3), STOCKS[:3], CALENDAR)
    made = privacy_of(run, sealing_of(run))
    assert made is not None
    assert counted_on(made) == "the noise of 3 desks none of which colludes with the server"


def test_the_network_is_masked_and_promises_no_epsilon() -> None:
    run = task(DemoOptions(model="mlp"))
    sealing = sealing_of(run)
    assert privacy_of(run, sealing) is None
    assert (sealing.graph, sealing.neighbours) == ("complete", 19)
    assert not any("with all the noise" in words for words in sealing.server_saw)
