"""The `boltz-client` command and the blocking API, against a mesh in another thread."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltz_client import NoticeKind, TrainResult, blocking, cli
from boltz_client.adapters.numpy import FunctionTrainer
from boltz_client.notices import Notice
from boltz_protocol import errors
from boltz_protocol.errors import ConfigurationError, MeshError, StateConflict
from boltz_protocol.model_file import encode_model
from tests.integration.client.conftest import ANY_MODE
from tests.support.mini_mesh import MODEL, MiniMesh
from tests.support.mini_mesh_server import running

TRAINER = """
from boltz_client import TrainResult

class Steady:
    def sample_count(self):
        return 57

    def train(self, model, round):
        return TrainResult(weights={name: array + 0.125 for name, array in model.items()})

made = Steady()
nothing = object()
"""


class Served:
    """A mesh with a loop of its own, so that the caller may block."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.mesh: MiniMesh
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self.loop.run_until_complete, args=(self._run(),))
        self._thread.start()
        assert self._ready.wait(10)

    async def _run(self) -> None:
        async with running() as self.mesh:
            self._ready.set()
            await self._stop.wait()

    def rounds(self, count: int, **arguments: Any) -> None:
        """Start rounds as clients come, in the background."""

        async def run() -> None:
            # The last client's stream may still be closing.
            await self.mesh.wait(lambda: not self.mesh.streams)
            for _ in range(count):
                await self.mesh.start_round(1, **arguments)
                await self.mesh.finish_round()

        asyncio.run_coroutine_threadsafe(run(), self.loop)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self.loop.close()


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.close()


@pytest.fixture
def store(served: Served, tmp_path: Path) -> Path:
    blocking.enroll(served.mesh.join_string(), tmp_path / "store")
    return tmp_path / "store"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_enrol_status_and_pull(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    code, out, _ = run(capsys, "enroll", served.mesh.join_string(), "--store", store, "--json")
    assert code == cli.OK
    client_id = json.loads(out)["client_id"]
    code, out, _ = run(capsys, "status", "--store", store)
    assert (code, client_id in out, "active" in out) == (cli.OK, True, True)
    target = tmp_path / "model.safetensors"
    code, out, _ = run(capsys, "pull", MODEL, "--out", target, "--store", store, "--json")
    assert (code, json.loads(out)["parameters"]) == (cli.OK, 8)
    assert target.read_bytes() == served.mesh.models[1][1]


def test_a_join_string_may_come_on_standard_input(
    served: Served,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO(served.mesh.join_string() + "\n"))
    assert run(capsys, "enroll", "-", "--store", tmp_path / "store")[0] == cli.OK


@pytest.fixture
def trainer_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_trainer.py").write_text(TRAINER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize("attribute", ["Steady", "made"])
@pytest.mark.usefixtures("trainer_folder")
def test_participate(
    served: Served, store: Path, capsys: pytest.CaptureFixture[str], attribute: str
) -> None:
    served.rounds(2)
    code, out, _ = run(
        capsys, "participate", MODEL, "--trainer", f"my_trainer:{attribute}",
        "--mode", "open", "--rounds", 2, "--store", store, "--json",
    )  # fmt: skip
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == cli.OK
    assert lines[-1] == {
        "published": 2, "aborted": 0, "counted": 2, "submitted": 2, "declined": 0,
        "refused": 0,
    }  # fmt: skip
    assert [line["event"] for line in lines[:-1]].count("submitted") == 2
    np.testing.assert_allclose(served.mesh.vector, 0.25, atol=1e-3)


def test_submit_a_file(
    served: Served, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(encode_model(served.mesh.tensors, np.full(8, 0.25, dtype=np.float32)))
    served.rounds(1)
    submit = ("submit", MODEL, "--weights", weights, "--samples", 100, "--store", store)
    code, _, err = run(capsys, *submit)
    assert (code, "the owner allows sealed" in err) == (cli.OWN_LIMITS, True)
    served.rounds(1)
    opened = (*submit, "--mode", "open")
    code, out, _ = run(capsys, *opened)
    assert (code, "version 2 was made" in out) == (cli.OK, True)
    np.testing.assert_allclose(served.mesh.vector, 0.25, atol=1e-3)
    # The owner's limits refuse: another exit code, and nothing is sent.
    served.rounds(1)
    code, _, err = run(capsys, *opened, "--smallest-cohort", 5)
    assert (code, "the owner wants at least 5" in err) == (cli.OWN_LIMITS, True)
    served.rounds(1)
    # The mini mesh's rounds have no noise, and no epsilon is a bound for that.
    code, _, err = run(capsys, *opened, "--epsilon-budget", 3)
    assert (code, "own ledger" in err) == (cli.OWN_LIMITS, True)


def test_the_own_ledger_beside_the_meshs(
    served: Served, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "budget", MODEL, "--store", store)
    assert (code, "own ledger: epsilon 0.000, 0 rounds" in out) == (cli.OK, True)
    assert "the mesh's: epsilon 1.750, 3 rounds charged (at delta" in out
    assert "budget:     of 2026-10-01/2027-01-01: epsilon 1.500 spent" in out
    assert "(at delta 1e-05, unit: client-period; relation: contribution-set-to-zero)" in out
    assert f"7 events, ending in {'ab' * 32}" in out
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(encode_model(served.mesh.tensors, np.full(8, 0.25, dtype=np.float32)))
    served.rounds(1)
    submit = ("submit", MODEL, "--weights", weights, "--samples", 100, "--mode", "open")
    assert run(capsys, *submit, "--store", store)[0] == cli.OK
    code, out, _ = run(capsys, "budget", MODEL, "--store", store, "--json")
    # A round without noise: no epsilon is a bound for it, and JSON has no infinity.
    own = {"epsilon_spent": None, "rounds_charged": 1, "unit": "client"}
    assert json.loads(out)["own"] == own
    assert json.loads(out)["mesh"]["epsilon_budget"] == 2.0


def test_errors_are_a_sentence_and_advice(
    served: Served, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "pull", "other", "--out", tmp_path / "x", "--store", store)
    assert (code, len(err.splitlines())) == (cli.REFUSED, 2)
    assert "Traceback" not in err
    code, _, err = run(
        capsys, "pull", "other", "--out", tmp_path / "x", "--store", store, "--json", "--debug"
    )
    assert "Traceback" in err
    assert json.loads(err.splitlines()[-1])["error"] == "NOT_FOUND"
    nowhere = tmp_path / "none" / "x"
    assert run(capsys, "pull", MODEL, "--out", nowhere, "--store", store)[0] == cli.USAGE
    assert run(capsys, "status", "--store", tmp_path / "none")[0] == cli.USAGE
    assert run(capsys, "enroll", "boltz1.nonsense", "--store", tmp_path / "new")[0] == cli.USAGE
    assert run(
        capsys, "submit", MODEL, "--weights", nowhere, "--samples", 1, "--store", store
    )[0] == cli.USAGE  # fmt: skip
    with pytest.raises(SystemExit) as caught:
        cli.main(["participate", MODEL])
    assert caught.value.code == cli.USAGE


def test_exit_codes() -> None:
    assert cli.exit_code(errors.Unavailable("x")) == cli.UNREACHABLE
    assert cli.exit_code(errors.RoundRefused("x")) == cli.OWN_LIMITS
    assert cli.exit_code(errors.KeyStoreLocked("x")) == cli.USAGE
    assert cli.exit_code(errors.MalformedMessage("x")) == cli.USAGE
    assert cli.exit_code(errors.MalformedMessage("x", grpc_code="INVALID_ARGUMENT")) == cli.REFUSED
    assert cli.exit_code(errors.ClientNotActive("x")) == cli.REFUSED
    assert cli.exit_code(MeshError("x")) == cli.REFUSED


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("nothing", "module:attribute"),
        ("no_such_module:x", "cannot be imported"),
        ("json:no_such_thing", "cannot be imported"),
        ("decimal:Decimal", "no methods"),
    ],
)
def test_trainers_that_are_none_are_refused(name: str, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        cli.load_trainer(name)


def test_the_blocking_client(served: Served, store: Path) -> None:
    notices: list[Notice] = []
    served.rounds(1)
    with blocking.MeshClient.open(store, owner=ANY_MODE) as client:
        assert client.client_id in served.mesh.clients
        assert client.status() == "ACTIVE"
        assert client.privacy_budget(MODEL).rounds_left == 3
        assert client.pull_model(MODEL).manifest.version == 1
        trainer = FunctionTrainer(lambda m, r: {k: v + 0.25 for k, v in m.items()}, 57)
        summary = client.participate(trainer, MODEL, rounds=1, notify=notices.append)
        assert summary.counted == 1
        assert NoticeKind.SUBMITTED in {notice.kind for notice in notices}


def test_a_blocking_participation_is_stopped_by_another_thread(served: Served, store: Path) -> None:
    with blocking.MeshClient.open(store, owner=ANY_MODE) as client:
        checked_in = threading.Event()
        done = threading.Event()

        def take_part() -> None:
            trainer = FunctionTrainer(lambda m, r: TrainResult(weights=m), 57)
            client.participate(trainer, MODEL, notify=lambda notice: checked_in.set())
            done.set()

        thread = threading.Thread(target=take_part)
        thread.start()
        assert checked_in.wait(10)
        client.stop()
        assert done.wait(10)
        thread.join()


def test_a_blocking_client_needs_an_enrolled_store(served: Served, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        blocking.MeshClient.open(tmp_path / "none")
    served.mesh.faults.pending = 1
    with pytest.raises(errors.ApprovalPending):
        blocking.enroll(served.mesh.join_string(), tmp_path / "store")
    with pytest.raises(StateConflict):
        blocking.MeshClient.open(tmp_path / "store")
