"""The demo end to end: real processes, a real mesh, made-up prices of three stocks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import grpc
import pytest
from msgspec.structs import replace

from boltz_mesh.app.cli.connection import connected, read_credential
from boltz_mesh.app.cli.root import run
from boltz_mesh.app.demo import references
from boltz_mesh.app.demo.data import load_folder
from boltz_mesh.app.demo.evaluation import evaluate_linear
from boltz_mesh.app.demo.settings import PRESET_20
from boltz_mesh.app.demo.task import market_of
from boltz_mesh.app.demo.training import confirm
from boltz_mesh.privacy import accountant
from boltz_protocol.errors import StateConflict
from boltz_protocol.v1 import aggregator_pb2 as pb
from tests.support.epsilons import check_document, check_page
from tests.unit.demo import samples
from tests.unit.demo.worlds import price_table, write_folder

#: What the installed `boltz-mesh` does.
COMMAND = "from boltz_mesh.app.cli import main; main()"
#: Phases of the key agreement and the unmasking.
SEALED_PHASES = {"advertising_keys", "sharing_keys", "checking_consistency", "unmasking"}
#: In these a round can be aborted without a trace in anybody's budget.
UNCHARGED = {
    pb.PHASE_SELECTING,
    pb.PHASE_ADVERTISING_KEYS,
    pb.PHASE_SHARING_KEYS,
    pb.PHASE_COLLECTING,
}
#: 2011 is the newest origin of the made-up prices.
TINY = ["--origins", "2011", "--seeds", "1", "--clients", "3"]


@pytest.fixture(scope="module")
def prices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("prices"), price_table())


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the demo makes its folder; PostgreSQL wants the path short."""
    folder = tmp_path / "t"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def children_of(folder: Path) -> list[int]:
    """Processes that have the folder in their arguments, or work in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes()
            if str(folder).encode() in arguments or (entry / "cwd").readlink().is_relative_to(
                folder
            ):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def demo(*arguments: str) -> int:
    """The command in this process; it must run where no event loop runs."""
    return run(["demo", *arguments])


def test_it_trains_through_the_mesh_and_reports_what_came_out(
    prices: Path, temporary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    assert demo(*TINY, "--data", str(prices), "--out", str(out)) == 0
    printed = capsys.readouterr().out
    report: dict[str, Any] = json.loads((out / "report.json").read_text())

    results = report["results"]
    assert {"ewma", "best_local", "public_start", "best_local_any_strength"} <= results.keys()
    assert results["federated_dp"]["seeds"] == 1
    assert results["federated"]["seeds"] == 0
    assert all(0 < row["mse_mean"] < 1 for row in results.values())
    # The same sum without a mesh: what went over the wire is what was computed.
    market = market_of(load_folder(prices))
    oracle = evaluate_linear(market, references.federated(market, [2011], PRESET_20)).mean
    assert results["federated"]["mse_mean"] == pytest.approx(oracle, rel=1e-4)
    assert results["federated_dp"]["mse_mean"] != pytest.approx(oracle, rel=1e-6)

    rounds = report["rounds"]
    assert len(rounds) == report["transfer"]["rounds"] == 16
    assert len({record["round_id"] for record in rounds}) == 16
    assert {record["row"] for record in rounds} == {"federated", "federated_dp"}
    for record in rounds:
        assert len(bytes.fromhex(record["model_digest"])) == 32
        assert record["version"] == record["number"] + 1
        assert record["survivors"] == record["selected"] == 3
        # A signed manifest and a wrapped key alone have some hundred bytes.
        assert record["bytes_up"] > 3 * 500
        # No round skips what makes it a sealed one, whatever its watcher misses of the rest.
        assert record["phase_seconds"].keys() & SEALED_PHASES
        assert record["bytes_down"] > 3 * 500

    privacy = report["privacy"]
    assert privacy["epsilon"] == pytest.approx(4.0)
    assert privacy["epsilon"] == pytest.approx(
        accountant.epsilon(privacy["noise_multiplier"], 8, delta=1e-5)
    )
    assert privacy["mechanism"] == "distributed-discrete-gaussian"
    assert privacy["server_saw"] == report["sealing"]["server_saw"]
    assert (privacy["neighbours"], privacy["threshold"], privacy["least_survivors"]) == (2, 2, 3)
    assert report["settings"]["command"].startswith("boltz-mesh demo --clients 3")
    page = (out / "report.html").read_text()
    HTMLParser().feed(page)
    assert rounds[0]["round_id"] in page
    assert check_page(page) > 5
    assert check_document(report) > 3

    assert "epsilon 4.00 at delta 1e-05" in printed
    assert "the model store confirms every round and digest" in printed
    assert printed.count("3 of 3 desks   ") == 16
    assert not children_of(temporary)
    assert not list(temporary.iterdir())


def test_the_network_runs_with_torch_and_claims_no_epsilon(
    prices: Path, temporary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    arguments = ["--model", "mlp", "--trainer", "torch", "--origins", "2011", "--json"]
    assert demo(*arguments, "--data", str(prices), "--out", str(out)) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report == json.loads((out / "report.json").read_text())
    assert report["privacy"] is None
    assert report["sealing"]["mode"] == "sealed"
    assert "federated_dp" not in report["results"]
    assert len(report["rounds"]) == 20
    assert "round 20/20" in captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "absent"], "absent is not a folder"),
        (["--epsilon", "0"], "--epsilon 0"),
        (["--clients", "61"], "--clients 61"),
        (["--origins", "1980"], "1980 cannot be tested"),
        (["--clients", "1000", "--origins", "1999"], "too little history"),
        (["--model", "mlp", "--epsilon", "2"], "--model mlp"),
        (["--model", "nonsense"], "nonsense"),
        (["--out", "/dev/null"], "/dev/null is not a folder"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    arguments: list[str], words: str, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo(*arguments) == 2
    captured = capsys.readouterr()
    assert words in " ".join((captured.err + captured.out).split())
    assert not list(temporary.iterdir())
    assert not Path("demo-report").exists()


class Running:
    """The demo as a process of its own, its output read in a thread."""

    def __init__(self, prices: Path, folder: Path, out: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "demo", *TINY, *("--data", str(prices), "--out", out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(folder), "COLUMNS": "200"},
            text=True,
        )
        self.lines: list[str] = []
        self.begun = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("round"):
                self.begun.set()
        self.begun.set()

    def code(self) -> int:
        code = self.process.wait(40)
        self._reader.join(5)
        return code


@pytest.fixture
def running(prices: Path, temporary: Path, tmp_path: Path) -> Iterator[Running]:
    demo = Running(prices, temporary, tmp_path / "report")
    assert demo.begun.wait(60), "".join(demo.lines)
    assert demo.process.poll() is None, "".join(demo.lines)
    yield demo
    demo.process.kill()


def gone(folder: Path, timeout_s: float = 20.0) -> bool:
    """Whether every process of the folder ends in time, waited for by pidfd."""

    async def wait() -> bool:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(timeout_s):
            while pids := children_of(folder):
                for pid in pids:
                    try:
                        descriptor = os.pidfd_open(pid)
                    except ProcessLookupError:
                        continue
                    ended = asyncio.Event()
                    loop.add_reader(descriptor, ended.set)
                    await ended.wait()
                    loop.remove_reader(descriptor)
                    os.close(descriptor)
        return True

    return asyncio.run(wait())


def processes_of(demo: Running, module: str) -> list[int]:
    """Its children that run a module, in the order of their start."""
    listed = Path(f"/proc/{demo.process.pid}/task/{demo.process.pid}/children").read_text()
    return [
        pid
        for pid in sorted(map(int, listed.split()))
        if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(
    running: Running, temporary: Path, number: signal.Signals
) -> None:
    brokers = processes_of(running, "demo.brokers")
    running.process.send_signal(number)
    assert running.code() == 130
    assert not any(Path(f"/proc/{pid}").exists() for pid in brokers)
    assert not children_of(temporary)
    assert not list(temporary.iterdir())


def test_a_broker_that_dies_is_named_and_ends_the_demo(running: Running, temporary: Path) -> None:
    os.kill(processes_of(running, "demo.brokers")[1], signal.SIGKILL)
    assert running.code() == 1
    said = "".join(running.lines)
    assert "broker S1 ended before its time (killed by SIGKILL)" in said
    assert "--keep" in said
    assert not children_of(temporary)
    assert not list(temporary.iterdir())


def test_a_server_that_dies_is_named_and_ends_the_demo(running: Running, temporary: Path) -> None:
    os.kill(processes_of(running, "demo.guarded")[0], signal.SIGKILL)
    assert running.code() == 1
    assert "the mesh server ended before its time (killed by SIGKILL)" in "".join(running.lines)
    assert not children_of(temporary)
    assert not list(temporary.iterdir())


def test_a_round_that_is_aborted_ends_the_demo_with_its_reason(
    running: Running, temporary: Path
) -> None:
    (folder,) = temporary.iterdir()
    credential = read_credential(folder / "mesh" / "operator")

    async def meddle() -> None:
        async with connected(credential) as mesh:
            wrong = replace(samples.report().rounds[0], model_id="vol-2011", version=1)
            with pytest.raises(StateConflict, match="does not confirm"):
                await confirm(mesh, [wrong])
            aborted = False
            while not aborted:
                # Each round is over in a blink; one of the sixteen is caught before its charge.
                assert running.process.poll() is None, "no round was caught"
                for state in (await mesh.aggregator.ListRounds(pb.ListRoundsRequest())).rounds:
                    if state.phase in UNCHARGED:
                        request = pb.AbortRoundRequest(round_id=state.round_id, reason="for a test")
                        with suppress(grpc.aio.AioRpcError):
                            await mesh.aggregator.AbortRound(request)
                            aborted = True

    asyncio.run(meddle())
    assert running.code() == 5
    said = "".join(running.lines)
    assert "was aborted" in said
    assert "for a test" in said
    assert not list(temporary.iterdir())


def test_a_demo_that_is_killed_takes_everything_along(running: Running, temporary: Path) -> None:
    assert children_of(temporary)
    running.process.kill()
    running.code()
    assert gone(temporary)
