"""`boltz-client privacy`: two units, never mixed up, without the mesh."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from boltz_client import cli
from boltz_client.ledger import Ledger
from boltz_client.private_files import lock_exclusively
from boltz_client.record_ledger import RECORD_CAVEAT, RecordLedger, record_epsilon
from boltz_protocol.ids import ModelId
from tests.unit.client.record_privacy.test_record_ledger import event as training
from tests.unit.client.test_ledger import event as release


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir(mode=0o700)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["privacy", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_each_ledger_is_told_in_its_own_unit(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds, trainings = Ledger(store), RecordLedger(store)
    rounds.charge(release())
    trainings.charge(training(), 9.0)
    trainings.charge(training(model_id=ModelId("other")), 9.0)
    trainings.charge(training(table="quotes"), 9.0)
    # Another process takes part meanwhile.
    lock_exclusively(store / "lock")
    code, out, _ = run(capsys, "--store", store, "--delta", "1e-5", "--json")
    assert code == cli.OK
    client, record = json.loads(out)["client_level"], json.loads(out)["record_level"]
    assert client == {
        "unit": "client",
        "relation": "contribution-set-to-zero",
        "delta": 1e-5,
        "models": [
            {"model": "toy", "epsilon_spent": rounds.spent(release().model_id, 1e-5)}
            | {"rounds_charged": 1}
        ],
    }
    assert (record["unit"], record["relation"]) == ("record", "add-or-remove-one-record")
    assert (record["delta"], record["caveat"]) == (1e-5, RECORD_CAVEAT)
    assert record["tables"] == [
        {
            "table": "orders",
            "record_level_epsilon_spent": record_epsilon([training()] * 2, 1e-5),
            "trainings_charged": 2,
            "steps_charged": 100,
            "models": ["other", "toy"],
        },
        {
            "table": "quotes",
            "record_level_epsilon_spent": record_epsilon([training()], 1e-5),
            "trainings_charged": 1,
            "steps_charged": 50,
            "models": ["toy"],
        },
    ]
    together = record["all_tables"]["record_level_epsilon_spent"]
    assert together == record_epsilon([training()] * 3, 1e-5)


def test_the_text_says_what_a_record_is_and_is_not(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RecordLedger(store).charge(training(), 9.0)
    RecordLedger(store).charge(training(table="quotes"), 9.0)
    Ledger(store).charge(release(mechanism="none", noise_multiplier=0.0, delta=0.0))
    code, out, _ = run(capsys, "--store", store)
    assert code == cli.OK
    client, _, record = out.partition("record-level (unit: record; ")
    assert client == (
        "client-level (unit: client; relation: contribution-set-to-zero; at delta 1e-06):\n"
        "  toy: epsilon without bound, 1 rounds charged\n"
    )
    assert record.startswith("relation: add-or-remove-one-record; at delta 1e-06), another unit:\n")
    assert "  table orders: record-level epsilon 0.766, 1 trainings of 50 steps" in record
    assert "a record that stands in all of them: record-level epsilon" in record
    assert record.endswith(RECORD_CAVEAT + "\n")
    for words in ("One trading day touches many overlapping rows", "features look back"):
        assert words in record


def test_nothing_charged_is_said(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--store", store)
    assert code == cli.OK
    assert "  no round was charged\n" in out
    assert "  no training with record-level privacy was charged\n" in out
    assert RECORD_CAVEAT in out
    _, out, _ = run(capsys, "--store", store, "--json")
    report = json.loads(out)
    assert report["client_level"]["models"] == report["record_level"]["tables"] == []
    assert report["record_level"]["all_tables"]["record_level_epsilon_spent"] == 0


def test_what_has_no_bound_is_null(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RecordLedger(store).charge(training(noise_multiplier=0.1, steps=1 << 23), float("inf"))
    _, out, _ = run(capsys, "--store", store, "--json")
    (table,) = json.loads(out)["record_level"]["tables"]
    assert table["record_level_epsilon_spent"] is None


@pytest.mark.parametrize("delta", ["0", "-1", "1", "nan", "1e-16"])
def test_a_wrong_delta_is_named(
    store: Path, capsys: pytest.CaptureFixture[str], delta: str
) -> None:
    code, _, error = run(capsys, "--store", store, f"--delta={delta}", "--json")
    assert code == cli.USAGE
    assert json.loads(error)["message"].endswith("such as 1e-6")


def test_a_store_that_is_not_there_or_is_damaged(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = run(capsys, "--store", store / "none")
    assert (code, "cannot be read" in error) == (cli.USAGE, True)
    RecordLedger(store).charge(training(), 9.0)
    RecordLedger(store).path.write_bytes(b"{}\n")
    code, _, error = run(capsys, "--store", store)
    assert (code, "is damaged" in error) == (cli.USAGE, True)
