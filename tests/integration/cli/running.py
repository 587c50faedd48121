"""Runs the `boltz-mesh` command."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.epsilons import check_output
from tests.support.mesh import Mesh

REPOSITORY = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True)
class Result:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on standard output."""
        assert self.code in (0, 5), self.err
        return json.loads(self.out)


def environment() -> dict[str, str]:
    """Ours, without what would change what the command does or how wide it prints."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MESH_", "BOLTZ_"))}
    kept.pop("DATABASE_URL", None)
    return kept | {"COLUMNS": "180", "NO_COLOR": "1"}


class Cli:
    """Commands of one zygote. Whatever happens, nobody is shown a traceback, or an epsilon without
    its unit, relation and delta.
    """

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[int]] = {}

    async def __call__(self, *arguments: str, stdin: str = "", cwd: Path | None = None) -> Result:
        number = next(self._numbers)
        folder = self._folder / str(number)
        folder.mkdir()
        (folder / "in").write_text(stdin)
        job = {
            "id": number,
            "arguments": arguments,
            "folder": str(folder),
            "environment": environment(),
            "cwd": None if cwd is None else str(cwd),
        }
        ended = self._waiting[number] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        code = await asyncio.wait_for(ended, 60)
        result = Result(code, (folder / "out").read_text(), (folder / "err").read_text())
        assert "Traceback" not in result.out + result.err, result.err
        check_output(result.out)
        check_output(result.err)
        return result

    async def on(self, mesh: Mesh, *arguments: str, stdin: str = "") -> Result:
        """One command as the mesh's first operator."""
        folder = str(mesh.operator_folder)
        return await self(*arguments, "--operator", folder, stdin=stdin)

    async def read(self) -> None:
        """Hear of the commands that have ended, for ever."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            answer = json.loads(line)
            self._waiting.pop(answer["id"]).set_result(answer["code"])


@contextlib.asynccontextmanager
async def commands(folder: Path) -> AsyncIterator[Cli]:
    """Something that runs commands."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.integration.cli.zygote"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment(),
        cwd=REPOSITORY,
    )
    cli = Cli(process, folder)
    reading = asyncio.create_task(cli.read())
    try:
        yield cli
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
        await reading
