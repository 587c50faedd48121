"""What people get wrong: one sentence, one piece of advice, a documented exit code."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from boltz_mesh.app.credentials import write_credential
from boltz_mesh.services.identity.authority import Authority, new_root
from boltz_protocol.ids import new_client_id, new_round_id
from tests.integration.cli.running import Cli, Result
from tests.support.mesh import Mesh, expired


def check(result: Result, code: int, *words: str) -> None:
    """Nothing on standard output, everything that helps on standard error."""
    assert (result.code, result.out) == (code, ""), result
    for word in words:
        assert word in result.err, result.err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["clients", "token", "--vaild", "3h"], "--valid"),
        (["clients", "token", "--valid", "soon"], "soon"),
        (["clients", "ls", "--status", "asleep"], "pending, active"),
        (["rounds", "ls"], "round"),
        (["round", "abort", new_round_id()], "reason"),
        (["models", "show"], "MODEL_ID"),
        (["models", "show", "m", "--version", "two"], "two"),
        (["models", "pull", "m"], "--out"),
        (["plan", "apply", "/no/such/plan.toml"], "/no/such/plan.toml"),
        (["models", "publish", "m", "/no/such/file"], "/no/such/file"),
        (["up", "--port", "99999"], "listen.port"),
        (["up", "--mesh", "Not A Name"], "mesh"),
        (["up", "--config", "/no/such/file.toml"], "/no/such/file.toml"),
    ],
)
async def test_wrong_arguments(cli: Cli, mesh: Mesh, arguments: list[str], word: str) -> None:
    result = await (cli(*arguments) if arguments[0] == "up" else cli.on(mesh, *arguments))
    check(result, 2, word)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["clients", "show", new_client_id()], "no client"),
        (["clients", "show", "bob"], "bob"),
        (["clients", "approve", new_client_id()], "no client"),
        (["plan", "show", "no-such-model"], "no-such-model"),
        (["budget", "no-such-model"], "no-such-model"),
        (["models", "show", "no-such-model"], "no-such-model"),
        (["models", "pull", "no-such-model", "--out", "/tmp/x"], "no-such-model"),
        (["models", "promote", "no-such-model", "1"], "no-such-model"),
        (["round", "start", "no-such-model"], "no-such-model"),
        (["round", "watch", new_round_id()], "round"),
        (["round", "show", new_round_id()], "round"),
        (["round", "abort", new_round_id(), "--reason", "why not"], "round"),
        (["round", "ls", "--last", "5000"], "1000"),
    ],
)
async def test_things_that_are_not_there(
    cli: Cli, mesh: Mesh, arguments: list[str], word: str
) -> None:
    check(await cli.on(mesh, *arguments), 3, "error: ", word, "next: ")


async def test_a_negative_number(cli: Cli, mesh: Mesh) -> None:
    check(await cli.on(mesh, "models", "show", "m", "--version=-1"), 2, "-1")
    check(await cli.on(mesh, "round", "ls", "--last=-1"), 2, "-1")


async def test_no_credential(cli: Cli, tmp_path: Path) -> None:
    result = await cli("status", cwd=tmp_path)
    check(result, 2, "boltz-mesh up", "--operator")


async def test_a_credential_that_others_can_read(cli: Cli, mesh: Mesh, tmp_path: Path) -> None:
    folder = tmp_path / "operator"
    shutil.copytree(mesh.operator_folder, folder)
    (folder / "key.pem").chmod(0o644)
    check(await cli("status", "--operator", str(folder)), 2, "key.pem", "600")


async def test_a_credential_that_is_not_whole(cli: Cli, mesh: Mesh, tmp_path: Path) -> None:
    folder = tmp_path / "operator"
    shutil.copytree(mesh.operator_folder, folder)
    (folder / "mesh.json").write_text("{}")
    check(await cli("status", "--operator", str(folder)), 2, "mesh.json")
    (folder / "mesh.json").unlink()
    check(await cli("status", "--operator", str(folder)), 2, "mesh.json")
    shutil.copy(mesh.operator_folder / "mesh.json", folder)
    (folder / "key.pem").write_text("not a key")
    check(await cli("status", "--operator", str(folder)), 2, "key.pem")


@pytest.mark.parametrize("kind", ["foreign", "expired"])
async def test_a_credential_that_is_not_this_meshs(
    cli: Cli, mesh: Mesh, tmp_path: Path, kind: str
) -> None:
    now = datetime.now(UTC)
    if kind == "foreign":
        key, root = new_root(mesh.name, now=now, lifetime=timedelta(days=1))
        authority = Authority(mesh=mesh.name, key=key, chain=[root], now=now)
    else:
        authority, now = expired(mesh.authority())
    folder = tmp_path / "operator"
    credential = authority.issue_operator("ann", now=now)
    write_credential(folder, credential, authority, address=mesh.addresses.mesh)
    check(await cli("status", "--operator", str(folder)), 4, "error: ", "next: ")


async def test_a_mesh_that_is_down(cli: Cli, mesh: Mesh, tmp_path: Path) -> None:
    folder = tmp_path / "operator"
    authority = mesh.authority()
    credential = authority.issue_operator("ann", now=datetime.now(UTC))
    # The discard port: nobody of ours listens there.
    write_credential(folder, credential, authority, address="localhost:9")
    check(await cli("status", "--operator", str(folder)), 4, "localhost:9", "boltz-mesh up")


async def test_no_mesh_to_make_credentials_for(cli: Cli, tmp_path: Path) -> None:
    made = await cli("credential", "bea", "--out", "bea", "--data-dir", "none", cwd=tmp_path)
    check(made, 2, "none", "--data-dir")


async def test_a_name_that_is_none(cli: Cli, mesh: Mesh, tmp_path: Path) -> None:
    out = str(tmp_path / "x")
    made = await cli("credential", "Not A Name", "--out", out, "--data-dir", str(mesh.data_dir))
    check(made, 3, "Not A Name")


async def test_help_lists_the_exit_codes(cli: Cli) -> None:
    result = await cli("--help")
    assert result.code == 0
    assert "4 mesh unreachable" in " ".join(result.out.split())
