"""The launcher: made once, one owner, nothing left over, nothing acknowledged lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from boltz_mesh.app import postgres_binaries
from boltz_mesh.app.embedded_postgres import EmbeddedPostgres
from boltz_mesh.app.postgres_binaries import choose_run_as, find_binaries
from boltz_mesh.app.postgres_cluster import create_cluster
from boltz_mesh.app.process_watch import close_all, processes_working_in, wait_ended
from boltz_mesh.storage.postgres import CONNECTION_ERRORS
from boltz_protocol.errors import ConfigurationError, StateConflict
from tests.support.postgres import QUICK

AS_ROOT = os.geteuid() == 0


def quick(folder: Path, **more: object) -> EmbeddedPostgres:
    return EmbeddedPostgres(folder, settings=QUICK, initdb_sync=False, **more)  # type: ignore[arg-type]


def postgres_processes(folder: Path) -> int:
    found = processes_working_in(folder / "cluster", "postgres")
    close_all(found)
    return len(found)


async def ask(url: str, sql: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def killed_launcher(folder: Path) -> AsyncIterator[int]:
    """A launcher in a process of its own; killed inside. Gives the pid of its PostgreSQL.

    Without setpriv on PATH its server is not told, as on a machine that lacks it.
    """
    script = (
        "import asyncio, sys\nfrom pathlib import Path\n"
        "from boltz_mesh.app import embedded_postgres as e\n"
        "e._end_with_parent = lambda: ()\n"
        "async def main():\n"
        "    server = e.EmbeddedPostgres(Path(sys.argv[1]))\n"
        "    await server.start()\n"
        "    print(server.pid, flush=True)\n"
        "    await server.wait()\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(folder), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    pid = int(await process.stdout.readline())
    process.kill()
    await process.wait()
    yield pid


async def test_start_use_stop_start_again(tmp_path: Path) -> None:
    server = quick(tmp_path / "pg")
    await server.start()
    assert await ask(server.url, "SELECT current_database()") == "boltz_mesh"
    await ask(server.url, "CREATE TABLE kept (x int)")
    await server.stop()
    await server.stop()
    assert postgres_processes(tmp_path / "pg") == 0
    async with quick(tmp_path / "pg") as again:
        assert await ask(again.url, "SELECT count(*) FROM kept") == 0


async def test_only_the_owner_can_read_the_folder(tmp_path: Path) -> None:
    async with quick(tmp_path / "pg"):
        assert stat.S_IMODE((tmp_path / "pg" / "cluster").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "pg" / "password").stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "pg").stat().st_mode) in {0o700, 0o711}


async def test_a_long_path_means_tcp_with_a_password(tmp_path: Path) -> None:
    async with quick(tmp_path / ("long" * 25)) as server:
        parts = urlsplit(server.url)
        assert parts.hostname == "127.0.0.1"
        assert await ask(server.url, "SELECT 1") == 1
        with pytest.raises(asyncpg.InvalidPasswordError):
            await ask(server.url.replace(str(parts.password), "wrong"), "SELECT 1")
        assert str(parts.password) not in repr(server)


async def test_a_path_that_would_be_split_means_tcp(tmp_path: Path) -> None:
    async with quick(tmp_path / "a,b") as server:
        assert urlsplit(server.url).hostname == "127.0.0.1"


async def test_a_wanted_port_is_used_and_a_taken_one_refused(tmp_path: Path) -> None:
    async with quick(tmp_path / "first" / ("long" * 25)) as server:
        port = urlsplit(server.url).port
        with pytest.raises(ConfigurationError, match="Address already in use"):
            await quick(tmp_path / "second", port=port).start()
        assert postgres_processes(tmp_path / "second") == 0
    async with quick(tmp_path / "second", port=port) as server:
        password = (tmp_path / "second" / "password").read_text()
        over_tcp = f"postgresql://boltz:{password}@127.0.0.1:{port}/boltz_mesh"
        assert await ask(over_tcp, "SELECT 1") == 1
        assert await ask(server.url, "SELECT inet_server_addr()") is None  # the socket


async def test_two_launchers_for_one_folder(tmp_path: Path) -> None:
    async with quick(tmp_path / "pg") as server:
        with pytest.raises(ConfigurationError, match="another process runs"):
            await quick(tmp_path / "pg").start()
        assert await ask(server.url, "SELECT 1") == 1


async def test_what_a_killed_launcher_left_is_stopped_first(tmp_path: Path) -> None:
    async with killed_launcher(tmp_path / "pg") as old_pid:
        assert postgres_processes(tmp_path / "pg") > 1
        async with quick(tmp_path / "pg") as server:
            assert server.pid != old_pid
            assert await ask(server.url, "SELECT 1") == 1
    assert postgres_processes(tmp_path / "pg") == 0


async def test_the_server_ends_with_a_killed_launcher(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\nfrom pathlib import Path\n"
        "from boltz_mesh.app.embedded_postgres import EmbeddedPostgres\n"
        "async def main():\n"
        "    server = EmbeddedPostgres(Path(sys.argv[1]))\n"
        "    await server.start()\n"
        "    print(server.pid, flush=True)\n"
        "    await server.wait()\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(tmp_path / "pg"), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    left = processes_working_in(tmp_path / "pg" / "cluster", "postgres")
    try:
        process.kill()
        await process.wait()
        assert await wait_ended(left, 20.0) == []
    finally:
        close_all(left)


async def test_a_stale_pid_file_that_names_a_living_process(tmp_path: Path) -> None:
    async with quick(tmp_path / "pg"):
        pass
    sleeper = await asyncio.create_subprocess_exec("sleep", "60")
    owner = (tmp_path / "pg" / "cluster").stat()
    for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
        stale = tmp_path / "pg" / "cluster" / name
        stale.write_text(f"{sleeper.pid}\n{tmp_path}\n0\n5432\n\n\n\n")
        os.chown(stale, owner.st_uid, owner.st_gid)
    try:
        async with quick(tmp_path / "pg") as server:
            assert await ask(server.url, "SELECT 1") == 1
        assert sleeper.returncode is None
    finally:
        sleeper.kill()
        await sleeper.wait()


async def test_sigkill_under_load_loses_nothing_acknowledged(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "pg")  # durable, as in production
    await server.start()
    await ask(server.url, "CREATE TABLE kept (x int PRIMARY KEY)")
    acknowledged: list[int] = []

    async def write(first: int) -> None:
        connection = await asyncpg.connect(server.url)
        with contextlib.suppress(asyncpg.PostgresError, *CONNECTION_ERRORS):
            for x in range(first, first + 100_000):
                await connection.execute("INSERT INTO kept VALUES ($1)", x)
                acknowledged.append(x)
                if len(acknowledged) == 200:
                    os.kill(server.pid, signal.SIGKILL)
        connection.terminate()

    await asyncio.gather(write(0), write(1_000_000))
    assert await server.wait() != 0
    await server.stop()
    async with EmbeddedPostgres(tmp_path / "pg") as again:
        rows = await ask(again.url, "SELECT array_agg(x) FROM kept")
        assert isinstance(rows, list)
        assert set(acknowledged) <= set(rows)
        assert len(acknowledged) >= 200


async def test_a_damaged_cluster_says_what_postgres_said(tmp_path: Path) -> None:
    async with quick(tmp_path / "pg"):
        pass
    (tmp_path / "pg" / "cluster" / "PG_VERSION").write_text("7\n")
    with pytest.raises(ConfigurationError, match="not compatible with this version"):
        await quick(tmp_path / "pg").start()
    # The lock is free again: a mended folder starts.
    (tmp_path / "pg" / "cluster" / "PG_VERSION").write_text("18\n")
    async with quick(tmp_path / "pg"):
        pass


async def test_an_interrupted_initdb_leaves_nothing(tmp_path: Path) -> None:
    rest = tmp_path / "pg" / "cluster.new-dead"
    rest.mkdir(parents=True)
    (rest / "half").write_text("half")
    async with quick(tmp_path / "pg"):
        assert not list((tmp_path / "pg").glob("cluster.new-*"))


async def test_a_cancelled_start_leaves_nothing_running(tmp_path: Path) -> None:
    server = quick(tmp_path / "pg")
    starting = asyncio.create_task(server.start())
    await asyncio.wait({starting}, timeout=0.15)  # in the middle of initdb
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    async with quick(tmp_path / "pg") as again:
        assert await ask(again.url, "SELECT 1") == 1


async def test_initdb_that_fails_is_explained(tmp_path: Path) -> None:
    binaries = find_binaries(os.defpath)
    home = tmp_path / "pg"
    home.mkdir()
    run_as = choose_run_as(home / "cluster", binaries)
    with pytest.raises(ConfigurationError, match="could not be made"):
        await create_cluster(home / "cluster", binaries, run_as, "", sync=False)
    assert not (home / "cluster").exists()


async def test_asking_a_server_that_does_not_run(tmp_path: Path) -> None:
    server = quick(tmp_path / "pg")
    with pytest.raises(StateConflict):
        _ = server.url
    with pytest.raises(StateConflict):
        _ = server.pid
    with pytest.raises(StateConflict):
        await server.wait()
    async with server:
        with pytest.raises(StateConflict, match="running already"):
            await server.start()


async def test_the_log_stays_below_its_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boltz_mesh.app.embedded_postgres._LOG_CAP_BYTES", 4096)
    async with quick(tmp_path / "pg") as server:
        connection = await asyncpg.connect(server.url)
        for _ in range(50):
            with pytest.raises(asyncpg.UndefinedColumnError):
                await connection.execute("SELECT no_such_column_in_a_rather_long_statement")
        await connection.close()
    assert (tmp_path / "pg" / "postgres.log").stat().st_size <= 4096


def test_binaries_from_path_and_from_debians_folders(tmp_path: Path) -> None:
    ours = find_binaries("")
    assert (ours / "initdb").exists()
    for version in ("9", "15", "17"):
        folder = tmp_path / version / "bin"
        folder.mkdir(parents=True)
        for name in ("initdb", "postgres"):
            (folder / name).write_text("#!/bin/sh\n")
            (folder / name).chmod(0o755)
    (tmp_path / "17" / "bin" / "postgres").unlink()  # a client package only
    assert find_binaries("", wheel=False, debian=tmp_path) == tmp_path / "15" / "bin"
    on_path = str(tmp_path / "9" / "bin")
    assert find_binaries(on_path, wheel=False, debian=tmp_path) == tmp_path / "9" / "bin"
    with pytest.raises(ConfigurationError, match="set DATABASE_URL") as refused:
        find_binaries("", wheel=False, debian=tmp_path / "none")
    assert refused.value.metadata["setting"] == "DATABASE_URL"


def test_without_the_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(postgres_binaries, "_WHEEL", "no-such-package")
    with pytest.raises(ConfigurationError):
        find_binaries("", debian=tmp_path)


@pytest.mark.parametrize("private", [False, True], ids=["open", "private"])
async def test_whom_the_server_runs_as(tmp_path: Path, private: bool) -> None:
    """Never root; below a private folder too."""
    top = tmp_path / "top"
    top.mkdir()
    for folder in (top, tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    if private:
        top.chmod(0o700)
    async with quick(top / "pg") as server:
        process = Path("/proc") / str(server.pid)
        uid = process.stat().st_uid
        assert await ask(server.url, "SELECT 1") == 1
        assert uid == (top / "pg" / "cluster").stat().st_uid
        if AS_ROOT and private:
            assert (process / "uid_map").read_text().split() == ["1000", "0", "1"]
    async with quick(top / "pg") as server:  # the owner decides again
        assert await ask(server.url, "SELECT 1") == 1


def test_a_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 4711)
    with pytest.raises(ConfigurationError, match="belongs to user id"):
        choose_run_as(tmp_path, tmp_path)


def test_root_that_can_neither_change_user_nor_map_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minimal container without util-linux."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="user namespaces are not allowed"):
        choose_run_as(tmp_path / "pg" / "cluster", tmp_path)
    with pytest.raises(ConfigurationError, match="setpriv"):
        postgres_binaries._as_user(1000, 1000)


def test_a_normal_user(tmp_path: Path) -> None:
    """In a user namespace we are not root, as on a laptop; the same folder on a second run."""
    script = (
        "import asyncio, os, sys\nfrom pathlib import Path\n"
        "from boltz_mesh.app.embedded_postgres import EmbeddedPostgres\n"
        "async def main():\n"
        "    assert os.geteuid() != 0\n"
        "    async with EmbeddedPostgres(Path(sys.argv[1])) as server:\n"
        "        print(server.pid)\n"
        "asyncio.run(main())\n"
    )
    prefix = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"] if AS_ROOT else []
    for _ in range(2):
        subprocess.run([*prefix, sys.executable, "-c", script, str(tmp_path / "pg")], check=True)


async def test_waiting_gives_up_after_its_time() -> None:
    sleeper = await asyncio.create_subprocess_exec("sleep", "60", cwd="/usr/bin")
    found = processes_working_in(Path("/usr/bin"), "sleep")
    try:
        assert sleeper.pid in {process.pid for process in found}
        assert await wait_ended(found, 0.02) == found
        for process in found:
            if process.pid == sleeper.pid:
                process.send(signal.SIGKILL)
        await sleeper.wait()
        assert sleeper.pid not in {process.pid for process in await wait_ended(found, 0.02)}
        found[0].send(signal.SIGCONT)
    finally:
        close_all(found)
