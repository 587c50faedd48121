"""The audit and the inversion end to end: a real mesh process, real clients, real rounds."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pytest

from boltz_mesh.app.cli.connection import connected, read_credential
from boltz_mesh.app.cli.root import run
from boltz_mesh.app.privacy_audit import trial
from boltz_mesh.app.privacy_audit.canaries import directions, scores
from boltz_mesh.app.privacy_audit.options import AuditOptions
from boltz_mesh.app.privacy_audit.plans import Noise
from boltz_mesh.app.privacy_audit.run import PARAMETERS, TENSORS, on_laboratory
from boltz_mesh.app.privacy_audit.trial import Laboratory, TrialAborted
from boltz_protocol.errors import NotFound, StateConflict, Unavailable
from boltz_protocol.v1 import aggregator_pb2 as pb
from tests.integration.demo.test_demo import UNCHARGED, children_of

#: What the installed `boltz-mesh` does.
COMMAND = "from boltz_mesh.app.cli import main; main()"
#: 40 coins of each kind: enough for the control, seconds of rounds.
SMALL = ["--canaries", "4", "--trials", "10", "--epsilon", "4"]
EXITS = {"holds": 0, "refuted": 7}


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the audit makes its folder; PostgreSQL wants the path short."""
    folder = tmp_path / "t"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_an_audit_of_sealed_rounds_as_json(
    temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["privacy", "audit", *SMALL, "--json"])
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    # With so few coins a right ledger is refuted once in some hundred audits.
    assert code == EXITS[report["verdict"]]
    assert (report["mode"], report["rounds"], report["canaries"]) == ("sealed", 10, 4)
    ledger = report["ledger"]
    assert 4 - 1e-6 < ledger["epsilon"] <= 4
    assert (ledger["delta"], ledger["unit"]) == (1e-5, "client")
    assert ledger["relation"] == "contribution-set-to-zero"
    # All canaries arrive, and only noise hides them: all 40 right by luck is a chance of 1e-7.
    assert report["without_noise"]["right"] == report["without_noise"]["pairs"] == 40
    assert report["with_noise"]["right"] < report["with_noise"]["pairs"] == 40
    control = {bound["method"]: bound["epsilon"] for bound in report["without_noise"]["bounds"]}
    assert control["gaussian"] > ledger["epsilon"]
    assert control["one-run"] > 0
    assert report["command"] == "boltz-mesh privacy audit --epsilon 4 --canaries 4 --trials 10"
    assert "20 of 20 rounds" in captured.err
    assert not children_of(temporary)
    assert not list(temporary.iterdir())


def test_an_audit_of_open_rounds_for_people(
    temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["privacy", "audit", "--mode", "open", *SMALL, "--keep"])
    printed = capsys.readouterr().out
    assert code in EXITS.values()
    assert re.search(r"noise multiplier +1\.08\d +0\n", printed)
    assert re.search(r"rounds x canaries +10 x 4 +10 x 4", printed)
    assert re.search(r"right guesses +\d+/40 \([\d.]+%\) +40/40 \(100\.0%\)", printed)
    assert re.search(r"the ledger's epsilon for one release +4\.000 +none", printed)
    assert "all epsilons at delta 1e-05; unit: one client; relation: its contribution" in printed
    assert "theorem 5.2; assumes: none beyond differential privacy itself" in printed
    assert ("Nothing speaks against the ledger" in printed) is (code == 0)
    (kept,) = temporary.iterdir()
    assert f"kept: {kept} (it holds private keys)" in printed
    # Everybody's updates are gone with their rounds, from the clients' spools too.
    assert not list(kept.glob("client-*/spool/**/*.update"))
    assert not children_of(temporary)


def test_an_inversion(temporary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["privacy", "inversion", "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    update, alone, crowd, noised = report["attempts"]
    assert update["relative_error"] < 1e-6
    # A sum in which all others are silent is the update, whatever the masks.
    assert alone["cosine"] == pytest.approx(1)
    assert alone["relative_error"] < 1e-3
    assert abs(crowd["cosine"]) < 0.5
    assert noised["relative_error"] > 0.5
    assert noised["cosine"] < 0.6
    assert [attempt["ledger"] is None for attempt in report["attempts"]] == [True] * 3 + [False]
    assert noised["ledger"]["epsilon"] == pytest.approx(5)
    assert noised["ledger"]["relation"] == "contribution-set-to-zero"
    assert not list(temporary.iterdir())


async def on_three(folder: Path, body: object) -> object:
    return await on_laboratory(
        body,  # type: ignore[arg-type]
        folder=folder,
        environment=os.environ,
        clients=3,
        mode="sealed",
        tensors=TENSORS,
        say=lambda sentence: None,
    )


async def test_a_laboratory_tells_what_goes_wrong(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = directions(3, PARAMETERS)
    deltas = [row.astype(np.float32) for row in rows]
    noise = AuditOptions(canaries=3).noise_multiplier

    async def body(laboratory: Laboratory) -> None:
        # A client whose update is not a number sends nothing, and the round has too few.
        broken = [deltas[0], deltas[1] * np.float32(np.nan), deltas[2]]
        with pytest.RaisesGroup(
            pytest.RaisesExc(TrialAborted, match=r"(?s)aborted.*client 2, audit-nan: ")
        ):
            await laboratory.run("audit-nan", broken, None)
        # Twice on one model is not one release.
        roomy = Noise(noise, 12.0)
        released = await laboratory.run("audit-twice", deltas, roomy)
        assert released.ledger is not None
        assert released.ledger.epsilon == pytest.approx(5)
        assert scores(released.sum, rows, 1.0).shape == (3,)
        with pytest.raises(StateConflict, match="has 2 rounds, not 1"):
            await laboratory.run("audit-twice", deltas, roomy)
        with monkeypatch.context() as patch:
            patch.setattr(trial, "ROUND_TIMEOUT_S", 0.0)
            with pytest.RaisesGroup(pytest.RaisesExc(Unavailable, match="did not end within")):
                await laboratory.run("audit-late", deltas, None)
        # An untyped refusal of the mesh inside of groups comes out typed.
        async with asyncio.TaskGroup():
            await laboratory.mesh.aggregator.GetPrivacyBudget(
                pb.GetPrivacyBudgetRequest(model_id="audit-absent")
            )

    with pytest.raises(NotFound):
        await on_three(temporary, body)


class Running:
    """The audit as a process of its own, its output read in a thread."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "privacy", "audit", "--canaries", "4"],
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
            if line.startswith("mesh at"):
                self.begun.set()
        self.begun.set()

    def code(self) -> int:
        code = self.process.wait(60)
        self._reader.join(5)
        return code

    def server(self) -> int:
        """The process id of its mesh."""
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        (found,) = (
            int(pid)
            for pid in listed.split()
            if b"demo.guarded" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        return found


@pytest.fixture
def running(temporary: Path) -> Iterator[Running]:
    audit = Running(temporary)
    assert audit.begun.wait(90), "".join(audit.lines)
    assert audit.process.poll() is None, "".join(audit.lines)
    yield audit
    audit.process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(
    running: Running, temporary: Path, number: signal.Signals
) -> None:
    running.process.send_signal(number)
    assert running.code() == 130
    assert not children_of(temporary)
    assert not list(temporary.iterdir())


def test_a_mesh_that_dies_is_named_and_ends_the_audit(running: Running, temporary: Path) -> None:
    os.kill(running.server(), signal.SIGKILL)
    assert running.code() == 1
    said = "".join(running.lines)
    assert "the mesh server ended before its time (killed by SIGKILL)" in said
    assert "--keep" in said
    assert not children_of(temporary)
    assert not list(temporary.iterdir())


def test_a_round_that_is_aborted_ends_the_audit_with_its_reason(
    running: Running, temporary: Path
) -> None:
    (folder,) = temporary.iterdir()
    credential = read_credential(folder / "mesh" / "operator")

    async def meddle() -> None:
        async with connected(credential) as mesh:
            aborted = False
            while not aborted:
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
    assert "ended aborted" in said
    assert "for a test" in said
    assert not list(temporary.iterdir())
