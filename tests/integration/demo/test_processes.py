"""The demo's processes, started and ended for real."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from boltz_mesh.app.demo import broker_pool, children
from boltz_mesh.app.demo.broker_pool import BrokerPool
from boltz_mesh.app.demo.children import Child, ChildEnded, child_environment, start
from boltz_mesh.app.demo.data import load_saved
from boltz_mesh.app.demo.messages import MAX_LINE_BYTES, Failed, Setup, line_of, parse_news
from boltz_mesh.app.demo.options import DemoOptions, task_for
from boltz_mesh.app.demo.settings import PRESET_20
from boltz_mesh.app.demo.task import market_of
from boltz_protocol.errors import Unavailable
from tests.unit.demo.worlds import price_table

BROKER = "boltz_mesh.app.demo.brokers"


def setup_in(folder: Path) -> Setup:
    return Setup(
        folder=str(folder), kind="linear", trainer="numpy", preset=PRESET_20, smallest_cohort=3
    )


async def started(folder: Path, module: str, *arguments: str) -> Child:
    return await start(
        f"the {module}",
        module,
        arguments,
        log=folder / "log",
        environment=child_environment(os.environ),
        limit=MAX_LINE_BYTES,
    )


async def test_a_child_ends_with_its_input(tmp_path: Path) -> None:
    child = await started(tmp_path, BROKER)
    await child.end()
    assert child.process.returncode == 0


async def test_a_child_that_does_not_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = await started(tmp_path, "http.server", "0")
    assert b"Serving" in await child.line()
    monkeypatch.setattr(children, "END_TIMEOUT_S", 0.1)
    await child.end()
    assert child.process.returncode == -signal.SIGTERM


async def test_a_child_that_hears_nothing_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = await started(tmp_path, BROKER)
    os.kill(child.process.pid, signal.SIGSTOP)
    monkeypatch.setattr(children, "END_TIMEOUT_S", 0.1)
    monkeypatch.setattr(children, "TERM_TIMEOUT_S", 0.1)
    await child.end()
    assert child.process.returncode == -signal.SIGKILL


async def test_the_end_of_a_child_quotes_its_log(tmp_path: Path) -> None:
    child = await started(tmp_path, "no_such_module")
    with pytest.raises(ChildEnded, match=r"(?s)code 1.*No module named no_such_module"):
        await child.line()
    with pytest.raises(ChildEnded):
        await write_on(child)
    await child.end()


async def write_on(child: Child) -> None:
    # The pipe may take a first line before it breaks.
    for _ in range(100):
        await child.write(b"x" * 100_000)


async def test_a_broker_without_prices_says_so_and_gives_up(tmp_path: Path) -> None:
    child = await started(tmp_path, BROKER)
    setup = setup_in(tmp_path)
    await child.write(line_of(setup))
    news = parse_news(await child.line())
    assert isinstance(news, Failed)
    assert "prices.npz does not exist" in news.why
    assert await child.process.wait() == 1
    await child.end()


async def test_the_pool_names_a_broker_that_fails(tmp_path: Path) -> None:
    child = await started(tmp_path, BROKER)
    setup = setup_in(tmp_path)
    await child.write(line_of(setup))
    with pytest.raises(ExceptionGroup) as caught:
        await BrokerPool([child], 1).watch()
    (error,) = caught.value.exceptions
    assert isinstance(error, ChildEnded)
    assert "does not exist" in error.message
    await child.end()


async def test_the_pool_names_who_is_late_and_never_waits_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_pool, "JOIN_TIMEOUT_S", 0.1)
    table = price_table()
    task = task_for(DemoOptions(clients=3), table.stocks, market_of(table).public.calendar)
    async with broker_pool.broker_pool(task, table, tmp_path, os.environ) as pool:
        with pytest.raises(Unavailable, match="broker S0, broker S1, broker S2 did not say"):
            # Nobody is enrolled, so nobody can check in.
            await pool.join("vol-2011", 1)
        assert [child.process.returncode for child in pool.children] == [None] * 3
    for child in pool.children:
        assert child.process.returncode == 0


async def test_a_broker_holds_its_own_prices_only_and_keeps_them_private(tmp_path: Path) -> None:
    table = price_table()
    task = task_for(DemoOptions(clients=3), table.stocks, market_of(table).public.calendar)
    async with broker_pool.broker_pool(task, table, tmp_path, os.environ):
        for number, stock in enumerate(table.stocks):
            own = tmp_path / f"broker-{number + 1:02}"
            saved = await asyncio.to_thread(load_saved, own / "prices.npz")
            assert saved.stocks == (stock,)
            assert (own / "prices.npz").stat().st_mode & 0o077 == 0
            assert own.stat().st_mode & 0o077 == 0


def test_settings_of_another_mesh_do_not_reach_the_children() -> None:
    given = {"PATH": "/bin", "DATABASE_URL": "x", "MESH_LISTEN__PORT": "1", "OMP_NUM_THREADS": "8"}
    made = child_environment(given)
    assert made["PATH"] == "/bin"
    assert made["OMP_NUM_THREADS"] == "1"
    assert not any(name.startswith(("DATABASE", "MESH")) for name in made)
