from __future__ import annotations

import pytest

from boltz_mesh.app.demo.options import DemoOptions, task_for
from boltz_mesh.app.demo.run import LONG_RUN_S, expected_seconds
from boltz_mesh.app.demo.settings import Calendar

CALENDAR = Calendar((1991, 1998), tuple(range(1999, 2023)), tuple(range(1999, 2009)))
STOCKS = tuple(f"S{i}" for i in range(20))


@pytest.mark.parametrize(
    ("options", "is_long"),
    [
        (DemoOptions(), False),
        (DemoOptions(clients=20, origins="2022"), False),
        (DemoOptions(full=True), True),
        (DemoOptions(clients=300, origins="2022", seeds=1), True),
    ],
)
def test_long_runs_are_told_beforehand(options: DemoOptions, is_long: bool) -> None:
    assert (expected_seconds(task_for(options, STOCKS, CALENDAR)) > LONG_RUN_S) == is_long


def test_neighbours_cost_time() -> None:
    few, many = (
        expected_seconds(task) / (task.clients * task.rounds)
        for task in (
            task_for(DemoOptions(clients=clients), STOCKS, CALENDAR) for clients in (60, 300)
        )
    )
    assert many > 1.4 * few
