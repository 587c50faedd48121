"""The demo, put together: a mesh, its brokers, the training, the report.

    prices -> task -> mesh server + brokers (processes) -> enrolment -> training runs -> report

This process is the mesh's operator and the one who evaluates; it holds every price for the test,
and trains nothing. Everything it starts ends with it.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc

from boltz_mesh.app.cli.connection import connected
from boltz_mesh.app.demo import outcome, page, report
from boltz_mesh.app.demo.broker_pool import BrokerPool, broker_pool
from boltz_mesh.app.demo.children import Child, ChildEnded
from boltz_mesh.app.demo.data import PriceTable, load_prices
from boltz_mesh.app.demo.display import Display, opening_line
from boltz_mesh.app.demo.evaluation import ErrorTable
from boltz_mesh.app.demo.mesh_process import MeshProcess, mesh_process
from boltz_mesh.app.demo.options import DemoOptions, DemoTask, task_for
from boltz_mesh.app.demo.plans import SEALING, plan_for
from boltz_mesh.app.demo.report import Report
from boltz_mesh.app.demo.task import Market, desk_rows, market_of
from boltz_mesh.app.demo.training import RoundMeter, Trained, Training, confirm, join_strings
from boltz_mesh.rounds.plan_sealed import graph_of
from boltz_protocol.errors import ConfigurationError, MeshError
from boltz_protocol.status import from_rpc_error

T = TypeVar("T")
#: One client in one round, both ends together, on two cores; to tell long runs beforehand.
CLIENT_ROUND_S: Final = 0.02
#: What each neighbour adds to that: its certificate, keys and signatures are checked.
NEIGHBOUR_ROUND_S: Final = 0.00045
#: From so many seconds on, the estimate is told.
LONG_RUN_S: Final = 120.0
#: How long an error waits for a process whose end may be the cause of it.
_CAUSE_TIMEOUT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is known before anything starts."""

    table: PriceTable
    market: Market
    task: DemoTask


def run_demo(options: DemoOptions, environment: Mapping[str, str], display: Display) -> Report:
    """Run the whole demo and write its report folder.

    Args:
        options: the command line.
        environment: of this process, for its children.
        display: told as it goes.

    Raises:
        ConfigurationError, InvalidPlan, MarketDataMissing, MarketDataInvalid: before any start.
        ChildEnded: a broker or the server ended before its time.
        MeshError: what else the mesh refuses.
        KeyboardInterrupt: interrupted; everything is cleaned up.
    """
    begun = time.perf_counter()
    prepared = _prepare(options)
    task = prepared.task
    display.say(opening_line(task))
    expected_s = expected_seconds(task)
    if expected_s > LONG_RUN_S:
        display.say(f"This takes about {expected_s / 60:.0f} minutes on two cores.")
    with _folder(options.keep, display) as folder:
        trained, references = asyncio.run(_interruptible(prepared, folder, environment, display))
    tables = {name: [table] for name, table in references.items()}
    made = outcome.report_of(
        task,
        tables | outcome.mesh_tables(task, prepared.market, trained),
        trained.rounds,
        source=prepared.table.source,
        command=options.command(),
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        total_seconds=time.perf_counter() - begun,
    )
    report.write(made, options.out, page.render(made))
    return made


def expected_seconds(task: DemoTask) -> float:
    """How long the rounds will take, roughly."""
    neighbours = graph_of(SEALING, task.clients).neighbours
    return task.clients * task.rounds * (CLIENT_ROUND_S + neighbours * NEIGHBOUR_ROUND_S)


def _prepare(options: DemoOptions) -> _Prepared:
    """Read, decide and check everything that can be checked without a mesh."""
    if options.trainer == "torch" and find_spec("torch") is None:
        raise ConfigurationError(
            "--trainer torch needs torch: pip install 'boltz-mesh-client[torch]'",
            setting="--trainer",
        )
    if options.out.exists() and not options.out.is_dir():
        raise ConfigurationError(f"--out {options.out} is not a folder", setting="--out")
    table = load_prices(options.data)
    market = market_of(table)
    task = task_for(options, table.stocks, market.public.calendar)
    for run in task.runs():
        plan_for(task, run)
    # The oldest desk of the earliest origin needs the longest history.
    layout = task.preset.layout
    for stock in market.stocks:
        desk_rows(stock, market.public, task.origins[0], layout, layout.per_broker - 1)
    return _Prepared(table, market, task)


async def _interruptible(
    prepared: _Prepared, folder: Path, environment: Mapping[str, str], display: Display
) -> tuple[Trained, dict[str, ErrorTable]]:
    """The asynchronous part. SIGTERM cleans up as Ctrl-C does."""
    current = asyncio.current_task()
    assert current is not None
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, current.cancel)
    try:
        return await _run(prepared, folder, environment, display)
    except asyncio.CancelledError as error:
        raise KeyboardInterrupt from error
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def _run(
    prepared: _Prepared, folder: Path, environment: Mapping[str, str], display: Display
) -> tuple[Trained, dict[str, ErrorTable]]:
    # The brokers end before the server, lest they look for it.
    async with (
        mesh_process(folder, environment) as server,
        broker_pool(prepared.task, prepared.table, folder, environment) as pool,
    ):
        try:
            return await _beside(_conversation(prepared, server, pool, display), pool.watch())
        except BaseExceptionGroup as group:
            raise await _cause(group, [server.child, *pool.children]) from group


async def _conversation(
    prepared: _Prepared, server: MeshProcess, pool: BrokerPool, display: Display
) -> tuple[Trained, dict[str, ErrorTable]]:
    """From the start of the mesh to the last confirmed round."""
    task, market = prepared.task, prepared.market
    clock = _Stopwatch()
    credential = await server.ready()
    display.say(
        f"mesh at {credential.address} with mutual TLS, ready in {clock.lap():.1f} s, in which the "
        "brokers made their keys"
    )

    async def operate() -> Trained:
        async with connected(credential) as mesh:
            await pool.enrol(await join_strings(mesh, task.clients))
            display.say(
                f"{task.clients} desks enrolled, each with its own key, in {clock.lap():.1f} s"
            )
            with display.rounds(task.rounds):
                training = Training(
                    mesh,
                    pool,
                    RoundMeter(pool),
                    task,
                    market,
                    on_round=display.round_done,
                    on_phase=display.phase,
                )
                trained = await training.run_all()
            await confirm(mesh, trained.rounds)
            display.say(
                f"{task.rounds} rounds in {clock.lap():.1f} s; the model store confirms every "
                "round and digest"
            )
            return trained

    # While the brokers make their keys and train, this process has time for the references.
    computing = asyncio.create_task(asyncio.to_thread(outcome.reference_tables, task, market))
    try:
        trained = await _beside(operate(), server.watch())
    except BaseException:
        computing.cancel()
        raise
    return trained, await computing


async def _beside(job: Coroutine[Any, Any, T], watcher: Coroutine[Any, Any, None]) -> T:
    """The job's result; a watcher that ends with an error ends the job too.

    Raises: an exception group of whatever happened.
    """
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watcher)
        result = await job
        watching.cancel()
    return result


async def _cause(group: BaseExceptionGroup[BaseException], children: list[Child]) -> BaseException:
    """The one error to tell: a process that ended explains all others."""
    leaves = list(_leaves(group))
    for leaf in leaves:
        if isinstance(leaf, ChildEnded):
            return leaf
    told = next((leaf for leaf in leaves if isinstance(leaf, MeshError)), leaves[0])
    if isinstance(told, grpc.RpcError):
        told = from_rpc_error(told)
    if isinstance(told, MeshError):
        # A connection may be seen to break before the process behind it is seen to end.
        ends = {asyncio.ensure_future(child.process.wait()): child for child in children}
        done, waiting = await asyncio.wait(ends, timeout=_CAUSE_TIMEOUT_S)
        for end in waiting:
            end.cancel()
        for end in done:
            return await ends[end].ended(told.message)
    return told


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


@contextmanager
def _folder(keep: bool, display: Display) -> Iterator[Path]:
    """A private folder for keys, prices, logs and the mesh's data; removed unless it is kept."""
    folder = Path(tempfile.mkdtemp(prefix="boltz-demo-"))
    try:
        yield folder
    finally:
        if keep:
            display.say(f"kept: {folder} (it holds private keys)")
        else:
            shutil.rmtree(folder)


class _Stopwatch:
    """Seconds since it was last asked."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds of this lap; the next one begins."""
        last, self._last = self._last, time.perf_counter()
        return self._last - last
