"""A PostgreSQL server that belongs to this process: made once, started, watched, stopped.

    data_dir/            0700 (0711 where the server has a user of its own)
      launcher.lock      held by the process that runs the server
      password           0600, for connections over TCP
      cluster/           PostgreSQL's data directory, 0700; also the folder of its Unix socket
      postgres.log       what the server says, kept below a cap

Who holds the lock owns the folder: a PostgreSQL found at work there has outlived a launcher that
was killed, and is stopped and waited for before a new one starts. Where the path is short enough
the server listens on a Unix socket alone, whose folder only its owner may enter; else on 127.0.0.1
with a password. Durability (fsync) is PostgreSQL's default unless `settings` says otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

from boltz_mesh.app.postgres_binaries import RunAs, choose_run_as, find_binaries
from boltz_mesh.app.postgres_cluster import (
    DATABASE,
    ENVIRONMENT,
    USER,
    create_cluster,
    load_password,
)
from boltz_mesh.app.process_watch import close_all, processes_working_in, wait_ended
from boltz_protocol.errors import ConfigurationError, StateConflict

_READY: Final = b"database system is ready to accept connections"
_ADDRESS_TAKEN: Final = b"Address already in use"
_SOCKET_PORT: Final = 5432  # only names the socket file
# sun_path holds 108 bytes with its final zero (unix(7)); both programs build dir/.s.PGSQL.port.
_MAX_SOCKET_PATH_BYTES: Final = 107
# PostgreSQL splits the folder list at commas, connection strings at colons too.
_PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9/._+-]+")
_PORT_ATTEMPTS: Final = 5
# Recovery after a crash replays at most max_wal_size; this is far more than that takes.
_START_TIMEOUT_S: Final = 120.0
_STOP_TIMEOUT_S: Final = 30.0
_LOG_CAP_BYTES: Final = 16 << 20
_TAIL_BYTES: Final = 4096

_SETTINGS: Final[Mapping[str, str]] = {
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",  # the launcher reads the log
    "log_destination": "stderr",
    "logging_collector": "off",
    # Single-row statements: compiling them costs more than running them.
    "jit": "off",
    # One machine: nobody reads a replication stream.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_connections": "100",
    "shared_buffers": "64MB",
}


class EmbeddedPostgres:
    """One embedded server. `async with`, or `start` and `stop`.

    Args:
        data_dir: folder of its own, made when missing.
        port: TCP port on 127.0.0.1 to listen on as well; by default none, or a free one where a
            Unix socket is not possible.
        settings: more PostgreSQL settings, over the defaults here.
        initdb_sync: whether a new cluster is flushed to disk (tests need not).
        search_path: where to look for a PostgreSQL when the package's own is missing (as PATH).
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        initdb_sync: bool = True,
        search_path: str = os.defpath,
    ) -> None:
        self._home = data_dir.resolve()
        self._cluster = self._home / "cluster"
        self._wanted_port = port
        self._settings = {**_SETTINGS, **(settings or {})}
        self._initdb_sync = initdb_sync
        self._search_path = search_path
        self._lock_fd: int | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._pump: asyncio.Task[None] | None = None
        self._url: str | None = None
        self._ready = asyncio.Event()
        self._tail = b""

    def __repr__(self) -> str:
        return f"EmbeddedPostgres({str(self._home)!r})"

    @property
    def url(self) -> str:
        """The connection string of the mesh's database. Secret: it may hold the password."""
        if self._url is None:
            raise StateConflict("the embedded PostgreSQL is not running")
        return self._url

    @property
    def pid(self) -> int:
        """Process id of the server while it runs."""
        if self._process is None:
            raise StateConflict("the embedded PostgreSQL is not running")
        return self._process.pid

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Make the cluster if need be, clear what a killed launcher left, start, wait until ready.

        Raises: ConfigurationError when there is no PostgreSQL, the folder is in use or not ours,
        or the server does not start (with the end of its log).
        """
        if sys.platform != "linux":
            raise ConfigurationError(
                "the embedded PostgreSQL needs Linux; set DATABASE_URL to a running server",
                setting="DATABASE_URL",
            )
        if self._process is not None:
            raise StateConflict("the embedded PostgreSQL is running already")
        binaries = find_binaries(self._search_path)
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._take_lock()
        try:
            run_as = choose_run_as(self._cluster, binaries)
            password = load_password(self._home)
            if self._cluster.exists():
                await self._stop_leftovers()
            else:
                await create_cluster(
                    self._cluster, binaries, run_as, password, sync=self._initdb_sync
                )
            await self._start_server(binaries, run_as, password)
        except BaseException:
            await self._end_process()
            self._drop_lock()
            raise

    async def stop(self) -> None:
        """Stop the server and wait until it has ended. Safe to call twice."""
        await self._end_process()
        self._drop_lock()

    async def wait(self) -> int:
        """Wait until the server ends, by `stop` or by itself. Returns its exit code."""
        if self._process is None:
            raise StateConflict("the embedded PostgreSQL is not running")
        return await self._process.wait()

    # --- the folder ----------------------------------------------------------------------------

    def _take_lock(self) -> None:
        lock_fd = os.open(self._home / "launcher.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock_fd)
            raise ConfigurationError(
                f"another process runs the PostgreSQL in {self._home}; stop it, or choose another "
                "data folder",
                setting="data_dir",
            ) from None
        self._lock_fd = lock_fd

    def _drop_lock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    async def _stop_leftovers(self) -> None:
        """End every PostgreSQL process at work in our cluster, and wait for each of them.

        A new server must not start while a backend of a dead one is still attached to the shared
        memory. SIGINT asks the server for a fast shutdown; its children end with it. The lock files
        go afterwards: PostgreSQL only checks that some process has the number in them, and after a
        crash that number may be anybody's.
        """
        leftovers = processes_working_in(self._cluster, "postgres")
        try:
            alive = leftovers
            for signum in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
                for process in alive:
                    process.send(signum)
                alive = await wait_ended(alive, _STOP_TIMEOUT_S)
            if alive:
                raise ConfigurationError(
                    f"process {alive[0].pid} of an earlier PostgreSQL in {self._cluster} does not "
                    "end; end it by hand",
                    setting="data_dir",
                )
        finally:
            close_all(leftovers)
        for name in ("postmaster.pid", f".s.PGSQL.{_SOCKET_PORT}.lock"):
            (self._cluster / name).unlink(missing_ok=True)

    # --- the server ----------------------------------------------------------------------------

    def _socket_possible(self) -> bool:
        path = f"{self._cluster}/.s.PGSQL.{_SOCKET_PORT}"
        return len(os.fsencode(path)) <= _MAX_SOCKET_PATH_BYTES and bool(
            _PLAIN_PATH.fullmatch(path)
        )

    async def _start_server(self, binaries: Path, run_as: RunAs, password: str) -> None:
        over_socket = self._socket_possible()
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            if self._wanted_port is not None:
                port, addresses = self._wanted_port, "127.0.0.1"
            elif over_socket:
                port, addresses = _SOCKET_PORT, ""
            else:
                port, addresses = _free_port(), "127.0.0.1"
            if await self._launch(binaries, run_as, port, addresses, over_socket):
                break
            taken = self._wanted_port is None and addresses and _ADDRESS_TAKEN in self._tail
            if not taken or attempt == _PORT_ATTEMPTS:
                raise ConfigurationError(
                    f"PostgreSQL did not start in {self._home}: "
                    f"{self._tail.decode(errors='replace')}",
                    setting="data_dir",
                )
        if over_socket:
            host = quote(str(self._cluster), safe="")
            self._url = f"postgresql://{USER}@/{DATABASE}?host={host}&port={port}"
        else:
            self._url = f"postgresql://{USER}:{password}@127.0.0.1:{port}/{DATABASE}"

    async def _launch(
        self, binaries: Path, run_as: RunAs, port: int, addresses: str, over_socket: bool
    ) -> bool:
        """Start the server. Returns whether it is ready; else it has ended, `_tail` says why."""
        settings = {
            **self._settings,
            "listen_addresses": addresses,
            "port": str(port),
            "unix_socket_directories": str(self._cluster) if over_socket else "",
            "unix_socket_permissions": "0700",
        }
        command = [*run_as.prefix, *_end_with_parent(), str(binaries / "postgres")]
        command += ["-D", str(self._cluster)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        self._ready.clear()
        self._tail = b""
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(ENVIRONMENT),
            cwd="/",
            # Away from the terminal's Ctrl-C: we decide when it stops.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._pump = asyncio.create_task(self._pump_log(self._process.stdout))
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait(
                {ready, self._pump},
                timeout=_START_TIMEOUT_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            ready.cancel()
        if self._ready.is_set():
            return True
        await self._end_process()
        return False

    async def _pump_log(self, output: asyncio.StreamReader) -> None:
        """Copy the server's output to its log file until it ends; notice when it is ready."""
        path = self._home / "postgres.log"
        with path.open("ab", buffering=0) as log:
            while chunk := await output.read(1 << 16):
                self._tail = (self._tail + chunk)[-_TAIL_BYTES:]
                if not self._ready.is_set() and _READY in self._tail:
                    self._ready.set()
                if log.tell() + len(chunk) > _LOG_CAP_BYTES:
                    log.truncate(0)
                log.write(chunk)

    async def _end_process(self) -> None:
        process, pump = self._process, self._pump
        self._process = self._pump = self._url = None
        if process is None:
            return
        for signum in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            if process.returncode is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signum)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
        if pump is not None:
            await pump  # ends with the last process that holds the pipe


def _end_with_parent() -> tuple[str, ...]:
    """Ask the kernel to stop the server when this process is killed, where setpriv can do that.

    Without it the server lives on until the next start finds it.
    """
    setpriv = shutil.which("setpriv")
    return () if setpriv is None else (setpriv, "--pdeathsig", "INT", "--")


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
